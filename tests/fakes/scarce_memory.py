"""Does a piece of work give everything back when a device has no room for the next array?"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

from dispose_rt.device import Device
from dispose_rt.device.pool import Block
from dispose_rt.errors import OutOfMemoryError


def fail_at_every_allocation(device: Device, work: Callable[[], object]) -> int:
    """Do the work with its first allocation failing, then with its second, and so on until it succeeds.

    Returns:
        How many allocations it makes.
    """
    pool, take, used_bytes = device.pool, device.pool.take, device.pool.used_bytes
    for allowed in count():
        left = [None] * allowed

        def scarce(size_bytes: int, left: list[None] = left) -> Block:
            if not left:
                raise OutOfMemoryError(f"no room for {size_bytes} bytes")
            left.pop()
            return take(size_bytes)

        pool.take = scarce
        try:
            work()
            return allowed
        except OutOfMemoryError:
            assert pool.used_bytes == used_bytes, f"allocation {allowed} failed"
        finally:
            pool.take = take
    raise AssertionError
