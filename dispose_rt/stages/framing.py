"""Fits the reference image to the engine's size, exactly as the published preprocessing does it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..types import F32, F64, U8

SIZE_MULTIPLE_PX = 64
"""Both sides of an engine are multiples of this: latents are 1/8, and three more halvings happen inside the UNet."""

ASPECT_RATIO = 9 / 16
"""Short side over long side of the sizes that the published model was trained at."""

WHOLE_WINDOWS = 8
"""A whole image is looked at with at most this many times the pixels of the window that is cut out of it."""


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


@dataclass(frozen=True)
class Window:
    """The part of an image that the networks see, in pixels of the image scaled until it covers that part.

    Attributes:
        left, top: first column and row.
        width, height: size.
        scaled_width, scaled_height: size of the whole scaled image.
    """

    left: int
    top: int
    width: int
    height: int
    scaled_width: int
    scaled_height: int

    @classmethod
    def centred(cls, image_height: int, image_width: int, width: int, height: int) -> Window:
        """The window that the reference code cuts out.

        Args:
            image_height: rows of the image, at least 1.
            image_width: columns of the image, at least 1.
            width: width of the window in pixels, at least 1.
            height: height of the window in pixels, at least 1.
        """
        scaled_width, scaled_height = _cover_size(image_height / image_width, width, height)
        # Python's round, half to even, is part of the recipe: an odd pixel goes right or left depending on the offset.
        left, top = round((scaled_width - width) / 2), round((scaled_height - height) / 2)
        return cls(left, top, width, height, scaled_width, scaled_height)

    @property
    def cut_share(self) -> float:
        """Share of the image that lies outside, 0..1."""
        return 1 - self.width * self.height / (self.scaled_width * self.scaled_height)

    def map_points(self, points: F64) -> F64:
        """Turn fractions of the whole image into fractions of the window: float64 [n, 2], x and y; inside is 0..1."""
        scaled = points * (self.scaled_width, self.scaled_height)
        fractions: F64 = (scaled - (self.left, self.top)) / (self.width, self.height)
        return fractions

    def around(self, points: F64, margin: float) -> Window:
        """Move the window as little as possible, so that points lie in it, or their middle in its middle.

        Args:
            points: float64 [n, 2], x and y in fractions of the whole image, at least one.
            margin: room to keep around them, as a share of the longer side of their bounding box.

        Returns:
            A window inside the image. Where points and room do not fit, it is centred on the points' bounding box.
        """
        scaled = points * (self.scaled_width, self.scaled_height)
        low, high = scaled.min(axis=0), scaled.max(axis=0)
        room = margin * float((high - low).max())
        left = _place(self.left, self.width, self.scaled_width, float(low[0]), float(high[0]), room)
        top = _place(self.top, self.height, self.scaled_height, float(low[1]), float(high[1]), room)
        return replace(self, left=left, top=top)


def _place(start: int, length: int, limit: int, low: float, high: float, room: float) -> int:
    """Begin of a window along one axis: as near to `start` as it can be with low - room .. high + room inside."""
    first, last = math.ceil(high + room - length), math.floor(low - room)
    if first > last:
        first = last = round((low + high - length) / 2)
    return min(max(min(max(start, first), last), 0), limit - length)


def fit_reference(image: U8, width: int, height: int, window: Window | None = None) -> U8:
    """Scale an image until it covers width x height and cut out the centre, or another window.

    Args:
        image: uint8 [H, W, 3], RGB.
        width: target width in pixels, at least 1.
        height: target height in pixels, at least 1.
        window: what is cut out instead of the centre: one of `Window.centred` for these sizes, moved.

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
    seen = window or Window.centred(image.shape[0], image.shape[1], width, height)
    columns = _Taps.between(image.shape[1], seen.scaled_width, seen.left, width)
    rows = _Taps.between(image.shape[0], seen.scaled_height, seen.top, height)
    return _interpolate(image, columns, rows)


def scale_whole(image: U8, width: int, height: int) -> U8:
    """Scale a whole image to the size at which its window of width x height is cut out, or less if that is large.

    Args:
        image: uint8 [H, W, 3], RGB.
        width: width of the window in pixels, at least 1.
        height: height of the window in pixels, at least 1.

    Returns:
        uint8 [h, w, 3] of the image's aspect ratio, at most `WHOLE_WINDOWS` times as large as the window.
    """
    window = Window.centred(image.shape[0], image.shape[1], width, height)
    sides = np.array([window.scaled_width, window.scaled_height])
    shrink = min(1.0, math.sqrt(WHOLE_WINDOWS * width * height / float(sides.prod())))
    target_width, target_height = (max(1, int(side * shrink)) for side in sides)
    columns = _Taps.between(image.shape[1], target_width, 0, target_width)
    rows = _Taps.between(image.shape[0], target_height, 0, target_height)
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
