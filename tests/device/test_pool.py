"""The pool that lends device memory."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from dispose_rt.device.pool import Block, Pool
from dispose_rt.errors import DeviceError, OutOfMemoryError


class Memory:
    """Room for so many bytes; `live` are the sizes by address."""

    def __init__(self, room_bytes: int) -> None:
        self.room_bytes = room_bytes
        self.live: dict[int, int] = {}
        self.allocations = 0

    def allocate(self, size_bytes: int) -> int:
        if sum(self.live.values()) + size_bytes > self.room_bytes:
            raise OutOfMemoryError("no room")
        self.allocations += 1
        address = self.allocations << 32
        self.live[address] = size_bytes
        return address

    def release(self, address: int) -> None:
        del self.live[address]


@pytest.fixture
def memory() -> Memory:
    return Memory(10_240)


@pytest.fixture
def pool(memory: Memory) -> Pool:
    return Pool(memory.allocate, memory.release)


def test_blocks_are_multiples_of_a_grain(pool: Pool) -> None:
    total = 0
    for asked, lent in ((0, 512), (1, 512), (512, 512), (513, 1024)):
        total += lent
        assert pool.take(asked).size_bytes == lent
        assert pool.used_bytes == pool.reserved_bytes == total


def test_what_comes_back_is_lent_again(pool: Pool, memory: Memory) -> None:
    first = pool.take(2000)
    pool.give(first)
    assert (pool.used_bytes, pool.reserved_bytes) == (0, 2048)
    assert pool.take(2048) is first
    assert memory.allocations == 1


def test_the_smallest_block_that_fits_is_taken(pool: Pool) -> None:
    blocks = [pool.take(size) for size in (5120, 4096, 4608 - 4096)]
    for block in blocks:
        pool.give(block)
    assert pool.take(4096) is blocks[1]


def test_a_block_that_is_much_too_large_is_left(pool: Pool, memory: Memory) -> None:
    large = pool.take(4096)
    pool.give(large)
    small = pool.take(1024)
    assert small is not large
    assert memory.allocations == 2
    assert pool.take(3584) is large  # an eighth is lost, a quarter may be


def test_kept_blocks_make_room_when_memory_runs_out(pool: Pool, memory: Memory) -> None:
    kept = pool.take(6144)
    lent = pool.take(2048)
    pool.give(kept)
    block = pool.take(8192)
    assert memory.live == {lent.address: 2048, block.address: 8192}
    assert (pool.used_bytes, pool.reserved_bytes) == (10_240, 10_240)


def test_others_give_back_what_they_keep_before_memory_runs_out(pool: Pool, memory: Memory) -> None:
    cached = [pool.take(4096), pool.take(4096)]
    pool.reclaim = lambda: pool.give(cached.pop())
    block = pool.take(6144)
    assert memory.live == {cached[0].address: 4096, block.address: 6144}
    with pytest.raises(OutOfMemoryError):
        pool.take(8192)
    assert cached == []


def test_fragments_do_not_pile_up(pool: Pool, memory: Memory) -> None:
    """Every size is another one, so that nothing fits: what is kept still never keeps a new block out."""
    for grains in range(1, 20):
        block = pool.take(512 * grains)
        assert sum(memory.live.values()) <= memory.room_bytes
        pool.give(block)
    assert pool.used_bytes == 0


def test_out_of_memory_leaves_the_counts_right(pool: Pool, memory: Memory) -> None:
    lent = pool.take(8192)
    pool.give(pool.take(1024))
    with pytest.raises(OutOfMemoryError, match="no room"):
        pool.take(4096)
    assert memory.live == {lent.address: 8192}  # what was kept was given up in the attempt
    assert pool.used_bytes == pool.reserved_bytes == pool.take(0).size_bytes + 8192 - 512
    pool.give(lent)
    assert pool.used_bytes == 512


def test_other_errors_are_not_tried_again(memory: Memory) -> None:
    def fail(size_bytes: int) -> int:
        raise DeviceError("the driver is gone")

    pool = Pool(memory.allocate, memory.release)
    pool.give(pool.take(512))
    pool._allocate = fail
    with pytest.raises(DeviceError, match="driver"):
        pool.take(4096)
    assert len(memory.live) == 1


def test_the_peak_counts_what_is_lent(pool: Pool) -> None:
    first, second = pool.take(1024), pool.take(2048)
    pool.give(first)
    pool.give(second)
    assert pool.peak_bytes == 3072
    pool.reset_peak()
    assert pool.peak_bytes == 0
    pool.take(2048)
    assert pool.peak_bytes == 2048


def test_trimming_releases_what_is_kept(pool: Pool, memory: Memory) -> None:
    kept, lent = pool.take(1024), pool.take(1024)
    pool.give(kept)
    pool.trim()
    assert list(memory.live) == [lent.address]
    assert pool.reserved_bytes == 1024


def test_a_block_comes_back_once(pool: Pool) -> None:
    block = pool.take(512)
    pool.give(block)
    with pytest.raises(DeviceError, match="freed twice"):
        pool.give(block)


def test_blocks_of_others_are_refused(pool: Pool, memory: Memory) -> None:
    block = pool.take(512)
    with pytest.raises(DeviceError, match="not lent"):
        pool.give(Block(block.address, 512))
    assert pool.used_bytes == 512
    pool.give(block)  # the refusal changed nothing


def test_closing_releases_everything(pool: Pool, memory: Memory) -> None:
    lent = pool.take(1024)
    pool.give(pool.take(512))
    pool.close()
    pool.close()
    assert memory.live == {}
    assert pool.used_bytes == pool.reserved_bytes == 0
    pool.give(lent)  # its owner may be closed later
    with pytest.raises(DeviceError, match="closed"):
        pool.take(512)


def in_threads(count: int, body: Callable[[int], None]) -> None:
    errors: list[BaseException] = []

    def run(number: int) -> None:
        try:
            body(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_threads_share_a_pool() -> None:
    memory = Memory(1 << 40)
    pool = Pool(memory.allocate, memory.release)
    lent: set[int] = set()

    def take_and_give(number: int) -> None:
        for round_number in range(100):
            block = pool.take(512 * (1 + (number + round_number) % 3))
            assert block.address not in lent  # nobody else has it
            lent.add(block.address)
            lent.remove(block.address)
            pool.give(block)

    in_threads(8, take_and_give)
    assert pool.used_bytes == 0
    assert pool.reserved_bytes == sum(memory.live.values())


def test_one_thread_at_a_time_allocates(memory: Memory) -> None:
    busy = []

    def allocate(size_bytes: int) -> int:
        assert busy == []
        busy.append(size_bytes)
        time.sleep(0.02)
        busy.clear()
        return memory.allocate(size_bytes)

    pool = Pool(allocate, memory.release)
    in_threads(3, lambda number: pool.take(1024))
    assert pool.used_bytes == 3072


def test_ever_other_lengths_do_not_pile_up() -> None:
    memory = Memory(10**9)
    pool = Pool(memory.allocate, memory.release)
    for grains in (*range(1, 60, 3), *range(60, 1, -5)):
        blocks = [pool.take(grains * 512), pool.take(grains * 256)]
        assert sum(memory.live.values()) == pool.reserved_bytes <= 2 * 60 * 768
        for block in blocks:
            pool.give(block)
    assert memory.allocations > 20


def test_runs_of_one_length_keep_all_their_blocks() -> None:
    memory = Memory(10**9)
    pool = Pool(memory.allocate, memory.release)
    for run in range(3):
        for sizes in ((9 * 512, 5 * 512), (7 * 512, 3 * 512)):
            for block in [pool.take(size) for size in sizes]:
                pool.give(block)
        assert memory.allocations == 4, run
