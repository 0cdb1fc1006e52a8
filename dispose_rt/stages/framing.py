"""Fits the reference image to the engine's size, exactly as the published preprocessing does it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..types import F32, U8

SIZE_MULTIPLE_PX = 64
"""Both sides of an engine are multiples of this: latents are 1/8, and three more halvings happen inside the UNet."""

ASPECT_RATIO = 9 / 16
"""Short side over long side of the sizes that the published model was trained at."""


def size_for(image_height: int, image_width: int, resolution: int) -> tuple[int, int]:
    """Choose the output size for an image, as the reference code does.

    Args:
        image_height: height of the reference image in pixels, at least 1.
        image_width: its width in pixels, at least 1.
        resolution: short side of the output in pixels; a positive multiple of 64 (the published setting is 576).

    Returns:
        (width, height) in pixels. The long side is the largest multiple of 64 within `resolution * 16 / 9` and lies
        along the image's long side; a square image gives a square.

    Raises:
        InputError: the resolution is no positive multiple of 64, or the image has no pixels.
    """
    if resolution < SIZE_MULTIPLE_PX or resolution % SIZE_MULTIPLE_PX:
        nearest = max(1, round(resolution / SIZE_MULTIPLE_PX)) * SIZE_MULTIPLE_PX
        raise InputError(
            f"resolution is {resolution}; the networks need a positive multiple of {SIZE_MULTIPLE_PX}. Use {nearest}."
        )
    if image_height < 1 or image_width < 1:
        raise InputError(f"the image is {image_width} x {image_height} pixels; it must have at least one pixel")
    long_side = int(resolution / ASPECT_RATIO // SIZE_MULTIPLE_PX) * SIZE_MULTIPLE_PX
    if image_height > image_width:
        return resolution, long_side
    if image_height < image_width:
        return long_side, resolution
    return resolution, resolution


def fit_reference(image: U8, width: int, height: int) -> U8:
    """Scale an image until it covers width x height and cut out the centre.

    Args:
        image: uint8 [H, W, 3], RGB.
        width: target width in pixels, at least 1.
        height: target height in pixels, at least 1.

    Returns:
        uint8 [height, width, 3]. Bilinear with half-pixel centres and without antialiasing, in float32, rounded half to
        even: the very pixels that the reference code feeds to its networks.

    Raises:
        InputError: `image` is no uint8 [H, W, 3] array with at least one pixel, or the target size is not positive.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise InputError(f"expected an RGB image, uint8 [H, W, 3], got {image.dtype} {list(image.shape)}")
    if width < 1 or height < 1:
        raise InputError(f"cannot fit an image to {width} x {height} pixels; both sides must be at least 1")
    cover_width, cover_height = _cover_size(image.shape[0] / image.shape[1], width, height)
    # Python's round, half to even, is part of the recipe: an odd pixel goes right or left depending on the offset.
    left, top = round((cover_width - width) / 2), round((cover_height - height) / 2)
    columns = _Taps.between(image.shape[1], cover_width, left, width)
    rows = _Taps.between(image.shape[0], cover_height, top, height)
    return _interpolate(image, columns, rows)


def roundtrip_truncated(image: U8) -> U8:
    """Pass an image through -1..1 and back, cutting off fractions instead of rounding them.

    The reference code does this before its VAE and CLIP encoders see the image: in float32, 63 of the 256 levels end up
    one lower.

    Args:
        image: uint8, any shape.

    Returns:
        uint8, same shape.
    """
    return _ROUNDTRIP[image]


def to_signed_unit(image: U8) -> F32:
    """Turn an image into the float layout that the image networks take.

    Args:
        image: uint8 [H, W, 3], RGB.

    Returns:
        float32 [1, 3, H, W], C-contiguous, -1..1.
    """
    return np.ascontiguousarray(_SIGNED_UNIT[image].transpose(2, 0, 1)[None])


def _signed_unit_levels() -> F32:
    levels = np.arange(256, dtype=np.float32)
    return levels / np.float32(127.5) - np.float32(1)


_SIGNED_UNIT: F32 = _signed_unit_levels()
_ROUNDTRIP: U8 = ((_SIGNED_UNIT + np.float32(1)) * np.float32(127.5)).astype(np.uint8)


def _cover_size(height_per_width: float, width: int, height: int) -> tuple[int, int]:
    """Smallest (width, height) of that aspect ratio which covers width x height."""
    if height_per_width < height / width:
        return math.ceil(height / height_per_width), height
    return width, math.ceil(width * height_per_width)


@dataclass(frozen=True)
class _Taps:
    """Two source positions and their weights for every target position along one axis."""

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    first_weight: F32
    second_weight: F32

    @classmethod
    def between(cls, source: int, target: int, start: int, count: int) -> _Taps:
        """Taps of positions start .. start + count of an axis that is scaled from `source` to `target` pixels."""
        scale = np.float32(source) / np.float32(target)
        centres = np.arange(start, start + count, dtype=np.float32) + np.float32(0.5)
        position = np.maximum(_multiply_add(centres, scale, np.float32(-0.5)), np.float32(0))
        first = np.minimum(position.astype(np.int64), source - 1)
        second_weight = np.clip(position - first.astype(np.float32), np.float32(0), np.float32(1))
        return cls(first, np.minimum(first + 1, source - 1), np.float32(1) - second_weight, second_weight)


def _interpolate(image: U8, columns: _Taps, rows: _Taps) -> U8:
    """Bilinear interpolation along x, then along y, with the fused roundings of the published run.

    A value that should be exactly n + 0.5 comes out just above or just below it, so any other order of the same sums
    differs in a few pixels.
    """
    used, lines = np.unique(np.concatenate([rows.first, rows.second]), return_inverse=True)
    source = image[used].astype(np.float32)
    across = [columns.first_weight[None, :, None], columns.second_weight[None, :, None]]
    line = _multiply_add(source[:, columns.first], across[0], source[:, columns.second] * across[1])
    upper, lower = np.split(lines, 2)
    down = [rows.first_weight[:, None, None], rows.second_weight[:, None, None]]
    return np.rint(_multiply_add(line[upper], down[0], line[lower] * down[1])).astype(np.uint8)


def _multiply_add(a: F32, b: F32 | np.float32, c: F32 | np.float32) -> F32:
    """Compute a * b + c with a single rounding, like a fused multiply-add; the product is exact in float64."""
    return (np.multiply(a, b, dtype=np.float64) + c).astype(np.float32)
