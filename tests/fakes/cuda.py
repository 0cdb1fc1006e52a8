"""A CUDA runtime whose device memory is memory of this process, for tests without a GPU.

Streams are real queues: work is done when somebody waits for it and no sooner, so that a missing wait shows as wrong
numbers. Kernels are those of the CPU, queued. What CUDA forbids while a graph is captured is an error here, too, and
work that touches freed memory or memory of the host loses the GPU.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import itertools
import math
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from enum import IntEnum
from importlib.machinery import ModuleSpec
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dispose_rt.device import Array, Stream, cpu
from dispose_rt.device.arrays import storage_dtype


class CudaError(IntEnum):
    cudaSuccess = 0  # noqa: N815
    cudaErrorInvalidValue = 1  # noqa: N815
    cudaErrorMemoryAllocation = 2  # noqa: N815
    cudaErrorInsufficientDriver = 35  # noqa: N815
    cudaErrorInvalidDevice = 101  # noqa: N815
    cudaErrorInvalidResourceHandle = 400  # noqa: N815
    cudaErrorIllegalState = 401  # noqa: N815
    cudaErrorNotReady = 600  # noqa: N815
    cudaErrorIllegalAddress = 700  # noqa: N815
    cudaErrorLaunchFailure = 719  # noqa: N815
    cudaErrorStreamCaptureUnsupported = 900  # noqa: N815
    cudaErrorStreamCaptureInvalidated = 901  # noqa: N815
    cudaErrorStreamCaptureIsolation = 905  # noqa: N815
    cudaErrorCapturedEvent = 907  # noqa: N815
    cudaErrorStreamCaptureWrongThread = 908  # noqa: N815


class CallError(Exception):
    """A call answers this error."""

    def __init__(self, error: CudaError) -> None:
        super().__init__(error.name)
        self.error = error


class FakeStream:
    """A queue. Work that is queued is a call; work that is captured is a call with the stream to queue it on."""

    def __init__(self, device: int) -> None:
        self.device = device
        self.queue: deque[Callable[[], None]] = deque()
        self.capture: FakeCapture | None = None


class FakeCapture:
    def __init__(self) -> None:
        self.thread = threading.get_ident()
        self.work: list[Callable[[FakeStream], None]] = []
        self.valid = True


class Mark:
    """A place in a stream that an event marks."""

    def __init__(self, stream: FakeStream) -> None:
        self.stream = stream
        self.time_s: float | None = None


class FakeEvent:
    def __init__(self, device: int) -> None:
        self.device = device
        self.mark: Mark | None = None
        self.captured = False


def api(results: int = 0, logged: bool = True, fails: bool = True) -> Callable[..., Any]:
    """A function of the runtime: answers an error code and `results` values; once the GPU is lost, that error alone."""

    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        name = function.__name__

        @functools.wraps(function)
        def call(self: FakeCuda, *arguments: Any) -> tuple[Any, ...]:
            with self._lock:
                if logged:
                    self.calls.append(name)
                try:
                    if name in self.failing:
                        raise CallError(self.failing.pop(name))
                    if fails and self.lost is not None:
                        raise CallError(self.lost)
                    value = function(self, *arguments)
                except CallError as failure:
                    self.last_error = failure.error
                    return (failure.error, *[None] * results)
                return (CudaError.cudaSuccess, *(value if results > 1 else [value] * results))

        return call

    return wrap


class FakeCuda:
    """What `dispose_rt.device` calls of `cuda.bindings.runtime`.

    Args:
        gpus: how many there are.
        memory_bytes: of each.
        immediate: do work when it is queued, as the CPU does.

    Attributes:
        blocks: device memory by address; host_blocks: pinned memory.
        calls: what was called, without questions; selected: the GPUs that were made current.
        contexts: the GPUs on which the process holds a context.
        foreign_bytes: memory of GPU 0 that libraries have allocated by themselves, see `take_foreign`.
        graph_bytes: what the driver allocates for each piece of work in a graph.
        highest_bytes: the most that was in use on GPU 0 at one time.
        failing: errors that the next call of a function answers.
        faults: errors of the kernels that run next.
        lost: the error that every call answers since a kernel failed.
        last_error: what the last failing call answered, until somebody asks.
    """

    cudaStreamNonBlocking = 1  # noqa: N815
    cudaHostAllocDefault = 0  # noqa: N815
    cudaEventBlockingSync = 1  # noqa: N815
    cudaEventRecordDefault = 0  # noqa: N815
    cudaEventRecordExternal = 1  # noqa: N815
    cudaEventWaitDefault = 0  # noqa: N815
    cudaEventWaitExternal = 1  # noqa: N815
    cudaMemcpyKind = SimpleNamespace(  # noqa: N815
        cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2, cudaMemcpyDeviceToDevice=3, cudaMemcpyDefault=4
    )
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)  # noqa: N815

    def __init__(self, gpus: int = 1, memory_bytes: int = 1 << 28, immediate: bool = False) -> None:
        self.gpus = gpus
        self.memory_bytes = memory_bytes
        self.immediate = immediate
        self.blocks: dict[int, NDArray[np.uint8]] = {}
        self.host_blocks: dict[int, NDArray[np.uint8]] = {}
        self.calls: list[str] = []
        self.selected: list[int] = []
        self.contexts: set[int] = set()
        self.failing: dict[str, CudaError] = {}
        self.faults: deque[CudaError] = deque()
        self.lost: CudaError | None = None
        self.last_error = CudaError.cudaSuccess
        self.foreign_bytes = 0
        self.graph_bytes = 0
        self.highest_bytes = 0
        self._freed: dict[int, NDArray[np.uint8]] = {}  # kept, so that no address comes twice
        self._gpu_of: dict[int, int] = {}
        self._handles = itertools.count(77)
        self.streams: dict[int, FakeStream] = {}
        self.events: dict[int, FakeEvent] = {}
        self.graphs: dict[int, list[Callable[[FakeStream], None]]] = {}
        self.executables: dict[int, list[Callable[[FakeStream], None]]] = {}
        self._threads = threading.local()
        self._lock = threading.RLock()

    # Devices and errors

    @property
    def current(self) -> int:
        """The current GPU of the calling thread."""
        return getattr(self._threads, "current", 0)

    @current.setter
    def current(self, index: int) -> None:
        self._threads.current = index

    @property
    def used_bytes(self) -> int:
        return sum(len(block) for block in self.blocks.values())

    @api(1, logged=False, fails=False)
    def cudaGetErrorString(self, error: CudaError) -> bytes:
        return f"explanation of {error.name}".encode()

    def cudaGetLastError(self) -> tuple[CudaError]:
        last, self.last_error = self.last_error, CudaError.cudaSuccess
        return (last,)

    @api(1, logged=False)
    def cudaGetDeviceCount(self) -> int:
        if not self.gpus:
            raise CallError(CudaError.cudaErrorInsufficientDriver)
        return self.gpus

    @api(1, logged=False)
    def cudaGetDevice(self) -> int:
        return self.current

    @api(logged=False, fails=False)
    def cudaSetDevice(self, device: int) -> None:
        if device >= self.gpus:
            raise CallError(CudaError.cudaErrorInvalidDevice)
        self.current = device
        self.selected.append(device)
        self.contexts.add(device)

    @api(1, logged=False)
    def cudaGetDeviceProperties(self, device: int) -> Any:
        return SimpleNamespace(name=b"Fake GPU\0\0", major=8, minor=device + 6)

    @api(1, logged=False)
    def cudaDriverGetVersion(self) -> int:
        return 12090

    @api(2, logged=False)
    def cudaMemGetInfo(self) -> tuple[int, int]:
        return self.memory_of(self.current)

    @api()
    def cudaDeviceSynchronize(self) -> None:
        self._forbid_in_capture()
        self._drain()

    # Memory

    def memory_of(self, gpu: int) -> tuple[int, int]:
        """Free and total memory of a GPU, in bytes."""
        used = sum(len(block) for address, block in self.blocks.items() if self._gpu_of[address] == gpu)
        used += self.foreign_bytes if gpu == 0 else 0
        return self.memory_bytes - used, self.memory_bytes

    def _note_highest(self) -> None:
        self.highest_bytes = max(self.highest_bytes, self.memory_bytes - self.memory_of(0)[0])

    def take_foreign(self, size: int) -> bool:
        """Allocate as a library does, TensorRT or torch, say; False where there is no room."""
        with self._lock:
            if size > self.memory_of(0)[0]:
                return False
            self.foreign_bytes += size
            self._note_highest()
            return True

    def give_foreign(self, size: int) -> None:
        """Free what `take_foreign` allocated."""
        with self._lock:
            self.foreign_bytes -= size

    @api(1)
    def cudaMalloc(self, size: int) -> int:
        self._forbid_in_capture()
        if self.memory_of(self.current)[0] < size:
            raise CallError(CudaError.cudaErrorMemoryAllocation)
        address = self._new_block(self.blocks, size)
        self._gpu_of[address] = self.current
        self._note_highest()
        return address

    @api()
    def cudaFree(self, devPtr: int) -> None:  # noqa: N803
        self._forbid_in_capture()
        self._drain()
        self._free_block(self.blocks, devPtr)

    @api(1)
    def cudaHostAlloc(self, size: int, flags: int) -> int:
        self._forbid_in_capture()
        return self._new_block(self.host_blocks, size)

    @api()
    def cudaFreeHost(self, ptr: int) -> None:
        self._forbid_in_capture()
        self._drain()
        self._free_block(self.host_blocks, ptr)

    @staticmethod
    def _new_block(blocks: dict[int, NDArray[np.uint8]], size: int) -> int:
        memory = np.full(size + 256, 0xFF, np.uint8)  # NaN until something is written
        shift = -memory.ctypes.data % 256
        block = memory[shift : shift + size]
        blocks[block.ctypes.data] = block
        return block.ctypes.data

    def _free_block(self, blocks: dict[int, NDArray[np.uint8]], address: int) -> None:
        if address not in blocks:
            raise CallError(CudaError.cudaErrorInvalidValue)
        self._freed[address] = blocks.pop(address)

    def floats(self, address: int, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
        """Device memory as an array.

        Raises:
            KeyError: it was freed, or never allocated.
        """
        base = _containing(self.blocks, address)
        if base is None:
            raise KeyError(address)
        start = address - base
        count = math.prod(shape)
        return self.blocks[base][start : start + count * np.dtype(dtype).itemsize].view(dtype).reshape(shape)

    # Streams

    @api(1)
    def cudaStreamCreateWithFlags(self, flags: int) -> int:
        assert flags == self.cudaStreamNonBlocking
        handle = next(self._handles)
        self.streams[handle] = FakeStream(self.current)
        return handle

    @api()
    def cudaStreamSynchronize(self, stream: int) -> None:
        found = _find(self.streams, stream)
        if found.capture is not None:
            found.capture.valid = False
            raise CallError(CudaError.cudaErrorStreamCaptureUnsupported)
        self._run(found)

    @api()
    def cudaStreamDestroy(self, stream: int) -> None:
        self._run(_find(self.streams, stream))
        del self.streams[stream]

    def submit(self, stream: int, work: Callable[[], None], needs_current: bool = True) -> None:
        """Queue work on a stream, or record it.

        Raises:
            CallError: the stream is none of the current GPU, or its capture is invalid.
        """
        self._enqueue(stream, lambda target: self._push(target, work), needs_current)

    def _push(self, stream: FakeStream, work: Callable[[], None]) -> None:
        stream.queue.append(work)
        if self.immediate:
            self._run(stream)

    def _enqueue(self, handle: int, work: Callable[[FakeStream], None], needs_current: bool) -> None:
        if self.lost is not None:
            raise CallError(self.lost)
        stream = _find(self.streams, handle)
        if needs_current and stream.device != self.current:
            raise CallError(CudaError.cudaErrorInvalidResourceHandle)
        if stream.capture is None:
            work(stream)
        elif stream.capture.valid:
            stream.capture.work.append(work)
        else:
            raise CallError(CudaError.cudaErrorStreamCaptureInvalidated)

    def _run(self, stream: FakeStream, until: Mark | None = None) -> None:
        """Do what a stream holds, or what it holds up to a mark."""
        while stream.queue and (until is None or until.time_s is None):
            work = stream.queue.popleft()
            try:
                work()
            except CallError as failure:
                self.lost = failure.error
                for other in self.streams.values():
                    other.queue.clear()
                raise

    def _drain(self) -> None:
        for stream in self.streams.values():
            self._run(stream)

    @api()
    def cudaMemcpyAsync(self, dst: int, src: int, count: int, kind: int, stream: int) -> None:
        places = {self._place(dst, count), self._place(src, count)}
        directions = {1: {"pageable", "pinned", "device"}, 2: {"pageable", "pinned", "device"}, 3: {"device"}}
        if not places <= directions.get(kind, places):
            raise CallError(CudaError.cudaErrorInvalidValue)
        if "pageable" in places:
            self._forbid_in_capture_of(_find(self.streams, stream))
        self.submit(stream, lambda: self._copy(dst, src, count), needs_current=False)

    def _copy(self, target: int, source: int, count: int) -> None:
        for address in (target, source):
            self._place(address, count)
        ctypes.memmove(target, source, count)

    def _place(self, address: int, count: int) -> str:
        for place, blocks in (("device", self.blocks), ("pinned", self.host_blocks)):
            base = _containing(blocks, address)
            if base is not None:
                if address + count > base + len(blocks[base]):
                    raise CallError(CudaError.cudaErrorInvalidValue)
                return place
        if _containing(self._freed, address) is not None:
            raise CallError(CudaError.cudaErrorInvalidValue)
        return "pageable"

    @api()
    def cudaMemsetAsync(self, devPtr: int, value: int, count: int, stream: int) -> None:  # noqa: N803
        def fill() -> None:
            if self._place(devPtr, count) != "device":
                raise CallError(CudaError.cudaErrorIllegalAddress)
            ctypes.memset(devPtr, value, count)

        if self._place(devPtr, count) != "device":
            raise CallError(CudaError.cudaErrorInvalidValue)
        self.submit(stream, fill)

    def launch(self, name: str, kernel: Callable[..., str | None], arguments: tuple[Any, ...], stream: int) -> None:
        """Queue a kernel of the CPU.

        Raises:
            CallError: see `submit`.
        """

        def run() -> None:
            if self.faults:
                raise CallError(self.faults.popleft())
            for address in arguments:
                if isinstance(address, int) and address > 1 << 40 and self._place(address, 1) != "device":
                    raise CallError(CudaError.cudaErrorIllegalAddress)
            problem = kernel(*arguments, 0)
            assert problem is None, f"{name}: {problem}"

        with self._lock:
            self.calls.append(name)
            self.submit(stream, run)

    # Events

    @api(1)
    def cudaEventCreateWithFlags(self, flags: int) -> int:
        handle = next(self._handles)
        self.events[handle] = FakeEvent(self.current)
        return handle

    @api()
    def cudaEventRecordWithFlags(self, event: int, stream: int, flags: int) -> None:
        found, target = _find(self.events, event), _find(self.streams, stream)
        if found.device != target.device:
            raise CallError(CudaError.cudaErrorInvalidResourceHandle)
        if flags == self.cudaEventRecordExternal and target.capture is None:
            raise CallError(CudaError.cudaErrorInvalidValue)
        found.captured = target.capture is not None and flags == self.cudaEventRecordDefault

        def record(queue: FakeStream) -> None:
            mark = found.mark = Mark(queue)

            def pass_mark() -> None:
                mark.time_s = time.perf_counter()

            self._push(queue, pass_mark)

        self._enqueue(stream, record, needs_current=False)

    @api()
    def cudaEventSynchronize(self, event: int) -> None:
        self._forbid_in_capture()
        found = self._uncaptured(event)
        if found.mark is not None:
            self._run(found.mark.stream, found.mark)

    @api(1)
    def cudaEventElapsedTime(self, start: int, end: int) -> float:
        marks = [self._uncaptured(event).mark for event in (start, end)]
        times_s = [mark.time_s for mark in marks if mark is not None]
        if len(times_s) < 2:
            raise CallError(CudaError.cudaErrorInvalidResourceHandle)
        if None in times_s:
            raise CallError(CudaError.cudaErrorNotReady)
        return 1e3 * (times_s[1] - times_s[0])

    @api()
    def cudaEventDestroy(self, event: int) -> None:
        _find(self.events, event)
        del self.events[event]

    @api()
    def cudaStreamWaitEvent(self, stream: int, event: int, flags: int) -> None:
        found, target = self._uncaptured(event), _find(self.streams, stream)
        external = flags == self.cudaEventWaitExternal
        if target.capture is not None and not external and found.mark is not None:
            target.capture.valid = False
            raise CallError(CudaError.cudaErrorStreamCaptureIsolation)
        if target.capture is None and external:
            raise CallError(CudaError.cudaErrorInvalidValue)

        def wait(queue: FakeStream) -> None:
            mark = found.mark
            if mark is not None:
                self._push(queue, lambda: self._run(mark.stream, mark))

        self._enqueue(stream, wait, needs_current=False)

    def _uncaptured(self, event: int) -> FakeEvent:
        found = _find(self.events, event)
        if found.captured:
            raise CallError(CudaError.cudaErrorCapturedEvent)
        return found

    # Graphs

    def _forbid_in_capture(self) -> None:
        """Refuse a call that would break the captures of this thread."""
        for stream in self.streams.values():
            if stream.capture is not None and stream.capture.thread == threading.get_ident():
                self._forbid_in_capture_of(stream)

    @staticmethod
    def _forbid_in_capture_of(stream: FakeStream) -> None:
        if stream.capture is not None:
            stream.capture.valid = False
            raise CallError(CudaError.cudaErrorStreamCaptureUnsupported)

    @api()
    def cudaStreamBeginCapture(self, stream: int, mode: int) -> None:
        assert mode == self.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        found = _find(self.streams, stream)
        if found.capture is not None:
            raise CallError(CudaError.cudaErrorIllegalState)
        found.capture = FakeCapture()

    @api(1)
    def cudaStreamEndCapture(self, stream: int) -> int:
        found = _find(self.streams, stream)
        capture = found.capture
        if capture is None:
            raise CallError(CudaError.cudaErrorIllegalState)
        if capture.thread != threading.get_ident():
            raise CallError(CudaError.cudaErrorStreamCaptureWrongThread)
        found.capture = None
        if not capture.valid:
            raise CallError(CudaError.cudaErrorStreamCaptureInvalidated)
        handle = next(self._handles)
        self.graphs[handle] = capture.work
        return handle

    @api(1)
    def cudaGraphInstantiate(self, graph: int, flags: int) -> int:
        work = list(_find(self.graphs, graph))
        if not self.take_foreign(self.graph_bytes * len(work)):
            raise CallError(CudaError.cudaErrorMemoryAllocation)
        handle = next(self._handles)
        self.executables[handle] = work
        return handle

    @api()
    def cudaGraphLaunch(self, graphExec: int, stream: int) -> None:  # noqa: N803
        work = _find(self.executables, graphExec)
        for one in work:
            self._enqueue(stream, one, needs_current=True)

    @api()
    def cudaGraphDestroy(self, graph: int) -> None:
        _find(self.graphs, graph)
        del self.graphs[graph]

    @api()
    def cudaGraphExecDestroy(self, graphExec: int) -> None:  # noqa: N803
        self.give_foreign(self.graph_bytes * len(_find(self.executables, graphExec)))
        del self.executables[graphExec]


def _find(things: dict[int, Any], handle: int) -> Any:
    if handle not in things:
        raise CallError(CudaError.cudaErrorInvalidResourceHandle)
    return things[handle]


def _containing(blocks: dict[int, NDArray[np.uint8]], address: int) -> int | None:
    return next((base for base, block in blocks.items() if base <= address < base + len(block)), None)


class DriverError(IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_INVALID_DEVICE = 101
    CUDA_ERROR_DEVICE_UNAVAILABLE = 46


class FakeDriver:
    """What `dispose_rt.device` calls of `cuda.bindings.driver`.

    Attributes:
        exclusive: GPUs that another process keeps for itself: nobody opens a context on them.
    """

    def __init__(self, runtime: FakeCuda) -> None:
        self._runtime = runtime
        self._retained: list[int] = []
        self._stack: list[int] = []
        self.exclusive: set[int] = set()

    def cuInit(self, flags: int) -> tuple[DriverError]:
        assert flags == 0
        return (DriverError.CUDA_SUCCESS,)

    def cuDeviceGet(self, ordinal: int) -> tuple[DriverError, int | None]:
        if ordinal >= self._runtime.gpus:
            return DriverError.CUDA_ERROR_INVALID_DEVICE, None
        return DriverError.CUDA_SUCCESS, ordinal

    def cuDevicePrimaryCtxRetain(self, device: int) -> tuple[DriverError, int | None]:
        if device in self.exclusive:
            return DriverError.CUDA_ERROR_DEVICE_UNAVAILABLE, None
        self._retained.append(device)
        return DriverError.CUDA_SUCCESS, device

    def cuDevicePrimaryCtxRelease(self, device: int) -> tuple[DriverError]:
        self._retained.remove(device)
        return (DriverError.CUDA_SUCCESS,)

    def cuCtxPushCurrent(self, context: int) -> tuple[DriverError]:
        assert context in self._retained
        self._stack.append(context)
        return (DriverError.CUDA_SUCCESS,)

    def cuCtxPopCurrent(self) -> tuple[DriverError, int]:
        return DriverError.CUDA_SUCCESS, self._stack.pop()

    def cuMemGetInfo(self) -> tuple[DriverError, int, int]:
        free, total = self._runtime.memory_of(self._stack[-1])
        return DriverError.CUDA_SUCCESS, free, total

    def cuGetErrorString(self, error: DriverError) -> tuple[DriverError, bytes]:
        return DriverError.CUDA_SUCCESS, f"explanation of {error.name}".encode()


class FakeKernels:
    """`dispose_rt._kernels_cuda`: the kernels of the CPU, queued on streams of a fake GPU."""

    TARGET = "cuda"
    __file__ = None  # who looks through all modules asks

    def __init__(self, cuda: FakeCuda) -> None:
        self.__spec__ = ModuleSpec("dispose_rt._kernels_cuda", None)
        self._cuda = cuda
        self._cpu = importlib.import_module("dispose_rt._kernels_cpu")

    def __getattr__(self, name: str) -> Callable[..., str | None]:
        kernel = getattr(self._cpu, name)

        def launch(*arguments: Any) -> str | None:
            *plain, stream = arguments
            try:
                self._cuda.launch(name, kernel, tuple(plain), stream)
            except CallError as failure:
                return f"explanation of {failure.error.name}"
            return None

        return launch


def as_numpy(array: Array) -> NDArray[Any]:
    """See an array of the CPU or of the fake GPU as a numpy array, without a copy; uint16 for bfloat16."""
    if array.device.name == "cpu":
        return cpu.as_numpy(array)
    dtype = storage_dtype(array.dtype)
    return sys.modules["cuda.bindings.runtime"].floats(array.address, array.shape, dtype)


def submit(stream: Stream, function: Callable[..., object], *arguments: Any) -> None:
    """Queue a call on a stream of the CPU or of the fake GPU, as an engine does."""
    if stream.device.name == "cpu":
        cpu.submit(stream, function, *arguments)
    else:
        sys.modules["cuda.bindings.runtime"].submit(stream.handle, lambda: function(*arguments), needs_current=False)


def install(monkeypatch: pytest.MonkeyPatch, **options: Any) -> FakeCuda:
    """Put a fake GPU into this process until the test ends: open_device("cuda") opens it.

    Args:
        monkeypatch: of the test.
        options: of `FakeCuda`.
    """
    cuda = FakeCuda(**options)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", cuda)  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", FakeDriver(cuda))  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "dispose_rt._kernels_cuda", FakeKernels(cuda))  # type: ignore[arg-type]
    return cuda
