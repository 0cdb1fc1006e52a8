"""A bar per stage on the terminal's standard error, with its speed and the time left."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from types import TracebackType
from typing import TextIO

from tqdm import tqdm

_UNITS = {"pose": "frame", "load": "network", "motion": "frame", "denoise": "step", "decode": "frame"}
"""The unit of a stage."""

_NAME_WIDTH = 10
_UNKNOWN_TOTAL = "{desc}: {n_fmt} {unit}s [{elapsed}, {rate_fmt}]"


class _Bar(tqdm):  # type: ignore[misc]  # the package has no types
    monitor_interval = 0  # no thread that watches over bars: every tick is drawn


class ProgressBar:
    """A progress callback that draws one bar per stage, and nothing unless the stream is a terminal.

    Stages come one after the other; the bar of a finished one stays, with the time that it took. Use it as a context
    manager, or call `close`.

    Args:
        stream: where to draw; None takes standard error.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._live = self._stream is not None and self._stream.isatty()
        self._bar: _Bar | None = None
        self._stage = ""
        self._last_tick_s = time.time()

    def __call__(self, stage: str, done: int, total: int | None) -> None:
        """Show that `done` of `total` units of a stage are finished.

        Args:
            stage: its name.
            done: finished units, 0 or more; fewer than before begin the stage again.
            total: all units; None while unknown.
        """
        if not self._live:
            return
        try:
            self._draw(stage, done, total)
        except (OSError, ValueError):  # the terminal has gone, or is closed: the work goes on without a bar
            self._live = False
            if self._bar is not None:
                self._bar.disable = True

    def _draw(self, stage: str, done: int, total: int | None) -> None:
        bar = self._bar
        if bar is None or stage != self._stage or done < bar.n:
            # work that the first tick reports as done was done since the last tick
            bar = self._open(stage, self._last_tick_s if done else time.time())
        bar.total = None if total is None else max(done, total)
        bar.bar_format = _UNKNOWN_TOTAL if total is None else None
        self._last_tick_s = time.time()
        bar.update(done - bar.n)
        if total is not None and done >= total:
            self.close()

    def _open(self, stage: str, start_s: float) -> _Bar:
        self.close()
        self._stage = stage
        bar = self._bar = _Bar(
            desc=f"{stage:{_NAME_WIDTH}}",
            total=None,
            unit=_UNITS.get(stage, "part"),
            file=self._stream,
            dynamic_ncols=True,
            miniters=1,
            delay=1e-9,  # nothing is drawn before the first tick
        )
        bar.start_t = bar.last_print_t = start_s
        return bar

    def close(self) -> None:
        """Leave the current bar as it is and go to the next line. Calling it twice is fine."""
        bar, self._bar = self._bar, None
        if bar is not None:
            with suppress(OSError, ValueError):
                bar.close()

    def __enter__(self) -> ProgressBar:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the current bar."""
        self.close()
