"""Kernels of the sampling loop: a tile's frames in, its predictions out, one guided Euler step."""

from __future__ import annotations

import math

import numpy as np

from ..device import DTYPE_BYTES, Array, Stream
from ..errors import InputError
from ..types import F32
from .call import ANY_DTYPE, check_array, launch

STEP_COLUMNS = 7
"""Of `step_table`: timestep, guidance scale, sigma, velocity factor, sample divisor, sigma change, input divisor."""


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
