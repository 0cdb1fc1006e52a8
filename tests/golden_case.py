"""The golden end-to-end cases, as arguments of a run and as arrays to compare with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dispose_rt import Animation, Animator
from tests.golden_data import GOLDEN, load_golden

E2E_CASES = ("one_tile_64", "tiles_128x192", "guidance_one_64")


@dataclass(frozen=True)
class GoldenCase:
    """One end-to-end case of tests/golden/e2e.npz."""

    name: str

    def __getitem__(self, key: str) -> np.ndarray:
        return load_golden("e2e")[f"{self.name}.{key}"]

    @property
    def tile(self) -> int:
        return int(self["config"][1])

    @property
    def size(self) -> tuple[int, int]:
        """Width, height."""
        return int(self["config"][4]), int(self["config"][3])

    @property
    def chunk(self) -> int:
        return int(self["config"][7])

    @property
    def guidance(self) -> float:
        return float(self["guidance"])

    def noise(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        keys = {"latents": "noise_latents", "dift_posterior": "noise_dift_vae", "dift_noise": "noise_dift_unet"}
        array = self[keys[name]]
        assert array.shape == shape
        return array

    def arguments(self) -> dict[str, Any]:
        """What `Animator.run` needs to do what the reference did."""
        return {
            "ref": GOLDEN / "ref.png",
            "video": GOLDEN / "drive.mkv",
            "steps": int(self["config"][6]),
            "overlap": int(self["config"][2]),
            "stride": int(self["config"][5]),
            "guidance_scale": self.guidance,
            "noise_aug_strength": float(self["noise_aug_strength"]),
            "noise": self.noise,
            "progress": False,
        }


@dataclass(frozen=True)
class Trace:
    """A run and everything it showed on the way."""

    animation: Animation
    seen: dict[str, list[Any]]


def animate(engine_dir: Path, **arguments: Any) -> Trace:
    """Run an Animator of its own, and keep what it shows."""
    with Animator(engine_dir) as animator:
        return trace_run(animator, **arguments)


def trace_run(animator: Animator, **arguments: Any) -> Trace:
    """Run an Animator, and keep what it shows."""
    seen: dict[str, list[Any]] = {}
    animation = animator.run(observer=lambda name, value: seen.setdefault(name, []).append(value), **arguments)
    return Trace(animation, seen)
