"""The loops that no engine can express, compiled: typed, shape-checked wrappers.

The sources are in `kernels/`; the compiled module takes bare addresses, so every check is made here. Inputs may have
any memory layout (they are copied where they are not C-contiguous); arrays that are written to must be C-contiguous.
Every kernel gathers: the same inputs give the same bits, every run.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from .errors import DeviceError, InputError
from .types import F32, I32, U8, Features

POINT_LEVEL_FACTORS = (1, 2, 4, 4)
"""By how much each level of the point features is coarser than the finest one (1/16 of the image)."""

_DEFAULT_STREAM = 0
_GAUSSIAN_TAPS = 199


def splat_gaussian_flow(positions_px: I32, values_px: F32, height: int, width: int) -> F32:
    """Smooth a few flow impulses with a Gaussian of sigma 20 px (199 x 199 taps, sum 1, border reflect-101).

    The Gaussian is separable, so each impulse is a product of two profiles: no filter runs over the image.

    Args:
        positions_px: int32 [frames, impulses, 2], x and y. An impulse outside the image is ignored; of several at one
            pixel the last one counts.
        values_px: float32 [frames, impulses, 2], flow along x and y, finite.
        height: rows of the result, at least 1.
        width: columns of the result, at least 1.

    Returns:
        float32 [frames, 2, height, width], within 1e-6 of the float64 filter for values up to the image's size.

    Raises:
        InputError: an array has another shape or dtype, or a value is not finite.
    """
    positions = _readable("positions_px", positions_px, np.int32, ("frames", "impulses", 2))
    frames, impulses, _ = positions.shape
    values = _finite("values_px", _readable("values_px", values_px, np.float32, positions.shape))
    _check_size(height, width)
    profiles = np.empty((frames, impulses, 2, _GAUSSIAN_TAPS), np.float32)
    flow = np.empty((frames, 2, height, width), np.float32)
    _launch("splat_gaussian_flow", positions, values, profiles, flow, frames, impulses, height, width)
    return flow


def rasterize_sparse_flow(positions_px: I32, values_px: F32, height: int, width: int) -> tuple[F32, F32]:
    """Write motion hints into maps that are zero elsewhere.

    Args:
        positions_px: int32 [hints, 2], x and y, the same in every frame. A hint outside the map is ignored; of several
            at one pixel the last one counts.
        values_px: float32 [frames, hints, 2], flow along x and y, finite.
        height: rows of the maps, at least 1.
        width: columns of the maps, at least 1.

    Returns:
        The flow and the mask (1 where a hint sits, both channels), each float32 [frames, 2, height, width].

    Raises:
        InputError: an array has another shape or dtype, or a value is not finite.
    """
    positions = _readable("positions_px", positions_px, np.int32, ("hints", 2))
    hints = len(positions)
    values = _finite("values_px", _readable("values_px", values_px, np.float32, ("frames", hints, 2)))
    _check_size(height, width)
    flow = np.empty((len(values), 2, height, width), np.float32)
    mask = np.empty_like(flow)
    _launch("rasterize_sparse_flow", positions, values, flow, mask, len(values), hints, height, width)
    return flow, mask


def sample_points(features: F32, positions_px: I32, height: int, width: int) -> F32:
    """Read pixels of a bilinearly enlarged feature map (half-pixel centres) without enlarging it.

    Args:
        features: float32 [channels, source height, source width].
        positions_px: int32 [points, 2], x in 0..width - 1 and y in 0..height - 1 of the enlarged map.
        height: rows of the enlarged map.
        width: columns of the enlarged map.

    Returns:
        float32 [points, channels].

    Raises:
        InputError: an array has another shape or dtype, the map is empty, or a position lies outside.
    """
    features = _readable("features", features, np.float32, ("channels", "source height", "source width"))
    positions = _readable("positions_px", positions_px, np.int32, ("points", 2))
    _check_size(height, width)
    channels, source_height, source_width = features.shape
    _check_size(source_height, source_width)
    if ((positions < 0) | (positions >= (width, height))).any():
        raise InputError(f"a position lies outside the {width} x {height} map; clamp positions before sampling")
    samples = np.empty((len(positions), channels), np.float32)
    _launch(
        "sample_points",
        *(features, positions, samples, len(positions), channels, source_height, source_width, height, width),
    )
    return samples


def scatter_point_features(features: Sequence[Features], cells: I32) -> tuple[Features, Features, Features, Features]:
    """Place one feature vector per group of joints into the four-level pyramid that the ControlNet reads.

    Level 0 has the grid of `cells`. The others are reduced by 2, 4 and 4: bilinear without antialias, then masked by
    the occupancy of each block's first cell, as in the reference.

    Args:
        features: per level [groups, channels of the level], all float32 or all float16; arithmetic is float32.
        cells: int32 [frames, rows, columns], the group that sits in a cell or -1; rows and columns divisible by 4.

    Returns:
        Per level an array [frames, channels, rows / factor, columns / factor] of the features' dtype.

    Raises:
        InputError: an array has another shape or dtype, or a cell names a group that does not exist.
    """
    cells = _readable("cells", cells, np.int32, ("frames", "rows", "columns"))
    _check_size(*cells.shape[1:])
    if len(features) != len(POINT_LEVEL_FACTORS):
        raise InputError(f"{len(features)} levels of point features; expected {len(POINT_LEVEL_FACTORS)}")
    if any(length % max(POINT_LEVEL_FACTORS) for length in cells.shape[1:]):
        raise InputError(f"cells has the grid {cells.shape[1:]}; both sides must be divisible by 4")
    tables = _readable_tables(features)
    dtype, groups = tables[0].dtype, len(tables[0])
    if cells.size and not (cells.min() >= -1 and cells.max() < groups):
        raise InputError(f"cells holds {cells.min()}..{cells.max()}; expected -1 or one of {groups} groups")
    frames, rows, columns = cells.shape
    channels = [table.shape[1] for table in tables]
    finest, half, quarter, last = levels = [
        np.empty((frames, count, rows // factor, columns // factor), dtype)
        for count, factor in zip(channels, POINT_LEVEL_FACTORS, strict=True)
    ]
    kernel = "scatter_point_features_f16" if dtype == np.float16 else "scatter_point_features_f32"
    _launch(kernel, cells, *tables, *levels, frames, rows, columns, *channels)
    return finest, half, quarter, last


def _readable_tables(features: Sequence[Features]) -> list[Features]:
    """Per level [groups, channels], all with the dtype and the groups of the first."""
    dtype = np.float16 if getattr(features[0], "dtype", None) == np.float16 else np.float32
    tables: list[Features] = []
    for level, table in enumerate(features):
        groups = len(tables[0]) if tables else "groups"
        tables.append(_readable(f"features of level {level}", table, dtype, (groups, "channels")))
    return tables


def accumulate_tile(sums: F32, frame_weights: F32, noise_pred: F32, slot_frames: I32, slot_weights: F32) -> None:
    """Add one tile's weighted noise prediction to the sums over the clip, in place.

    Args:
        sums: float32 [2, frames, 4, h, w], C-contiguous; added to.
        frame_weights: float32 [frames]; the weights behind the sums, added to.
        noise_pred: float32 [2, slots, 4, h, w]: unconditional, conditional.
        slot_frames: int32 [slots], the frame that each slot shows.
        slot_weights: float32 [slots]; a slot of weight 0 is dropped. A frame may sit in one other slot at most.

    Raises:
        InputError: an array has another shape, dtype or layout, or a frame does not exist or has two weighted slots.
    """
    _writable("sums", sums, np.float32, (2, "frames", "channels", "height", "width"))
    frames = sums.shape[1]
    _writable("frame_weights", frame_weights, np.float32, (frames,))
    prediction = _readable("noise_pred", noise_pred, np.float32, (2, "slots", *sums.shape[2:]))
    slots = prediction.shape[1]
    indices = _readable("slot_frames", slot_frames, np.int32, (slots,))
    weights = _readable("slot_weights", slot_weights, np.float32, (slots,))
    used = indices[weights != 0]
    if ((indices < 0) | (indices >= frames)).any() or len(np.unique(used)) != len(used):
        raise InputError(f"slot_frames {indices.tolist()} do not name distinct frames of a clip of {frames}")
    elements = int(np.prod(sums.shape[2:]))
    _launch("accumulate_tile", prediction, indices, weights, sums, frame_weights, slots, frames, elements)


def guided_euler_step(
    latents: F32,
    sums: F32,
    frame_weights: F32,
    guidance_scale: float,
    sigma: float,
    sigma_next: float,
    next_input: F32 | None = None,
) -> F32:
    """Divide by the tile weights, guide, and take one Euler step with v-prediction, in one pass over the clip.

    Karras et al. 2022 (arXiv:2206.00364), algorithm 1 without churn; guidance is u + g (c - u) (arXiv:2207.12598).
    Operations are ordered as in the reference, so float32 results have its bits.

    Args:
        latents: float32 [frames, 4, h, w] at noise level `sigma`.
        sums: float32 [2, frames, 4, h, w] of `accumulate_tile`.
        frame_weights: float32 [frames] of `accumulate_tile`, all above 0.
        guidance_scale: g; at exactly 1 the unconditional half is not read.
        sigma: noise level of the latents, above 0.
        sigma_next: noise level to go to, 0 or more.
        next_input: float32 [frames, 4, h, w], C-contiguous, or None; receives the result divided by
            sqrt(sigma_next^2 + 1), what the networks read in the next step.

    Returns:
        float32 [frames, 4, h, w] at noise level `sigma_next`.

    Raises:
        InputError: an array has another shape, dtype or layout, a frame has no weight, or sigma is not positive.
    """
    latents = _readable("latents", latents, np.float32, ("frames", "channels", "height", "width"))
    sums = _readable("sums", sums, np.float32, (2, *latents.shape))
    frames = len(latents)
    weights = _readable("frame_weights", frame_weights, np.float32, (frames,))
    if not (weights > 0).all():
        raise InputError(f"no tile covers frames {np.flatnonzero(~(weights > 0)).tolist()}; every frame needs a weight")
    if not (sigma > 0 and sigma_next >= 0):
        raise InputError(f"cannot step from sigma {sigma} to {sigma_next}; expected above 0, and 0 or more")
    next_latents = np.empty_like(latents)
    if next_input is None:
        next_input = np.empty_like(latents)
    _writable("next_input", next_input, np.float32, latents.shape)
    elements = int(np.prod(latents.shape[1:]))
    scalars = (float(guidance_scale), float(sigma), float(sigma_next))
    _launch("guided_euler_step", latents, sums, weights, next_latents, next_input, frames, elements, *scalars)
    return next_latents


def frames_to_u8(frames: F32) -> U8:
    """Convert decoded frames to 8-bit RGB: x / 2 + 0.5, clamped, times 255, truncated.

    Args:
        frames: float32 [frames, 3, height, width], about -1..1; NaN becomes 0.

    Returns:
        uint8 [frames, height, width, 3].

    Raises:
        InputError: the array has another shape or dtype.
    """
    frames = _readable("frames", frames, np.float32, ("frames", 3, "height", "width"))
    count, _, height, width = frames.shape
    pixels = np.empty((count, height, width, 3), np.uint8)
    _launch("frames_to_u8", frames, pixels, count, height, width)
    return pixels


@cache
def compiled_module(target: str = "cpu") -> Any:
    """Load the kernels of one target.

    Args:
        target: "cpu", or "cuda", which is present where a CUDA compiler was found at installation.

    Raises:
        DeviceError: they were not built, or do not load.
    """
    try:
        return importlib.import_module(f"{__package__}._kernels_{target}")
    except ImportError as error:
        raise DeviceError(
            f"the compiled {target} kernels of dispose_rt cannot be loaded ({error}). Install the package with "
            "`pip install .`, or `pip install -e .` to work in its source folder."
        ) from error


def _launch(kernel: str, *arguments: NDArray[Any] | int | float) -> None:
    """Call a kernel with arrays as addresses, on the default stream."""
    plain = [argument.ctypes.data if isinstance(argument, np.ndarray) else argument for argument in arguments]
    error = getattr(compiled_module(), kernel)(*plain, _DEFAULT_STREAM)
    if error is not None:
        raise DeviceError(f"the kernel {kernel} failed: {error}")


def _readable(name: str, array: NDArray[Any], dtype: DTypeLike, shape: Sequence[int | str]) -> NDArray[Any]:
    """The array, C-contiguous, if it has the dtype and shape; names in the shape stand for any length."""
    if not isinstance(array, np.ndarray):
        raise InputError(f"{name} is a {type(array).__name__}; expected a numpy array")
    fits = array.ndim == len(shape) and all(
        isinstance(want, str) or want == got for want, got in zip(shape, array.shape, strict=True)
    )
    if not fits or array.dtype != dtype:
        expected = ", ".join(str(length) for length in shape)
        raise InputError(f"{name} is {array.dtype} {list(array.shape)}; expected {np.dtype(dtype)} [{expected}]")
    return np.ascontiguousarray(array)


def _writable(name: str, array: NDArray[Any], dtype: DTypeLike, shape: Sequence[int | str]) -> None:
    """Refuse an array that a kernel cannot write to in place."""
    _readable(name, array, dtype, shape)
    if not (array.flags.c_contiguous and array.flags.writeable):
        raise InputError(f"{name} is written to in place; it must be C-contiguous and writable")


def _finite(name: str, array: NDArray[Any]) -> NDArray[Any]:
    if not np.isfinite(array).all():
        raise InputError(f"{name} holds values that are not finite")
    return array


def _check_size(height: int, width: int) -> None:
    if height < 1 or width < 1:
        raise InputError(f"a map of {height} rows and {width} columns is empty; both must be at least 1")
