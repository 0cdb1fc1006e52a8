"""Conditions of a clip that is too long to keep them: they are recomputed whenever a tile is loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from ..device import Array, Device, Stream
from ..errors import InputError
from ..types import Features
from .store import ClipStore, Rows, RowSource, runs


class RecomputedClip(ClipStore):
    """No rows but those of the tile at hand: the others are computed again when their tile is loaded.

    Rows are computed in the batches in which they would be computed if they were kept, so that they have the same bits.
    Tiles follow each other along the clip: two batches are kept, beside frame 0, so that every row is computed about
    once per step. All of it is queued on the engines' one stream, since their runs must not overlap; but the host
    prepares it (draws poses, say) while the device still works on the tiles that it queued before.

    Args:
        frames: length of the clip.
        rows: by name, shape and dtype of one frame's row.
        device: where the denoiser runs.
        slots: frames per tile, and per batch.

    Raises:
        OutOfMemoryError: the device has no room.
    """

    on_device = False
    computes_once = False

    def __init__(self, frames: int, rows: Mapping[str, Rows], device: Device, slots: int) -> None:
        super().__init__(frames, rows)
        self._slots = slots
        self._sources: dict[str, RowSource] = {}
        self._tiles: list[NDArray[np.int32]] = []
        self._windows: dict[str, _Window] = {}
        try:
            for name, row in rows.items():
                self._windows[name] = _Window(frames, row, device, slots)
        except BaseException:
            self.close()
            raise

    def fill(self, name: str, source: RowSource, stream: Stream, tick: Callable[[int], None]) -> None:
        """See `ClipStore.fill`. Nothing is computed yet.

        Raises:
            InputError: the source computes more or fewer frames at a time than a tile has.
        """
        self._sources[name] = source
        if source.limit != self._slots:
            raise InputError(f"{name} is computed {source.limit} frames at a time; expected {self._slots}, as in tiles")
        tick(self.frames)

    def plan(self, tiles: Sequence[NDArray[np.int32]], stream: Stream) -> None:
        """See `ClipStore.plan`."""
        self._tiles = list(tiles)

    def load(self, tile: int, slots: Array, targets: Mapping[str, Array], stream: Stream) -> None:
        """See `ClipStore.load`."""
        stream.refuse_capture("computing a tile's conditions")
        for name, window in self._windows.items():
            window.load(self._tiles[tile], self._sources[name], targets[name], stream)

    def parts(self, name: str, stream: Stream) -> Iterator[Features]:
        """See `ClipStore.parts`. They are computed for it."""
        source = self._sources[name]
        for start in range(0, self.frames, source.limit):
            yield source.compute(start, min(start + source.limit, self.frames)).download(stream)

    def close(self) -> None:
        """See `ClipStore.close`."""
        for source in self._sources.values():
            source.close()
        for window in self._windows.values():
            window.close()
        self._sources.clear()
        self._windows.clear()


class _Window:
    """The rows of two neighbouring batches of a clip, and of frame 0, on the device."""

    def __init__(self, frames: int, row: Rows, device: Device, length: int) -> None:
        self._frames = frames
        self._length = length
        shape, dtype = row
        self._array = device.empty((2 * length + 1, *shape), dtype)
        self._batches = (self._array.rows(0, length), self._array.rows(length, 2 * length))
        self._first = self._array.rows(2 * length, 2 * length + 1)
        self._held: list[int | None] = [None, None]
        self._has_first = False

    def load(self, frames: NDArray[np.int32], source: RowSource, target: Array, stream: Stream) -> None:
        """Queue copies of some frames' rows, computing what is not here."""
        for slot, frame, length in runs(frames):
            for piece_start, piece_stop in self._pieces(frame, frame + length):
                piece_slot, piece_length = slot + piece_start - frame, piece_stop - piece_start
                rows = self._rows(piece_start, piece_stop, source, stream)
                target.rows(piece_slot, piece_slot + piece_length).copy_from(rows, stream)

    def _pieces(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Cut a range of frames at the borders of batches."""
        inner = range((start // self._length + 1) * self._length, stop, self._length)
        return pairwise((start, *inner, stop))

    def _rows(self, start: int, stop: int, source: RowSource, stream: Stream) -> Array:
        """Rows of frames of one batch."""
        if stop == 1 and self._has_first:
            return self._first
        number = start // self._length
        first, batch = number * self._length, self._batches[number % 2]
        if self._held[number % 2] != number:
            self._held[number % 2] = None  # should computing fail
            rows = source.compute(first, min(first + self._length, self._frames))
            batch.rows(0, rows.shape[0]).copy_from(rows, stream)
            self._held[number % 2] = number
            if number == 0:
                self._first.copy_from(rows.rows(0, 1), stream)
                self._has_first = True
        return batch.rows(start - first, stop - first)

    def close(self) -> None:
        self._array.free()
