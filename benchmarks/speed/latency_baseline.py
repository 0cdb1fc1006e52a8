"""The published method beside ours: the same size, precision, clip length, tiles and steps, in the same process."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from dispose_rt.contract import Sizes
from dispose_rt.engines.manifest import Manifest
from dispose_rt.errors import InputError

if TYPE_CHECKING:
    from benchmarks.reference.results import Baseline

STEPS_MEASURED = 3
SCALES = {
    "full": Sizes(64, 64),
    "toy": Sizes(64, 64, channels=(32, 64, 128, 128), embed=48),
}
"""Widths of the networks at every scale of random weights."""


def scale_of(sizes: Sizes) -> str | None:
    """Return the scale of the engines' widths: "full", "toy", or None for others."""
    wanted = (sizes.channels, sizes.embed)
    return next((scale for scale, one in SCALES.items() if (one.channels, one.embed) == wanted), None)


@dataclass(frozen=True)
class Ours:
    """Our side of the comparison.

    Attributes:
        tile_step_s: seconds of the denoising loop by steps and tiles.
        s_per_frame: of the whole run, by new frames; None where only steps were run.
    """

    tile_step_s: float
    s_per_frame: float | None


@dataclass(frozen=True)
class Comparison:
    """Both sides of a comparison."""

    baseline: Baseline
    ours: Ours

    @property
    def tile_step_ratio(self) -> float:
        """Baseline over ours; both measured."""
        assert self.baseline.step is not None
        return self.baseline.step.tile_s / self.ours.tile_step_s

    @property
    def s_per_frame_ratio(self) -> float | None:
        """Baseline, extrapolated, over ours, measured; None where ours was not."""
        seconds = self.baseline.s_per_frame(self.baseline.step)
        return seconds / self.ours.s_per_frame if seconds and self.ours.s_per_frame else None

    def record(self) -> dict[str, Any]:
        """Return the JSON record."""
        return {
            **self.baseline.record(),
            "ours": asdict(self.ours),
            "ratio": {"tile_step": self.tile_step_ratio, "s_per_frame": self.s_per_frame_ratio},
        }

    def __str__(self) -> str:
        baseline, ours, step = self.baseline, self.ours, self.baseline.step
        assert step is not None
        lines = ["baseline, eager PyTorch, in this process:"]
        lines += [f"  {line}" for line in str(baseline).splitlines()]
        lines.append(
            f"tile-step   baseline {step.tile_s * 1e3:10.2f} ms (measured, median of {step.tiles_measured})   "
            f"ours {ours.tile_step_s * 1e3:10.2f} ms (measured)   ratio {self.tile_step_ratio:.2f}"
        )
        seconds = baseline.s_per_frame(step)
        if ours.s_per_frame is not None and seconds is not None:
            lines.append(
                f"s/frame     baseline {seconds:10.4f} s  (extrapolated from its tile-steps and stages)   "
                f"ours {ours.s_per_frame:10.4f} s  (measured, whole runs)   ratio {self.s_per_frame_ratio:.2f}"
            )
            lines.append("Ours includes finding poses and writing the mp4, which the baseline leaves out.")
        return "\n".join(lines)


def measure_beside(
    manifest: Manifest, device: str, frames: int, overlap: int, steps: int, guidance_scale: float, budget_s: float
) -> Baseline:
    """Run the published method at an engine directory's size and precision, on the device that the engines use.

    Args:
        manifest: of the engine directory.
        device: "cpu" or "cuda:N".
        frames: of the clip, the reference included.
        overlap: frames that tiles share.
        steps: Euler steps of a whole run.
        guidance_scale: above 1.
        budget_s: see `BaselineSetting`.

    Raises:
        InputError: the engines have other widths than those that random weights come in, or the published method
            cannot run such a clip.
    """
    scale = scale_of(manifest.sizes)
    if scale is None:
        raise InputError(
            f"the engines' UNet has channels {list(manifest.sizes.channels)} and contexts of {manifest.sizes.embed}; "
            "the baseline draws random weights of published or toy width: build engines with --random-weights"
        )
    import torch

    from benchmarks.reference.baseline import measure_baseline
    from benchmarks.reference.results import BaselineSetting

    kind, _, index = device.partition(":")
    if kind == "cuda" and torch.cuda.is_available():
        torch.cuda.set_device(int(index or 0))
    return measure_baseline(
        BaselineSetting(
            device=kind,
            scale=scale,
            sizes=manifest.sizes,
            precision=manifest.precision,
            frames=frames,
            overlap=overlap,
            steps=steps,
            steps_measured=min(STEPS_MEASURED, steps - 1),
            guidance_scale=guidance_scale,
            budget_s=budget_s,
        )
    )
