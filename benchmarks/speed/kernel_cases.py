"""The calls that kernel_times.py times: every kernel with arguments of a published run, 16 frames of 576x1024."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dispose_rt import kernels
from dispose_rt.contract import CMP_SIZE_PX
from dispose_rt.device import DTYPE_BYTES, Array, Stream
from dispose_rt.kernels.pixels import letterbox_taps

WIDTH, HEIGHT, FRAMES, JOINTS = 576, 1024, 16, 18
ROWS, COLUMNS = HEIGHT // 8, WIDTH // 8  # of latents
CLIP_FRAMES, POSE_CHANNELS, DIFT_CHANNELS, LEVEL_CHANNELS = 48, 320, 1280, (320, 640, 1280, 1280)
VIDEO_HEIGHT, VIDEO_WIDTH, DETECTOR_PX, CROP_HEIGHT, CROP_WIDTH = 1080, 1920, 640, 384, 288


@dataclass(frozen=True)
class Buffer:
    """An array argument.

    Attributes:
        values: what it holds before the launch; float32 for bfloat16.
        passes: how often its bytes have to pass through memory.
        dtype: on the device.
    """

    values: NDArray[Any]
    passes: float
    dtype: str

    @property
    def nbytes(self) -> int:
        return self.values.size * DTYPE_BYTES[self.dtype]


Argument = Buffer | tuple[Buffer, ...] | int | float


@dataclass(frozen=True)
class KernelCase:
    """One kernel with its arguments, in the order of its wrapper."""

    name: str
    kernel: Callable[..., None]
    arguments: tuple[Argument, ...]

    @property
    def buffers(self) -> list[Buffer]:
        groups = [argument if isinstance(argument, tuple) else (argument,) for argument in self.arguments]
        return [one for group in groups for one in group if isinstance(one, Buffer)]

    @property
    def held_bytes(self) -> int:
        return sum(buffer.nbytes for buffer in self.buffers)

    @property
    def moved_bytes(self) -> int:
        return round(sum(buffer.passes * buffer.nbytes for buffer in self.buffers))

    def place(self, stream: Stream) -> PlacedCase:
        """Copy the arguments to the stream's device."""
        arrays: list[Array] = []

        def put(argument: Argument) -> Any:
            if isinstance(argument, tuple):
                return [put(one) for one in argument]
            if not isinstance(argument, Buffer):
                return argument
            arrays.append(stream.device.array(argument.values, stream, argument.dtype))
            return arrays[-1]

        return PlacedCase(self.kernel, [put(argument) for argument in self.arguments], arrays)


@dataclass(frozen=True)
class PlacedCase:
    """A case's arguments on a device."""

    kernel: Callable[..., None]
    arguments: list[Any]
    arrays: list[Array]

    def launch(self, stream: Stream) -> None:
        """Queue the kernel."""
        self.kernel(*self.arguments, stream)

    def free(self) -> None:
        """Free the memory."""
        for array in self.arrays:
            array.free()


def make_cases() -> list[KernelCase]:
    """Return a case per kernel, with random inputs inside the image."""
    rng = np.random.default_rng(0)
    return [*_step_cases(rng), *_scatters(rng), *_motion_cases(rng), *_picture_cases(rng)]


def _reads(values: NDArray[Any], passes: float = 1, dtype: str | None = None) -> Buffer:
    return Buffer(values, passes, dtype or values.dtype.name)


def _writes(*shape: int, dtype: str = "float32", passes: float = 1) -> Buffer:
    return Buffer(np.zeros(shape, "float32" if dtype == "bfloat16" else dtype), passes, dtype)


def _flag() -> Buffer:
    return _writes(1, dtype="int32", passes=0)


def _normal(rng: np.random.Generator, *shape: int) -> NDArray[np.float32]:
    return np.resize(rng.standard_normal(1 << 20, np.float32), shape)


def _levels(rng: np.random.Generator, *shape: int) -> NDArray[np.uint8]:
    return rng.integers(0, 256, shape, np.uint8)


def _positions(rng: np.random.Generator, width: int, height: int, *shape: int) -> NDArray[np.int32]:
    return rng.integers((0, 0), (width, height), (*shape, 2)).astype(np.int32)


def _step_cases(rng: np.random.Generator) -> list[KernelCase]:
    latents = (FRAMES, 4, ROWS, COLUMNS)
    slots = _reads(rng.permutation(CLIP_FRAMES)[:FRAMES].astype(np.int32))
    used = FRAMES / CLIP_FRAMES
    weights = np.linspace(0.1, 1, FRAMES, dtype=np.float32)
    sigmas, timesteps = np.geomspace(700, 0.002, 26, dtype=np.float32), np.linspace(1.6, -1.5, 25, dtype=np.float32)
    table = kernels.step_table(sigmas, timesteps, 2.0)
    row, finite = _reads(table[0]), _reads(np.zeros(1, np.int32))
    pose = _normal(rng, CLIP_FRAMES, POSE_CHANNELS, ROWS, COLUMNS).astype(np.float16)
    gathered = _writes(FRAMES, *pose.shape[1:], dtype="float16")
    return [
        KernelCase(
            "gather_frames, latents",
            kernels.gather_frames,
            (_reads(_normal(rng, *latents)), _order(), _writes(*latents)),
        ),
        KernelCase("gather_frames, pose latents", kernels.gather_frames, (_reads(pose, used), slots, gathered)),
        KernelCase(
            "begin_step",
            kernels.begin_step,
            (_reads(table, 1 / len(table)), _flag(), _writes(1), _writes(*table[0].shape)),
        ),
        KernelCase(
            "accumulate_tile",
            kernels.accumulate_tile,
            (_reads(_normal(rng, 2, *latents)), _order(), _reads(weights), _writes(2, *latents, passes=2), _flag()),
        ),
        KernelCase(
            "guided_euler_step",
            kernels.guided_euler_step,
            (
                _reads(_normal(rng, *latents), 2),
                *(_reads(_normal(rng, 2, *latents)), _reads(weights), row, finite, _writes(*latents)),
            ),
        ),
        KernelCase(
            "frames_to_u8",
            kernels.frames_to_u8,
            (
                _reads(_normal(rng, FRAMES, 3, HEIGHT, WIDTH)),
                *(_writes(FRAMES, HEIGHT, WIDTH, 3, dtype="uint8"), _flag()),
            ),
        ),
    ]


def _order() -> Buffer:
    return _reads(np.arange(FRAMES, dtype=np.int32))


def _scatters(rng: np.random.Generator) -> list[KernelCase]:
    rows, columns = HEIGHT // 16, WIDTH // 16
    cells = np.full((FRAMES, rows, columns), -1, np.int32)
    for frame, positions in enumerate(_positions(rng, columns, rows, FRAMES, JOINTS)):
        cells[frame, positions[:, 1], positions[:, 0]] = np.arange(JOINTS)
    cases = []
    for dtype in ("float32", "float16", "bfloat16"):
        host = "float32" if dtype == "bfloat16" else dtype
        tables = tuple(_reads(_normal(rng, JOINTS, count).astype(host), dtype=dtype) for count in LEVEL_CHANNELS)
        levels = tuple(
            _writes(FRAMES, count, rows // factor, columns // factor, dtype=dtype)
            for count, factor in zip(LEVEL_CHANNELS, kernels.POINT_LEVEL_FACTORS, strict=True)
        )
        name = f"scatter_point_features, {dtype}"
        cases.append(KernelCase(name, kernels.scatter_point_features, (_reads(cells), tables, levels)))
    return cases


def _motion_cases(rng: np.random.Generator) -> list[KernelCase]:
    values = _reads(_normal(rng, FRAMES, JOINTS, 2))
    flow, hinted = (FRAMES, 2, HEIGHT, WIDTH), (FRAMES, 2, CMP_SIZE_PX, CMP_SIZE_PX)
    rows, columns = HEIGHT // 16, WIDTH // 16
    features = _reads(_normal(rng, DIFT_CHANNELS, rows, columns), 0)  # four values per point and channel are read
    samples = _writes(JOINTS, DIFT_CHANNELS, passes=1 + 4)
    return [
        KernelCase(
            "splat_gaussian_flow",
            kernels.splat_gaussian_flow,
            (_reads(_positions(rng, WIDTH, HEIGHT, FRAMES, JOINTS)), values, _writes(*flow)),
        ),
        KernelCase(
            "rasterize_sparse_flow",
            kernels.rasterize_sparse_flow,
            (
                _reads(_positions(rng, CMP_SIZE_PX, CMP_SIZE_PX, JOINTS)),
                *(values, _writes(*hinted), _writes(*hinted)),
            ),
        ),
        KernelCase(
            "sample_points",
            kernels.sample_points,
            (features, _reads(_positions(rng, WIDTH, HEIGHT, JOINTS)), HEIGHT, WIDTH, samples),
        ),
        KernelCase(
            "resample_flow",
            kernels.resample_flow,
            (
                _reads(_normal(rng, *hinted)),
                *(_nearest(CMP_SIZE_PX, HEIGHT), _nearest(CMP_SIZE_PX, WIDTH)),
                *(WIDTH / CMP_SIZE_PX, HEIGHT / CMP_SIZE_PX, _writes(*flow)),
            ),
        ),
    ]


def _nearest(length: int, target: int) -> Buffer:
    return _reads((np.arange(target) * length // target).astype(np.int32))


def _picture_cases(rng: np.random.Generator) -> list[KernelCase]:
    video = _reads(_levels(rng, VIDEO_HEIGHT, VIDEO_WIDTH, 3))
    row_taps, column_taps = letterbox_taps(VIDEO_HEIGHT, VIDEO_WIDTH)
    sizes = (VIDEO_WIDTH, len(row_taps), len(column_taps), DETECTOR_PX)
    crop = _reads(video.values, CROP_HEIGHT * CROP_WIDTH / (VIDEO_HEIGHT * VIDEO_WIDTH))  # a window of the same scale
    pictures = (FRAMES, 3, HEIGHT, WIDTH)
    cmp_pixels = CMP_SIZE_PX**2 / (HEIGHT * WIDTH)
    return [
        KernelCase(
            "letterbox",
            _queue_letterbox,
            (video, _reads(row_taps), _reads(column_taps), _writes(1, 3, DETECTOR_PX, DETECTOR_PX), *sizes),
        ),
        KernelCase(
            "crop_person",
            kernels.crop_person,
            (
                *(crop, _window_taps(CROP_HEIGHT, 300), _window_taps(CROP_WIDTH, 800)),
                *(_reads(_normal(rng, 3, 256)), _writes(1, 3, CROP_HEIGHT, CROP_WIDTH)),
            ),
        ),
        KernelCase("normalize_frames", kernels.normalize_frames, (_reads(_levels(rng, *pictures)), _writes(*pictures))),
        KernelCase(
            "nearest_image",
            kernels.nearest_image,
            (
                _reads(_levels(rng, HEIGHT, WIDTH, 3), cmp_pixels),
                *(_nearest(HEIGHT, CMP_SIZE_PX), _nearest(WIDTH, CMP_SIZE_PX)),
                _writes(1, 3, CMP_SIZE_PX, CMP_SIZE_PX),
            ),
        ),
    ]


def _window_taps(count: int, start: int) -> Buffer:
    first = np.arange(start, start + count)
    return _reads(np.stack([first, first + 1, np.full(count, 20), np.full(count, 12)], 1).astype(np.int32))


def _queue_letterbox(image: Array, rows: Array, columns: Array, target: Array, width: int, *sizes: Any) -> None:
    """Call the kernel itself: its wrapper copies the tables each time, which cannot be captured."""
    *lengths, stream = sizes
    stream.device.launch("letterbox", (image, rows, columns, target, width, *lengths), stream)
