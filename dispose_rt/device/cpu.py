"""The CPU as a device: memory of this process, streams that are done at once, graphs that repeat recorded calls."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DeviceError, OutOfMemoryError
from .arrays import Array, PinnedArray, check_form, storage_dtype
from .base import Device, Event, Graph, Stream
from .modules import find_kernel

_ALIGNMENT = 256
Call = tuple[Callable[..., object], tuple[Any, ...]]


class CpuDevice(Device):
    """The processor and the memory of this machine."""

    synchronous = True

    def __init__(self) -> None:
        self._buffers: dict[int, NDArray[np.uint8]] = {}
        super().__init__("cpu", self._allocate, self._release)

    def _allocate(self, size_bytes: int) -> int:
        try:
            buffer = np.empty(size_bytes + _ALIGNMENT, np.uint8)
        except MemoryError as error:
            raise OutOfMemoryError(f"the process cannot get {size_bytes / 1e6:,.0f} MB of memory") from error
        address = -(-buffer.ctypes.data // _ALIGNMENT) * _ALIGNMENT
        self._buffers[address] = buffer
        return address

    def _release(self, address: int) -> None:
        del self._buffers[address]

    def pinned(self, shape: Sequence[int], dtype: str) -> PinnedArray:
        """See `Device.pinned`."""
        check_form(tuple(shape), dtype)
        self.check_allocation()
        try:
            return PinnedArray(np.empty(tuple(shape), storage_dtype(dtype)), dtype, lambda: None)
        except MemoryError as error:
            raise OutOfMemoryError(f"the process cannot get memory for {dtype} {list(shape)}") from error

    def stream(self) -> CpuStream:
        """See `Device.stream`."""
        return CpuStream(self)

    def event(self) -> CpuEvent:
        """See `Device.event`."""
        self.check_open()
        return CpuEvent(self)

    def launch(self, kernel: str, arguments: Sequence[Array | int | float], stream: Stream) -> None:
        """See `Device.launch`."""
        plain = tuple(argument.address if isinstance(argument, Array) else argument for argument in arguments)
        submit(stream, _run_kernel, kernel, plain)

    def copy(self, target: int, source: int, size_bytes: int, stream: Stream) -> None:
        """See `Device.copy`."""
        if size_bytes:
            submit(stream, ctypes.memmove, target, source, size_bytes)

    def clear(self, target: int, size_bytes: int, stream: Stream) -> None:
        """See `Device.clear`."""
        if size_bytes:
            submit(stream, ctypes.memset, target, 0, size_bytes)

    def memory_bytes(self) -> tuple[int, int]:
        """See `Device.memory_bytes`."""
        page = os.sysconf("SC_PAGE_SIZE")
        return os.sysconf("SC_AVPHYS_PAGES") * page + self.pool.kept_bytes, os.sysconf("SC_PHYS_PAGES") * page

    def close(self) -> None:
        """See `Device.close`."""
        self.refuse_capture("closing the device")
        self.closed = True
        self.pool.close()


def _run_kernel(kernel: str, arguments: tuple[int | float, ...]) -> None:
    problem = find_kernel("cpu", kernel)(*arguments, 0)
    if problem is not None:
        raise DeviceError(f"the kernel {kernel} failed: {problem}")


def submit(stream: Stream, function: Callable[..., object], *arguments: Any) -> None:
    """Do a call now or, where the stream is capturing, whenever its graph is launched.

    Args:
        stream: of the CPU.
        function: what to call.
        arguments: with which; they are kept as they are now.
    """
    assert isinstance(stream, CpuStream)
    stream.check_open()
    if stream.calls is None:
        function(*arguments)
    else:
        stream.calls.append((function, arguments))


def as_numpy(array: Array) -> NDArray[Any]:
    """See an array of the CPU as a numpy array, without a copy; uint16 for bfloat16. Valid until it is freed."""
    assert array.device.name == "cpu"
    dtype = storage_dtype(array.dtype)
    if not array.nbytes:
        return np.empty(array.shape, dtype)
    memory = (ctypes.c_uint8 * array.nbytes).from_address(array.address)
    view: NDArray[Any] = np.ctypeslib.as_array(memory).view(dtype).reshape(array.shape)
    return view


class CpuStream(Stream):
    """Does everything at once, or records it."""

    def __init__(self, device: CpuDevice) -> None:
        super().__init__(device)
        self.calls: list[Call] | None = None
        self._closed = False

    @property
    def handle(self) -> int:
        """See `Stream.handle`."""
        self.check_open()
        return 0

    def check_open(self) -> None:
        """Raise a DeviceError if it or its device was closed."""
        self.device.check_open()
        if self._closed:
            raise DeviceError("the stream was closed")

    def _synchronize(self) -> None:
        """See `Stream.synchronize`. Nothing is ever under way."""
        self.check_open()

    def wait(self, event: Event) -> None:
        """See `Stream.wait`. What precedes an event is done."""
        self.check_open()

    def capture(self, body: Callable[[], None]) -> CpuGraph:
        """See `Stream.capture`."""
        self.check_open()
        self.device.refuse_capture("capturing another graph")
        self.calls, self.capturing = [], True
        try:
            with self.device.recording():
                body()
            return CpuGraph(self.device, self.calls)
        finally:
            self.calls, self.capturing = None, False

    def close(self) -> None:
        """See `Stream.close`."""
        self.refuse_capture("closing its stream")
        self._held.clear()
        self._closed = True


class CpuGraph(Graph):
    """Recorded calls, done again in order."""

    def __init__(self, device: Device, calls: list[Call]) -> None:
        self._device = device
        self._calls: list[Call] | None = calls

    def launch(self, stream: Stream) -> None:
        """See `Graph.launch`."""
        self._device.check_open()
        if self._calls is None:
            raise DeviceError("the graph was closed")
        assert isinstance(stream, CpuStream)
        stream.check_open()
        stream.refuse_capture("launching another graph")
        for function, arguments in self._calls:
            submit(stream, function, *arguments)

    def close(self) -> None:
        """See `Graph.close`."""
        self._calls = None


class CpuEvent(Event):
    """The time at which it was recorded."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._time_s: float | None = None

    def record(self, stream: Stream) -> None:
        """See `Event.record`."""
        submit(stream, self._mark)

    def _mark(self) -> None:
        self._time_s = time.perf_counter()

    def synchronize(self) -> None:
        """See `Event.synchronize`."""
        self._device.refuse_capture("waiting for an event")

    def seconds_since(self, earlier: Event) -> float:
        """See `Event.seconds_since`."""
        if not isinstance(earlier, CpuEvent) or self._time_s is None or earlier._time_s is None:
            raise DeviceError("an event was not recorded, so no time has passed since then")
        return self._time_s - earlier._time_s

    def close(self) -> None:
        """See `Event.close`."""
