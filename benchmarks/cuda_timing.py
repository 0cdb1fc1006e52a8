"""Device time of queued work: a CUDA graph replays it, events measure it. Uses cuda-python alone."""

from __future__ import annotations

import importlib
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from numpy.typing import NDArray

from dispose_rt.device import DeviceMemory, Stream, check

WARM_UP, ROUNDS = 5, 40
_TRANSFER_BYTES, _TRANSFERS = 1 << 30, 4  # several in a row: the start of one hides behind another


@cache
def _cuda() -> Any:
    return importlib.import_module("cuda.bindings.runtime")


def time_queued(queue: Callable[[int], None], stream: Stream) -> float:
    """Median seconds of what `queue(stream handle)` queues.

    It is captured once and replayed, so that the time to launch from Python is no part of the result; anything that
    synchronizes or allocates fails the capture.

    Raises:
        DeviceError: the work cannot be captured, or fails.
    """
    cuda = _cuda()
    mode = cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
    check(cuda.cudaStreamBeginCapture(stream.handle, mode), "cudaStreamBeginCapture")
    queue(stream.handle)
    graph = check(cuda.cudaStreamEndCapture(stream.handle), "cudaStreamEndCapture")
    replay = check(cuda.cudaGraphInstantiate(graph, 0), "cudaGraphInstantiate")
    try:
        return _median_seconds(lambda: check(cuda.cudaGraphLaunch(replay, stream.handle), "cudaGraphLaunch"), stream)
    finally:
        check(cuda.cudaGraphExecDestroy(replay), "cudaGraphExecDestroy")
        check(cuda.cudaGraphDestroy(graph), "cudaGraphDestroy")


def _median_seconds(queue: Callable[[], object], stream: Stream) -> float:
    cuda = _cuda()
    begin, end = (check(cuda.cudaEventCreate(), "cudaEventCreate") for _ in range(2))
    seconds = []
    try:
        for _ in range(WARM_UP + ROUNDS):
            check(cuda.cudaEventRecord(begin, stream.handle), "cudaEventRecord")
            queue()
            check(cuda.cudaEventRecord(end, stream.handle), "cudaEventRecord")
            check(cuda.cudaEventSynchronize(end), "cudaEventSynchronize")
            seconds.append(float(check(cuda.cudaEventElapsedTime(begin, end), "cudaEventElapsedTime")) / 1e3)
    finally:
        for event in (begin, end):
            check(cuda.cudaEventDestroy(event), "cudaEventDestroy")
    return statistics.median(seconds[WARM_UP:])


@dataclass(frozen=True)
class Bandwidth:
    """Bytes per second that large transfers move within the memory of a GPU."""

    copy: float  # read and written bytes
    fill: float  # written bytes: the limit of kernels that read next to nothing


def measure_bandwidth(stream: Stream) -> Bandwidth:
    """Copies and fills of 1 GiB, queued one by one: replayed from a graph, copies reached two thirds of their speed.

    Raises:
        DeviceError: there is no room for 2 GiB, or a transfer fails.
    """
    cuda = _cuda()
    source, target = DeviceMemory(_TRANSFER_BYTES), DeviceMemory(_TRANSFER_BYTES)
    kind = cuda.cudaMemcpyKind.cudaMemcpyDeviceToDevice

    def copy() -> None:
        for _ in range(_TRANSFERS):
            queued = cuda.cudaMemcpyAsync(target.address, source.address, _TRANSFER_BYTES, kind, stream.handle)
            check(queued, "cudaMemcpyAsync on the GPU")

    def fill() -> None:
        for _ in range(_TRANSFERS):
            check(cuda.cudaMemsetAsync(target.address, 0, _TRANSFER_BYTES, stream.handle), "cudaMemsetAsync")

    moved = _TRANSFERS * _TRANSFER_BYTES
    try:
        check(cuda.cudaMemsetAsync(source.address, 0x3C, _TRANSFER_BYTES, stream.handle), "cudaMemsetAsync")
        return Bandwidth(copy=2 * moved / _median_seconds(copy, stream), fill=moved / _median_seconds(fill, stream))
    finally:
        source.free()
        target.free()


def upload(array: NDArray[Any]) -> DeviceMemory:
    """Copy an array to the current GPU; done on return.

    Raises:
        DeviceError: there is no room, or the copy fails.
    """
    cuda = _cuda()
    memory = DeviceMemory(array.nbytes)
    kind = cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
    check(cuda.cudaMemcpy(memory.address, array.ctypes.data, array.nbytes, kind), "cudaMemcpy to the GPU")
    check(cuda.cudaDeviceSynchronize(), "cudaDeviceSynchronize")  # a small copy may still be under way
    return memory


def l2_bytes(index: int = 0) -> int:
    """Size of a GPU's L2 cache."""
    return int(check(_cuda().cudaGetDeviceProperties(index), "cudaGetDeviceProperties").l2CacheSize)
