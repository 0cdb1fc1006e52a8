"""The sampling loop: per sigma and tile ControlNet, UNet, accumulate; then one guided Euler step on all frames."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import kernels
from .backends import Engine
from .contract import NETWORKS, Sizes
from .noise import NoiseSource, draw_checked
from .scheduler import Schedule
from .tiles import Tile
from .timing import Progress
from .types import F32, Conditions

Tensors = dict[str, NDArray[Any]]


def initial_latents(noise: NoiseSource, schedule: Schedule, frames: int, sizes: Sizes) -> F32:
    """Draw the start of the sampler: one tile of noise, repeated along time, at the largest sigma.

    Returns:
        float32 [frames, 4, height/8, width/8]. As in the reference, frame k and frame k + tile start equal.
    """
    tile_noise = draw_checked(noise, "latents", (1, sizes.tile, 4, sizes.height // 8, sizes.width // 8))[0]
    start: F32 = tile_noise[np.arange(frames) % sizes.tile] * schedule.init_noise_sigma
    return start


@dataclass(frozen=True)
class StepTrace:
    """What one step computed, for observers.

    Attributes:
        step: from 0 on.
        sums: float32 [2, frames, 4, h, w], tile-weighted sums of the unconditional and conditional predictions.
        weights: float32 [frames], sums of the tile weights.
        latents: float32 [frames, 4, h, w], after the step.
    """

    step: int
    sums: F32
    weights: F32
    latents: F32


class Denoiser:
    """The sampling loop over one pair of engines.

    Args:
        controlnet: the "controlnet" engine, or None to run the UNet alone (plain MimicMotion).
        unet: the "unet" engine.
        sizes: the engine directory's sizes.
        residual_dtype: dtype of the ControlNet's residuals.
    """

    def __init__(self, controlnet: Engine | None, unet: Engine, sizes: Sizes, residual_dtype: str) -> None:
        self._controlnet = controlnet
        self._unet = unet
        self._no_residuals = {} if controlnet else _zero_residuals(sizes, residual_dtype)

    def run(
        self,
        latents: F32,
        conditions: Conditions,
        schedule: Schedule,
        tiles: Sequence[Tile],
        guidance_scale: float,
        progress: Progress,
        observe: Callable[[str, StepTrace], None],
    ) -> F32:
        """Denoise a clip.

        Args:
            latents: float32 [frames, 4, height/8, width/8], the start; not modified.
            conditions: of all frames.
            schedule: sigmas and timesteps.
            tiles: cover every frame.
            guidance_scale: g of u + g (c - u).
            progress: gets a tick per tile.
            observe: gets ("denoise_step", StepTrace) after every step.

        Returns:
            float32 [frames, 4, height/8, width/8].

        Raises:
            EngineError: a network failed, or answered non-finite values: every backend checks what it answers.
            Cancelled: the caller asked to stop.
        """
        scaled = latents / schedule.input_divisor(0)
        total = schedule.steps * len(tiles)
        for step in range(schedule.steps):
            sums = np.zeros((2, *latents.shape), np.float32)
            weights = np.zeros(len(latents), np.float32)
            for number, tile in enumerate(tiles):
                prediction = self._predict(scaled, conditions, schedule.timesteps[step : step + 1], tile)
                kernels.accumulate_tile(sums, weights, prediction, tile.frames, tile.weights)
                progress.step("denoise", step * len(tiles) + number + 1, total)
            latents = kernels.guided_euler_step(
                latents, sums, weights, guidance_scale, schedule.sigmas[step], schedule.sigmas[step + 1], scaled
            )
            observe("denoise_step", StepTrace(step, sums, weights, latents))
        return latents

    def _predict(self, scaled: F32, conditions: Conditions, timestep: F32, tile: Tile) -> F32:
        """Noise prediction of one tile, [2, tile, 4, h, w]: unconditional, conditional."""
        common: Tensors = {
            "latents": scaled[tile.frames],
            "image_latents": conditions.image_latents,
            "timestep": timestep,
            "image_embeds": conditions.image_embeds,
            "added_time_ids": conditions.added_time_ids,
        }
        residuals = self._no_residuals
        if self._controlnet is not None:
            points = {
                f"point_features_{level}": features[tile.frames]
                for level, features in enumerate(conditions.point_features)
            }
            motion = {"motion_features": conditions.motion_features[tile.frames]}
            residuals = self._controlnet.run(common | motion | points)
        pose = {"pose_latents": conditions.pose_latents[tile.frames]}
        prediction: F32 = self._unet.run(common | pose | residuals)["noise_pred"]
        return prediction


def _zero_residuals(sizes: Sizes, dtype: str) -> Tensors:
    """What an absent ControlNet adds."""
    specs = NETWORKS["controlnet"].outputs
    return {spec.name: np.zeros([int(dim) for dim in sizes.resolve(spec.shape)], dtype) for spec in specs}
