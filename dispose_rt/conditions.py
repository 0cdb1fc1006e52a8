"""Everything that the denoising loop reads and no timestep changes: computed once per clip."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from . import kernels
from .backends import Engine
from .contract import CLIP_SIZE_PX
from .device import Array, Device, Stream
from .errors import InputError
from .types import F32, F64, U8

CLIP_MEAN = np.array([0.48145466, 0.4578275, 0.40821073])
CLIP_STD = np.array([0.26862954, 0.26130258, 0.27577711])
FPS_ID = 6.0
"""The reference tells the networks 7 frames per second, minus 1, whatever the clip's rate."""
_BICUBIC_A = -0.75


def clip_pixels(image: U8) -> F32:
    """Resize and normalise the reference for the CLIP image encoder, as Stable Video Diffusion does.

    A Gaussian blur against aliasing, bicubic interpolation with aligned corners, CLIP's mean and deviation. All of it
    is linear and separable, so each axis is one small matrix.

    Args:
        image: uint8 [height, width, 3], RGB.

    Returns:
        float32 [1, 3, 224, 224].
    """
    signed = image.astype(np.float64) / 127.5 - 1
    rows, columns = (_resampling_matrix(size) for size in image.shape[:2])
    resized = np.einsum("yh,hwc,xw->cyx", rows, signed, columns, optimize=True)
    pixels = ((resized + 1) / 2 - CLIP_MEAN[:, None, None]) / CLIP_STD[:, None, None]
    return np.ascontiguousarray(pixels[None], np.float32)


def _resampling_matrix(size: int) -> F64:
    """[224, size]: blur, then bicubic interpolation, along one axis."""
    return _bicubic_matrix(size) @ _blur_matrix(size)


def _blur_matrix(size: int) -> F64:
    sigma = max((size / CLIP_SIZE_PX - 1) / 2, 0.001)
    taps = int(max(4 * sigma, 3))
    taps += 1 - taps % 2
    offsets = np.arange(taps) - taps // 2
    kernel = np.exp(-(offsets**2) / (2 * sigma**2))
    kernel /= kernel.sum()
    matrix = np.zeros((size, size))
    centres = np.arange(size)
    for offset, weight in zip(offsets, kernel, strict=True):
        np.add.at(matrix, (centres, _reflect(centres + offset, size)), weight)
    return matrix


def _reflect(index: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """Fold positions outside 0..size-1 back, without repeating the border sample."""
    folded = np.abs(index) % max(2 * (size - 1), 1)
    return np.where(folded >= size, 2 * (size - 1) - folded, folded)


def _bicubic_matrix(size: int) -> F64:
    matrix = np.zeros((CLIP_SIZE_PX, size))
    rows = np.arange(CLIP_SIZE_PX)
    position = rows * (size - 1) / (CLIP_SIZE_PX - 1)
    first = np.floor(position).astype(np.int64)
    for tap in range(-1, 3):
        distance = np.abs(position - (first + tap))
        np.add.at(matrix, (rows, np.clip(first + tap, 0, size - 1)), _cubic(distance))
    return matrix


def _cubic(distance: F64) -> F64:
    """Keys' cubic convolution with a = -0.75."""
    a, d = _BICUBIC_A, distance
    near = (a + 2) * d**3 - (a + 3) * d**2 + 1
    far = a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))


def added_time_ids(motion_bucket_id: int, noise_aug_strength: float) -> F32:
    """float32 [1, 3]: frame rate id, motion bucket, noise augmentation strength."""
    return np.array([[FPS_ID, motion_bucket_id, noise_aug_strength]], np.float32)


class FrameFields(Protocol):
    """Motion fields that are computed where and when they are read."""

    def fill(self, start: int, stop: int, trajectory: Array, dense: Array, stream: Stream) -> None:
        """Queue the fields of frames start..stop - 1, each into float32 [stop - start, 2, height, width]."""


Write = Callable[[int, Array], None]
"""`write(start, rows)` queues, on the engine's stream, a copy of what frames start, start + 1, ... have."""


def encode_poses(pose_images: Iterable[U8], frames: int, pose_net: Engine, write: Write) -> None:
    """Run PoseNet over drawn poses, as many at a time as it takes.

    The host prepares a batch while the device works on the one before.

    Args:
        pose_images: `frames` arrays uint8 [3, height, width].
        frames: how many there are.
        pose_net: the "pose_net" engine.
        write: gets [n, c0, height/8, width/8] in the engine's compute dtype.

    Raises:
        InputError: an image has another shape or dtype, or there are fewer.
        EngineError: the engine failed.
        OutOfMemoryError: the host or the device has no room.
    """
    stream, inputs, limit = pose_net.stream, pose_net.tensor("pose_images"), pose_net.max_batch("frames")
    source = _checked(pose_images, frames, inputs.shape[1:])
    starts = range(0, frames, limit)
    largest = (min(limit, frames), *inputs.shape[1:])
    with ExitStack() as held:
        levels = pose_net.device.empty(largest, "uint8")
        held.callback(levels.free)
        # Two of them, so that one is filled while the other is copied.
        staging = [held.enter_context(_Staging(pose_net.device, largest)) for _ in starts[:2]]
        for number, start in enumerate(starts):
            count = min(limit, frames - start)
            batch = levels.rows(0, count)
            staging[number % 2].fill(source, count)
            staging[number % 2].copy_to(batch, stream)
            kernels.normalize_frames(batch, inputs.rows(0, count), stream)
            _encode(pose_net, "pose_latents", start, count, write)


def _checked(pictures: Iterable[U8], count: int, shape: tuple[int, ...]) -> Iterator[U8]:
    """So many pictures, one by one, each of the shape."""
    source = iter(pictures)
    for number in range(count):
        picture = next(source, None)
        if picture is None:
            raise InputError(f"there are {number} pose images for {count} frames; pass one for every frame")
        if picture.dtype != np.uint8 or picture.shape != shape:
            got = f"{picture.dtype} {list(picture.shape)}"
            raise InputError(f"pose image {number} is {got}; expected uint8 {list(shape)}")
        yield picture


def encode_motion(fields: FrameFields, frames: int, motion_encoder: Engine, write: Write) -> None:
    """Run the motion encoder over the motion fields, as many frames at a time as it takes, without waiting.

    Args:
        fields: of the clip; frame 0, the reference, has none.
        frames: length of the clip, the reference included.
        motion_encoder: the "motion_encoder" engine.
        write: gets [n, c0, height/8, width/8] in the engine's compute dtype.

    Raises:
        EngineError: an engine failed.
    """
    trajectory, dense = motion_encoder.tensor("trajectory_flow"), motion_encoder.tensor("dense_flow")
    limit = motion_encoder.max_batch("frames")
    for start in range(0, frames, limit):
        count = min(limit, frames - start)
        fields.fill(start, start + count, trajectory.rows(0, count), dense.rows(0, count), motion_encoder.stream)
        _encode(motion_encoder, "motion_features", start, count, write)


def _encode(engine: Engine, output: str, start: int, count: int, write: Write) -> None:
    """Queue a run over a batch whose inputs are in place, and hand its rows on."""
    engine.set_batch(frames=count)
    engine.enqueue(engine.stream)
    write(start, engine.tensor(output).rows(0, count))


class _Staging:
    """Host memory from which pictures are copied without making the host wait.

    Args:
        device: to which they are copied.
        shape: of the largest batch of pictures.
    """

    def __init__(self, device: Device, shape: tuple[int, ...]) -> None:
        self._copied = device.event()
        try:
            self._pictures = device.pinned(shape, "uint8")
        except BaseException:
            self._copied.close()
            raise
        self._in_use = False

    def fill(self, source: Iterator[U8], count: int) -> None:
        """Take the next `count` pictures, once the ones before were copied."""
        self._wait()
        for row in range(count):
            self._pictures.bits[row] = next(source)

    def copy_to(self, batch: Array, stream: Stream) -> None:
        """Queue a copy of as many pictures as the batch has."""
        batch.copy_from(self._pictures.rows(0, batch.shape[0]), stream)
        self._copied.record(stream)
        self._in_use = True

    def _wait(self) -> None:
        if self._in_use:
            self._copied.synchronize()
            self._in_use = False

    def __enter__(self) -> _Staging:
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self._wait()
        finally:
            self._pictures.free()
            self._copied.close()
