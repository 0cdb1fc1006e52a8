"""Times queued work on the device: a graph replays it, events measure it. The CPU is timed with the same calls."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from dispose_rt.device import Device, Event, Stream
from dispose_rt.device.cuda import CudaDevice

WARM_UP, ROUNDS = 5, 40
_GPU_TRANSFER_BYTES, _CPU_TRANSFER_BYTES = 1 << 30, 1 << 27
_TRANSFERS = 4  # several in a row: the start of one hides behind another


def time_queued(queue: Callable[[], None], stream: Stream, rounds: int = ROUNDS) -> float:
    """Return the median seconds of the work that `queue()` queues on the stream.

    It is captured once and replayed, so that the time to launch from Python is no part of the result; anything that
    synchronizes or allocates fails the capture.

    Raises:
        DeviceError: the work cannot be captured, or fails.
    """
    graph = stream.capture(queue)
    try:
        return _median_seconds(lambda: graph.launch(stream), stream, rounds)
    finally:
        graph.close()


def _median_seconds(queue: Callable[[], None], stream: Stream, rounds: int) -> float:
    begin, end = stream.device.event(), stream.device.event()
    try:
        seconds = [_seconds(queue, stream, begin, end) for _ in range(WARM_UP + rounds)]
    finally:
        begin.close()
        end.close()
    return statistics.median(seconds[WARM_UP:])


def _seconds(queue: Callable[[], None], stream: Stream, begin: Event, end: Event) -> float:
    begin.record(stream)
    queue()
    end.record(stream)
    end.synchronize()
    return end.seconds_since(begin)


@dataclass(frozen=True)
class Bandwidth:
    """Bandwidth of large transfers within a device's memory, in bytes per second."""

    copy: float  # read and written bytes
    fill: float  # written bytes: the limit of kernels that read next to nothing


def measure_bandwidth(stream: Stream, rounds: int = ROUNDS) -> Bandwidth:
    """Measure copies and fills, of 1 GiB on a GPU, queued one by one: from a graph, copies reached two thirds of it.

    Raises:
        OutOfMemoryError: there is no room for two such arrays.
        DeviceError: a transfer fails.
    """
    device = stream.device
    size_bytes = _GPU_TRANSFER_BYTES if isinstance(device, CudaDevice) else _CPU_TRANSFER_BYTES
    noise = np.random.default_rng(0).integers(0, 256, 1 << 20, np.uint8)
    source = device.array(np.resize(noise, size_bytes), stream)
    target = device.zeros(source.shape, "uint8", stream)

    def copy() -> None:
        for _ in range(_TRANSFERS):
            target.copy_from(source, stream)

    def fill() -> None:
        for _ in range(_TRANSFERS):
            target.clear(stream)

    moved = _TRANSFERS * size_bytes
    try:
        return Bandwidth(
            copy=2 * moved / _median_seconds(copy, stream, rounds), fill=moved / _median_seconds(fill, stream, rounds)
        )
    finally:
        source.free()
        target.free()
        device.pool.trim()


def cache_bytes(device: Device) -> int:
    """Return the size of a GPU's L2 cache; 0 on the CPU, whose caches are ignored."""
    if not isinstance(device, CudaDevice):
        return 0
    return int(device.call("cudaGetDeviceProperties", device.gpu.index).l2CacheSize)
