"""Everything that the denoising loop reads and no timestep changes: computed once per clip."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .backends import Engine
from .contract import CLIP_SIZE_PX
from .types import F32, F64, U8, Features, Motion

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


def encode_poses(pose_images: Iterable[U8], frames: int, pose_net: Engine) -> Features:
    """Run PoseNet over drawn poses.

    Args:
        pose_images: `frames` arrays uint8 [3, height, width].
        frames: how many there are.
        pose_net: the "pose_net" engine.

    Returns:
        [frames, c0, height/8, width/8] in the engine's compute dtype.
    """
    source = iter(pose_images)

    def batch(start: int, stop: int) -> dict[str, F32]:
        images = np.stack([next(source) for _ in range(start, stop)])
        return {"pose_images": images.astype(np.float32) / np.float32(127.5) - np.float32(1)}

    return run_in_batches(pose_net, frames, batch, "pose_latents")


def encode_motion(motion: Motion, motion_encoder: Engine) -> Features:
    """Run the motion encoder over the flows; frame 0, the reference, has none.

    Returns:
        [frames, c0, height/8, width/8] in the engine's compute dtype.
    """
    frames = len(motion.dense_flow) + 1

    def batch(start: int, stop: int) -> dict[str, F32]:
        return {
            "dense_flow": _with_reference_slot(motion.dense_flow, start, stop),
            "trajectory_flow": _with_reference_slot(motion.trajectory_flow, start, stop),
        }

    return run_in_batches(motion_encoder, frames, batch, "motion_features")


def _with_reference_slot(flow: F32, start: int, stop: int) -> F32:
    """Rows start..stop of the flow with a zero row in front."""
    rows = flow[max(start - 1, 0) : stop - 1]
    if start:
        return np.ascontiguousarray(rows)
    return np.concatenate([np.zeros((1, *flow.shape[1:]), np.float32), rows])


def run_in_batches(
    engine: Engine,
    count: int,
    batch: Callable[[int, int], Mapping[str, NDArray[Any]]],
    output: str,
) -> Features:
    """Run a per-frame network over `count` frames, as many at a time as it takes, and join one output."""
    limit = engine.max_batch("frames")
    parts = [engine.run(batch(start, min(start + limit, count)))[output] for start in range(0, count, limit)]
    return np.concatenate(parts)
