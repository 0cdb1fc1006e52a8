"""The conditions of a clip that do not depend on the timestep, computed once per clip."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing

import numpy as np
from numpy.typing import NDArray

from .. import kernels
from ..contract import CLIP_SIZE_PX
from ..device import Array, Device, Stream
from ..engines.backends import Engine
from ..errors import InputError
from ..types import F32, F64, U8

CLIP_MEAN = np.array([0.48145466, 0.4578275, 0.40821073])
CLIP_STD = np.array([0.26862954, 0.26130258, 0.27577711])
FPS_ID = 6.0
"""The reference conditions the networks on 7 frames per second, minus 1, whatever the clip's rate."""
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


class PoseLatents:
    """PoseNet's latents of the poses, which are drawn when they are needed.

    The host draws a batch while the device works on the one before.

    Args:
        draw: returns the picture of a frame's pose, uint8 [3, height, width].
        frames: length of the clip.
        pose_net: the "pose_net" engine.

    Attributes:
        limit: frames at a time.

    Raises:
        OutOfMemoryError: the host or the device has no room.
    """

    def __init__(self, draw: Callable[[int], U8], frames: int, pose_net: Engine) -> None:
        self.limit = pose_net.max_batch("frames")
        self._draw = draw
        self._engine = pose_net
        self._inputs = pose_net.tensor("pose_images")
        largest = (min(self.limit, frames), *self._inputs.shape[1:])
        with ExitStack() as undo:
            self._levels = pose_net.device.empty(largest, "uint8")
            undo.callback(self._levels.free)
            # Two of them, so that one is filled while the other is copied.
            self._staging = [undo.enter_context(closing(_Staging(pose_net.device, largest))) for _ in range(2)]
            self._held = undo.pop_all()

    def compute(self, start: int, stop: int) -> Array:
        """Queue computing the latents of some frames.

        Args:
            start: first frame.
            stop: behind the last frame; at most `limit` frames.

        Returns:
            [stop - start, c0, height/8, width/8] in the engine's compute dtype, valid until the next call.

        Raises:
            InputError: a picture has another shape or dtype.
            EngineError: the engine failed.
        """
        engine, count = self._engine, stop - start
        staging = self._staging[0]
        self._staging.reverse()
        staging.fill(self._drawn(start, stop))
        levels = self._levels.rows(0, count)
        staging.copy_to(levels, engine.stream)
        kernels.normalize_frames(levels, self._inputs.rows(0, count), engine.stream)
        engine.set_batch(frames=count)
        engine.enqueue(engine.stream)
        return engine.tensor("pose_latents").rows(0, count)

    def _drawn(self, start: int, stop: int) -> Iterator[U8]:
        shape = self._inputs.shape[1:]
        for frame in range(start, stop):
            picture = self._draw(frame)
            if picture.dtype != np.uint8 or picture.shape != shape:
                got = f"{picture.dtype} {list(picture.shape)}"
                raise InputError(f"the pose of frame {frame} was drawn as {got}; expected uint8 {list(shape)}")
            yield picture

    def close(self) -> None:
        """Free what it allocated, waiting for copies that are under way. Calling it twice is fine."""
        self._held.close()


class _Staging:
    """Host memory from which pictures are copied without making the host wait.

    Args:
        device: to which they are copied.
        shape: shape of the largest batch of pictures.
    """

    def __init__(self, device: Device, shape: tuple[int, ...]) -> None:
        self._copied = device.event()
        try:
            self._pictures = device.pinned(shape, "uint8")
        except BaseException:
            self._copied.close()
            raise
        self._in_use = False

    def fill(self, pictures: Iterable[U8]) -> None:
        """Take pictures, once the ones before were copied."""
        self._wait()
        for row, picture in enumerate(pictures):
            self._pictures.bits[row] = picture

    def copy_to(self, batch: Array, stream: Stream) -> None:
        """Queue a copy of as many pictures as the batch has."""
        batch.copy_from(self._pictures.rows(0, batch.shape[0]), stream)
        self._copied.record(stream)
        self._in_use = True

    def _wait(self) -> None:
        if self._in_use:
            self._copied.synchronize()
            self._in_use = False

    def close(self) -> None:
        """Free the memory, once the pictures were copied. Calling it twice is fine."""
        try:
            self._wait()
        finally:
            self._pictures.free()
            self._copied.close()
