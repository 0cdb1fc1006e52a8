"""Where a clip's conditions go, and how much memory a run took."""

from __future__ import annotations

import math
from collections.abc import Mapping

from .clip_store import ClipStore, ResidentClip, Rows, StreamedClip
from .device import DTYPE_BYTES, Device

RESIDENT_SHARE = 0.5
"""Of the free memory, what conditions may take: engines of some backends allocate while they run."""


def row_bytes(rows: Mapping[str, Rows]) -> int:
    """Bytes of all conditions of one frame."""
    return sum(math.prod(shape) * DTYPE_BYTES[dtype] for shape, dtype in rows.values())


def place_conditions(place: str, frames: int, rows: Mapping[str, Rows], device: Device, slots: int) -> ClipStore:
    """Decide where the per-frame conditions of a clip are kept, and allocate them.

    Args:
        place: "device", "host" (pinned memory, streamed tile by tile), or "auto": on the device if they fit into half
            of what is free now, after the engines were loaded.
        frames: length of the clip.
        rows: by name, shape and dtype of one frame's row.
        device: where the denoiser runs.
        slots: frames per tile.

    Raises:
        OutOfMemoryError: there is no room where they shall go.
    """
    free_bytes, _ = device.memory_bytes()
    fits = frames * row_bytes(rows) <= RESIDENT_SHARE * free_bytes
    if place == "device" or (place == "auto" and fits):
        return ResidentClip(frames, rows, device)
    return StreamedClip(frames, rows, device, slots)


class MemoryWatch:
    """The most memory of a device that a run had in use.

    On a GPU, that is what the driver reports at the moments that are looked at, less what was in use before the engines
    were loaded: engines, their workspace and all arrays; other programs' changes count, too. On the CPU, it is our
    arrays alone.

    Args:
        device: of the engines.
        used_before_bytes: memory in use before they were loaded, see `backends.Engines`.
    """

    def __init__(self, device: Device, used_before_bytes: int) -> None:
        self._device = device
        self._before_bytes = used_before_bytes
        device.pool.reset_peak()
        self._peak_bytes = 0

    def look(self) -> None:
        """Take what is in use now into account."""
        if self._device.name != "cpu":
            free, total = self._device.memory_bytes()
            self._peak_bytes = max(self._peak_bytes, total - free - self._before_bytes)

    @property
    def peak_bytes(self) -> int:
        """The most so far."""
        return max(self._peak_bytes, self._device.pool.peak_bytes)
