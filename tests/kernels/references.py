"""What every kernel computes, written plainly in numpy: direct sums, whole maps, loops over cells."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.generic]

GAUSSIAN = np.exp(-(np.arange(-99, 100) ** 2) / (2 * 20.0**2))
GAUSSIAN /= GAUSSIAN.sum()


def place_impulses(positions: Array, values: Array, height: int, width: int) -> Array:
    """float64 [frames, 2, height, width]: each impulse assigned to its pixel, in order."""
    sparse = np.zeros((len(positions), 2, height, width))
    for frame, (points, flows) in enumerate(zip(positions, values, strict=True)):
        for (x, y), flow in zip(points, flows, strict=True):
            if 0 <= x < width and 0 <= y < height:
                sparse[frame, :, y, x] = flow
    return sparse


def splat_gaussian_flow(positions: Array, values: Array, height: int, width: int) -> Array:
    """Filter the sparse maps with the 199-tap Gaussian along both axes, border reflect-101, in float64."""
    flow = place_impulses(positions, values, height, width)
    for axis in (2, 3):
        flow = _filter_along(flow, axis)
    return flow


def _filter_along(array: Array, axis: int) -> Array:
    padding = [(0, 0)] * array.ndim
    padding[axis] = (99, 99)
    padded = np.pad(array, padding, mode="reflect")  # folds as often as needed; one pixel repeats itself
    windows = np.lib.stride_tricks.sliding_window_view(padded, 199, axis=axis)
    return windows @ GAUSSIAN


def rasterize_sparse_flow(positions: Array, values: Array, height: int, width: int) -> tuple[Array, Array]:
    repeated = np.broadcast_to(positions, (len(values), *positions.shape))
    mask = place_impulses(repeated, np.ones_like(values), height, width)
    return place_impulses(repeated, values, height, width).astype(np.float32), mask.astype(np.float32)


def enlarge(features: Array, height: int, width: int) -> Array:
    """[channels, rows, columns] resized bilinearly with half-pixel centres, edges clamped; single precision."""
    return _resize_along(_resize_along(features, 2, width), 1, height)


def _resize_along(array: Array, axis: int, target: int) -> Array:
    length = array.shape[axis]
    scale = np.float32(length) / np.float32(target)
    centres = scale * (np.arange(target, dtype=np.float32) + np.float32(0.5)) - np.float32(0.5)
    source = np.maximum(centres, np.float32(0))
    first = source.astype(int)
    second = np.minimum(first + 1, length - 1)
    shape = [1] * array.ndim
    shape[axis] = target
    weight = (source - first.astype(np.float32)).reshape(shape)
    return (np.float32(1) - weight) * array.take(first, axis) + weight * array.take(second, axis)


def sample_points(features: Array, positions: Array, height: int, width: int) -> Array:
    enlarged = enlarge(features, height, width)
    return np.array([enlarged[:, y, x] for x, y in positions], np.float32).reshape(len(positions), len(features))


def scatter_point_features(features: list[Array], cells: Array) -> list[Array]:
    """Fill the finest grid cell by cell, reduce it bilinearly, and mask it by the nearest cell of the finest grid."""
    frames, rows, columns = cells.shape
    levels = []
    for level, factor in zip(features, (1, 2, 4, 4), strict=True):
        full = np.zeros((frames, level.shape[1], rows, columns), np.float32)
        for frame, row, column in np.argwhere(cells >= 0):
            full[frame, :, row, column] = level[cells[frame, row, column]]
        reduced = np.stack([enlarge(one, rows // factor, columns // factor) for one in full])
        occupied = (cells >= 0)[:, None, ::factor, ::factor]
        levels.append((reduced * occupied).astype(level.dtype))
    return levels


def gather_frames(source: Array, slot_frames: Array, target: Array) -> Array:
    target = target.copy()
    for slot, frame in enumerate(slot_frames):
        if 0 <= frame < len(source):
            target[slot] = source[frame]
    return target


def step_table(sigmas: Array, timesteps: Array, guidance_scale: float) -> Array:
    """Row by row, one operation after the other, in single precision."""
    one, rows = np.float32(1), []
    for timestep, s, t in zip(timesteps, sigmas[:-1], sigmas[1:], strict=True):
        factor, next_divisor = -s / np.sqrt(s * s + one), np.sqrt(t * t + one)
        rows.append([timestep, np.float32(guidance_scale), s, factor, s * s + one, t - s, next_divisor])
    return np.array(rows, np.float32)


def accumulate_tile(noise_pred: Array, slot_frames: Array, slot_weights: Array, sums: Array) -> tuple[Array, bool]:
    """The sums, and whether all that was added is finite."""
    sums, finite = sums.copy(), True
    for slot, (frame, weight) in enumerate(zip(slot_frames, slot_weights, strict=True)):
        if weight and 0 <= frame < sums.shape[1]:
            sums[:, frame] += weight * noise_pred[:, slot]
            finite &= bool(np.isfinite(noise_pred[:, slot]).all())
    return sums, finite


def guided_euler_step(
    latents: Array, sums: Array, frame_weights: Array, guidance_scale: float, sigma: float, sigma_next: float
) -> tuple[Array, Array]:
    """The next latents, and the next input of the networks; single precision, one operation after the other."""
    one, g, s, t = (np.float32(value) for value in (1, guidance_scale, sigma, sigma_next))
    unconditional, conditional = sums / frame_weights[None, :, None, None, None]
    velocity = conditional if g == 1 else unconditional + g * (conditional - unconditional)
    denoised = velocity * (-s / np.sqrt(s * s + one)) + latents / (s * s + one)
    stepped = latents + (latents - denoised) / s * (t - s)
    return stepped, stepped / np.sqrt(t * t + one)


def frames_to_u8(frames: Array) -> Array:
    unit = np.clip(np.nan_to_num(frames, nan=-1.0) / np.float32(2) + np.float32(0.5), 0, 1)
    return (unit * np.float32(255)).astype(np.uint8).transpose(0, 2, 3, 1)
