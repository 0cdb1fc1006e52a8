"""The autoencoder of Stable Video Diffusion at pocket size: pictures to latents at an eighth, and back.

Trained as images: the decoder's temporal layers begin as the identity, and stay out of the way.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLTemporalDecoder
from torch import Tensor, nn

from .data import PuppetSet
from .loop import Schedule, Stage
from .pictures import from_levels, psnr, save_rows, to_levels
from .puppets import HEIGHT_PX, WIDTH_PX, draw_clip, held_out_seed

SCALING_FACTOR = 0.18215
"""What the sampler's latents are multiplied by; the trained latents are spread so that this brings them to 1."""
LATENT_NOISE = 0.1
"""Deviation of the noise on latents in training, as a share of theirs: decoding forgives a denoiser's errors."""

_CELL_PX = 8
_PHASES = ((0.45, (64, 64), 8), (0.75, (96, 128), 3), (1.0, (WIDTH_PX, HEIGHT_PX), 2))
"""Until which share of the steps: width and height of the crops in pixels, and how many of them."""
_DECODER_BATCH = 2
_HELD_OUT_PUPPETS = 6
_COLOR_WEIGHT = 4.0
"""Additional weight of a fully saturated pixel: the hues of the joints are what the pose networks read."""


def build_autoencoder(config: Mapping[str, Any]) -> nn.Module:
    """Make an untrained autoencoder whose temporal layers are the identity and whose posterior has a fixed deviation.

    Args:
        config: the parsed `vae/config.json`.
    """
    model: nn.Module = AutoencoderKLTemporalDecoder.from_config(dict(config))
    with torch.no_grad():
        _close_temporal_layers(model.get_submodule("decoder"))
        moments = model.get_submodule("quant_conv")
        channels = moments.weight.shape[0] // 2
        moments.weight[channels:] = 0
        moments.bias[channels:] = 2 * math.log(LATENT_NOISE)
    return model


def _close_temporal_layers(decoder: nn.Module) -> None:
    for name, module in decoder.named_modules():
        if name.endswith("temporal_res_block"):
            nn.init.zeros_(module.conv2.weight)
            nn.init.zeros_(module.conv2.bias)
    last = decoder.get_submodule("time_conv_out")
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    for channel in range(last.weight.shape[0]):
        last.weight[channel, channel, last.weight.shape[2] // 2] = 1


def temporal_parameters(autoencoder: nn.Module) -> list[nn.Parameter]:
    """Parameters of the decoder that mix frames, those of the blend among them."""
    parts = ("temporal_res_block", "time_mixer", "time_conv_out")
    return [one for name, one in autoencoder.named_parameters() if any(part in name for part in parts)]


def encode(autoencoder: nn.Module, frames: Tensor) -> Tensor:
    """Mode of the posterior of frames [n, 3, height, width]: [n, 4, height / 8, width / 8], not scaled."""
    moments: Tensor = autoencoder.quant_conv(autoencoder.encoder(frames))
    return moments.chunk(2, dim=1)[0]


def decode_stills(autoencoder: nn.Module, latents: Tensor) -> Tensor:
    """Decode latents [n, 4, h, w], not scaled, each by itself: what the decoder does as long as its temporal layers are
    the identity, in two thirds of the time.
    """
    decoder = autoencoder.decoder
    middle = decoder.mid_block
    hidden = middle.resnets[0].spatial_res_block(decoder.conv_in(latents), None)
    for block, attention in zip(middle.resnets[1:], middle.attentions, strict=False):
        hidden = block.spatial_res_block(attention(hidden), None)
    for level in decoder.up_blocks:
        for block in level.resnets:
            hidden = block.spatial_res_block(hidden, None)
        for upsampler in level.upsamplers or ():
            hidden = upsampler(hidden)
    frames: Tensor = decoder.conv_out(decoder.conv_act(decoder.conv_norm_out(hidden)))
    return frames


class AutoencoderStage(Stage):
    """Reconstruction of crops that grow to whole frames.

    Args:
        config: the parsed `vae/config.json`.
        puppets: training set.
        steps: length of the stage.
    """

    name = "autoencoder"
    averaging = 0.995
    weight_decay = 0.0

    def __init__(self, config: Mapping[str, Any], puppets: PuppetSet, steps: int, device: torch.device) -> None:
        self.schedule = Schedule(steps, peak=2e-3, warmup=60, fall=0.6)
        self._model = build_autoencoder(config).to(device)
        for parameter in temporal_parameters(self._model):
            parameter.requires_grad_(False)
        self.modules = nn.ModuleDict({"autoencoder": self._model})
        self._puppets = puppets
        self._device = device

    def loss(self, step: int, random: np.random.Generator) -> tuple[Tensor, Mapping[str, Tensor]]:
        frames = self._draw_crops(step, random).to(self._device)
        with torch.autocast(self._device.type, torch.bfloat16):
            latents = encode(self._model, frames).float()
            noise = torch.from_numpy(random.standard_normal(latents.shape, dtype=np.float32)).to(self._device)
            decoded = decode_stills(self._model, latents + LATENT_NOISE * noise).float()
        reconstruction, parts = compare(decoded, frames)
        mean, deviation = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
        spread = mean.square().mean() + (deviation - 1).square().mean()
        return reconstruction + 0.02 * spread, {**parts, "spread": spread}

    def _draw_crops(self, step: int, random: np.random.Generator) -> Tensor:
        share = step / self.schedule.steps
        (width, height), count = next((size, count) for until, size, count in _PHASES if share < until)
        crops = []
        for _ in range(count):
            shard, row = self._puppets.shard(int(random.integers(self._puppets.puppets)))
            frame = int(random.integers(shard.images.shape[1]))
            # around a joint, so that few crops are all wall
            joint = shard.joints[row, frame, int(random.integers(18))] * (WIDTH_PX, HEIGHT_PX)
            corner = joint - (width / 2, height / 2) + random.uniform(-16, 16, 2)
            limit = (WIDTH_PX - width, HEIGHT_PX - height)
            left, top = (np.clip(np.round(corner / _CELL_PX) * _CELL_PX, 0, limit)).astype(int)
            crops.append(shard.images[row, frame, top : top + height, left : left + width])
        return from_levels(np.stack(crops))

    def validate(self, picture: Path) -> Mapping[str, float]:
        return measure_reconstruction(self._model, picture, self._device)


class DecoderStage(Stage):
    """The decoder alone, on whole frames, after the latents were fixed: denoisers may be trained on them meanwhile.

    Args:
        autoencoder: whose latents are fixed.
        puppets: training set.
        steps: length of the stage.
        device: where it runs.
    """

    name = "decoder"
    averaging = 0.998
    weight_decay = 0.0

    def __init__(self, autoencoder: nn.Module, puppets: PuppetSet, steps: int, device: torch.device) -> None:
        self.schedule = Schedule(steps, peak=1e-3, warmup=100, fall=0.7)
        self._model = autoencoder
        decoder = autoencoder.get_submodule("decoder").requires_grad_(True)
        for parameter in temporal_parameters(autoencoder):
            parameter.requires_grad_(False)
        self.modules = nn.ModuleDict({"decoder": decoder})
        self._puppets = puppets
        self._device = device

    def loss(self, step: int, random: np.random.Generator) -> tuple[Tensor, Mapping[str, Tensor]]:
        puppets = random.integers(self._puppets.puppets, size=_DECODER_BATCH).tolist()
        frames = random.integers(self._puppets.rows, size=_DECODER_BATCH).tolist()
        pictures = from_levels(self._puppets.gather("images", puppets, frames)).to(self._device)
        with torch.autocast(self._device.type, torch.bfloat16):
            with torch.no_grad():
                latents = encode(self._model, pictures).float()
            noise = torch.from_numpy(random.standard_normal(latents.shape, dtype=np.float32)).to(self._device)
            amount = float(random.uniform(0.0, 1.5)) * LATENT_NOISE / SCALING_FACTOR
            decoded = decode_stills(self._model, latents + amount * noise).float()
        return compare(decoded, pictures)

    def validate(self, picture: Path) -> Mapping[str, float]:
        return measure_reconstruction(self._model, picture, self._device)


def compare(decoded: Tensor, frames: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of a reconstruction, absolute, square and of the edges, and the parts of it that are logged.

    Args:
        decoded: [n, 3, height, width].
        frames: what it should be, -1..1.
    """
    error = decoded - frames
    color = (frames.amax(1, keepdim=True) - frames.amin(1, keepdim=True)) / 2
    weight = 1 + _COLOR_WEIGHT * color
    absolute, square = (weight * error.abs()).mean(), (weight * error.square()).mean()
    edges = (error[..., 1:] - error[..., :-1]).abs().mean() + (error[..., 1:, :] - error[..., :-1, :]).abs().mean()
    parts = {"l1": error.abs().mean().detach(), "mse": error.square().mean().detach()}
    return absolute + 2 * square + 0.3 * edges, parts


@torch.no_grad()
def measure_reconstruction(autoencoder: nn.Module, picture: Path, device: torch.device) -> Mapping[str, float]:
    """Encode and decode held-out frames.

    Args:
        autoencoder: in evaluation mode.
        picture: to write: frames above what became of them.
        device: where the autoencoder is.

    Returns:
        PSNR in dB, mean error of the joints' colours in levels, and the latents' deviation.
    """
    frames = np.concatenate([draw_clip(held_out_seed(number), frames=1).images for number in range(_HELD_OUT_PUPPETS)])
    latents = encode(autoencoder, from_levels(frames).to(device))
    decoded = to_levels(decode_stills(autoencoder, latents))
    save_rows(picture, [frames, decoded])
    colored = np.ptp(frames.astype(int), axis=-1) > 60
    return {
        "psnr": psnr(frames, decoded),
        "joint_error": float(np.abs(frames[colored].astype(int) - decoded[colored].astype(int)).mean()),
        "latent_std": float(latents.float().std()),
    }


@torch.no_grad()
def spread_latents(autoencoder: nn.Module, latents: Tensor) -> None:
    """Fold a scale per channel into the layers around the latents, so that they have the deviation 1 / SCALING_FACTOR.

    Args:
        autoencoder: a trained one.
        latents: a sample of its latents, [n, 4, h, w].
    """
    scale = 1 / (SCALING_FACTOR * latents.float().std((0, 2, 3)))
    moments, first = autoencoder.quant_conv, autoencoder.decoder.conv_in
    channels = len(scale)
    moments.weight[:channels] *= scale[:, None, None, None]
    moments.bias[:channels] *= scale
    moments.bias[channels:] += 2 * scale.log()
    first.weight /= scale[None, :, None, None]


def sample_frames(puppets: PuppetSet, count: int, seed: int = 0) -> Sequence[tuple[int, int]]:
    """Puppets and frames, drawn at random, to measure latents on."""
    random = np.random.default_rng(seed)
    return [(int(random.integers(puppets.puppets)), int(random.integers(1, 17))) for _ in range(count)]
