"""MimicMotion's UNet: Stable Video Diffusion with pose latents at the input and residuals on the skip connections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..checkpoints import load_strict
from .spatio_temporal import (
    LAYERS_PER_LEVEL,
    LEVELS,
    DenoiserConfig,
    SpatioTemporalEncoder,
    UpBlock,
    collapsed_tensors,
    lay_out_guidance,
)


class UNet(SpatioTemporalEncoder):
    """The denoiser with both guidance halves inside, as the contract's `unet` describes it."""

    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__(config)
        self.up_blocks = _build_up_blocks(config)
        self.conv_norm_out = nn.GroupNorm(32, config.channels[0], eps=1e-5)
        self.conv_out = nn.Conv2d(config.channels[0], 4, kernel_size=3, padding=1)

    def forward(
        self,
        latents: Tensor,
        image_latents: Tensor,
        timestep: Tensor,
        image_embeds: Tensor,
        added_time_ids: Tensor,
        pose_latents: Tensor,
        *residuals: Tensor,
    ) -> Tensor:
        """Predict both halves of classifier-free guidance.

        Args:
            latents: float32 [tile, 4, h, w], scaled for the timestep.
            image_latents: float32 [1, 4, h, w].
            timestep: float32 [1], a quarter of the natural logarithm of sigma.
            image_embeds: float32 [1, 1, embed].
            added_time_ids: float32 [1, 3]: frame rate - 1, motion bucket, noise augmentation strength.
            pose_latents: compute dtype [tile, c0, h, w].
            residuals: 13, compute dtype, [2 * tile, ...]. Each is added once: the multiplicities of the reference
                are folded into the ControlNet.

        Returns:
            The v-prediction, float32 [2, tile, 4, h, w]; row 0 is the unconditional half.
        """
        sample, context = lay_out_guidance(latents, image_latents, image_embeds)
        poses = torch.cat([torch.zeros_like(pose_latents), pose_latents])
        time = self.embed_time(timestep, added_time_ids)
        predicted = self.denoise(sample.to(self.dtype), time, context.to(self.dtype), poses, residuals)
        return torch.unflatten(predicted, 0, (2, -1)).float()

    def denoise(
        self, sample: Tensor, time: Tensor, context: Tensor, pose_latents: Tensor, residuals: Sequence[Tensor]
    ) -> Tensor:
        """Predict any batch: everything in the compute dtype, rows batch-major, one context per clip.

        Args:
            sample: [batch * frames, 8, h, w].
            time: [1, time_channels], from `embed_time`.
            context: [batch, embed].
            pose_latents: [batch * frames, c0, h, w].
            residuals: 13, [batch * frames, ...].

        Returns:
            [batch * frames, 4, h, w].
        """
        frames = sample.shape[0] // context.shape[0]
        states = [self.conv_in(sample) + pose_latents]
        for block in self.down_blocks:
            states += block(states[-1], time, context, frames)
        hidden = self.mid_block(states[-1], time, context, frames) + residuals[-1]
        skips = [state + residual for state, residual in zip(states, residuals[:-1], strict=True)]
        for block in self.up_blocks:
            innermost = [skips.pop() for _ in range(LAYERS_PER_LEVEL + 1)]
            hidden = block(hidden, innermost, time, context, frames)
        predicted: Tensor = self.conv_out(functional.silu(self.conv_norm_out(hidden)))
        return predicted


def _build_up_blocks(config: DenoiserConfig) -> nn.ModuleList:
    """Build the levels, innermost first; the last skip connection of a level comes from the next outer one."""
    blocks = nn.ModuleList()
    for level in reversed(range(LEVELS)):
        own = config.channels[level]
        inner = config.channels[min(level + 1, LEVELS - 1)]
        skips = [own] * LAYERS_PER_LEVEL + [config.channels[max(level - 1, 0)]]
        inputs = [inner] + [own] * LAYERS_PER_LEVEL
        widths = [before + skip for before, skip in zip(inputs, skips, strict=True)]
        heads = config.heads[level] if level < LEVELS - 1 else None
        blocks.append(UpBlock(widths, own, config, heads, upsample=level > 0))
    return blocks


def build_unet(config: Mapping[str, Any], tensors: Mapping[str, Tensor], source: str = "MimicMotion_1-1.pth") -> UNet:
    """Build the UNet and load its published weights.

    Args:
        config: the parsed `unet/config.json` of Stable Video Diffusion.
        tensors: the tensors of `MimicMotion_1-1.pth` whose names begin with `unet.`, that prefix removed.
        source: file that they come from, for the error message.

    Raises:
        CheckpointError: the configuration or a tensor does not fit; every problem is listed.
    """
    with torch.device("meta"):
        unet = UNet(DenoiserConfig.from_mapping(config))
    load_strict(unet, tensors, source, unused=collapsed_tensors(unet))
    return unet.eval()
