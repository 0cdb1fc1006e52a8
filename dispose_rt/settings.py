"""What one call of `Animator.run` can be told, validated once."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType

from .errors import InputError

CONTROLS = ("motion", "points")
"""Motion fields (sparse and dense) and keypoint correspondence, the two guidance signals of the DisPose paper."""

PLACES = ("auto", "device", "host", "recompute")
"""Where the per-frame conditions of a clip may wait for the denoiser; "recompute": nowhere."""

PUBLISHED_OVERLAP = 6
"""Of the published tiles of 16 frames."""

LIMITS: Mapping[str, tuple[float, float]] = MappingProxyType(
    {
        "steps": (1, 1000),
        "guidance_scale": (1.0, 100.0),
        "overlap": (0, 10_000),
        "stride": (1, 10_000),
        "seed": (0, 2**63 - 1),
        "noise_aug_strength": (0.0, 1.0),
        "motion_bucket_id": (0, 1023),
    }
)
"""The smallest and the largest value of a setting; what an engine directory allows can be less."""


@dataclass(frozen=True)
class Settings:
    """Settings of one run.

    Attributes:
        steps: Euler steps, 1..1000.
        guidance_scale: classifier-free guidance g of u + g (c - u), >= 1. At 1 the conditional half alone.
        overlap: frames that neighbouring tiles share, 0..tile - 2; None is 6, as published, or what shorter tiles
            allow.
        stride: every `stride * max(1, int(source fps / 24))`-th source frame is used, >= 1.
        seed: seed of the default noise, 0 or more.
        fps: frame rate of the result, > 0; None keeps the speed of the source: its frame rate over the frame step.
        controls: which guidance signals are on, any of "motion" and "points". With none of them the ControlNet is left
            out and the result is plain MimicMotion.
        noise_aug_strength: standard deviation of noise added to the reference before the VAE, 0..1.
        motion_bucket_id: Stable Video Diffusion's amount-of-motion id, 0..1023.
        decode_chunk: frames that the VAE decodes at once, 1 to the engines' chunk; pixels depend a little on it. None
            takes the engines' chunk, which is what the reference does, or less where the device lacks the memory.
        conditions_memory: where the per-frame conditions wait: "device", "host" (streamed tile by tile), "recompute"
            (nowhere: they are computed again for every tile, which is slower and takes the least memory), or "auto",
            the first of these that takes no more than half of the free memory. The result is the same.
    """

    steps: int = 25
    guidance_scale: float = 2.0
    overlap: int | None = PUBLISHED_OVERLAP
    stride: int = 2
    seed: int = 0
    fps: float | None = None
    controls: tuple[str, ...] = CONTROLS
    noise_aug_strength: float = 0.0
    motion_bucket_id: int = 127
    decode_chunk: int | None = None
    conditions_memory: str = "auto"

    def __post_init__(self) -> None:
        if isinstance(self.controls, str) or not isinstance(self.controls, Iterable):
            what = "the string " if isinstance(self.controls, str) else ""
            raise InputError(f"controls is {what}{self.controls!r}; pass a tuple such as ('motion', 'points')")
        object.__setattr__(self, "controls", tuple(name for name in CONTROLS if name in self._given_controls()))
        problems = [*self._type_problems()] or [*self._range_problems()]
        if problems:
            raise InputError("unusable settings: " + "; ".join(problems))

    def overlap_in(self, tile: int) -> int:
        """The overlap with tiles of so many frames."""
        return min(PUBLISHED_OVERLAP, tile - 2) if self.overlap is None else self.overlap

    def _given_controls(self) -> tuple[str, ...]:
        given = tuple(self.controls)
        unknown = [name for name in given if name not in CONTROLS]
        if unknown:
            raise InputError(f"unknown controls {unknown}; choose from {list(CONTROLS)}")
        return given

    def _type_problems(self) -> list[str]:
        problems = []
        for field in fields(self):
            value = getattr(self, field.name)
            optional = "None" in str(field.type) and value is None
            is_integer = isinstance(value, int) and not isinstance(value, bool)
            if str(field.type).startswith("int") and not optional and not is_integer:
                problems.append(f"{field.name} is {value!r}; it must be an integer")
            is_number = is_integer or isinstance(value, float)
            if "float" in str(field.type) and not optional and not (is_number and math.isfinite(value)):
                problems.append(f"{field.name} is {value!r}; it must be a finite number")
        return problems

    def _range_problems(self) -> list[str]:
        problems = []
        for name, (low, high) in LIMITS.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                problems.append(f"{name} is {value}; it must lie in {low}..{high}")
        if self.decode_chunk is not None and not 1 <= self.decode_chunk <= 1000:
            problems.append(f"decode_chunk is {self.decode_chunk}; it must lie in 1..1000, or be None")
        if self.conditions_memory not in PLACES:
            problems.append(f"conditions_memory is {self.conditions_memory!r}; choose from {list(PLACES)}")
        if self.fps is not None and not 0 < self.fps <= 1000:
            problems.append(f"fps is {self.fps}; it must be above 0 and at most 1000")
        return problems
