"""Cuts a clip into tiles of the engine's fixed length, and weighs their predictions for blending.

Every tile shows the reference (frame 0) in its first slot and consecutive frames in the others. This is the layout of
MimicMotion's sampler (arXiv:2406.19680, progressive latent fusion), with two differences where the reference code
fails:

- An overlap of 0 lays tiles out as an overlap of 1 does. The first slot is taken by the reference, so tiles that share
  no frame start `tile - 1` frames apart; the reference code starts them `tile` apart and never covers their first
  frames.
- A clip shorter than a tile fills one tile, whose spare slots repeat the last frame and are dropped from the result.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...errors import InputError
from ...types import F32, I32


@dataclass(frozen=True, eq=False)
class Tile:
    """One window of the clip, as long as the denoising engines take it.

    Attributes:
        frames: int32 [tile], the frame in each slot; slot 0 shows frame 0.
        weights: float32 [tile], the weight of each slot's prediction; 0 for a spare slot.
    """

    frames: I32
    weights: F32


def plan_tiles(frames: int, tile: int, overlap: int) -> tuple[Tile, ...]:
    """Cut a clip into overlapping tiles that cover every frame.

    Args:
        frames: length of the clip, reference included; at least 1.
        tile: slots per tile, reference slot included; at least 2.
        overlap: frames by which neighbouring tiles overlap, 0..tile - 2; 0 and 1 both share none.

    Returns:
        The tiles in the order in which they are denoised.

    Raises:
        InputError: an argument is out of range.
    """
    if frames < 1:
        raise InputError(f"a clip of {frames} frames cannot be cut into tiles; it needs at least the reference frame")
    if tile < 2:
        raise InputError(f"tile is {tile}; it must be at least 2 (the reference slot and one frame)")
    check_overlap(overlap, tile)
    weights = tile_weights(tile)
    if frames <= tile:
        return (_short_tile(frames, weights),)
    starts = [*range(0, frames - tile + 1, tile - max(overlap, 1))]
    if starts[-1] + tile < frames:
        starts.append(frames - tile)
    return tuple(Tile(np.array([0, *range(start + 1, start + tile)], np.int32), weights) for start in starts)


def check_overlap(overlap: int, tile: int) -> None:
    """Raise an InputError unless tiles of so many slots can share so many frames."""
    if not 0 <= overlap <= tile - 2:
        raise InputError(f"overlap is {overlap}; with tiles of {tile} frames it must lie in 0..{tile - 2}")


def _short_tile(frames: int, weights: F32) -> Tile:
    slots = np.arange(len(weights), dtype=np.int32)
    return Tile(np.minimum(slots, np.int32(frames - 1)), np.where(slots < frames, weights, np.float32(0)))


def tile_weights(tile: int) -> F32:
    """Weights of a tile's slots: a triangle that peaks in the middle, but 1 / tile for the reference's slot.

    Args:
        tile: slots per tile, at least 2.

    Returns:
        float32 [tile], above 0: w or 2 - w, whichever is smaller, with w = 2 (slot + 1/2) / tile.
    """
    rising = (np.arange(tile, dtype=np.float32) + np.float32(0.5)) * np.float32(2) / np.float32(tile)
    weights: F32 = np.minimum(rising, np.float32(2) - rising)
    weights[0] = 1 / tile
    return weights
