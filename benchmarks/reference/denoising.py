"""The published sampling loop: motion encoder, point adapter, ControlNet and UNet again in every step of every tile."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import EulerDiscreteScheduler
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.reference.networks import GUIDANCE_HALVES, BaselineControlNet
from dispose_rt.kernels import POINT_LEVEL_FACTORS
from dispose_rt.stages.denoise.tiles import Tile
from dispose_rt.types import F64, Bools, Track

CELL_PX = 16


class PartTimer:
    """Times named parts of the work, in seconds: by events on a GPU, which do not stall it, by the clock on the CPU."""

    def __init__(self, device: str) -> None:
        self._on_gpu = torch.device(device).type == "cuda"
        self._marks: list[tuple[str, Any, Any]] = []

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time the block; blocks may be nested."""
        start = self._mark()
        yield
        self._marks.append((name, start, self._mark()))

    def _mark(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        event: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def take(self) -> dict[str, list[float]]:
        """Wait for the device, and return the seconds of all parts since the last call, by name, in order."""
        if self._on_gpu:
            torch.cuda.synchronize()
        seconds = defaultdict(list)
        for name, start, end in self._marks:
            seconds[name].append(start.elapsed_time(end) / 1e3 if self._on_gpu else end - start)
        self._marks.clear()
        return dict(seconds)


@dataclass(frozen=True, eq=False)
class BaselineConditions:
    """A clip's inputs of the loop, on the device.

    Attributes:
        track: the followed person; frame 0 is the reference.
        embeddings: [18, dift], of the reference's joints.
        dense_flow: [frames - 1, 2, height, width], pixels from the reference.
        trajectory_flow: [frames - 1, 2, height, width], pixels from the frame before.
        pose_latents: [frames, c0, height/8, width/8].
        image_latents: [1, 4, height/8, width/8].
        image_embeds: [1, 1, embed].
        added_time_ids: float32 [1, 3].
    """

    track: Track
    embeddings: Tensor
    dense_flow: Tensor
    trajectory_flow: Tensor
    pose_latents: Tensor
    image_latents: Tensor
    image_embeds: Tensor
    added_time_ids: Tensor


def build_point_pyramid(
    adapter: nn.Module, joints: F64, visible: Bools, embeddings: Tensor, rows: int, columns: int
) -> list[Tensor]:
    """Place embeddings joint by joint into whole grids, run the adapter over every cell, mask, and resize.

    Args:
        adapter: PointEncoder.
        joints: float64 [frames, 18, 2], fractions of the image.
        visible: bool [frames, 18].
        embeddings: [18, dift], on the device.
        rows: of the finest level, height / 16.
        columns: of the finest level, width / 16.

    Returns:
        Four levels, [frames, c_i, ...] at 1, 1/2, 1/4 and 1/4 of the grid.
    """
    frames, width = len(joints), embeddings.shape[1]
    means = embeddings.new_zeros(frames, rows, columns, width)
    count = np.zeros((frames, rows, columns), np.float32)
    for frame in range(frames):
        for joint in range(len(embeddings)):
            x, y = joints[frame, joint]
            if not visible[frame, joint] or x < 0 or y < 0:
                continue
            cell = frame, min(int(y * rows), rows - 1), min(int(x * columns), columns - 1)
            means[cell] += embeddings[joint]
            count[cell] += 1
    counted = torch.from_numpy(count).to(embeddings.device, embeddings.dtype)
    means /= counted.clamp(min=1)[..., None]
    occupied = (counted > 0).to(embeddings.dtype)[:, None]
    levels = []
    for cells, factor in zip(adapter(means.reshape(-1, width)), POINT_LEVEL_FACTORS, strict=True):
        level = cells.reshape(frames, rows, columns, -1).permute(0, 3, 1, 2) * occupied
        size = (rows // factor, columns // factor)
        resized = functional.interpolate(level, size, mode="bilinear")
        levels.append(resized * functional.interpolate(occupied, size, mode="nearest"))
    return levels


def accumulate(total: Tensor, counts: Tensor, prediction: Tensor, tile: Tile) -> None:
    """Add a tile's weighted prediction [2, tile, ...] to the clip's [2, frames, ...], and its weights to [frames]."""
    slots = torch.from_numpy(tile.frames).long().to(total.device)
    weights = torch.from_numpy(tile.weights).to(total.device, total.dtype)
    total[:, slots] += prediction * weights[:, None, None, None]
    counts[slots] += weights


def guided_step(
    scheduler: Any, total: Tensor, counts: Tensor, guidance_scale: float, timestep: Tensor, latents: Tensor
) -> tuple[Tensor, Tensor]:
    """Divide by the weights, guide, and take the scheduler's Euler step.

    Returns:
        The guided prediction and the next latents, each [1, frames, 4, h, w].
    """
    unconditional, conditional = (total / counts[:, None, None, None]).chunk(GUIDANCE_HALVES)
    guided = unconditional + guidance_scale * (conditional - unconditional)
    torch.randn_like(guided)  # the published scheduler draws noise in every step, unused without churn
    return guided, scheduler.step(guided, timestep, latents, return_dict=False)[0]


class BaselineDenoiser:
    """The loop over timesteps and tiles.

    Args:
        unet: BaselineUNet.
        controlnet: BaselineControlNet, or None for plain MimicMotion.
        scheduler_config: of diffusers' EulerDiscreteScheduler.
        clip: conditions of the whole clip, in the networks' dtype.
        tiles: cover every frame.
        guidance_scale: g of u + g (c - u).
    """

    def __init__(
        self,
        unet: nn.Module,
        controlnet: BaselineControlNet | None,
        scheduler_config: Mapping[str, Any],
        clip: BaselineConditions,
        tiles: Sequence[Tile],
        guidance_scale: float,
    ) -> None:
        self._unet, self._controlnet = unet, controlnet
        self._scheduler: Any = EulerDiscreteScheduler.from_config(dict(scheduler_config))
        self._clip, self._tiles, self._guidance_scale = clip, tiles, guidance_scale

    def run(
        self,
        noise: Tensor,
        steps: int,
        watch: PartTimer,
        after_step: Callable[[Tensor, Tensor], bool] = lambda *_: True,
    ) -> Tensor:
        """Denoise a clip.

        Args:
            noise: unit normal [1, tile, 4, h, w]; repeated along time.
            steps: Euler steps of the schedule.
            watch: gets the parts "tile" and, within it, "motion", "points", "controlnet", "unet" and "accumulate" per
                tile, and "scale" and "euler" per step.
            after_step: gets the guided prediction and the latents after every step; False ends the run.

        Returns:
            The latents, [1, frames, 4, h, w].
        """
        clip, scheduler, frames = self._clip, self._scheduler, len(self._clip.pose_latents)
        scheduler.set_timesteps(steps, device=noise.device)
        latents: Tensor = (
            noise.repeat(1, -(-frames // noise.shape[1]), 1, 1, 1)[:, :frames] * scheduler.init_noise_sigma
        )
        images = torch.cat([torch.zeros_like(clip.image_latents), clip.image_latents])[:, None]
        images = images.expand(-1, frames, -1, -1, -1)
        for timestep in scheduler.timesteps:
            with watch.part("scale"):
                doubled = scheduler.scale_model_input(torch.cat([latents] * GUIDANCE_HALVES), timestep)
                sample = torch.cat([doubled, images], dim=2)
                total, counts = torch.zeros_like(doubled), doubled.new_zeros(frames)
            for tile in self._tiles:
                with watch.part("tile"):
                    prediction = self._predict(sample, timestep, tile, watch)
                    with watch.part("accumulate"):
                        accumulate(total, counts, prediction, tile)
            with watch.part("euler"):
                guided, latents = guided_step(scheduler, total, counts, self._guidance_scale, timestep, latents)
            if not after_step(guided, latents):
                break
        return latents

    def _predict(self, sample: Tensor, timestep: Tensor, tile: Tile, watch: PartTimer) -> Tensor:
        """Predict one tile: [2, tile, 4, h, w]."""
        clip, dtype = self._clip, sample.dtype
        slots = torch.from_numpy(tile.frames).long().to(sample.device)
        context = torch.cat([torch.zeros_like(clip.image_embeds), clip.image_embeds]).to(dtype)
        ids = clip.added_time_ids.expand(GUIDANCE_HALVES, -1)
        own = sample[:, slots]
        residuals = None
        if self._controlnet is not None:
            with watch.part("motion"):
                flows = [self._flow_of(flow, slots) for flow in (clip.dense_flow, clip.trajectory_flow)]
                motion = self._controlnet.controlnet_cond_embedding(*flows)
            with watch.part("points"):
                points = self._points_of(self._controlnet.point_adapter, tile, sample.shape[-2:])
            with watch.part("controlnet"):
                residuals = self._controlnet(own, timestep, context, ids, motion, points)
        with watch.part("unet"):
            poses = clip.pose_latents[slots]
            poses = torch.cat([torch.zeros_like(poses), poses])
            predicted: Tensor = self._unet(own, timestep, context, ids, poses, residuals)
        return predicted

    def _flow_of(self, flow: Tensor, slots: Tensor) -> Tensor:
        """Return the tile's frames of a flow for both halves, [2 * tile, 2, height, width]; the reference has none."""
        moving = flow[slots[1:] - 1]
        frames = torch.cat([torch.zeros_like(moving[:1]), moving])
        return torch.cat([frames] * GUIDANCE_HALVES)

    def _points_of(self, adapter: nn.Module, tile: Tile, latent_size: Sequence[int]) -> list[Tensor]:
        """Return the tile's pyramid, doubled for both halves."""
        clip, per_cell = self._clip, CELL_PX // 8
        joints, visible = clip.track.joints[tile.frames], clip.track.visible[tile.frames]
        rows, columns = (length // per_cell for length in latent_size)
        levels = build_point_pyramid(adapter, joints, visible, clip.embeddings, rows, columns)
        return [torch.cat([level] * GUIDANCE_HALVES) for level in levels]
