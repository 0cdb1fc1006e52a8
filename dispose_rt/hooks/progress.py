"""Progress and time of a run, stage by stage."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..errors import Cancelled
from ..system.terminal import has_terminal

ProgressCallback = Callable[[str, int, int | None], None]
"""`callback(stage, done, total)`, called in the thread that runs: the stage's name, its finished units, and all of its
units, or None while their number is unknown (the frames of a video that does not state its length, say). The last call
of a stage has `done == total`.
"""

STAGES = ("pose", "load", "motion", "appearance", "conditions", "denoise", "decode")
"""The stages of a run, in their order."""


class StageTimer:
    """Seconds per stage, in the order in which stages first ran."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time spent inside to a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


class Progress:
    """Reports to a callback how far each stage is, and ends the run where the caller asked for it.

    Within a stage `done` never falls, and nothing is reported twice.

    Args:
        report: True draws bars on standard error if that is a terminal, False draws nothing; a callable gets (stage,
            done, total).
        cancel: once it is set, the next tick raises Cancelled.
    """

    def __init__(self, report: bool | ProgressCallback, cancel: threading.Event | None = None) -> None:
        self._close: Callable[[], None] | None = None
        if callable(report):
            self._report: ProgressCallback | None = report
        else:
            self._report = self._open_bar() if report and has_terminal() else None
        self._cancel = cancel
        self._stage = ""
        self._done = 0
        self._total: int | None = None

    def _open_bar(self) -> ProgressCallback:
        from .progress_bar import ProgressBar  # loads tqdm, which nothing else needs

        bar = ProgressBar()
        self._close = bar.close
        return bar

    def begin(self, stage: str, total: int | None) -> None:
        """Report that a stage begins.

        Args:
            stage: one of STAGES.
            total: its units, or None while unknown; at least one is reported, so that a stage without work has an end.

        Raises:
            Cancelled: the caller asked to stop.
        """
        self._stage, self._done, self._total = stage, -1, None
        self.step(stage, 0, None if total is None else max(total, 1))

    def step(self, stage: str, done: int, total: int | None) -> None:
        """Report that `done` of `total` units of a stage are finished; a total of None is unknown.

        Raises:
            Cancelled: the caller asked to stop.
        """
        if stage == self._stage:
            done = max(done, self._done)
        self.check(f"at {stage} {done}" + ("" if total is None else f" of {total}"))
        if (stage, done, total) == (self._stage, self._done, self._total):
            return
        self._stage, self._done, self._total = stage, done, total
        if self._report is not None:
            self._report(stage, done, total)

    def end(self, stage: str, total: int | None = None) -> None:
        """Report that all units of a stage are finished.

        Args:
            stage: one of STAGES.
            total: how many there were; None for the total that was reported last, or as many as were finished.

        Raises:
            Cancelled: the caller asked to stop.
        """
        reported = self._done if self._total is None else self._total
        units = max(reported if total is None else total, 1)
        self.step(stage, units, units)

    def check(self, where: str) -> None:
        """End the run if the caller asked for it.

        Raises:
            Cancelled: the caller asked to stop. The message says where, for example "at pose 3 of 40".
        """
        if self._cancel is not None and self._cancel.is_set():
            raise Cancelled(f"cancelled {where}")

    def close(self) -> None:
        """Finish the bars on the terminal. Calling it twice is fine."""
        if self._close is not None:
            self._close()
