"""The denoiser: UNet and PoseNet as plain MimicMotion, on single frames first and on clips then.

EDM preconditioning with v-prediction (Karras et al. 2022, arXiv:2206.00364; Salimans and Ho 2022, arXiv:2202.00512).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .autoencoder import SCALING_FACTOR, decode_stills, encode
from .data import PuppetSet
from .latents import LatentSet, embed_image
from .loop import Schedule, Stage
from .pictures import from_levels, from_planes, psnr, save_rows, to_levels
from .project import FPS_ID, DenoiserConfig, ImageEncoder, PoseNet, UNet
from .puppets import draw_clip, held_out_seed
from .rows import close_temporal_layers, embed_times, interleaved_parameters, temporal_parameters, walk_unet
from .sampler import clean_latents, rows_like, sample, unit_normal, velocity_target

F32 = NDArray[np.float32]

DROPPED = 0.1
"""Share of the rows that see no condition, as the unconditional half of guidance does."""
GUIDANCE = 2.0
MOTION_BUCKET = 127.0

_STILLS_PER_PUPPET, _STRIDE_OF_STILLS = 6, 3
_VALIDATION_STEPS = 10
_HELD_OUT_PUPPETS, _HELD_OUT_FRAMES = 6, 5


def draw_sigmas(random: np.random.Generator, count: int) -> Tensor:
    """Noise levels of a batch: SVD's log-normal distribution moved to where a pose decides, and a log-uniform share."""
    normal = np.exp(random.normal(0.4, 1.5, count))
    uniform = np.exp(random.uniform(np.log(0.02), np.log(700.0), count))
    drawn = np.where(random.random(count) < 0.75, normal, uniform)
    return torch.from_numpy(np.clip(drawn, 0.002, 700.0).astype(np.float32))


def normals_like(random: np.random.Generator, like: Tensor) -> Tensor:
    """Unit normal numbers of that shape, on that device."""
    return torch.from_numpy(random.standard_normal(tuple(like.shape), dtype=np.float32)).to(like.device)


@dataclass(frozen=True, eq=False)
class Rows:
    """A batch for the UNet, batch-major.

    Attributes:
        latents: float32 [batch * frames, 4, h, w], scaled: what is to be restored.
        image_latents: float32 [batch * frames, 4, h, w], not scaled, zero where dropped.
        image_embeds: float32 [batch, embed], zero where dropped.
        poses: float32 [batch * frames, 3, height, width], -1..1.
        kept: float32 [batch], 0 where conditions are dropped.
    """

    latents: Tensor
    image_latents: Tensor
    image_embeds: Tensor
    poses: Tensor
    kept: Tensor


class Denoiser(nn.Module):
    """UNet and PoseNet, the way both training and sampling call them.

    Args:
        config: the parsed `unet/config.json`.
    """

    added_time_ids: Tensor

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        widths = DenoiserConfig.from_mapping(config)
        self.unet = UNet(widths)
        self.pose_net = PoseNet(widths.channels[0])
        self.register_buffer("added_time_ids", torch.tensor([[FPS_ID, MOTION_BUCKET, 0.0]]), persistent=False)
        close_temporal_layers(self.unet)
        for parameter in interleaved_parameters(self.unet):
            parameter.requires_grad_(False)
        with torch.no_grad():
            self.unet.conv_in.weight[:, 4:] *= SCALING_FACTOR  # image latents come unscaled
            nn.init.zeros_(self.unet.conv_out.weight)
            nn.init.zeros_(self.unet.conv_out.bias)

    def predict(
        self,
        noisy: Tensor,
        sigmas: Tensor,
        image_latents: Tensor,
        image_embeds: Tensor,
        pose_latents: Tensor,
        residuals: tuple[Tensor, ...] | None = None,
    ) -> Tensor:
        """Predict v.

        Args:
            noisy: [rows, 4, h, w], not scaled for the noise level.
            sigmas: [rows], equal within a clip.
            image_latents: [rows, 4, h, w].
            image_embeds: [batch, embed].
            pose_latents: [rows, c0, h, w].
            residuals: of the ControlNet.
        """
        scaled = noisy / rows_like(sigmas.square() + 1).sqrt()
        times = embed_times(self.unet, sigmas, self.added_time_ids)
        sample_rows = torch.cat([scaled, image_latents], dim=1)
        return walk_unet(self.unet, sample_rows, times, image_embeds, pose_latents, residuals).float()


class DenoiserStage(Stage):
    """UNet and PoseNet on single frames ("stills") or clips.

    Args:
        denoiser: what is trained.
        puppets: training set.
        latents: of the training set.
        references: image embeddings of the references, [puppets, embed].
        judge: measures on held-out puppets.
        steps: length of the stage.
        batch: clips per step.
        frames: per clip; 1 trains what sees single frames, more train what mixes frames.
        device: where it runs.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        puppets: PuppetSet,
        latents: LatentSet,
        references: Tensor,
        judge: Judge,
        *,
        steps: int,
        batch: int,
        frames: int,
        device: torch.device,
    ) -> None:
        stills = frames == 1
        self.name = "stills" if stills else "clips"
        self.schedule = Schedule(steps, peak=1e-3 if stills else 4e-4, warmup=200 if stills else 100)
        self._denoiser = denoiser
        for parameter in temporal_parameters(denoiser.unet):
            parameter.requires_grad_(not stills)
        self.modules = nn.ModuleDict({"denoiser": denoiser})
        self._puppets = puppets
        self._latents = latents
        self._references = references
        self._judge = judge
        self._batch = batch
        self._frames = frames
        self._device = device

    def loss(self, step: int, random: np.random.Generator) -> tuple[Tensor, Mapping[str, Tensor]]:
        rows = self._draw(random)
        sigmas = draw_sigmas(random, self._batch).to(self._device).repeat_interleave(self._frames)
        noise = normals_like(random, rows.latents)
        noisy = rows.latents + rows_like(sigmas) * noise
        with torch.autocast(self._device.type, torch.bfloat16):
            kept = rows_like(rows.kept.repeat_interleave(self._frames))
            pose_latents = self._denoiser.pose_net(rows.poses) * kept
            predicted = self._denoiser.predict(noisy, sigmas, rows.image_latents, rows.image_embeds, pose_latents)
        error = (predicted - velocity_target(rows.latents, noise, rows_like(sigmas))).square().mean((1, 2, 3))
        loss = error.mean()
        conditional = rows.kept.repeat_interleave(self._frames) > 0
        bands = {"high": sigmas > 3, "middle": (sigmas > 0.5) & (sigmas <= 3), "low": sigmas <= 0.5}
        parts = {name: error[band & conditional] for name, band in bands.items()}
        parts["dropped"] = error[~conditional]
        return loss, {name: values.mean().detach() for name, values in parts.items() if len(values)}

    def _draw(self, random: np.random.Generator) -> Rows:
        puppets = random.integers(self._puppets.puppets, size=self._batch)
        last = self._puppets.rows
        if self._frames == 1:
            # few frames of many puppets: neighbours in a clip are alike, and each frame has to be encoded
            frames = (puppets + _STRIDE_OF_STILLS * random.integers(_STILLS_PER_PUPPET, size=self._batch))[
                :, None
            ] % last
        else:
            frames = np.stack([draw_slots(random, self._frames, last) for _ in range(self._batch)])
        owners, flat = np.repeat(puppets, self._frames).tolist(), frames.ravel().tolist()
        kept = torch.from_numpy((random.random(self._batch) >= DROPPED).astype(np.float32))
        images = self._latents.gather(puppets.tolist(), [0] * self._batch) * rows_like(kept)
        return Rows(
            latents=(self._latents.gather(owners, flat) * SCALING_FACTOR).to(self._device),
            image_latents=images.repeat_interleave(self._frames, dim=0).to(self._device),
            image_embeds=(self._references[torch.from_numpy(puppets)] * kept[:, None]).to(self._device),
            poses=from_planes(self._puppets.gather("poses", owners, flat)).to(self._device),
            kept=kept.to(self._device),
        )

    def validate(self, picture: Path) -> Mapping[str, float]:
        return self._judge.measure(self._denoiser, picture)


def draw_still_frames(random: np.random.Generator, puppets: NDArray[np.int64], rows: int) -> NDArray[np.int64]:
    """A frame of every puppet, of the few that serve as single frames: neighbours are alike, and each is encoded."""
    chosen = random.integers(_STILLS_PER_PUPPET, size=len(puppets))
    frames: NDArray[np.int64] = (puppets + _STRIDE_OF_STILLS * chosen) % rows
    return frames


def draw_slots(random: np.random.Generator, frames: int, rows: int) -> NDArray[np.int64]:
    """Rows of a clip for a tile: the reference in slot 0, then consecutive frames with a random stride."""
    stride = int(random.integers(1, max((rows - 2) // max(frames - 2, 1), 1) + 1))
    span = stride * (frames - 2)
    start = 1 + int(random.integers(rows - 1 - span))
    return np.concatenate([[0], start + stride * np.arange(frames - 1)])


class Judge:
    """Animates held-out puppets frame by frame, with guidance, and compares with the drawn truth.

    Args:
        autoencoder: frozen.
        encoder: of image embeddings.
        device: where it runs.
    """

    def __init__(self, autoencoder: nn.Module, encoder: ImageEncoder, device: torch.device) -> None:
        clips = [draw_clip(held_out_seed(number)) for number in range(_HELD_OUT_PUPPETS)]
        chosen = np.linspace(1, 16, _HELD_OUT_FRAMES).round().astype(int)
        self._autoencoder = autoencoder
        self._device = device
        self._photos = np.stack([clip.images[0] for clip in clips]).repeat(len(chosen), axis=0)
        self._truth = np.concatenate([clip.images[chosen] for clip in clips])
        self._poses = np.concatenate([clip.poses[chosen] for clip in clips])
        with torch.no_grad():
            self._image_latents = encode(autoencoder, from_levels(self._photos).to(device)).float()
            embeds = [embed_image(encoder, clip.images[0]) for clip in clips]
        self._embeds = torch.stack(embeds).repeat_interleave(len(chosen), dim=0).to(device)

    def measure(self, denoiser: Denoiser, picture: Path) -> Mapping[str, float]:
        """PSNR in dB of the photo held still and of the results, the mean gain, and the error of the joints' colours.

        Args:
            denoiser: in evaluation mode.
            picture: to write: photos, truth and results, row by row.
        """
        with torch.autocast(self._device.type, torch.bfloat16):
            poses = denoiser.pose_net(from_planes(self._poses).to(self._device)).float()
        count = len(poses)
        images = torch.cat([torch.zeros_like(self._image_latents), self._image_latents])
        embeds = torch.cat([torch.zeros_like(self._embeds), self._embeds])
        pose_latents = torch.cat([torch.zeros_like(poses), poses])

        def denoise(latents: Tensor, sigma: float) -> Tensor:
            both, sigmas = latents.repeat(2, 1, 1, 1), torch.full((2 * count,), sigma, device=self._device)
            with torch.autocast(self._device.type, torch.bfloat16):
                predicted = denoiser.predict(both, sigmas, images, embeds, pose_latents)
            unconditional, conditional = predicted.chunk(2)
            guided = unconditional + GUIDANCE * (conditional - unconditional)
            return clean_latents(latents, guided, rows_like(sigmas[:count]))

        noise = unit_normal(tuple(self._image_latents.shape), seed=1).to(self._device)
        latents = sample(denoise, noise, _VALIDATION_STEPS)
        results = to_levels(decode_stills(self._autoencoder, latents / SCALING_FACTOR))
        rows = []
        for start in range(0, count, _HELD_OUT_FRAMES):
            here = slice(start, start + _HELD_OUT_FRAMES)
            photo = self._photos[start : start + 1]
            rows.append(np.concatenate([photo, self._truth[here], results[here]]))
        save_rows(picture, rows)
        still = [psnr(photo, truth) for photo, truth in zip(self._photos, self._truth, strict=True)]
        moved = [psnr(result, truth) for result, truth in zip(results, self._truth, strict=True)]
        colored = np.ptp(self._truth.astype(int), axis=-1) > 60
        joints = np.abs(self._truth[colored].astype(int) - results[colored].astype(int)).mean()
        return {
            "still_db": float(np.mean(still)),
            "result_db": float(np.mean(moved)),
            "gain_db": float(np.mean(moved) - np.mean(still)),
            "joint_error": float(joints),
        }
