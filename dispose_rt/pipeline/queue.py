"""The queue of an Animator: one run is at work at a time."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any

from ..errors import BusyError, EngineError, InputError

WHEN_BUSY = ("wait", "raise")
POLL_S = 0.05
"""Poll interval while queued, in seconds."""

CLOSED = "this Animator was closed; make a new one"
_OWN_RUN = (
    "this thread is in the middle of another run of the same Animator, and would wait for itself: end the run, close() "
    "the generator that stream() returned, or use a second Animator"
)


class Turn:
    """One run's right to use the engines.

    Attributes:
        thread: the thread that runs, or that read a stream last.
        work: the generator to close for ending a paused stream; None for a run.
        paused: whether a stream waits for its reader to ask for the next frame.
    """

    def __init__(self) -> None:
        self.thread = threading.current_thread()
        self.work: Generator[Any] | None = None
        self.paused = False


class RunQueue:
    """Gives runs their turns in the order of their arrival.

    Args:
        when_busy: "wait" for the run that has the turn, or "raise" a BusyError.

    Raises:
        InputError: `when_busy` is neither.
    """

    def __init__(self, when_busy: str) -> None:
        if when_busy not in WHEN_BUSY:
            raise InputError(f"when_busy is {when_busy!r}; choose from {list(WHEN_BUSY)}")
        self._raises = when_busy == "raise"
        self._changed = threading.Condition(threading.RLock())  # a garbage collection may end a stream in any line
        self._waiting: deque[Turn] = deque()
        self._holder: Turn | None = None
        self.closed = False

    @property
    def busy(self) -> bool:
        """Whether a run has the turn."""
        return self._holder is not None

    @contextmanager
    def take(self, check: Callable[[str], None]) -> Iterator[Turn]:
        """Wait for a turn, and keep it for the block.

        Args:
            check: called every `POLL_S` while queued, with a text that says so; raises to leave the queue.

        Raises:
            BusyError: this thread has the turn already, or another run has it and `when_busy` is "raise".
            EngineError: it was closed.
        """
        turn = Turn()
        try:
            self._wait(turn, check)
            yield turn
        finally:
            try:
                self._leave(turn)
            except KeyboardInterrupt:  # a second Ctrl-C, while the first one is cleaned up after
                self._leave(turn)
                raise

    def _wait(self, turn: Turn, check: Callable[[str], None]) -> None:
        with self._changed:
            self._refuse(turn)
            self._waiting.append(turn)
            while self._holder is not None or self._waiting[0] is not turn:
                self._changed.wait(POLL_S)
                check("while waiting for another run to end")
                self.check_open()
            self._holder = turn
            self._waiting.popleft()

    def _refuse(self, turn: Turn) -> None:
        self.check_open()
        if self._holder is None:
            return
        if self._holder.thread is turn.thread:
            raise BusyError(_OWN_RUN)
        if self._raises:
            raise BusyError(
                "this Animator is at work on another run: try again when that has ended, make the Animator with "
                "when_busy='wait', or use a second one"
            )

    def check_open(self) -> None:
        """Raise an EngineError if it was closed."""
        if self.closed:
            raise EngineError(CLOSED)

    def _leave(self, turn: Turn) -> None:
        with self._changed:
            if turn.work is not None:
                turn.work.close()
            if turn in self._waiting:
                self._waiting.remove(turn)
            if self._holder is turn:
                self._holder = None
            self._changed.notify_all()

    def resume(self, turn: Turn) -> None:
        """Continue a paused stream, whose reader may be another thread than before.

        Raises:
            EngineError: the queue was closed meanwhile.
        """
        with self._changed:
            self.check_open()
            turn.paused = False
            turn.thread = threading.current_thread()

    def close(self) -> None:
        """Refuse further runs, and wait for the current one. A paused stream is ended.

        Raises:
            BusyError: the current run is this thread's own, and called this.
        """
        with self._changed:
            mine = threading.current_thread()
            if self._holder is not None and self._holder.thread is mine and not self._holder.paused:
                raise BusyError("close() was called in the middle of a run, by its progress or observer: set `cancel`")
            self.closed = True
            self._changed.notify_all()
            while self._holder is not None:
                if self._holder.paused and self._holder.work is not None:
                    self._holder.work.close()
                    return
                self._changed.wait(POLL_S)
