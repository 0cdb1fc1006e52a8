"""Runs of `Animator` with a stopwatch: what a user waits for."""

from __future__ import annotations

import statistics
import tempfile
import threading
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .. import Animation, Animator
from ..errors import PerformanceWarning
from ..hooks.progress import ProgressCallback
from .clip import Clip


@dataclass(frozen=True)
class RunTimes:
    """One run.

    Attributes:
        frames: new frames; the reference is dropped.
        total_s: from the call to the result, which is decoded and written to an mp4.
        stages_s: seconds per stage.
        first_frame_s: from the call until the first decoded frames were handed on.
        peak_bytes: most device memory in use.
        launches_per_step: pieces of work that a step after the first one was queued in.
        graph_problem: why steps were not captured into a graph; None where they were.
    """

    frames: int
    total_s: float
    stages_s: Mapping[str, float]
    first_frame_s: float
    peak_bytes: int
    launches_per_step: int
    graph_problem: str | None

    @property
    def s_per_frame(self) -> float:
        return self.total_s / self.frames

    def record(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {**asdict(self), "s_per_frame": self.s_per_frame}


class _Ticks:
    """Hears of a run's progress: when the first frame was done, and how many ticks the last step took."""

    def __init__(self, label: str, progress: ProgressCallback | None) -> None:
        self.start = time.perf_counter()
        self.first_frame_s: float | None = None
        self.denoised: list[int] = []
        self._label = label
        self._progress = progress

    def __call__(self, stage: str, done: int, total: int | None) -> None:
        if stage == "denoise":
            self.denoised.append(done)
        elif stage == "decode" and done > 0 and self.first_frame_s is None:
            self.first_frame_s = time.perf_counter() - self.start
        if self._progress is not None:
            self._progress(f"{self._label}: {stage}", done, total)

    def launches_per_step(self, steps: int) -> int:
        before_last = self.denoised[-1] * (steps - 1) // steps
        return sum(done > before_last for done in self.denoised)


class Runner:
    """Animates one clip again and again with the same engines.

    Args:
        animator: has opened the engines.
        clip: what is animated.
        settings: of `Animator.run`, "steps" among them.
        progress: hears how far each run is, as ("run 1: denoise", done, total).
        cancel: set it from another thread to end a run with `Cancelled`.
    """

    def __init__(
        self,
        animator: Animator,
        clip: Clip,
        settings: Mapping[str, Any],
        progress: ProgressCallback | None = None,
        cancel: threading.Event | None = None,
    ) -> None:
        self._animator = animator
        self._clip = clip
        self._settings = settings
        self._progress = progress
        self._cancel = cancel
        self._problem: str | None = None

    def run(self, label: str = "run") -> RunTimes:
        """Animate once, into a temporary mp4.

        Args:
            label: what progress calls the run.

        Raises:
            DisposeError: the clip cannot be animated.
        """
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            ticks = _Ticks(label, self._progress)
            animation = self._animate(Path(folder) / "animation.mp4", ticks)
            total_s = time.perf_counter() - ticks.start
        self._hear(caught)
        assert ticks.first_frame_s is not None  # a run without frames is an error
        return RunTimes(
            frames=len(animation.frames),
            total_s=total_s,
            stages_s=dict(animation.timings),
            first_frame_s=ticks.first_frame_s,
            peak_bytes=animation.peak_bytes,
            launches_per_step=ticks.launches_per_step(self._settings["steps"]),
            graph_problem=self._problem,
        )

    def _animate(self, output: Path, ticks: _Ticks) -> Animation:
        clip = self._clip
        return self._animator.run(
            clip.ref,
            clip.video,
            stride=clip.stride,
            output=output,
            progress=ticks,
            cancel=self._cancel,
            **self._settings,
        )

    def _hear(self, caught: Sequence[warnings.WarningMessage]) -> None:
        """Remember why there is no graph, which is said in the first run only; pass everything else on."""
        for one in caught:
            text = str(one.message)
            if issubclass(one.category, PerformanceWarning) and "not captured into a CUDA graph" in text:
                self._problem = text.partition(": ")[2]
            else:
                warnings.warn(one.message, one.category, stacklevel=2)


@dataclass(frozen=True)
class Spread:
    """Median, and longest minus shortest."""

    median: float
    spread: float


def summarise(runs: Sequence[RunTimes]) -> dict[str, Any]:
    """Median and spread of every number of several runs.

    Returns:
        "total_s", "s_per_frame", "first_frame_s", "peak_bytes": {"median", "spread"}; "stages_s": the same per stage.
    """
    numbers = {
        name: asdict(spread_of([getattr(run, name) for run in runs]))
        for name in ("total_s", "s_per_frame", "first_frame_s", "peak_bytes")
    }
    stages = {name: asdict(spread_of([run.stages_s[name] for run in runs])) for name in runs[0].stages_s}
    return {**numbers, "stages_s": stages}


def spread_of(values: Sequence[float]) -> Spread:
    """Median and spread of some numbers."""
    return Spread(statistics.median(values), max(values) - min(values))
