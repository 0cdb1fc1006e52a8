"""Times every kernel at the size of a published run: 16 frames of 576x1024.

    python benchmarks/speed/kernel_times.py [--device cpu|cuda[:N]] [--json FILE]

Median device time of a launch, replayed from a graph, and the bytes that have to move (inputs read once, outputs
written once) per second, as a share of what a device-to-device copy moves in the same run; what a fill moves, which is
less on some GPUs, is the limit of kernels that only write. On a GPU the launches go over buffers that together exceed
its L2 cache several times, and the median time of the CPU twin on all cores stands beside. Without a GPU, or with
--device cpu, the table holds times of the CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.speed.cuda_timing import ROUNDS, cache_bytes, measure_bandwidth, time_queued
from benchmarks.speed.kernel_cases import KernelCase, make_cases
from dispose_rt.device import Device, Stream, find_gpus, open_device
from dispose_rt.device.cuda import CudaDevice
from dispose_rt.errors import DisposeError

CPU_ROUNDS, LAUNCHES, CACHE_MULTIPLE = 9, 24, 4


@dataclass(frozen=True)
class Timing:
    """Measurements of one kernel.

    Attributes:
        name: of the case.
        moved_bytes: what has to move.
        seconds: of a launch.
        share_of_copy: bytes per second, as a share of a copy's.
        cpu_s: of a launch on the CPU.
    """

    name: str
    moved_bytes: int
    seconds: float
    share_of_copy: float
    cpu_s: float

    def __str__(self) -> str:
        speed = self.moved_bytes / self.seconds / 1e9
        return (
            f"{self.name:<36} {self.moved_bytes / 1e6:8.1f} MB {self.seconds * 1e6:10.1f} us {speed:8.1f} GB/s "
            f"{100 * self.share_of_copy:6.1f} %   CPU {self.cpu_s * 1e3:8.2f} ms"
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", help='"cpu" or "cuda[:N]" (default: the first GPU, if there is one)')
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there, too")
    arguments = parser.parse_args(argv)
    try:
        record = run(open_device(arguments.device or ("cuda" if find_gpus() else "cpu")))
    except DisposeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if arguments.json:
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")
    return 0


def run(device: Device) -> dict[str, Any]:
    """Measure and print. Returns the JSON record."""
    on_gpu = isinstance(device, CudaDevice)
    cpu = open_device("cpu")
    stream, cpu_stream = device.stream(), cpu.stream()
    bandwidth = measure_bandwidth(stream, ROUNDS if on_gpu else CPU_ROUNDS)
    print(
        f"{_name(device)}: a copy moves {bandwidth.copy / 1e9:.0f} GB/s, read and written, and a fill"
        f" {bandwidth.fill / 1e9:.0f} GB/s"
    )
    if not on_gpu:
        print("DRY RUN: every time below is of the CPU, and says nothing about a GPU")
    timings = []
    for case in make_cases():
        cpu_s = time_case(case, cpu_stream, CPU_ROUNDS)
        seconds = time_case(case, stream, ROUNDS) if on_gpu else cpu_s
        share = case.moved_bytes / seconds / bandwidth.copy
        timings.append(Timing(case.name, case.moved_bytes, seconds, share, cpu_s))
        print(timings[-1], flush=True)
    for one in (stream, cpu_stream, device, cpu):
        one.close()
    return {
        "device": device.name,
        "name": _name(device),
        "cpu_cores": os.cpu_count(),
        "bytes_per_s": asdict(bandwidth),
        "kernels": [asdict(timing) for timing in timings],
    }


def _name(device: Device) -> str:
    return device.gpu.name if isinstance(device, CudaDevice) else f"CPU, {os.cpu_count()} cores"


def time_case(case: KernelCase, stream: Stream, rounds: int) -> float:
    """Return the median seconds of a launch; on a GPU over rotating copies of its arguments.

    Raises:
        DeviceError: the kernel cannot be captured, or fails.
    """
    copies, launches = 1, 1
    if cache := cache_bytes(stream.device):
        copies = max(2, -(-CACHE_MULTIPLE * cache // case.held_bytes))
        copies = min(copies, LAUNCHES)  # a kernel of a few bytes has no use for more
        launches = -(-LAUNCHES // copies) * copies
    placed = [case.place(stream) for _ in range(copies)]
    try:

        def queue() -> None:
            for launch in range(launches):
                placed[launch % copies].launch(stream)

        queue()  # kernels are loaded on their first launch, which cannot be captured
        stream.synchronize()
        return time_queued(queue, stream, rounds) / launches
    finally:
        for one in placed:
            one.free()
        stream.device.pool.trim()


if __name__ == "__main__":
    sys.exit(main())
