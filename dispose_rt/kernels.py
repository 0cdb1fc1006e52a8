"""The loops that no engine can express, compiled: typed, checked wrappers over arrays of a device.

The sources are in `kernels/`; the compiled modules take bare addresses, so dtypes, shapes and devices are checked here.
Values are not: they lie on the device. No value makes a kernel touch memory outside its arrays, unless its `Args` say
what the caller has to check on the host. Every kernel writes into arrays that the caller gives, is queued on the
caller's stream, and gathers: the same inputs give the same bits, every run. All but `letterbox` can be captured into a
graph.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from .device import DTYPE_BYTES, Array, Stream
from .errors import InputError
from .input_kernels import crop_person, letterbox, nearest_image, normalize_frames, resample_flow
from .kernel_calls import ANY_DTYPE, check_array, check_map, launch
from .types import F32

__all__ = [
    "POINT_LEVEL_FACTORS",
    "STEP_COLUMNS",
    "accumulate_tile",
    "begin_step",
    "crop_person",
    "frames_to_u8",
    "gather_frames",
    "guided_euler_step",
    "letterbox",
    "nearest_image",
    "normalize_frames",
    "rasterize_sparse_flow",
    "resample_flow",
    "sample_points",
    "scatter_point_features",
    "splat_gaussian_flow",
    "step_table",
]

POINT_LEVEL_FACTORS = (1, 2, 4, 4)
"""By how much each level of the point features is coarser than the finest one (1/16 of the image)."""

STEP_COLUMNS = 7
"""Of `step_table`: timestep, guidance scale, sigma, velocity factor, sample divisor, sigma change, input divisor."""

_SCATTER_KERNELS = {
    "float32": "scatter_point_features_f32",
    "float16": "scatter_point_features_f16",
    "bfloat16": "scatter_point_features_bf16",
}


def splat_gaussian_flow(positions_px: Array, values_px: Array, flow: Array, stream: Stream) -> None:
    """Smooth a few flow impulses with a Gaussian of sigma 20 px (199 x 199 taps, sum 1, border reflect-101).

    The Gaussian is separable, so each impulse is a product of two profiles: no filter runs over the image.

    Args:
        positions_px: int32 [frames, impulses, 2], x and y. An impulse outside the image is ignored; of several at one
            pixel the last one counts.
        values_px: float32 [frames, impulses, 2], flow along x and y.
        flow: float32 [frames, 2, height, width]; receives the result, within 1e-6 of the float64 filter for values up
            to the image's size.
        stream: the work is queued on it.

    Raises:
        InputError: an array has another shape, dtype or device.
    """
    check_array("positions_px", positions_px, "int32", ("frames", "impulses", 2), stream)
    frames, impulses, _ = positions_px.shape
    check_array("values_px", values_px, "float32", positions_px.shape, stream)
    check_array("flow", flow, "float32", (frames, 2, "height", "width"), stream)
    check_map(*flow.shape[2:])
    launch("splat_gaussian_flow", stream, positions_px, values_px, flow, frames, impulses, *flow.shape[2:])


def rasterize_sparse_flow(positions_px: Array, values_px: Array, flow: Array, mask: Array, stream: Stream) -> None:
    """Write motion hints into maps that are zero elsewhere.

    Args:
        positions_px: int32 [hints, 2], x and y, the same in every frame. A hint outside the map is ignored; of several
            at one pixel the last one counts.
        values_px: float32 [frames, hints, 2], flow along x and y.
        flow: float32 [frames, 2, height, width]; receives the hints.
        mask: like flow; receives 1 where a hint sits, in both channels.
        stream: the work is queued on it.

    Raises:
        InputError: an array has another shape, dtype or device.
    """
    check_array("positions_px", positions_px, "int32", ("hints", 2), stream)
    hints = positions_px.shape[0]
    check_array("values_px", values_px, "float32", ("frames", hints, 2), stream)
    frames = values_px.shape[0]
    check_array("flow", flow, "float32", (frames, 2, "height", "width"), stream)
    check_map(*flow.shape[2:])
    check_array("mask", mask, "float32", flow.shape, stream)
    launch("rasterize_sparse_flow", stream, positions_px, values_px, flow, mask, frames, hints, *flow.shape[2:])


def sample_points(
    features: Array, positions_px: Array, height: int, width: int, samples: Array, stream: Stream
) -> None:
    """Read pixels of a bilinearly enlarged feature map (half-pixel centres) without enlarging it.

    Args:
        features: float32 [channels, source height, source width].
        positions_px: int32 [points, 2], x and y in the enlarged map; a position outside counts as its border.
        height: rows of the enlarged map, at least 1.
        width: columns of the enlarged map, at least 1.
        samples: float32 [points, channels]; receives the result.
        stream: the work is queued on it.

    Raises:
        InputError: an array has another shape, dtype or device, or a map is empty.
    """
    check_array("features", features, "float32", ("channels", "source height", "source width"), stream)
    channels, source_height, source_width = features.shape
    check_array("positions_px", positions_px, "int32", ("points", 2), stream)
    points = positions_px.shape[0]
    check_array("samples", samples, "float32", (points, channels), stream)
    check_map(source_height, source_width)
    check_map(height, width)
    sizes = (points, channels, source_height, source_width, height, width)
    launch("sample_points", stream, features, positions_px, samples, *sizes)


def scatter_point_features(cells: Array, features: Sequence[Array], levels: Sequence[Array], stream: Stream) -> None:
    """Place one feature vector per group of joints into the four-level pyramid that the ControlNet reads.

    Level 0 has the grid of `cells`. The others are reduced by 2, 4 and 4: bilinear without antialias, then masked by
    the occupancy of each block's first cell, as in the reference.

    Args:
        cells: int32 [frames, rows, columns], the group that sits in a cell or -1; rows and columns divisible by 4. The
            caller checks on the host that all are below the number of groups.
        features: per level [groups, channels of the level], all of one dtype: float32, float16 or bfloat16. Arithmetic
            is float32.
        levels: per level [frames, channels, rows / factor, columns / factor], of the features' dtype; receive the
            result.
        stream: the work is queued on it.

    Raises:
        InputError: an array has another shape, dtype or device.
    """
    check_array("cells", cells, "int32", ("frames", "rows", "columns"), stream)
    frames, rows, columns = cells.shape
    check_map(rows, columns)
    for what, arrays in (("features", features), ("levels", levels)):
        if len(arrays) != len(POINT_LEVEL_FACTORS):
            raise InputError(f"{len(arrays)} {what} of point features; expected {len(POINT_LEVEL_FACTORS)}")
    if rows % max(POINT_LEVEL_FACTORS) or columns % max(POINT_LEVEL_FACTORS):
        raise InputError(f"cells has the grid {cells.shape[1:]}; both sides must be divisible by 4")
    check_array("features of level 0", features[0], tuple(_SCATTER_KERNELS), ("groups", "channels"), stream)
    dtype, groups = features[0].dtype, features[0].shape[0]
    for i, (table, level, factor) in enumerate(zip(features, levels, POINT_LEVEL_FACTORS, strict=True)):
        check_array(f"features of level {i}", table, dtype, (groups, "channels"), stream)
        shape = (frames, table.shape[1], rows // factor, columns // factor)
        check_array(f"level {i}", level, dtype, shape, stream)
    channels = [table.shape[1] for table in features]
    launch(_SCATTER_KERNELS[dtype], stream, cells, *features, *levels, frames, rows, columns, *channels)


def gather_frames(source: Array, slot_frames: Array, target: Array, stream: Stream) -> None:
    """Copy chosen frames of a clip side by side.

    Args:
        source: [frames, ...] of any dtype.
        slot_frames: int32 [slots], the frame that each slot shows. A slot whose frame does not exist stays as it is.
        target: [slots, ...], otherwise as the source, from which it lies apart; receives the frames.
        stream: the work is queued on it.

    Raises:
        InputError: an array has another shape, dtype or device.
    """
    check_array("slot_frames", slot_frames, "int32", ("slots",), stream)
    rank = max(len(getattr(source, "shape", ())), 1)
    check_array("source", source, ANY_DTYPE, ("frames", *("length",) * (rank - 1)), stream)
    frames, slots = source.shape[0], slot_frames.shape[0]
    check_array("target", target, source.dtype, (slots, *source.shape[1:]), stream)
    frame_bytes = math.prod(source.shape[1:]) * DTYPE_BYTES[source.dtype]
    launch("gather_frames", stream, source, slot_frames, target, frames, slots, frame_bytes)


def step_table(sigmas: F32, timesteps: F32, guidance_scale: float) -> F32:
    """Work out, on the host, what the kernels of each step read.

    Operations are ordered as in the reference, in float32: results of a step have its bits.

    Args:
        sigmas: float32 [steps + 1], noise levels, all but the last above 0.
        timesteps: float32 [steps].
        guidance_scale: g of u + g (c - u).

    Returns:
        float32 [steps, STEP_COLUMNS], at least one row.

    Raises:
        InputError: there is no step, the lengths differ, or a sigma cannot be stepped from.
    """
    steps = len(timesteps)
    if steps < 1 or len(sigmas) != steps + 1:
        raise InputError(f"{len(sigmas)} sigmas and {steps} timesteps; expected one sigma more than timesteps")
    sigma, following = np.asarray(sigmas[:-1], np.float32), np.asarray(sigmas[1:], np.float32)
    for step in np.flatnonzero(~((sigma > 0) & (following >= 0))):
        raise InputError(
            f"cannot step from sigma {sigma[step]} to {following[step]} in step {step}; expected above 0, and 0 or more"
        )
    one = np.float32(1)
    sample_divisor = sigma * sigma + one
    table = np.empty((steps, STEP_COLUMNS), np.float32)
    table[:, 0], table[:, 1], table[:, 2] = timesteps, guidance_scale, sigma
    table[:, 3] = -sigma / np.sqrt(sample_divisor)
    table[:, 4], table[:, 5] = sample_divisor, following - sigma
    table[:, 6] = np.sqrt(following * following + one)
    return table


def begin_step(table: Array, counter: Array, timestep: Array, constants: Array, stream: Stream) -> None:
    """Take the next row of a run's steps.

    Args:
        table: float32 [steps, STEP_COLUMNS], of `step_table`.
        counter: int32 [1], number of the step; one outside the table counts as its first or last. 1 is added.
        timestep: float32 [1]; receives the first column.
        constants: float32 [STEP_COLUMNS]; receives the row.
        stream: the work is queued on it.

    Raises:
        InputError: an array has another shape, dtype or device, or the table has no row.
    """
    check_array("table", table, "float32", ("steps", STEP_COLUMNS), stream)
    steps = table.shape[0]
    if steps < 1:
        raise InputError("table has no step; expected at least 1")
    check_array("counter", counter, "int32", (1,), stream)
    check_array("timestep", timestep, "float32", (1,), stream)
    check_array("constants", constants, "float32", (STEP_COLUMNS,), stream)
    launch("begin_step", stream, table, counter, timestep, constants, steps)


def accumulate_tile(
    noise_pred: Array, slot_frames: Array, slot_weights: Array, sums: Array, nonfinite: Array, stream: Stream
) -> None:
    """Add one tile's weighted noise prediction to the sums over the clip, in place.

    Args:
        noise_pred: float32 [2, slots, 4, h, w]: unconditional, conditional.
        slot_frames: int32 [slots], the frame that each slot shows; a slot whose frame does not exist is dropped. The
            caller checks on the host that a frame sits in one weighted slot at most.
        slot_weights: float32 [slots]; a slot of weight 0 is dropped.
        sums: float32 [2, frames, 4, h, w]; added to.
        nonfinite: int32 [1]; set to 1 if a value of a slot that counts is not finite, else left alone.
        stream: the work is queued on it.

    Raises:
        InputError: an array has another shape, dtype or device.
    """
    check_array("sums", sums, "float32", (2, "frames", "channels", "height", "width"), stream)
    check_array("noise_pred", noise_pred, "float32", (2, "slots", *sums.shape[2:]), stream)
    frames, slots = sums.shape[1], noise_pred.shape[1]
    check_array("slot_frames", slot_frames, "int32", (slots,), stream)
    check_array("slot_weights", slot_weights, "float32", (slots,), stream)
    check_array("nonfinite", nonfinite, "int32", (1,), stream)
    sizes = (slots, frames, math.prod(sums.shape[2:]))
    launch("accumulate_tile", stream, noise_pred, slot_frames, slot_weights, sums, nonfinite, *sizes)


def guided_euler_step(
    latents: Array,
    sums: Array,
    frame_weights: Array,
    constants: Array,
    nonfinite: Array,
    next_input: Array,
    stream: Stream,
) -> None:
    """Divide by the tile weights, guide, and take one Euler step with v-prediction, in one pass over the clip.

    Karras et al. 2022 (arXiv:2206.00364), algorithm 1 without churn; guidance is u + g (c - u) (arXiv:2207.12598).
    Operations are ordered as in the reference, so float32 results have its bits.

    Args:
        latents: float32 [frames, 4, h, w]; taken from one noise level to the next, in place.
        sums: float32 [2, frames, 4, h, w] of `accumulate_tile`.
        frame_weights: float32 [frames], sums of the weights behind `sums`; the caller checks that all are above 0.
        constants: float32 [STEP_COLUMNS] of `begin_step`. At a guidance scale of exactly 1 the unconditional half does
            not count.
        nonfinite: int32 [1] of `accumulate_tile`. Unless it is 0, the step is not taken: latents and next_input stay.
        next_input: float32 [frames, 4, h, w]; receives the latents divided by sqrt(sigma_next^2 + 1), what the networks
            read in the next step.
        stream: the work is queued on it.

    Raises:
        InputError: an array has another shape, dtype or device.
    """
    check_array("latents", latents, "float32", ("frames", "channels", "height", "width"), stream)
    frames = latents.shape[0]
    check_array("sums", sums, "float32", (2, *latents.shape), stream)
    check_array("frame_weights", frame_weights, "float32", (frames,), stream)
    check_array("constants", constants, "float32", (STEP_COLUMNS,), stream)
    check_array("nonfinite", nonfinite, "int32", (1,), stream)
    check_array("next_input", next_input, "float32", latents.shape, stream)
    sizes = (frames, math.prod(latents.shape[1:]))
    launch("guided_euler_step", stream, latents, sums, frame_weights, constants, nonfinite, next_input, *sizes)


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
