"""Orderly ends on Ctrl-C, SIGTERM and SIGHUP: a command releases what it holds."""

from __future__ import annotations

import _thread
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType
from typing import Any

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")
PATIENCE_S = 10.0
"""Time after a signal in which further ones are ignored, in seconds."""


class Interrupted(KeyboardInterrupt):
    """A signal asked the command to end."""


class StopSignals:
    """A context in which the first signal ends the command in an orderly way.

    The first signal raises Interrupted in the main thread; inside `gently` it only sets the event. Further signals are
    ignored for a while, as they would break off the cleanup; after that they raise Interrupted, so that a command that
    hangs can be stopped. Signals that the process was started to ignore (`nohup`, `&` in a script) stay ignored.
    Outside the main thread nothing is installed.

    Args:
        patience_s: time in which further signals are ignored, in seconds.

    Attributes:
        number: the first signal; None before it.
        event: set by the first signal.
    """

    def __init__(self, patience_s: float = PATIENCE_S) -> None:
        self.number: int | None = None
        self.event = threading.Event()
        self._patience_s = patience_s
        self._raised_s = 0.0
        self._gentle = False
        self._before: dict[int, Callable[[int, FrameType | None], Any] | int] = {}

    def __enter__(self) -> StopSignals:
        """Install the handlers."""
        if threading.current_thread() is threading.main_thread():
            for name in _NAMES:
                number = getattr(signal, name, None)  # Windows has no SIGHUP
                before = None if number is None else signal.getsignal(number)
                if number is not None and before is not None and before is not signal.SIG_IGN:
                    signal.signal(number, self._handle)
                    self._before[number] = before
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Restore the handlers of before."""
        for number, before in self._before.items():
            signal.signal(number, before)

    @contextmanager
    def gently(self) -> Iterator[threading.Event]:
        """Let the first signal set the event and raise nothing, for work that polls the event.

        An exception could be raised anywhere in that work, and leave a lock taken.
        """
        self._gentle = True
        try:
            yield self.event
        finally:
            self._gentle = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now_s = time.monotonic()
        is_first = self.number is None
        if not is_first and now_s - self._raised_s < self._patience_s:
            left_s = self._patience_s - (now_s - self._raised_s)
            text = f"\ndispose-rt: already stopping; if it hangs, ask again in {left_s:.0f} s\n"
            with suppress(OSError):
                os.write(2, text.encode())  # `print` is not safe in a handler
            return
        self._raised_s = now_s
        if is_first:
            self.number = number
            _thread.start_new_thread(self.event.set, ())  # it takes a lock that the interrupted code may hold
        if not (is_first and self._gentle):
            raise Interrupted
