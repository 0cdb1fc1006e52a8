"""The product's Euler sampler on PyTorch modules, for looking at a training from time to time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .project import SchedulerConstants, karras_schedule

Denoise = Callable[[Tensor, float], Tensor]
"""Noisy latents [rows, 4, h, w] and a noise level -> the prediction of the clean ones, guidance included."""


def sample(denoise: Denoise, noise: Tensor, steps: int) -> Tensor:
    """Integrate from the largest noise level down to 0.

    Args:
        denoise: predicts clean latents.
        noise: unit normal, [rows, 4, h, w].
        steps: Euler steps.

    Returns:
        Clean latents, scaled.
    """
    schedule = karras_schedule(steps, SchedulerConstants())
    latents = noise * float(schedule.init_noise_sigma)
    for number in range(steps):
        sigma, following = float(schedule.sigmas[number]), float(schedule.sigmas[number + 1])
        slope = (latents - denoise(latents, sigma)) / sigma
        latents = latents + slope * (following - sigma)
    return latents


def clean_latents(noisy: Tensor, predicted: Tensor, sigmas: Tensor) -> Tensor:
    """Clean latents from a v-prediction; `sigmas` broadcast against the latents."""
    variance = sigmas.square() + 1
    return noisy / variance - predicted * sigmas / variance.sqrt()


def velocity_target(clean: Tensor, noise: Tensor, sigmas: Tensor) -> Tensor:
    """What a v-prediction should be for `clean + sigmas * noise`; of unit variance at every noise level."""
    return (noise - sigmas * clean) / (sigmas.square() + 1).sqrt()


def rows_like(values: Tensor) -> Tensor:
    """Shape [rows] as [rows, 1, 1, 1]."""
    return values.reshape(-1, 1, 1, 1)


def unit_normal(shape: tuple[int, ...], seed: int) -> Tensor:
    """Seeded unit normal numbers on the CPU."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
