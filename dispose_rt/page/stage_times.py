"""How far a run has come, and how long its stage will still take, from the run's progress."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from ..hooks.progress import STAGES


@dataclass(frozen=True)
class StageProgress:
    """One stage of a run.

    Attributes:
        name: one of `hooks.progress.STAGES`.
        done: finished units.
        total: all units; None where it is unknown.
        elapsed_s: time since the stage began; None before that.
        left_s: time that it will still take at its pace so far; None where that is unknown.
        is_over: whether a later stage has begun, or the run has ended.
    """

    name: str
    done: int = 0
    total: int | None = None
    elapsed_s: float | None = None
    left_s: float | None = None
    is_over: bool = False


class StageTimes:
    """Written by the thread of a run and read by others.

    Args:
        now_s: a clock that never goes back.
    """

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        self._now_s = now_s
        self._mark_s = now_s()
        self._current = ""
        self._began_s: dict[str, float] = {}
        self._ended_s: dict[str, float] = {}
        self._units: dict[str, tuple[int, int | None]] = {}

    def __call__(self, stage: str, done: int, total: int | None) -> None:
        """Take a progress call of `Animator.run`. A stage lasts from the last call of the stage before."""
        if stage != self._current:
            self._ended_s[self._current] = self._mark_s
            self._current = stage
        self._units[stage] = (done, total)
        self._began_s.setdefault(stage, self._mark_s)
        self._mark_s = self._now_s()

    def stop(self) -> None:
        """End the current stage."""
        self._ended_s[self._current] = self._now_s()

    def read(self) -> list[StageProgress]:
        """Return all stages in order, including those that have not begun."""
        return [self._read(name) for name in STAGES]

    def _read(self, name: str) -> StageProgress:
        if name not in self._began_s:
            return StageProgress(name)
        done, total = self._units[name]
        is_over = name in self._ended_s
        elapsed_s = self._ended_s.get(name, self._now_s()) - self._began_s[name]
        left_s = None
        if done and total is not None and not is_over:
            paced_s = self._mark_s - self._began_s[name]  # up to the last call: later seconds belong to the next unit
            left_s = max(0.0, paced_s * total / done - elapsed_s)
        return StageProgress(name, done, total, elapsed_s, left_s, is_over)
