"""How long each stage took, and how far a run has come."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .errors import Cancelled

ProgressCallback = Callable[[str, int, int], None]
"""`callback(stage, done, total)`, called from the thread that runs."""


class Stopwatch:
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
    """Tells a callback how far each stage is, and stops the run where the caller asked for it.

    Args:
        report: True prints one line to a terminal's standard error (and nothing where there is none), False nothing; a
            callable gets (stage, done, total).
        cancel: once it is set, the next step raises Cancelled.
    """

    def __init__(self, report: bool | ProgressCallback, cancel: threading.Event | None = None) -> None:
        if callable(report):
            self._report: ProgressCallback | None = report
        else:
            self._report = _print_line if report and sys.stderr.isatty() else None
        self._cancel = cancel

    def step(self, stage: str, done: int, total: int) -> None:
        """Report that `done` of `total` units of a stage are finished.

        Raises:
            Cancelled: the caller asked to stop.
        """
        if self._cancel is not None and self._cancel.is_set():
            raise Cancelled(f"cancelled at {stage} {done} of {total}")
        if self._report is not None:
            self._report(stage, done, total)


def _print_line(stage: str, done: int, total: int) -> None:
    end = "\n" if done >= total else ""
    print(f"\r\x1b[K{stage}: {done}/{total}", end=end, file=sys.stderr, flush=True)
