"""Kernels between pixels and the networks' inputs and outputs."""

from __future__ import annotations

import numpy as np

from ..device import Array, Stream
from ..types import I32
from .call import check_array, check_map, launch

LETTERBOX_PX = 640
"""Side of the person detector's square."""
_LETTERBOX_WEIGHT_ONE = 2048
_LEVELS = 256


def letterbox(image: Array, target: Array, stream: Stream) -> None:
    """Scale an image to fit a square, at the top left, on grey: the input of the person detector.

    The bits of OpenCV's bilinear resize. Not for graphs: tables for the image's size are worked out and copied.

    Args:
        image: uint8 [height, width, 3].
        target: float32 [1, 3, 640, 640]; receives 0..255.
        stream: the work is queued on it.

    Raises:
        InputError: an array has another shape, dtype or device, or the image is empty.
    """
    check_array("image", image, "uint8", ("height", "width", 3), stream)
    check_array("target", target, "float32", (1, 3, LETTERBOX_PX, LETTERBOX_PX), stream)
    height, width, _ = image.shape
    check_map(height, width)
    row_taps, column_taps = letterbox_taps(height, width)
    rows = stream.device.array(row_taps, stream)
    try:
        columns = stream.device.array(column_taps, stream)
        try:
            sizes = (width, len(row_taps), len(column_taps), LETTERBOX_PX)
            launch("letterbox", stream, image, rows, columns, target, *sizes)
        finally:
            columns.free()
    finally:
        rows.free()


def letterbox_ratio(height: int, width: int) -> float:
    """Pixels of the letterbox's square per pixel of an image that is scaled to fit it."""
    return min(LETTERBOX_PX / height, LETTERBOX_PX / width)


def letterbox_taps(height: int, width: int) -> tuple[I32, I32]:
    """Work out which pixels the letterbox of an image takes.

    Args:
        height: of the image, at least 1.
        width: of the image, at least 1.

    Returns:
        int32 [scaled height, 4] and [scaled width, 4]: both source pixels of every line and column, and their weights.
    """
    ratio = letterbox_ratio(height, width)
    # A side of an extremely long image may scale to less than a pixel.
    scaled_height, scaled_width = max(1, int(height * ratio)), max(1, int(width * ratio))
    rows = _resize_taps(height, scaled_height, border_weights=True)
    return rows, _resize_taps(width, scaled_width, border_weights=False)


def _resize_taps(length: int, target: int, border_weights: bool) -> I32:
    """Both source pixels of every target pixel, int32 [target, 4], and their weights, which add up to 2048.

    OpenCV's bilinear resize of 8-bit images: half-pixel centres in double precision, their fractions in single. Beyond
    the border the edge pixel is taken, with all the weight along x; along y (`border_weights`) it is taken twice, with
    the weights that two pixels would have had, as each product is cut on its own.
    """
    scale = 1.0 / (target / length)
    centres = ((np.arange(target) + 0.5) * scale - 0.5).astype(np.float32)
    first = np.floor(centres)
    fraction = centres - first
    if not border_weights:
        fraction[(first < 0) | (first >= length - 1)] = 0
    pixels = np.stack([first, first + 1]).clip(0, length - 1)
    weights = np.rint(np.stack([np.float32(1) - fraction, fraction]) * np.float32(_LETTERBOX_WEIGHT_ONE))
    return np.ascontiguousarray(np.concatenate([pixels, weights]).T, np.int32)


def crop_person(
    image: Array, row_taps: Array, column_taps: Array, normalised: Array, target: Array, stream: Stream
) -> None:
    """Scale and normalise a window of an image: the input of the pose network.

    The bits of OpenCV 4.10's bilinear warpAffine without rotation.

    Args:
        image: uint8 [image height, image width, 3].
        row_taps: int32 [height, 4], both source lines of every line and their weights, which are 0 or more and add up
            to 32 at most. The caller checks on the host that lines and columns lie inside the image.
        column_taps: int32 [width, 4], likewise along x.
        normalised: float32 [3, 256], what a level of a channel becomes.
        target: float32 [1, 3, height, width]; receives the crop.
        stream: the work is queued on it.

    Raises:
        InputError: an array has another shape, dtype or device, or the image is empty.
    """
    check_array("image", image, "uint8", ("image height", "image width", 3), stream)
    check_map(*image.shape[:2])
    check_array("row_taps", row_taps, "int32", ("height", 4), stream)
    check_array("column_taps", column_taps, "int32", ("width", 4), stream)
    check_array("normalised", normalised, "float32", (3, _LEVELS), stream)
    height, width = row_taps.shape[0], column_taps.shape[0]
    check_array("target", target, "float32", (1, 3, height, width), stream)
    launch("crop_person", stream, image, row_taps, column_taps, normalised, target, image.shape[1], height, width)


def normalize_frames(pixels: Array, frames: Array, stream: Stream) -> None:
    """Map 8-bit levels to -1..1, x / 127.5 - 1: the input of the pose encoder.

    Args:
        pixels: uint8 [n, 3, height, width].
        frames: float32, of the same shape; receives the result.
        stream: the work is queued on it.

    Raises:
        InputError: an array has another shape, dtype or device.
    """
    check_array("pixels", pixels, "uint8", ("frames", 3, "height", "width"), stream)
    check_array("frames", frames, "float32", pixels.shape, stream)
    count, _, height, width = pixels.shape
    launch("normalize_frames", stream, pixels, frames, count, height, width)


def resample_flow(
    flow: Array, rows: Array, columns: Array, scale_x: float, scale_y: float, target: Array, stream: Stream
) -> None:
    """Bring a flow field to another size by the nearest pixel, and to its units.

    Args:
        flow: float32 [n, 2, source height, source width], x and y.
        rows: int32 [height], the source line of every line; the caller checks on the host that it exists.
        columns: int32 [width], likewise along x.
        scale_x: pixels of the target per pixel of the source along x.
        scale_y: likewise along y.
        target: float32 [n, 2, height, width]; receives the result.
        stream: the work is queued on it.

    Raises:
        InputError: an array has another shape, dtype or device, or the source is empty.
    """
    check_array("flow", flow, "float32", ("frames", 2, "source height", "source width"), stream)
    check_map(*flow.shape[2:])
    check_array("rows", rows, "int32", ("height",), stream)
    check_array("columns", columns, "int32", ("width",), stream)
    sizes = (flow.shape[0], *flow.shape[2:], rows.shape[0], columns.shape[0])
    check_array("target", target, "float32", (flow.shape[0], 2, *sizes[3:]), stream)
    launch("resample_flow", stream, flow, rows, columns, target, *sizes, float(scale_x), float(scale_y))


def nearest_image(image: Array, rows: Array, columns: Array, target: Array, stream: Stream) -> None:
    """Bring an image to another size by the nearest pixel, x / 255 * 2 - 1: the input of the CMP image encoder.

    Args:
        image: uint8 [image height, image width, 3].
        rows: int32 [height], the image's line of every line; the caller checks on the host that it exists.
        columns: int32 [width], likewise along x.
        target: float32 [1, 3, height, width]; receives the result.
        stream: the work is queued on it.

    Raises:
        InputError: an array has another shape, dtype or device, or the image is empty.
    """
    check_array("image", image, "uint8", ("image height", "image width", 3), stream)
    check_map(*image.shape[:2])
    check_array("rows", rows, "int32", ("height",), stream)
    check_array("columns", columns, "int32", ("width",), stream)
    height, width = rows.shape[0], columns.shape[0]
    check_array("target", target, "float32", (1, 3, height, width), stream)
    launch("nearest_image", stream, image, rows, columns, target, image.shape[1], height, width)


def frames_to_u8(frames: Array, pixels: Array, nonfinite: Array, stream: Stream) -> None:
    """Convert decoded frames to 8-bit RGB: x / 2 + 0.5, clamped, times 255, truncated.

    Args:
        frames: float32 [n, 3, height, width], about -1..1; NaN becomes 0.
        pixels: uint8 [n, height, width, 3]; receives the result.
        nonfinite: int32 [1]; set to 1 if a value is not finite, else left alone.
        stream: the work is queued on it.

    Raises:
        InputError: an array has another shape, dtype or device.
    """
    check_array("frames", frames, "float32", ("frames", 3, "height", "width"), stream)
    count, _, height, width = frames.shape
    check_array("pixels", pixels, "uint8", (count, height, width, 3), stream)
    check_array("nonfinite", nonfinite, "int32", (1,), stream)
    launch("frames_to_u8", stream, frames, pixels, nonfinite, count, height, width)
