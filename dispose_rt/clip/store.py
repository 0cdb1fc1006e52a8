"""Keeps a clip's per-frame conditions for the denoiser: on the device, or in pinned host memory.

Short clips stay on the device, and a tile's rows are gathered there. A long clip does not fit: its rows are copied in
while the tile before computes, from pinned memory, through two buffers in turn. The longest do not fit into the host's
memory either: see `clip.recomputed`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from itertools import pairwise
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from .. import kernels
from ..contract import NETWORKS
from ..device import Array, Device, Event, PinnedArray, Stream, widen_bfloat16
from ..engines.manifest import Manifest
from ..errors import DeviceError
from ..types import Features

Memory = TypeVar("Memory", bound=Array | PinnedArray)
Rows = tuple[tuple[int, ...], str]
"""Shape and dtype of one frame's rows."""

CONDITION_SOURCES = {"pose_latents": "pose_net", "motion_features": "motion_encoder"}
"""The network that computes each per-frame condition."""


def condition_rows(manifest: Manifest, controls: Collection[str]) -> dict[str, Rows]:
    """Return shape and dtype of one frame's conditions, by name.

    Args:
        manifest: of the engine directory.
        controls: control signals of the run.
    """
    rows = {}
    for name in ("pose_latents", *(("motion_features",) if "motion" in controls else ())):
        network = CONDITION_SOURCES[name]
        [tensor] = [one for one in NETWORKS[network].outputs if one.name == name]
        shape = tuple(int(dim) for dim in manifest.sizes.resolve(tensor.shape[1:]))
        rows[name] = (shape, tensor.resolve_dtype(manifest.networks[network].compute_dtype))
    return rows


_AHEAD = 2
"""Batches that may be queued ahead of the host while conditions are computed."""

_PART_FRAMES = 16
"""Rows that are copied to the host at a time, for observers."""


class RowSource(Protocol):
    """Computes the rows of one condition.

    Attributes:
        limit: frames at a time.
    """

    limit: int

    def compute(self, start: int, stop: int) -> Array:
        """Queue computing the rows of frames start..stop - 1, at most `limit`, on the stream of the engines.

        Returns:
            [stop - start, ...], valid until the next call.
        """

    def close(self) -> None:
        """Free what it holds, behind the queued work that reads it. Calling it twice is fine."""


class ClipStore(ABC):
    """Conditions of a clip by name, one row per frame.

    Args:
        frames: length of the clip.
        rows: by name, shape and dtype of one frame's row.

    Attributes:
        on_device: whether `load` can be captured into a graph.
        computes_once: whether `fill` computes every row, so that none is computed later.
    """

    on_device: bool
    computes_once: bool

    def __init__(self, frames: int, rows: Mapping[str, Rows]) -> None:
        self.frames = frames
        self._rows = dict(rows)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the conditions."""
        return tuple(self._rows)

    @abstractmethod
    def fill(self, name: str, source: RowSource, stream: Stream, tick: Callable[[int], None]) -> None:
        """Take a condition of all frames.

        Args:
            name: name of the condition.
            source: computes it, always range(k * limit, (k + 1) * limit) at a time, so that a row has the same bits
                wherever it waits. Is closed here, or with the store where it is needed until then.
            stream: stream of the source's engine.
            tick: gets the number of finished frames.
        """

    @abstractmethod
    def plan(self, tiles: Sequence[NDArray[np.int32]], stream: Stream) -> None:
        """Set which frames each tile shows, after everything was filled on the stream and before a tile is loaded."""

    @abstractmethod
    def load(self, tile: int, slots: Array, targets: Mapping[str, Array], stream: Stream) -> None:
        """Queue the rows of a tile's frames into the engines' inputs.

        Args:
            tile: its number; tiles are loaded in order, again and again.
            slots: int32 [tile], the frame in each slot, on the device.
            targets: by name, [tile, ...].
            stream: stream of the work that reads the targets, and of the sources.
        """

    @abstractmethod
    def parts(self, name: str, stream: Stream) -> Iterator[Features]:
        """Copy all rows of a condition to the host, range by range from frame 0 on; float32 for bfloat16."""

    def download(self, name: str, stream: Stream) -> Features:
        """Copy all rows of a condition to the host at once; float32 for bfloat16."""
        return np.concatenate(list(self.parts(name, stream)))

    @abstractmethod
    def close(self) -> None:
        """Free everything, after the work that uses it. Calling it twice is fine."""


class StoredClip(ClipStore):
    """Computes every row once, and keeps it."""

    computes_once = True

    def writer(self, name: str, stream: Stream) -> Callable[[int, Array], None]:
        """Return `write(start, rows)`, which queues a copy of frames start, start + 1, ... on the stream."""
        return lambda start, rows: self._write(name, start, rows, stream)

    @abstractmethod
    def _write(self, name: str, start: int, rows: Array, stream: Stream) -> None: ...

    def fill(self, name: str, source: RowSource, stream: Stream, tick: Callable[[int], None]) -> None:
        """See `ClipStore.fill`. The device always has a batch to work on while the host waits for the one before."""
        queued: deque[tuple[Event, int]] = deque()

        def finish_oldest() -> None:
            mark, done = queued.popleft()
            with closing(mark):
                mark.synchronize()
            tick(done)

        try:
            with closing(source):
                for start in range(0, self.frames, source.limit):
                    stop = min(start + source.limit, self.frames)
                    self._write(name, start, source.compute(start, stop), stream)
                    queued.append((stream.device.event(), stop))
                    queued[-1][0].record(stream)
                    if len(queued) == _AHEAD:
                        finish_oldest()
                while queued:
                    finish_oldest()
        except BaseException:
            with suppress(DeviceError):  # the first error explains more
                stream.synchronize()  # copies to the host may be under way, into memory that is freed next
            raise
        finally:
            for mark, _ in queued:
                mark.close()


class ResidentClip(StoredClip):
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

    def parts(self, name: str, stream: Stream) -> Iterator[Features]:
        """See `ClipStore.parts`."""
        for start in range(0, self.frames, _PART_FRAMES):
            yield self._arrays[name].rows(start, min(start + _PART_FRAMES, self.frames)).download(stream)

    def close(self) -> None:
        """See `ClipStore.close`."""
        for array in self._arrays.values():
            array.free()
        self._arrays.clear()


class StreamedClip(StoredClip):
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

    def parts(self, name: str, stream: Stream) -> Iterator[Features]:
        """See `ClipStore.parts`."""
        stream.synchronize()
        host = self._host[name]
        for start in range(0, self.frames, _PART_FRAMES):
            bits = host.bits[start : start + _PART_FRAMES]
            yield widen_bfloat16(bits) if host.dtype == "bfloat16" else bits.copy()

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
        copies.wait(self._taken)  # the copies that read what is here now
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
