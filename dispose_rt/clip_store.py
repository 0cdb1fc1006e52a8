"""Where a clip's per-frame conditions wait for the denoiser: on the device, or in pinned host memory.

Short clips stay on the device, and a tile's rows are gathered there. A long clip does not fit: its rows are copied in
while the tile before computes, from pinned memory, through two buffers in turn.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from . import kernels
from .device import Array, Device, PinnedArray, Stream, widen_bfloat16
from .types import Features

Memory = TypeVar("Memory", bound=Array | PinnedArray)
Rows = tuple[tuple[int, ...], str]
"""Shape and dtype of one frame's rows."""


class ClipStore(ABC):
    """Conditions of a clip by name, one row per frame.

    Args:
        frames: length of the clip.
        rows: by name, shape and dtype of one frame's row.

    Attributes:
        on_device: whether `load` can be captured into a graph.
    """

    on_device: bool

    def __init__(self, frames: int, rows: Mapping[str, Rows]) -> None:
        self.frames = frames
        self._rows = dict(rows)

    def writer(self, name: str, stream: Stream) -> Callable[[int, Array], None]:
        """Return `write(start, rows)`, which queues a copy of frames start, start + 1, ... on the stream."""
        return lambda start, rows: self._write(name, start, rows, stream)

    @property
    def names(self) -> tuple[str, ...]:
        """The conditions that it holds."""
        return tuple(self._rows)

    @abstractmethod
    def _write(self, name: str, start: int, rows: Array, stream: Stream) -> None: ...

    @abstractmethod
    def plan(self, tiles: Sequence[NDArray[np.int32]], stream: Stream) -> None:
        """Say which frames each tile shows, after everything was written on the stream and before a tile is loaded."""

    @abstractmethod
    def load(self, tile: int, slots: Array, targets: Mapping[str, Array], stream: Stream) -> None:
        """Queue the rows of a tile's frames into the engines' inputs.

        Args:
            tile: its number; tiles are loaded in order, again and again.
            slots: int32 [tile], the frame in each slot, on the device.
            targets: by name, [tile, ...].
            stream: of the work that reads the targets.
        """

    @abstractmethod
    def download(self, name: str, stream: Stream) -> Features:
        """Copy all rows of a condition to the host; float32 for bfloat16."""

    @abstractmethod
    def close(self) -> None:
        """Free everything, after the work that uses it. Calling it twice is fine."""


class ResidentClip(ClipStore):
    """All rows on the device."""

    on_device = True

    def __init__(self, frames: int, rows: Mapping[str, Rows], device: Device) -> None:
        super().__init__(frames, rows)
        self._arrays = _allocate(device.empty, frames, rows)

    def _write(self, name: str, start: int, rows: Array, stream: Stream) -> None:
        self._arrays[name].rows(start, start + rows.shape[0]).copy_from(rows, stream)

    def plan(self, tiles: Sequence[NDArray[np.int32]], stream: Stream) -> None:
        """See `ClipStore.plan`."""

    def load(self, tile: int, slots: Array, targets: Mapping[str, Array], stream: Stream) -> None:
        """See `ClipStore.load`."""
        for name, array in self._arrays.items():
            kernels.gather_frames(array, slots, targets[name], stream)

    def download(self, name: str, stream: Stream) -> Features:
        """See `ClipStore.download`."""
        return self._arrays[name].download(stream)

    def close(self) -> None:
        """See `ClipStore.close`."""
        for array in self._arrays.values():
            array.free()
        self._arrays.clear()


class StreamedClip(ClipStore):
    """All rows in pinned host memory, and two tiles of them on the device.

    Args:
        frames: length of the clip.
        rows: by name, shape and dtype of one frame's row.
        device: where the denoiser runs.
        slots: frames per tile.

    Raises:
        OutOfMemoryError: the host or the device has no room.
    """

    on_device = False

    def __init__(self, frames: int, rows: Mapping[str, Rows], device: Device, slots: int) -> None:
        super().__init__(frames, rows)
        self._host: dict[str, PinnedArray] = {}
        self._tiles: list[NDArray[np.int32]] = []
        self._copies = device.stream()
        self._buffers: list[_Buffer] = []
        try:
            self._host = _allocate(device.pinned, frames, rows)
            for _ in range(2):
                self._buffers.append(_Buffer(rows, device, slots))
        except BaseException:
            self.close()
            raise

    def _write(self, name: str, start: int, rows: Array, stream: Stream) -> None:
        self._host[name].rows(start, start + rows.shape[0]).copy_from(rows, stream)

    def plan(self, tiles: Sequence[NDArray[np.int32]], stream: Stream) -> None:
        """See `ClipStore.plan`."""
        stream.synchronize()  # the copies to the host are read by another stream from now on
        self._tiles = list(tiles)
        for buffer in self._buffers:
            buffer.tile = None

    def load(self, tile: int, slots: Array, targets: Mapping[str, Array], stream: Stream) -> None:
        """See `ClipStore.load`. What the next tile needs is copied in beside the work that follows on the stream."""
        stream.refuse_capture("copying a tile's conditions from the host")
        first, second = self._buffers
        buffer, other = (second, first) if second.tile == tile else (first, second)
        buffer.fetch(tile, self._tiles[tile], self._host, self._copies)
        buffer.hand_over(targets, stream)
        following = (tile + 1) % len(self._tiles)
        other.fetch(following, self._tiles[following], self._host, self._copies)

    def download(self, name: str, stream: Stream) -> Features:
        """See `ClipStore.download`."""
        stream.synchronize()
        host = self._host[name]
        return widen_bfloat16(host.bits) if host.dtype == "bfloat16" else host.bits.copy()

    def close(self) -> None:
        """See `ClipStore.close`."""
        self._copies.close()  # first: it waits for the copies that were fetched ahead
        for buffer in self._buffers:
            buffer.close()
        for array in self._host.values():
            array.free()
        self._buffers.clear()
        self._host.clear()


class _Buffer:
    """One tile's rows on the device, filled on one stream and read on another.

    Attributes:
        tile: which one it holds.
    """

    def __init__(self, rows: Mapping[str, Rows], device: Device, slots: int) -> None:
        self.tile: int | None = None
        self._arrays = _allocate(device.empty, slots, rows)
        self._ready, self._taken = device.event(), device.event()

    def fetch(self, tile: int, frames: NDArray[np.int32], host: Mapping[str, PinnedArray], copies: Stream) -> None:
        """Queue copies of a tile's rows, unless it is here already."""
        if self.tile == tile:
            return
        copies.wait(self._taken)  # whoever reads what is here now
        for name, array in self._arrays.items():
            for slot, frame, length in runs(frames):
                source = host[name].rows(frame, frame + length)
                array.rows(slot, slot + length).copy_from(source, copies)
        self._ready.record(copies)
        self.tile = tile

    def hand_over(self, targets: Mapping[str, Array], stream: Stream) -> None:
        """Queue copies into the engines' inputs."""
        stream.wait(self._ready)
        for name, array in self._arrays.items():
            targets[name].copy_from(array, stream)
        self._taken.record(stream)

    def close(self) -> None:
        for array in self._arrays.values():
            array.free()
        self._arrays.clear()
        self._ready.close()
        self._taken.close()


def _allocate(
    allocate: Callable[[tuple[int, ...], str], Memory], count: int, rows: Mapping[str, Rows]
) -> dict[str, Memory]:
    """Allocate so many rows of everything, or nothing."""
    arrays: dict[str, Memory] = {}
    try:
        for name, (shape, dtype) in rows.items():
            arrays[name] = allocate((count, *shape), dtype)
    except BaseException:
        for array in arrays.values():
            array.free()
        raise
    return arrays


def runs(frames: NDArray[np.int32]) -> list[tuple[int, int, int]]:
    """Cut a tile's frames into runs of consecutive ones: (first slot, first frame, length)."""
    breaks = np.flatnonzero(np.diff(frames) != 1) + 1
    edges = [0, *breaks.tolist(), len(frames)]
    return [(start, int(frames[start]), stop - start) for start, stop in pairwise(edges)]
