"""MimicMotion's PoseNet: a drawn pose becomes latents that the UNet adds behind its input convolution."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dispose_rt.contract import Sizes

from ..checkpoints import load_strict

#: (channels out, kernel, stride) of the convolutions, each followed by SiLU
_LAYERS = ((3, 3, 1), (16, 4, 2), (16, 3, 1), (32, 4, 2), (32, 3, 1), (64, 4, 2), (64, 3, 1), (128, 3, 1))


class PoseNet(nn.Module):
    """Eight convolutions, a projection and a learned scale; one frame does not see another."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = 3
        for out, kernel, stride in _LAYERS:
            layers += [nn.Conv2d(width, out, kernel, stride, padding=1), nn.SiLU()]
            width = out
        self.conv_layers = nn.Sequential(*layers)
        self.final_proj = nn.Conv2d(width, channels, kernel_size=1)
        self.scale = nn.Parameter(torch.full((1,), 2.0))

    def forward(self, pose_images: Tensor) -> Tensor:
        """Encode drawn poses.

        Args:
            pose_images: float32 [frames, 3, height, width], -1..1.

        Returns:
            Pose latents in the compute dtype, [frames, channels, height / 8, width / 8].
        """
        hidden = self.conv_layers(pose_images.to(self.scale.dtype))
        latents: Tensor = self.final_proj(hidden) * self.scale
        return latents


def build_pose_net(tensors: Mapping[str, Tensor], source: str = "MimicMotion_1-1.pth") -> PoseNet:
    """Build PoseNet and load its published weights; its output width is read from them.

    Args:
        tensors: the tensors of `MimicMotion_1-1.pth` whose names begin with `pose_net.`, that prefix removed.
        source: file that they come from, for the error message.

    Raises:
        CheckpointError: a tensor is missing, unknown or of another shape; every problem is listed.
    """
    bias = tensors.get("final_proj.bias")
    with torch.device("meta"):
        pose_net = PoseNet(channels=Sizes.channels[0] if bias is None else len(bias))
    load_strict(pose_net, tensors, source)
    return pose_net.eval()
