"""The building blocks that the ControlNet and the UNet of Stable Video Diffusion share.

The layers are diffusers' own; the blocks around them are ours for three reasons:

- The context is ONE token, so the softmax over it is 1 and a cross-attention is `to_out(to_v(context))`, whatever the
  query. Its layer norm, queries and keys do not exist here; `collapsed_tensors` names the weights that stay unread.
- The timestep and the added ids are the same for every frame of both guidance halves, so their projection is one row.
- The published model ran with temporal context rows that interleave the guidance halves. Current diffusers lays them
  out straight, which is another function.

Rows of frames are batch-major: all frames of the first guidance half, then all frames of the second.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.attention import FeedForward
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from diffusers.models.downsampling import Downsample2D
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.resnet import ResnetBlock2D, TemporalResnetBlock
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn

from dispose_rt.errors import CheckpointError

LEVELS = 4
LAYERS_PER_LEVEL = 2
_FIXED_SETTINGS: Mapping[str, object] = {
    "in_channels": 8,
    "out_channels": 4,
    "layers_per_block": LAYERS_PER_LEVEL,
    "transformer_layers_per_block": 1,
    "down_block_types": ["CrossAttnDownBlockSpatioTemporal"] * 3 + ["DownBlockSpatioTemporal"],
    "up_block_types": ["UpBlockSpatioTemporal"] + ["CrossAttnUpBlockSpatioTemporal"] * 3,
}
_COLLAPSED = ("norm2.weight", "norm2.bias", "attn2.to_q.weight", "attn2.to_k.weight")


@dataclass(frozen=True)
class DenoiserConfig:
    """The widths of one Stable Video Diffusion UNet, from its published `config.json`.

    Attributes:
        channels: channels per level, outermost first (`block_out_channels`).
        heads: attention heads per level (`num_attention_heads`).
        embed: width of the image embedding (`cross_attention_dim`).
        time_id_channels: sinusoidal channels per added time id (`addition_time_embed_dim`).
        time_ids: number of added time ids.
    """

    channels: tuple[int, int, int, int]
    heads: tuple[int, int, int, int]
    embed: int
    time_id_channels: int
    time_ids: int

    @property
    def time_channels(self) -> int:
        """Width of the timestep embedding that every residual block reads."""
        return 4 * self.channels[0]

    @classmethod
    def from_mapping(cls, config: Mapping[str, Any]) -> DenoiserConfig:
        """Read the published configuration.

        Args:
            config: the parsed `unet/config.json` of a Stable Video Diffusion checkpoint.

        Raises:
            CheckpointError: it describes another architecture; every difference is listed.
        """
        listed: dict[str, Any] = {
            key: list(value) if isinstance(value, tuple) else value for key, value in config.items()
        }
        problems = [
            f"{key} is {listed.get(key)!r}, expected {expected!r}"
            for key, expected in _FIXED_SETTINGS.items()
            if listed.get(key) != expected
        ]
        for key in ("block_out_channels", "num_attention_heads"):
            if not isinstance(listed.get(key), list) or len(listed[key]) != LEVELS:
                problems.append(f"{key} is {listed.get(key)!r}, expected a list of {LEVELS}")
        for key in ("cross_attention_dim", "addition_time_embed_dim", "projection_class_embeddings_input_dim"):
            if not isinstance(listed.get(key), int) or listed[key] < 1:
                problems.append(f"{key} is {listed.get(key)!r}, expected a positive integer")
        if problems:
            raise CheckpointError(
                "this is not the configuration of a Stable Video Diffusion UNet:",
                problems,
                "Use the unet/config.json of stable-video-diffusion-img2vid-xt-1-1.",
            )
        return cls(
            channels=tuple(listed["block_out_channels"]),
            heads=tuple(listed["num_attention_heads"]),
            embed=listed["cross_attention_dim"],
            time_id_channels=listed["addition_time_embed_dim"],
            time_ids=listed["projection_class_embeddings_input_dim"] // listed["addition_time_embed_dim"],
        )


def collapsed_tensors(network: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of the published weights that single-token cross-attentions leave unread."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, module in network.named_modules():
        if isinstance(module, SingleTokenAttention):
            channels, embed = module.to_v.weight.shape
            block = name.removesuffix("attn2")
            sizes = ((channels,), (channels,), (channels, channels), (channels, embed))
            shapes |= {block + key: size for key, size in zip(_COLLAPSED, sizes, strict=True)}
    return shapes


class SingleTokenAttention(nn.Module):
    """Cross-attention over a context of one token: its value, whatever the query."""

    def __init__(self, channels: int, embed: int) -> None:
        super().__init__()
        self.to_v = nn.Linear(embed, channels, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, context: Tensor) -> Tensor:
        """`context` [batch, embed] -> [batch, channels]."""
        attended: Tensor = self.to_out[0](self.to_v(context))
        return attended


class TimeMixer(nn.Module):
    """Learned blend of the results that a block computed per frame and over time."""

    def __init__(self) -> None:
        super().__init__()
        self.mix_factor = nn.Parameter(torch.full((1,), 0.5))

    def forward(self, spatial: Tensor, temporal: Tensor) -> Tensor:
        spatial_share = torch.sigmoid(self.mix_factor)
        return spatial_share * spatial + (1.0 - spatial_share) * temporal


class SpatioTemporalResBlock(nn.Module):
    """A 2-D residual block per frame, then a residual block along time, blended."""

    def __init__(self, in_channels: int, out_channels: int, time_channels: int, eps: float) -> None:
        super().__init__()
        self.spatial_res_block = ResnetBlock2D(
            in_channels=in_channels, out_channels=out_channels, temb_channels=time_channels, eps=eps
        )
        self.temporal_res_block = TemporalResnetBlock(
            in_channels=out_channels, out_channels=out_channels, temb_channels=time_channels, eps=eps
        )
        self.time_mixer = TimeMixer()

    def forward(self, hidden: Tensor, time: Tensor, frames: int) -> Tensor:
        """`hidden` [batch * frames, c, h, w] and `time` [1, time_channels] -> [batch * frames, out, h, w]."""
        hidden = self.spatial_res_block(hidden, time)
        # Contiguous, because group normalisation on the CPU is less exact on permuted memory; no node in a graph.
        clips = torch.unflatten(hidden, 0, (-1, frames)).transpose(1, 2).contiguous()
        mixed: Tensor = self.time_mixer(clips, self.temporal_res_block(clips, time[None]))
        return mixed.transpose(1, 2).flatten(0, 1)


def _self_attention(channels: int, heads: int) -> nn.Module:
    attention: nn.Module = Attention(
        query_dim=channels, heads=heads, dim_head=channels // heads, processor=AttnProcessor2_0()
    )
    return attention


class SpatialTransformerBlock(nn.Module):
    """Attention among the positions of each frame."""

    def __init__(self, channels: int, heads: int, embed: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attn1 = _self_attention(channels, heads)
        self.attn2 = SingleTokenAttention(channels, embed)
        self.norm3 = nn.LayerNorm(channels)
        self.ff = FeedForward(channels, activation_fn="geglu")

    def forward(self, hidden: Tensor, context: Tensor) -> Tensor:
        """`hidden` [batch, frames, positions, c] and `context` [batch, embed] -> like `hidden`."""
        batch, frames = hidden.shape[:2]
        images = hidden.flatten(0, 1)
        images = images + self.attn1(self.norm1(images))
        hidden = torch.unflatten(images, 0, (batch, frames)) + self.attn2(context)[:, None, None]
        transformed: Tensor = hidden + self.ff(self.norm3(hidden))
        return transformed


class TemporalTransformerBlock(nn.Module):
    """Attention among the frames at each position."""

    def __init__(self, channels: int, heads: int, embed: int) -> None:
        super().__init__()
        self.norm_in = nn.LayerNorm(channels)
        self.ff_in = FeedForward(channels, activation_fn="geglu")
        self.norm1 = nn.LayerNorm(channels)
        self.attn1 = _self_attention(channels, heads)
        self.attn2 = SingleTokenAttention(channels, embed)
        self.norm3 = nn.LayerNorm(channels)
        self.ff = FeedForward(channels, activation_fn="geglu")

    def forward(self, hidden: Tensor, context: Tensor) -> Tensor:
        """`hidden` [batch, frames, positions, c] and `context` [batch, embed] -> like `hidden`."""
        batch, _, positions, _ = hidden.shape
        rows = hidden.transpose(1, 2).flatten(0, 1)  # [batch * positions, frames, c]
        rows = rows + self.ff_in(self.norm_in(rows))
        rows = rows + self.attn1(self.norm1(rows))
        # The reference lays the contexts out position-major, these rows are batch-major: row r reads r mod batch.
        rows = torch.unflatten(rows, 0, (positions, batch)) + self.attn2(context)[:, None]
        rows = rows + self.ff(self.norm3(rows))
        return torch.unflatten(rows.flatten(0, 1), 0, (batch, positions)).transpose(1, 2)


class SpatioTemporalTransformer(nn.Module):
    """Attention among the positions of each frame, then among the frames at each position, blended."""

    def __init__(self, channels: int, heads: int, embed: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(32, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, channels)
        self.transformer_blocks = nn.ModuleList([SpatialTransformerBlock(channels, heads, embed)])
        self.temporal_transformer_blocks = nn.ModuleList([TemporalTransformerBlock(channels, heads, embed)])
        self.time_proj = Timesteps(channels, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_pos_embed = TimestepEmbedding(channels, 4 * channels, out_dim=channels)
        self.time_mixer = TimeMixer()
        self.proj_out = nn.Linear(channels, channels)

    def forward(self, hidden: Tensor, context: Tensor, frames: int) -> Tensor:
        """`hidden` [batch * frames, c, h, w] and `context` [batch, embed] -> like `hidden`."""
        height, width = hidden.shape[-2:]
        tokens = self.proj_in(self.norm(hidden).flatten(2).transpose(1, 2))
        tokens = torch.unflatten(tokens, 0, (-1, frames))
        spatial = self.transformer_blocks[0](tokens, context)
        temporal = self.temporal_transformer_blocks[0](spatial + self._embed_slots(spatial), context)
        tokens = self.proj_out(self.time_mixer(spatial, temporal).flatten(0, 1))
        return torch.unflatten(tokens.transpose(1, 2), 2, (height, width)).contiguous() + hidden

    def _embed_slots(self, tokens: Tensor) -> Tensor:
        """Embed the frames' positions in the tile, not in the clip: [frames, 1, c]."""
        slots = self.time_proj(torch.arange(tokens.shape[1], device=tokens.device))
        embedded: Tensor = self.time_pos_embed(slots.to(tokens.dtype))
        return embedded[:, None]


class DownBlock(nn.Module):
    """One level on the way down; a transformer follows each residual block where `heads` are given."""

    def __init__(
        self, in_channels: int, out_channels: int, config: DenoiserConfig, heads: int | None, *, downsample: bool
    ) -> None:
        super().__init__()
        eps = 1e-5 if heads is None else 1e-6
        widths = [in_channels] + [out_channels] * (LAYERS_PER_LEVEL - 1)
        self.resnets = nn.ModuleList(
            SpatioTemporalResBlock(width, out_channels, config.time_channels, eps) for width in widths
        )
        self.attentions = _transformers(LAYERS_PER_LEVEL, out_channels, heads, config.embed)
        self.downsamplers = nn.ModuleList([Downsample2D(out_channels, use_conv=True, name="op")] if downsample else [])

    def forward(self, hidden: Tensor, time: Tensor, context: Tensor, frames: int) -> list[Tensor]:
        """Return every intermediate result in order; the last one is the block's output."""
        states = []
        for index, resnet in enumerate(self.resnets):
            hidden = resnet(hidden, time, frames)
            if self.attentions:
                hidden = self.attentions[index](hidden, context, frames)
            states.append(hidden)
        for downsampler in self.downsamplers:
            states.append(downsampler(hidden))
        return states


class MidBlock(nn.Module):
    """The innermost level: residual block, transformer, residual block."""

    def __init__(self, channels: int, config: DenoiserConfig, heads: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            SpatioTemporalResBlock(channels, channels, config.time_channels, 1e-5) for _ in range(2)
        )
        self.attentions = _transformers(1, channels, heads, config.embed)

    def forward(self, hidden: Tensor, time: Tensor, context: Tensor, frames: int) -> Tensor:
        hidden = self.resnets[0](hidden, time, frames)
        hidden = self.attentions[0](hidden, context, frames)
        mixed: Tensor = self.resnets[1](hidden, time, frames)
        return mixed


class UpBlock(nn.Module):
    """One level on the way up: each residual block reads one skip connection, the innermost first."""

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: int,
        config: DenoiserConfig,
        heads: int | None,
        *,
        upsample: bool,
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            SpatioTemporalResBlock(width, out_channels, config.time_channels, 1e-6) for width in in_channels
        )
        self.attentions = _transformers(len(in_channels), out_channels, heads, config.embed)
        self.upsamplers = nn.ModuleList([Upsample2D(out_channels, use_conv=True)] if upsample else [])

    def forward(self, hidden: Tensor, skips: Sequence[Tensor], time: Tensor, context: Tensor, frames: int) -> Tensor:
        """Read `skips`, one per residual block, in order."""
        for index, (resnet, skip) in enumerate(zip(self.resnets, skips, strict=True)):
            hidden = resnet(torch.cat([hidden, skip], dim=1), time, frames)
            if self.attentions:
                hidden = self.attentions[index](hidden, context, frames)
        for upsampler in self.upsamplers:
            hidden = upsampler(hidden)
        return hidden


def _transformers(count: int, channels: int, heads: int | None, embed: int) -> nn.ModuleList:
    if heads is None:
        return nn.ModuleList()
    return nn.ModuleList(SpatioTemporalTransformer(channels, heads, embed) for _ in range(count))


class SpatioTemporalEncoder(nn.Module):
    """Input convolution, timestep embedding, down blocks and mid block: the part that ControlNet and UNet share."""

    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__()
        channels, heads = config.channels, config.heads
        self.conv_in = nn.Conv2d(8, channels[0], kernel_size=3, padding=1)
        self.time_proj = Timesteps(channels[0], flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(channels[0], config.time_channels)
        self.add_time_proj = Timesteps(config.time_id_channels, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.add_embedding = TimestepEmbedding(config.time_ids * config.time_id_channels, config.time_channels)
        self.down_blocks = nn.ModuleList(
            DownBlock(
                channels[max(level - 1, 0)],
                channels[level],
                config,
                heads[level] if level < LEVELS - 1 else None,
                downsample=level < LEVELS - 1,
            )
            for level in range(LEVELS)
        )
        self.mid_block = MidBlock(channels[-1], config, heads[-1])

    @property
    def dtype(self) -> torch.dtype:
        """The precision that the network computes in."""
        return self.conv_in.weight.dtype

    def embed_time(self, timestep: Tensor, added_time_ids: Tensor) -> Tensor:
        """`timestep` [1] and `added_time_ids` [1, ids] -> [1, time_channels]; sinusoids are always float32."""
        ids = self.add_time_proj(added_time_ids.flatten()).flatten()[None]
        time = self.time_embedding(self.time_proj(timestep).to(self.dtype))
        embedded: Tensor = time + self.add_embedding(ids.to(self.dtype))
        return embedded


def lay_out_guidance(latents: Tensor, image_latents: Tensor, image_embeds: Tensor) -> tuple[Tensor, Tensor]:
    """Lay out both guidance halves; the unconditional one sees no image.

    Args:
        latents: [frames, 4, h, w], scaled for the timestep.
        image_latents: [1, 4, h, w].
        image_embeds: [1, 1, embed].

    Returns:
        The sample [2 * frames, 8, h, w], unconditional frames first, and the context [2, embed].
    """
    images = torch.cat([torch.zeros_like(latents), image_latents.expand_as(latents)])
    sample = torch.cat([torch.cat([latents, latents]), images], dim=1)
    context = torch.cat([torch.zeros_like(image_embeds), image_embeds])[:, 0]
    return sample, context
