"""How far a run has come, and how long its stage will still take, by the ticks that it sent."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from ..hooks.progress import STAGES


@dataclass(frozen=True)
class StageProgress:
    """One stage of a run.

    Attributes:
        name: one of `timing.STAGES`.
        done: finished units.
        total: all units; None while unknown.
        elapsed_s: since it began; None before that.
        left_s: what it will still take at the pace so far; None where that cannot be told.
        is_over: whether a later stage has begun, or the run has ended.
    """

    name: str
    done: int = 0
    total: int | None = None
    elapsed_s: float | None = None
    left_s: float | None = None
    is_over: bool = False


class StageClock:
    """Takes a run's ticks in one thread, and is read in others.

    Args:
        now_s: a clock that never goes back.
    """

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        self._now_s = now_s
        self._lock = threading.Lock()
        self._begun_s: dict[str, float] = {}
        self._ended_s: dict[str, float] = {}
        self._units: dict[str, tuple[int, int | None]] = {}
        self._current: str | None = None
        self._mark_s = 0.0

    def start(self) -> None:
        """Begin to count: a stage lasts from the end of the one before."""
        with self._lock:
            self._mark_s = self._now_s()

    def tick(self, stage: str, done: int, total: int | None) -> None:
        """Take a tick of `Animator.run`."""
        with self._lock:
            now_s = self._now_s()
            if stage != self._current:
                if self._current is not None:
                    self._ended_s[self._current] = self._mark_s
                self._begun_s.setdefault(stage, self._mark_s)
                self._current = stage
            self._units[stage] = (done, total)
            self._mark_s = now_s

    def stop(self) -> None:
        """End the stage at work."""
        with self._lock:
            if self._current is not None:
                self._ended_s[self._current] = self._now_s()
                self._current = None

    def stages(self) -> list[StageProgress]:
        """All stages in order, those of `timing.STAGES` that have not begun included."""
        with self._lock:
            names = [*STAGES, *(name for name in self._begun_s if name not in STAGES)]
            return [self._read(name) for name in names]

    def _read(self, name: str) -> StageProgress:
        if name not in self._begun_s:
            return StageProgress(name)
        done, total = self._units[name]
        is_over = name in self._ended_s
        spent_s = self._ended_s.get(name, self._now_s()) - self._begun_s[name]
        left_s = None
        if not is_over and done and total is not None:
            worked_s = (
                self._mark_s - self._begun_s[name]
            )  # up to the last tick; what came since is part of what is left
            left_s = max(0.0, worked_s * (total - done) / done - (spent_s - worked_s))
        return StageProgress(name, done, total, spent_s, left_s, is_over)
