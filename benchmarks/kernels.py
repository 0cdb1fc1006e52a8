"""Times every kernel at the size of a published run: 16 frames of 576x1024.

    python benchmarks/kernels.py [--json FILE]

On a GPU: median device time of a launch, replayed from a CUDA graph over buffers that together exceed the L2 cache
several times, and the bytes that have to move (inputs read once, outputs written once) per second, as a share of what
a device-to-device copy of 1 GiB moves in the same run; what a fill moves, which is less on some GPUs, is the limit of
kernels that only write. Beside it the median time of the CPU twin on all cores. Without a GPU,
the CPU alone.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from cuda_timing import l2_bytes, measure_bandwidth, time_queued, upload
from numpy.typing import NDArray

from dispose_rt.device import DeviceMemory, Stream, find_gpus
from dispose_rt.errors import DeviceError
from dispose_rt.kernels import compiled_module

WIDTH, HEIGHT, FRAMES, JOINTS = 576, 1024, 16, 18
CMP_SIZE, DIFT_CHANNELS, LEVEL_CHANNELS = 384, 1280, (320, 640, 1280, 1280)
CPU_ROUNDS, LAUNCHES, CACHE_MULTIPLE = 9, 24, 4


@dataclass(frozen=True)
class Buffer:
    """An array argument, and how often its bytes have to pass through memory."""

    array: NDArray[Any]
    passes: int


@dataclass(frozen=True)
class Case:
    """One kernel with its arguments, in the order of its header."""

    name: str
    kernel: str
    arguments: tuple[Buffer | int | float, ...]

    @property
    def buffers(self) -> list[Buffer]:
        return [argument for argument in self.arguments if isinstance(argument, Buffer)]

    @property
    def moved_bytes(self) -> int:
        return sum(buffer.passes * buffer.array.nbytes for buffer in self.buffers)

    def launch(self, target: str, addresses: Sequence[int], stream: int = 0) -> None:
        """Run it, or queue it, on arrays at these addresses.

        Raises:
            DeviceError: the launch failed.
        """
        rest = iter(addresses)
        plain = [next(rest) if isinstance(argument, Buffer) else argument for argument in self.arguments]
        error = getattr(compiled_module(target), self.kernel)(*plain, stream)
        if error is not None:
            raise DeviceError(f"the kernel {self.kernel} failed: {error}")


@dataclass(frozen=True)
class Timing:
    """What was measured of one kernel; the GPU's numbers are None where there is none."""

    name: str
    moved_bytes: int
    cpu_s: float
    gpu_s: float | None = None
    share_of_copy: float | None = None

    def __str__(self) -> str:
        line = f"{self.name:<32} {self.moved_bytes / 1e6:8.1f} MB   CPU {self.cpu_s * 1e3:8.2f} ms"
        if self.gpu_s is None or self.share_of_copy is None:
            return line
        speed = self.moved_bytes / self.gpu_s / 1e9
        return f"{line}   GPU {self.gpu_s * 1e6:8.1f} us   {speed:6.0f} GB/s   {100 * self.share_of_copy:5.1f} %"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there, too")
    arguments = parser.parse_args(argv)
    gpu = next(iter(find_gpus()), None)
    bandwidth = None
    cases = make_cases()
    if gpu is None:
        print(f"no GPU: CPU alone, {os.cpu_count()} cores")
        timings = [Timing(case.name, case.moved_bytes, time_on_cpu(case)) for case in cases]
    else:
        stream = Stream()
        bandwidth = measure_bandwidth(stream)
        print(
            f"{gpu.name}: a copy moves {bandwidth.copy / 1e9:.0f} GB/s, read and written, and a fill"
            f" {bandwidth.fill / 1e9:.0f} GB/s; {os.cpu_count()} CPU cores"
        )
        timings = [_time_both(case, stream, bandwidth.copy) for case in cases]
        stream.close()
    for timing in timings:
        print(timing)
    if arguments.json:
        record = {
            "gpu": gpu and asdict(gpu),
            "bytes_per_s": bandwidth and asdict(bandwidth),
            "kernels": [asdict(t) for t in timings],
        }
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")
    return 0


def _time_both(case: Case, stream: Stream, bandwidth: float) -> Timing:
    gpu_s = time_on_gpu(case, stream)
    return Timing(case.name, case.moved_bytes, time_on_cpu(case), gpu_s, case.moved_bytes / gpu_s / bandwidth)


def time_on_cpu(case: Case) -> float:
    """Median seconds of a call."""
    addresses = [buffer.array.ctypes.data for buffer in case.buffers]
    seconds = []
    for _ in range(1 + CPU_ROUNDS):
        start = time.perf_counter()
        case.launch("cpu", addresses)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


def time_on_gpu(case: Case, stream: Stream) -> float:
    """Median seconds of a launch, over rotating copies of its arguments."""
    copies = max(2, -(-CACHE_MULTIPLE * l2_bytes() // sum(buffer.array.nbytes for buffer in case.buffers)))
    launches = -(-LAUNCHES // copies) * copies
    held: list[DeviceMemory] = []
    try:
        held += [upload(buffer.array) for _ in range(copies) for buffer in case.buffers]
        count = len(case.buffers)
        sets = [[memory.address for memory in held[i * count : (i + 1) * count]] for i in range(copies)]

        def queue(handle: int) -> None:
            for launch in range(launches):
                case.launch("cuda", sets[launch % copies], handle)

        queue(stream.handle)  # kernels are loaded on their first launch, which cannot be captured
        stream.synchronize()
        return time_queued(queue, stream) / launches
    finally:
        for memory in held:
            memory.free()


def make_cases() -> list[Case]:
    """Every kernel, on random inputs inside the image."""
    rng = np.random.default_rng(0)
    return [_splat(rng), _rasterize(rng), _sample(rng), *_scatters(rng), _accumulate(rng), _step(rng), _to_u8(rng)]


def _reads(array: NDArray[Any]) -> Buffer:
    return Buffer(array, 1)


def _writes(*shape: int, dtype: str = "float32") -> Buffer:
    return Buffer(np.zeros(shape, dtype), 1)


def _normal(rng: np.random.Generator, *shape: int) -> NDArray[np.float32]:
    return rng.standard_normal(shape, np.float32)


def _positions(rng: np.random.Generator, width: int, height: int, *shape: int) -> NDArray[np.int32]:
    return rng.integers((0, 0), (width, height), (*shape, 2)).astype(np.int32)


def _splat(rng: np.random.Generator) -> Case:
    positions = _reads(_positions(rng, WIDTH, HEIGHT, FRAMES, JOINTS))
    profiles = Buffer(np.zeros((FRAMES, JOINTS, 2, 199), np.float32), 0)  # scratch
    arrays = (positions, _reads(_normal(rng, FRAMES, JOINTS, 2)), profiles, _writes(FRAMES, 2, HEIGHT, WIDTH))
    return Case("splat_gaussian_flow", "splat_gaussian_flow", (*arrays, FRAMES, JOINTS, HEIGHT, WIDTH))


def _rasterize(rng: np.random.Generator) -> Case:
    shape = (FRAMES, 2, CMP_SIZE, CMP_SIZE)
    inputs = (_reads(_positions(rng, CMP_SIZE, CMP_SIZE, JOINTS)), _reads(_normal(rng, FRAMES, JOINTS, 2)))
    sizes = (FRAMES, JOINTS, CMP_SIZE, CMP_SIZE)
    return Case("rasterize_sparse_flow", "rasterize_sparse_flow", (*inputs, _writes(*shape), _writes(*shape), *sizes))


def _sample(rng: np.random.Generator) -> Case:
    rows, columns = HEIGHT // 16, WIDTH // 16
    features = Buffer(_normal(rng, DIFT_CHANNELS, rows, columns), 0)  # four values per point and channel are read
    samples = Buffer(np.zeros((JOINTS, DIFT_CHANNELS), np.float32), 1 + 4)
    sizes = (JOINTS, DIFT_CHANNELS, rows, columns, HEIGHT, WIDTH)
    return Case(
        "sample_points", "sample_points", (features, _reads(_positions(rng, WIDTH, HEIGHT, JOINTS)), samples, *sizes)
    )


def _scatters(rng: np.random.Generator) -> list[Case]:
    rows, columns = HEIGHT // 16, WIDTH // 16
    cells = np.full((FRAMES, rows, columns), -1, np.int32)
    for frame, positions in enumerate(_positions(rng, columns, rows, FRAMES, JOINTS)):
        cells[frame, positions[:, 1], positions[:, 0]] = np.arange(JOINTS)
    cases = []
    for dtype, suffix in (("float32", "f32"), ("float16", "f16")):
        tables = [_reads(_normal(rng, JOINTS, channels).astype(dtype)) for channels in LEVEL_CHANNELS]
        levels = [
            _writes(FRAMES, channels, rows // factor, columns // factor, dtype=dtype)
            for channels, factor in zip(LEVEL_CHANNELS, (1, 2, 4, 4), strict=True)
        ]
        sizes = (FRAMES, rows, columns, *LEVEL_CHANNELS)
        kernel = f"scatter_point_features_{suffix}"
        cases.append(Case(f"scatter_point_features, {dtype}", kernel, (_reads(cells), *tables, *levels, *sizes)))
    return cases


def _accumulate(rng: np.random.Generator) -> Case:
    elements = 4 * (HEIGHT // 8) * (WIDTH // 8)
    prediction = _reads(_normal(rng, 2, FRAMES, elements))
    slots = (_reads(np.arange(FRAMES, dtype=np.int32)), _reads(np.linspace(0.1, 1, FRAMES, dtype=np.float32)))
    sums = (Buffer(np.zeros((2, FRAMES, elements), np.float32), 2), Buffer(np.zeros(FRAMES, np.float32), 2))
    return Case("accumulate_tile", "accumulate_tile", (prediction, *slots, *sums, FRAMES, FRAMES, elements))


def _step(rng: np.random.Generator) -> Case:
    elements = 4 * (HEIGHT // 8) * (WIDTH // 8)
    latents, sums = _reads(_normal(rng, FRAMES, elements)), _reads(_normal(rng, 2, FRAMES, elements))
    weights = _reads(np.full(FRAMES, 1.5, np.float32))
    outputs = (_writes(FRAMES, elements), _writes(FRAMES, elements))
    scalars = (FRAMES, elements, 2.0, 3.0, 1.0)
    return Case("guided_euler_step", "guided_euler_step", (latents, sums, weights, *outputs, *scalars))


def _to_u8(rng: np.random.Generator) -> Case:
    frames = _reads(rng.uniform(-1.1, 1.1, (FRAMES, 3, HEIGHT, WIDTH)).astype(np.float32))
    pixels = _writes(FRAMES, HEIGHT, WIDTH, 3, dtype="uint8")
    return Case("frames_to_u8", "frames_to_u8", (frames, pixels, FRAMES, HEIGHT, WIDTH))


if __name__ == "__main__":
    sys.exit(main())
