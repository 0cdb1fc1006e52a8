"""What the kernels that prepare network inputs compute, written plainly with numpy and OpenCV, and their tables."""

from __future__ import annotations

from typing import TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from dispose_rt.stages.pose import estimate

Array: TypeAlias = NDArray[np.generic]

SQUARE_PX, PADDING_LEVEL = 640, 114
CROP_WEIGHT_ONE = 32


def scaled_size(height: int, width: int) -> tuple[int, int]:
    """Height and width of the image inside the letterbox."""
    ratio = min(SQUARE_PX / height, SQUARE_PX / width)
    return max(1, int(height * ratio)), max(1, int(width * ratio))


def letterbox(image: Array) -> Array:
    height, width = scaled_size(*image.shape[:2])
    canvas = np.full((SQUARE_PX, SQUARE_PX, 3), PADDING_LEVEL, np.uint8)
    canvas[:height, :width] = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    return np.ascontiguousarray(canvas.transpose(2, 0, 1), dtype=np.float32)


def crop_taps(shape: tuple[int, ...], box_px: Array) -> tuple[Array, Array]:
    """int32 [384, 4] and [288, 4] of the crop of a person in an image [height, width, 3]."""
    centre_px, size_px = estimate.crop_window(np.asarray(box_px, np.float64))
    return estimate.crop_taps(*shape[:2], centre_px, size_px[0])


def crop_person(image: Array, row_taps: Array, column_taps: Array, normalised: Array) -> Array:
    """Four pixels, four products, one rounding: in double precision, which holds them exactly."""
    total = np.zeros((len(row_taps), len(column_taps), 3))
    for down in (0, 1):
        for across in (0, 1):
            weight = row_taps[:, None, 2 + down].astype(float) * column_taps[:, 2 + across]
            total += weight[..., None] * image[row_taps[:, None, down], column_taps[:, across]]
    levels = np.floor(total / CROP_WEIGHT_ONE**2 + 0.5).astype(int)
    return np.stack([normalised[channel, levels[..., channel]] for channel in range(3)])


def normalize_frames(frames: Array) -> Array:
    return frames.astype(np.float32) / np.float32(127.5) - np.float32(1)


def nearest_table(length: int, target: int) -> Array:
    """int32 [target], source index of every pixel, rounded down in single precision."""
    positions = np.arange(target, dtype=np.float32) * np.float32(length / target)
    return np.minimum(positions.astype(np.int32), length - 1).astype(np.int32)


def resample_flow(source: Array, rows: Array, columns: Array, x_scale: float, y_scale: float) -> Array:
    scale = np.array([x_scale, y_scale], np.float32)[:, None, None]
    return source[:, :, rows[:, None], columns] * scale


def nearest_image(image: Array, rows: Array, columns: Array) -> Array:
    pixels = image[rows[:, None], columns].astype(np.float32) / np.float32(255)
    return (pixels * np.float32(2) - np.float32(1)).transpose(2, 0, 1)
