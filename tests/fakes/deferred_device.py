"""A CPU that does nothing before somebody waits for it, as a GPU may: what the host does too early shows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dispose_rt.device import Event, PinnedArray, Stream
from dispose_rt.device.cpu import CpuDevice, CpuEvent, CpuGraph, CpuStream, submit

_POISON = 0xA5


class DeferredStream(CpuStream):
    """Keeps its calls until it, or an event behind them, is waited for.

    Attributes:
        waits: how often the host waited.
    """

    def __init__(self, device: CpuDevice) -> None:
        super().__init__(device)
        self.calls = []
        self.waits = 0

    def step(self) -> None:
        """Do the oldest call."""
        function, arguments = self.calls.pop(0)
        function(*arguments)

    def _synchronize(self) -> None:
        super()._synchronize()
        self.waits += 1
        while self.calls:
            self.step()

    def wait(self, event: Event) -> None:
        submit(self, event.catch_up, event.records)  # as it was last recorded by now

    def capture(self, body: Callable[[], None]) -> CpuGraph:
        queued = self.calls
        try:
            return super().capture(body)
        finally:
            self.calls = queued


class DeferredEvent(CpuEvent):
    """Done when its stream has come to its mark.

    Attributes:
        records: how often it was recorded.
    """

    def __init__(self, device: CpuDevice) -> None:
        super().__init__(device)
        self._stream: DeferredStream | None = None
        self.records, self._done = 0, 0

    def record(self, stream: Stream) -> None:
        self._stream = stream
        self.records += 1
        super().record(stream)

    def _mark(self) -> None:
        super()._mark()
        self._done += 1

    def catch_up(self, records: int) -> None:
        """Let its stream work until the mark has been passed so often."""
        while self._done < records:
            self._stream.step()

    def synchronize(self) -> None:
        super().synchronize()
        if self._stream is not None:
            self._stream.waits += 1
            self.catch_up(self.records)


class DeferredDevice(CpuDevice):
    """Its pinned memory is overwritten when it is freed."""

    def __init__(self) -> None:
        super().__init__()
        self.pinned_arrays = 0
        self._graveyard: list[Any] = []

    def stream(self) -> DeferredStream:
        return DeferredStream(self)

    def event(self) -> DeferredEvent:
        return DeferredEvent(self)

    def pinned(self, shape: Sequence[int], dtype: str) -> PinnedArray:
        array = super().pinned(shape, dtype)
        bits = array.bits
        self.pinned_arrays += 1

        def bury() -> None:
            self._graveyard.append(bits)
            bits.view(np.uint8).fill(_POISON)
            self.pinned_arrays -= 1

        return PinnedArray(bits, dtype, bury)
