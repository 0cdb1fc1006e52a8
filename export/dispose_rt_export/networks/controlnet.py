"""DisPose's hybrid ControlNet: motion features enter at the input, point features between the down blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dispose_rt.contract import RESIDUAL_MULTIPLICITY

from ..checkpoints import load_strict
from .spatio_temporal import (
    LAYERS_PER_LEVEL,
    LEVELS,
    DenoiserConfig,
    SpatioTemporalEncoder,
    collapsed_tensors,
    lay_out_guidance,
)


class ControlNet(SpatioTemporalEncoder):
    """The ControlNet with both guidance halves inside, as the contract's `controlnet` describes it."""

    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__(config)
        widths = [config.channels[0]]
        for level, channels in enumerate(config.channels):
            widths += [channels] * (LAYERS_PER_LEVEL + (level < LEVELS - 1))
        self.controlnet_down_blocks = nn.ModuleList(nn.Conv2d(width, width, kernel_size=1) for width in widths)
        self.controlnet_mid_block = nn.Conv2d(widths[-1], widths[-1], kernel_size=1)

    def forward(
        self,
        latents: Tensor,
        image_latents: Tensor,
        timestep: Tensor,
        image_embeds: Tensor,
        added_time_ids: Tensor,
        motion_features: Tensor,
        *point_features: Tensor,
    ) -> tuple[Tensor, ...]:
        """Compute the residuals of both halves of classifier-free guidance; motion and points are the same in both.

        Args:
            latents: float32 [tile, 4, h, w], scaled for the timestep.
            image_latents: float32 [1, 4, h, w].
            timestep: float32 [1], a quarter of the natural logarithm of sigma.
            image_embeds: float32 [1, 1, embed].
            added_time_ids: float32 [1, 3]: frame rate - 1, motion bucket, noise augmentation strength.
            motion_features: compute dtype [tile, c0, h, w].
            point_features: 4, compute dtype, [tile, c_i, ...] at a half, a quarter, an eighth and an eighth of h and w.

        Returns:
            13 residuals in the compute dtype, [2 * tile, ...], unconditional frames first, to be added once each.
        """
        sample, context = lay_out_guidance(latents, image_latents, image_embeds)
        time = self.embed_time(timestep, added_time_ids)
        motion, *points = (torch.cat([features, features]) for features in (motion_features, *point_features))
        return self.control(sample.to(self.dtype), time, context.to(self.dtype), motion, points)

    def control(
        self, sample: Tensor, time: Tensor, context: Tensor, motion_features: Tensor, point_features: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """Compute the residuals of any batch: everything in the compute dtype, rows batch-major, one context per clip.

        Args:
            sample: [batch * frames, 8, h, w].
            time: [1, time_channels], from `embed_time`.
            context: [batch, embed].
            motion_features: [batch * frames, c0, h, w].
            point_features: 4, [batch * frames, c_i, ...].
        """
        frames = sample.shape[0] // context.shape[0]
        hidden = self.conv_in(sample) + motion_features
        states = [hidden]
        for block, points in zip(self.down_blocks, point_features, strict=True):
            outputs = block(hidden, time, context, frames)
            states += outputs
            # added after the block's residuals are taken: the points of a level reach only the levels below it
            hidden = outputs[-1] + points
        residuals = [conv(state) for conv, state in zip(self.controlnet_down_blocks, states, strict=True)]
        middle = self.mid_block(hidden, time, context, frames)
        return (*residuals, self.controlnet_mid_block(middle))

    @torch.no_grad()
    def scale_residuals(self, factors: Sequence[float]) -> None:
        """Fold one factor per residual into the convolution that emits it.

        Args:
            factors: 13, for example the number of times that the reference adds each residual.
        """
        convolutions = (*self.controlnet_down_blocks, self.controlnet_mid_block)
        for convolution, factor in zip(convolutions, factors, strict=True):
            for parameter in convolution.parameters():
                parameter.mul_(factor)


def build_controlnet(
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    residual_factors: Sequence[float] = RESIDUAL_MULTIPLICITY,
    source: str = "DisPose.pth",
) -> ControlNet:
    """Build the ControlNet and load its published weights.

    Args:
        config: the parsed `unet/config.json` of Stable Video Diffusion, whose widths the ControlNet shares.
        tensors: the tensors of `DisPose.pth` except those of `controlnet_cond_embedding.` and `point_adapter.`.
        residual_factors: 13 factors to fold into the residuals. By default those of the reference's UNet, whose loop
            adds the list of residuals again after every down block. The conditioning scale is 1.
        source: file that the tensors come from, for the error message.

    Raises:
        CheckpointError: the configuration or a tensor does not fit; every problem is listed.
    """
    with torch.device("meta"):
        controlnet = ControlNet(DenoiserConfig.from_mapping(config))
    load_strict(controlnet, tensors, source, unused=collapsed_tensors(controlnet))
    controlnet.scale_residuals(residual_factors)
    return controlnet.eval()
