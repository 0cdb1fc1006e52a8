"""DisPose's motion field encoder: dense and trajectory flow become features that the ControlNet adds behind its input.

It reads neither the timestep nor the latents, so it runs once per clip, not once per step as in the reference.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from dispose_rt.contract import Sizes

from ..checkpoints import load_strict

_WIDTHS = (16, 32, 96, 256)


class MotionEncoder(nn.Module):
    """Two convolutional encoders of the same shape, one per motion field, summed before a last convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_in_flow = nn.Conv2d(2, _WIDTHS[0], kernel_size=3, padding=1)
        self.blocks_flow = _build_blocks()
        self.conv_out_flow = nn.Conv2d(_WIDTHS[-1], channels, kernel_size=3, padding=1)
        self.conv_in_traj = nn.Conv2d(2, _WIDTHS[0], kernel_size=3, padding=1)
        self.blocks_traj = _build_blocks()
        self.conv_out_traj = nn.Conv2d(_WIDTHS[-1], channels, kernel_size=3, padding=1)
        self.conv_final = nn.Conv2d(channels, channels, kernel_size=3, padding=1)

    def forward(self, dense_flow: Tensor, trajectory_flow: Tensor) -> Tensor:
        """Encode the motion fields, each frame by itself; the reference frame is encoded as zero flow.

        Args:
            dense_flow: float32 [frames, 2, height, width], pixels from the reference frame, channel 0 = x.
            trajectory_flow: float32 [frames, 2, height, width], pixels from the frame before.

        Returns:
            Motion features in the compute dtype, [frames, channels, height / 8, width / 8].
        """
        dtype = self.conv_final.weight.dtype
        dense = _encode(dense_flow.to(dtype), self.conv_in_flow, self.blocks_flow, self.conv_out_flow)
        trajectories = _encode(trajectory_flow.to(dtype), self.conv_in_traj, self.blocks_traj, self.conv_out_traj)
        features: Tensor = self.conv_final(dense + trajectories)
        return features


def _build_blocks() -> nn.ModuleList:
    """Build, per width, one convolution that keeps it and one of stride 2 that leads to the next."""
    blocks = nn.ModuleList()
    for width, wider in itertools.pairwise(_WIDTHS):
        blocks.append(nn.Conv2d(width, width, kernel_size=3, padding=1))
        blocks.append(nn.Conv2d(width, wider, kernel_size=3, padding=1, stride=2))
    return blocks


def _encode(flow: Tensor, conv_in: nn.Module, blocks: nn.ModuleList, conv_out: nn.Module) -> Tensor:
    hidden = functional.silu(conv_in(flow))
    for block in blocks:
        hidden = functional.silu(block(hidden))
    encoded: Tensor = conv_out(hidden)
    return encoded


def build_motion_encoder(tensors: Mapping[str, Tensor], source: str = "DisPose.pth") -> MotionEncoder:
    """Build the motion field encoder and load its published weights; its output width is read from them.

    Args:
        tensors: the tensors of `DisPose.pth` whose names begin with `controlnet_cond_embedding.`, that prefix removed.
        source: file that they come from, for the error message.

    Raises:
        CheckpointError: a tensor is missing, unknown or of another shape; every problem is listed.
    """
    bias = tensors.get("conv_final.bias")
    with torch.device("meta"):
        encoder = MotionEncoder(channels=Sizes.channels[0] if bias is None else len(bias))
    load_strict(encoder, tensors, source)
    return encoder.eval()
