"""The exporter's spatio-temporal networks on rows that each have their own noise level: what training needs.

The networks themselves take one timestep per call, as sampling does. Here every row of a batch has its own, and rows
that are single pictures skip all that mixes frames. The temporal layers begin as the identity, so skipping them is
exact until they are trained. A test compares this walk through the modules with the modules' own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


def close_temporal_layers(network: nn.Module) -> None:
    """Make everything that mixes frames the identity: the last layer of every temporal branch becomes zero."""
    last = (
        "temporal_res_block.conv2",
        "time_pos_embed.linear_2",
        "ff_in.net.2",
        "temporal_transformer_blocks.0.attn1.to_out.0",
        "temporal_transformer_blocks.0.attn2.to_out.0",
        "temporal_transformer_blocks.0.ff.net.2",
    )
    for name, module in network.named_modules():
        if name.endswith(last):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)


def temporal_parameters(network: nn.Module) -> list[nn.Parameter]:
    """Parameters that mix frames, but for the temporal cross-attention.

    That one stays closed: the reference lays its contexts out interleaved over the guidance halves, so what a position
    reads there depends on what else is in the batch.
    """
    parts = ("temporal_res_block", "temporal_transformer_blocks", "time_pos_embed", "time_mixer")
    return [
        parameter
        for name, parameter in network.named_parameters()
        if any(part in name for part in parts) and "temporal_transformer_blocks.0.attn2." not in name
    ]


def interleaved_parameters(network: nn.Module) -> list[nn.Parameter]:
    """Parameters of the temporal cross-attention, which is never trained."""
    return [one for name, one in network.named_parameters() if "temporal_transformer_blocks.0.attn2." in name]


def embed_times(network: nn.Module, sigmas: Tensor, added_time_ids: Tensor) -> Tensor:
    """Embed a noise level per row: `sigmas` [rows] and `added_time_ids` [1, ids] -> [rows, time_channels]."""
    ids = network.add_time_proj(added_time_ids.flatten()).flatten()[None]
    times = network.time_embedding(network.time_proj(0.25 * sigmas.log()))
    embedded: Tensor = times + network.add_embedding(ids)
    return embedded


def walk_unet(
    unet: nn.Module,
    sample: Tensor,
    times: Tensor,
    context: Tensor,
    pose_latents: Tensor,
    residuals: Sequence[Tensor] | None = None,
) -> Tensor:
    """What `UNet.denoise` computes, with a timestep per row.

    Args:
        unet: the exporter's UNet.
        sample: [batch * frames, 8, h, w], batch-major.
        times: [batch * frames, time_channels], equal within a clip.
        context: [batch, embed].
        pose_latents: [batch * frames, c0, h, w].
        residuals: 13, or None for zeros.

    Returns:
        [batch * frames, 4, h, w].
    """
    frames = sample.shape[0] // context.shape[0]
    states = [unet.conv_in(sample) + pose_latents]
    for block in unet.down_blocks:
        states += _walk_down(block, states[-1], times, context, frames)
    hidden = _walk_middle(unet.mid_block, states[-1], times, context, frames)
    if residuals is not None:
        hidden = hidden + residuals[-1]
        states = [state + residual for state, residual in zip(states, residuals[:-1], strict=True)]
    for block in unet.up_blocks:
        for index, resnet in enumerate(block.resnets):
            hidden = _walk_resnet(resnet, torch.cat([hidden, states.pop()], dim=1), times, frames)
            if len(block.attentions):
                hidden = _walk_transformer(block.attentions[index], hidden, context, frames)
        for upsampler in block.upsamplers:
            hidden = upsampler(hidden)
    predicted: Tensor = unet.conv_out(functional.silu(unet.conv_norm_out(hidden)))
    return predicted


def walk_controlnet(
    controlnet: nn.Module,
    sample: Tensor,
    times: Tensor,
    context: Tensor,
    motion_features: Tensor,
    point_features: Sequence[Tensor],
) -> tuple[Tensor, ...]:
    """What `ControlNet.control` computes, with a timestep per row; see there."""
    frames = sample.shape[0] // context.shape[0]
    hidden = controlnet.conv_in(sample) + motion_features
    states = [hidden]
    for block, points in zip(controlnet.down_blocks, point_features, strict=True):
        outputs = _walk_down(block, hidden, times, context, frames)
        states += outputs
        hidden = outputs[-1] + points
    emitters = controlnet.controlnet_down_blocks
    residuals = [emit(state) for emit, state in zip(emitters, states, strict=True)]
    middle = _walk_middle(controlnet.mid_block, hidden, times, context, frames)
    return (*residuals, controlnet.controlnet_mid_block(middle))


def _walk_down(block: nn.Module, hidden: Tensor, times: Tensor, context: Tensor, frames: int) -> list[Tensor]:
    states = []
    for index, resnet in enumerate(block.resnets):
        hidden = _walk_resnet(resnet, hidden, times, frames)
        if len(block.attentions):
            hidden = _walk_transformer(block.attentions[index], hidden, context, frames)
        states.append(hidden)
    for downsampler in block.downsamplers:
        states.append(downsampler(hidden))
    return states


def _walk_middle(block: nn.Module, hidden: Tensor, times: Tensor, context: Tensor, frames: int) -> Tensor:
    hidden = _walk_resnet(block.resnets[0], hidden, times, frames)
    hidden = _walk_transformer(block.attentions[0], hidden, context, frames)
    return _walk_resnet(block.resnets[1], hidden, times, frames)


def _walk_resnet(block: nn.Module, hidden: Tensor, times: Tensor, frames: int) -> Tensor:
    hidden = block.spatial_res_block(hidden, times)
    if frames == 1:
        return hidden
    clips = hidden.unflatten(0, (-1, frames)).transpose(1, 2).contiguous()
    mixed: Tensor = block.time_mixer(clips, block.temporal_res_block(clips, times.unflatten(0, (-1, frames))))
    return mixed.transpose(1, 2).flatten(0, 1)


def _walk_transformer(block: nn.Module, hidden: Tensor, context: Tensor, frames: int) -> Tensor:
    if frames > 1:
        transformed: Tensor = block(hidden, context, frames)
        return transformed
    height, width = hidden.shape[-2:]
    tokens = block.proj_in(block.norm(hidden).flatten(2).transpose(1, 2))
    tokens = block.proj_out(block.transformer_blocks[0](tokens[:, None], context)[:, 0])
    return tokens.transpose(1, 2).unflatten(2, (height, width)).contiguous() + hidden
