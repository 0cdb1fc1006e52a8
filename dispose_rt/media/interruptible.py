"""Runs work that the caller cannot interrupt in a thread of its own, so that waiting for it can end at any time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from typing import Generic, TypeVar

from ..errors import Cancelled, InputError

T = TypeVar("T")
POLL_S = 0.1
"""How often a waiting caller looks whether it was cancelled, in seconds."""
STALL_S = 60.0
"""A file that delivers no byte and no picture for so long is given up, in seconds."""
LEAVE_S = 1.0
"""How long a caller that stops waits for the thread to let go of the file, in seconds."""


class Stopped(Exception):  # noqa: N818  # never seen by a caller: nobody waits for the thread any more
    """Ends the work inside the thread."""


class Pulse:
    """What the thread and its caller know of each other.

    Attributes:
        beat_s: when the thread last made progress (`time.monotonic`).
    """

    def __init__(self) -> None:
        self.beat_s = time.monotonic()
        self._stop = threading.Event()

    @property
    def is_stopped(self) -> bool:
        """Whether the caller has left."""
        return self._stop.is_set()

    def beat(self) -> None:
        """Note progress.

        Raises:
            Stopped: the caller has left.
        """
        if self._stop.is_set():
            raise Stopped
        self.beat_s = time.monotonic()

    def stop(self) -> None:
        """Make the next `beat` end the work."""
        self._stop.set()


def in_thread(work: Callable[[Pulse], Iterator[T]], name: str, cancel: threading.Event | None = None) -> Generator[T]:
    """Yield what a generator yields that runs in a thread.

    Python handles signals between its own instructions only, and a call into FFmpeg can last for minutes. So the
    caller waits here, in Python, and the thread works only while it waits: never ahead, so that no picture more than
    the one in use is held in memory.

    Args:
        work: makes the generator; it calls `Pulse.beat` wherever it makes progress.
        name: what messages call the file that is read.
        cancel: ends the reading once it is set.

    Raises:
        Cancelled: `cancel` was set.
        InputError: nothing came for `STALL_S` seconds.
    """
    worker: _Worker[T] = _Worker(work)
    try:
        while True:
            worker.begin()
            while not worker.wait(POLL_S):
                if cancel is not None and cancel.is_set():
                    raise Cancelled(f"cancelled while {name} was read")
                if worker.silent_s > STALL_S:
                    raise InputError(
                        f"{name} has delivered nothing for {STALL_S:.0f} s; copy it to a local disk and pass the copy"
                    )
            item = worker.take()
            if item is None:
                return
            yield item[0]
            del item
    finally:
        worker.leave()


def call_in_thread(work: Callable[[Pulse], T], name: str, cancel: threading.Event | None = None) -> T:
    """Call a function in a thread and return what it returns; see `in_thread`."""

    def once(pulse: Pulse) -> Iterator[T]:
        yield work(pulse)

    with closing(in_thread(once, name, cancel)) as results:
        return next(results)


class _Worker(Generic[T]):
    """The thread; it takes one step whenever it is asked to."""

    def __init__(self, work: Callable[[Pulse], Iterator[T]]) -> None:
        self._pulse = Pulse()
        self._wanted, self._ready = threading.Semaphore(0), threading.Semaphore(0)
        self._item: tuple[T] | None = None
        self._error: BaseException | None = None
        self._work = work
        self._thread = threading.Thread(target=self._run, name="video reader", daemon=True)
        self._thread.start()

    @property
    def silent_s(self) -> float:
        return time.monotonic() - self._pulse.beat_s

    def begin(self) -> None:
        """Ask for the next item."""
        self._pulse.beat_s = time.monotonic()
        self._wanted.release()

    def wait(self, timeout_s: float) -> bool:
        return self._ready.acquire(timeout=timeout_s)

    def take(self) -> tuple[T] | None:
        """Return the item, or None behind the last one."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        item, self._item = self._item, None
        return item

    def leave(self) -> None:
        """End the thread, or leave it behind if it hangs: then it ends with the process."""
        self._pulse.stop()
        self._wanted.release()
        if self._thread is not threading.current_thread():
            self._thread.join(LEAVE_S)

    def _run(self) -> None:
        try:
            for item in self._steps():
                self._item = (item,)
                del item
                self._ready.release()
        except Stopped:
            pass
        except BaseException as error:  # raised again where the caller waits
            self._error = error
        self._ready.release()

    def _steps(self) -> Iterator[T]:
        items = self._work(self._pulse)
        try:
            while True:
                self._wanted.acquire()
                self._pulse.beat()
                try:
                    item = next(items)
                except StopIteration:
                    return
                yield item
                del item
        finally:
            items.close()  # type: ignore[attr-defined]  # a generator
