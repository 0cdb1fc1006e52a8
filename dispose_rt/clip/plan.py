"""The memory that a clip needs, where its conditions are kept, and how much memory a run used."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass

from ..contract import Sizes
from ..device import DTYPE_BYTES, Device
from ..errors import OutOfMemoryError
from ..system.memory import free_host_bytes
from .recomputed import RecomputedClip
from .store import ClipStore, ResidentClip, Rows, StreamedClip

RESIDENT_SHARE = 0.5
"""Share of the free memory that a clip may use ("auto"): engines of some backends allocate while they run."""

_POSE_BYTES = 8192
"""Bytes of one frame's pose on the host, before and after it was aligned, and its share of the joint tracks."""

_TABLE_BYTES = 1024
"""Bytes of one frame's joint tracks and its share of the tiles' tables, on the device."""

_logger = logging.getLogger("dispose_rt")


def row_bytes(rows: Mapping[str, Rows]) -> int:
    """Bytes of all conditions of one frame."""
    return sum(math.prod(shape) * DTYPE_BYTES[dtype] for shape, dtype in rows.values())


@dataclass(frozen=True)
class FreeMemory:
    """Free memory, in bytes.

    Attributes:
        device_bytes: on the device of the engines.
        host_bytes: on the host; None where it is unknown.
        shared: whether both are the same memory.
    """

    device_bytes: int
    host_bytes: int | None
    shared: bool

    @classmethod
    def of(cls, device: Device) -> FreeMemory:
        """Measure what is free now, after caches of device memory were released. What we keep for later is free."""
        if device.pool.reclaim is not None:
            device.pool.reclaim()
        host_bytes, device_bytes = free_host_bytes(), device.memory_bytes()[0]
        if host_bytes is not None:
            host_bytes += device.kept_host_bytes
        if device.name != "cpu":
            return cls(device_bytes, host_bytes, shared=False)
        both = device_bytes if host_bytes is None else host_bytes + device.pool.kept_bytes
        return cls(both, both, shared=True)


@dataclass(frozen=True)
class ClipPlan:
    """The memory of a clip while it is denoised, beside the engines.

    Attributes:
        frames: its length, the reference included.
        place: where its conditions are kept: "device", "host" or "recompute".
        device_frame_bytes: per frame, on the device.
        device_once_bytes: of a clip of any length, on the device.
        host_frame_bytes: per frame, on the host.
        host_once_bytes: of a clip of any length, on the host.
    """

    frames: int
    place: str
    device_frame_bytes: int
    device_once_bytes: int
    host_frame_bytes: int
    host_once_bytes: int

    @property
    def device_bytes(self) -> int:
        """Sum on the device."""
        return self.device_once_bytes + self.frames * self.device_frame_bytes

    @property
    def host_bytes(self) -> int:
        """Sum on the host."""
        return self.host_once_bytes + self.frames * self.host_frame_bytes

    def missing_bytes(self, free: FreeMemory) -> tuple[int, int]:
        """Bytes that are missing, on the device and on the host; 0 where it is enough."""
        if free.shared:
            return max(self.device_bytes + self.host_bytes - free.device_bytes, 0), 0
        missing_host = 0 if free.host_bytes is None else max(self.host_bytes - free.host_bytes, 0)
        return max(self.device_bytes - free.device_bytes, 0), missing_host

    def is_modest(self, free: FreeMemory) -> bool:
        """Whether it takes no more than RESIDENT_SHARE of what is free."""
        host_bytes = None if free.host_bytes is None else int(RESIDENT_SHARE * free.host_bytes)
        share = FreeMemory(int(RESIDENT_SHARE * free.device_bytes), host_bytes, free.shared)
        return self.missing_bytes(share) == (0, 0)

    def fitting_frames(self, free: FreeMemory) -> int:
        """The longest clip that fits; 0 if none does."""
        needs = [(free.device_bytes, self.device_once_bytes, self.device_frame_bytes)]
        if free.shared:
            once_bytes, frame_bytes = self.host_once_bytes, self.host_frame_bytes
            needs = [(available, once + once_bytes, frame + frame_bytes) for available, once, frame in needs]
        elif free.host_bytes is not None:
            needs.append((free.host_bytes, self.host_once_bytes, self.host_frame_bytes))
        return max(min((available - once) // frame for available, once, frame in needs), 0)


def estimate_clip(frames: int, sizes: Sizes, rows: Mapping[str, Rows], place: str, kept_bytes: int = 0) -> ClipPlan:
    """Estimate the memory of a clip.

    For every frame the device holds latents, their scaled copy and two sums (64 bytes per 8 x 8 pixels), the cells of
    its points (4 bytes per 16 x 16 pixels) and about 1 KiB of tables; the host about 8 KiB of poses, and the cells.
    At 1024 x 576 that is 600 kB and 17 kB. Its conditions come on top of that where they are kept: 11.8 MB there in
    half precision.

    Args:
        frames: its length, the reference included.
        sizes: sizes of the engine directory.
        rows: by name, shape and dtype of one frame's conditions.
        place: "device", "host" or "recompute".
        kept_bytes: per frame, kept by the caller on the host: the finished picture, say.
    """
    area = sizes.width * sizes.height
    cells = 4 * (area // 256)
    row, picture = row_bytes(rows), 3 * area
    rows_on_device = {"device": 0, "host": 2 * sizes.tile, "recompute": 2 * sizes.tile + 1}[place]
    pictures = (sizes.tile + 2 * sizes.chunk) * picture  # drawn poses of a batch, and decoded chunks
    return ClipPlan(
        frames,
        place,
        device_frame_bytes=16 * 4 * (area // 64) + cells + _TABLE_BYTES + (row if place == "device" else 0),
        device_once_bytes=pictures + rows_on_device * row,
        host_frame_bytes=_POSE_BYTES + cells + kept_bytes + (row if place == "host" else 0),
        host_once_bytes=pictures + sizes.tile * picture,  # what poses are copied from twice
    )


def plan_run(
    frames: int, sizes: Sizes, rows: Mapping[str, Rows], place: str, free: FreeMemory, kept_bytes: int = 0
) -> ClipPlan:
    """Decide where the conditions of a clip are kept, before the long work on it.

    Args:
        frames: its length, the reference included.
        sizes: sizes of the engine directory.
        rows: by name, shape and dtype of one frame's conditions.
        place: "device"; "host": pinned memory, streamed tile by tile; "recompute": nowhere, they are computed again for
            every tile; "auto": the first of these with which the clip takes no more than half of what is free, or else
            the last.
        free: memory that is free beside all that engines take, now or later in the run.
        kept_bytes: see `estimate_clip`.

    Raises:
        OutOfMemoryError: the clip does not fit. The message says what is missing, and what helps.
    """
    options = {one: estimate_clip(frames, sizes, rows, one, kept_bytes) for one in ("device", "host", "recompute")}
    if place == "auto":
        modest = (one for one in ("device", "host") if options[one].is_modest(free))
        plan = options[next(modest, "recompute")]
    else:
        plan = options[place]
    _logger.info(
        "a clip of %d frames takes %s of device and %s of host memory beside the engines, with its conditions in the "
        "place %r; free are %s and %s",
        frames,
        _mega(plan.device_bytes),
        _mega(plan.host_bytes),
        plan.place,
        _mega(free.device_bytes),
        "an unknown amount" if free.host_bytes is None else _mega(free.host_bytes),
    )
    if any(plan.missing_bytes(free)):
        raise OutOfMemoryError(_refusal(plan, place, free, kept_bytes))
    if place == "auto" and plan.place == "recompute":
        _logger.warning(
            "the conditions of %d frames, %s, fit neither on the device nor into the host's memory. They are computed "
            "again in every denoising step, which draws the poses and runs the pose and motion networks over the whole "
            "clip once per step; the results are the same. A shorter clip, a larger stride or engines of a smaller "
            "size avoid it.",
            frames,
            _mega(frames * row_bytes(rows)),
        )
    return plan


def check_length(frames: int, sizes: Sizes, free: FreeMemory, kept_bytes: int = 0) -> None:
    """Refuse a clip that does not fit wherever its conditions are kept, before any work on it.

    Args:
        frames: its length as far as it is known, the reference included.
        sizes: sizes of the engine directory.
        free: memory that is free beside what engines take.
        kept_bytes: see `estimate_clip`.

    Raises:
        OutOfMemoryError: the clip does not fit. The message says what is missing, and what helps.
    """
    plan = estimate_clip(frames, sizes, {}, "recompute", kept_bytes)
    if any(plan.missing_bytes(free)):
        raise OutOfMemoryError(_refusal(plan, "auto", free, kept_bytes))


def _refusal(plan: ClipPlan, place: str, free: FreeMemory, kept_bytes: int) -> str:
    whose = ("memory", "") if free.shared else ("device memory", "host memory")
    missing = [f"{size:,} bytes of {name}" for size, name in zip(plan.missing_bytes(free), whose, strict=True) if size]
    fitting = plan.fitting_frames(free)
    cures = [f"a shorter clip ({fitting} frames fit)" if fitting else "a shorter clip", "a larger stride"]
    cures.append("engines of a smaller size")
    if kept_bytes:
        cures.append("writing the frames to a file instead of keeping them")
    if place != "auto":
        cures.append("conditions_memory='auto'")
    return (
        f"a clip of {plan.frames} frames does not fit: {' and '.join(missing)} are missing. With conditions_memory="
        f"{place!r} it takes {_mega(plan.device_bytes)} on the device and {_mega(plan.host_bytes)} on the host beside "
        f"the engines. What helps: {', '.join(cures[:-1])}, or {cures[-1]}."
    )


def _mega(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:,.1f} MB"


def place_conditions(plan: ClipPlan, rows: Mapping[str, Rows], device: Device, slots: int) -> ClipStore:
    """Allocate the place of a clip's conditions.

    Args:
        plan: names the place.
        rows: by name, shape and dtype of one frame's row.
        device: where the denoiser runs.
        slots: frames per tile.

    Raises:
        OutOfMemoryError: there is no room in that place.
    """
    if plan.place == "device":
        return ResidentClip(plan.frames, rows, device)
    if plan.place == "host":
        return StreamedClip(plan.frames, rows, device, slots)
    return RecomputedClip(plan.frames, rows, device, slots)


class MemoryWatch:
    """The peak of the device memory that a run uses.

    On a GPU, that is what the driver reports at the moments of `look`, less what was in use before the engines
    were loaded: engines, their workspace and all arrays; other programs' changes count, too. On the CPU, it is our
    arrays alone.

    Args:
        device: device of the engines.
        used_before_bytes: memory in use before they were loaded, see `backends.Engines`.
    """

    def __init__(self, device: Device, used_before_bytes: int) -> None:
        self._device = device
        self._before_bytes = used_before_bytes
        device.pool.reset_peak()
        self._peak_bytes = 0

    def look(self) -> None:
        """Take the memory that is in use now into account."""
        if self._device.name != "cpu":
            free, total = self._device.memory_bytes()
            self._peak_bytes = max(self._peak_bytes, total - free - self._before_bytes)

    @property
    def peak_bytes(self) -> int:
        """The most so far."""
        return max(self._peak_bytes, self._device.pool.peak_bytes)
