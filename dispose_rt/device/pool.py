"""Blocks of device memory, kept when they are given back, so that a later run allocates nothing."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from ..errors import DeviceError, OutOfMemoryError

_GRAIN_BYTES = 512
_LOOSEST_FIT = 1.25
"""A kept block serves for as much less than its size."""
_MOST_RESERVED = 2.0
"""Of the most that was ever lent at one time: clips of ever other lengths leave blocks that no later one fits."""


@dataclass(frozen=True, eq=False)
class Block:
    """Memory that a pool has lent.

    Attributes:
        address: where it starts.
        size_bytes: what is lent, at least what was asked for.
    """

    address: int
    size_bytes: int


class Pool:
    """Lends blocks and keeps what comes back.

    A block that was given back is lent again at once, without waiting for work that is queued: who gives it back makes
    sure that whatever still uses it precedes, on its stream, whatever will. All work of a run is on one stream, and
    what copies beside it waits for events. Any thread may take and give.

    Args:
        allocate: takes a number of bytes, answers an address; OutOfMemoryError where there is no room.
        release: takes an address that `allocate` answered.
        most_reserved: of the most that was ever lent at one time, how much is reserved at most before a new block is.

    Attributes:
        used_bytes: lent now.
        reserved_bytes: lent now or kept for later.
        peak_bytes: the most that was lent at one time since `reset_peak`.
        reclaim: called where there is no room, before giving up: makes others give back what they keep.
    """

    reclaim: Callable[[], None] | None = None

    def __init__(
        self,
        allocate: Callable[[int], int],
        release: Callable[[int], None],
        most_reserved: float = _MOST_RESERVED,
    ) -> None:
        self._allocate = allocate
        self._release = release
        self._most_reserved = most_reserved
        self._kept: list[Block] = []
        self._lent: dict[int, Block] = {}
        self._lock = threading.RLock()  # what reclaims may give blocks back
        self._closed = False
        self.used_bytes = 0
        self.reserved_bytes = 0
        self.peak_bytes = 0
        self._highest_bytes = 0

    @property
    def kept_bytes(self) -> int:
        """What was given back and is kept for later."""
        return self.reserved_bytes - self.used_bytes

    def take(self, size_bytes: int) -> Block:
        """Lend a block: the smallest kept one that is not much too large, or a new one.

        Raises:
            OutOfMemoryError: there is no room, even after giving back everything that is kept.
            DeviceError: the pool was closed.
        """
        wanted = max(-(-size_bytes // _GRAIN_BYTES), 1) * _GRAIN_BYTES
        with self._lock:
            if self._closed:
                raise DeviceError(f"the memory pool was closed; it lends no {size_bytes} bytes")
            fitting = [block for block in self._kept if wanted <= block.size_bytes <= _LOOSEST_FIT * wanted]
            if fitting:
                block = min(fitting, key=lambda one: one.size_bytes)
                self._kept.remove(block)
            else:
                block = self._new_block(wanted)
            self._lent[block.address] = block
            self.used_bytes += block.size_bytes
            self.peak_bytes = max(self.peak_bytes, self.used_bytes)
        return block

    def _new_block(self, size_bytes: int) -> Block:
        self._highest_bytes = max(self._highest_bytes, self.used_bytes + size_bytes)
        self._release_kept(self._most_reserved * self._highest_bytes - size_bytes)
        try:
            address = self._allocate(size_bytes)
        except OutOfMemoryError:
            if not self._kept and self.reclaim is None:
                raise
            if self.reclaim is not None:
                self.reclaim()
            self._release_kept()
            address = self._allocate(size_bytes)
        self.reserved_bytes += size_bytes
        return Block(address, size_bytes)

    def _release_kept(self, reserved_bytes: float = 0) -> None:
        """Release the oldest of what is kept, until no more than that is reserved or nothing is kept."""
        while self._kept and self.reserved_bytes > reserved_bytes:
            block = self._kept.pop(0)
            self.reserved_bytes -= block.size_bytes
            self._release(block.address)

    def give(self, block: Block) -> None:
        """Take a block back. After `close`, which released it, nothing happens.

        Raises:
            DeviceError: it is not lent by this pool: it was given back before, or belongs to another one.
        """
        with self._lock:
            if self._closed:
                return
            if self._lent.get(block.address) is not block:
                raise DeviceError(
                    f"the block of {block.size_bytes} bytes at {block.address:#x} is not lent: freed twice?"
                )
            del self._lent[block.address]
            self.used_bytes -= block.size_bytes
            self._kept.append(block)

    def reset_peak(self) -> None:
        """Count the peak from now on."""
        with self._lock:
            self.peak_bytes = self.used_bytes

    def trim(self) -> None:
        """Release what is kept for later."""
        with self._lock:
            self._release_kept()

    def close(self) -> None:
        """Release everything, lent blocks too. Calling it twice is fine."""
        with self._lock:
            self._closed = True
            self._kept.extend(self._lent.values())
            self._lent.clear()
            self.used_bytes = 0
            self._release_kept()
