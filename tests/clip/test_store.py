"""Conditions of a clip: on the device, streamed from the host or computed again, the engines read the same."""

from __future__ import annotations

import numpy as np
import pytest

from dispose_rt.clip.recomputed import RecomputedClip
from dispose_rt.clip.store import ClipStore, ResidentClip, Rows, StreamedClip, runs
from dispose_rt.device import Array, CpuDevice, Device, Stream
from dispose_rt.errors import Cancelled, DeviceError, InputError, OutOfMemoryError
from dispose_rt.stages.denoise.tiles import plan_tiles
from tests.every import each
from tests.fakes.deferred_device import DeferredDevice
from tests.fakes.scarce_memory import fail_at_every_allocation

ROWS: dict[str, Rows] = {"pose_latents": ((3, 2), "float16"), "motion_features": ((5,), "float32")}
TILE = 4
KINDS = ("device", "host", "recompute")


def values(frames: int) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(frames)
    return {name: draw.standard_normal((frames, *shape)).astype(dtype) for name, (shape, dtype) in ROWS.items()}


class Source:
    """Answers rows of a table, through one array that every call overwrites, as engines do."""

    def __init__(self, table: np.ndarray, stream: Stream, limit: int = TILE) -> None:
        self.limit = limit
        self.asked: list[tuple[int, int]] = []
        self.closed = 0
        self._table, self._stream = table, stream
        self._rows = stream.device.empty((limit, *table.shape[1:]), table.dtype.name)

    def compute(self, start: int, stop: int) -> Array:
        assert not self.closed
        self.asked.append((start, stop))
        self._rows.upload(self._table[start:stop], self._stream)
        return self._rows.rows(0, stop - start)

    def close(self) -> None:
        self.closed += 1
        self._rows.free()


def make(kind: str, frames: int, device: Device) -> ClipStore:
    if kind == "device":
        return ResidentClip(frames, ROWS, device)
    return {"host": StreamedClip, "recompute": RecomputedClip}[kind](frames, ROWS, device, TILE)


def fill(store: ClipStore, stream: Stream, limit: int = TILE) -> dict[str, Source]:
    """Fill a store with `values`."""
    sources = {name: Source(table, stream, limit) for name, table in values(store.frames).items()}
    for name, source in sources.items():
        store.fill(name, source, stream, lambda done: None)
    return sources


@pytest.fixture(params=[CpuDevice, DeferredDevice])
def stream(request: pytest.FixtureRequest) -> Stream:
    """Of a device that is done at once, and of one that works when it is waited for."""
    return request.param().stream()


@each(kind=KINDS, frames=[1, 3, 4, 5, 9, 16, 23], overlap=[0, 2])
def test_every_tile_gets_its_frames_step_after_step(kind: str, frames: int, overlap: int, stream: Stream) -> None:
    device, expected = stream.device, values(frames)
    store = make(kind, frames, device)
    sources = fill(store, stream)
    tiles = plan_tiles(frames, TILE, overlap)
    store.plan([tile.frames for tile in tiles], stream)
    targets = {name: device.empty((TILE, *shape), dtype) for name, (shape, dtype) in ROWS.items()}
    for _ in range(3):
        for number, tile in enumerate(tiles):
            slots = device.array(tile.frames, stream)
            store.load(number, slots, targets, stream)
            for name, target in targets.items():
                np.testing.assert_array_equal(target.download(stream), expected[name][tile.frames])
            slots.free()
    for name, rows in expected.items():
        np.testing.assert_array_equal(store.download(name, stream), rows)
    for target in targets.values():
        target.free()
    store.close()
    store.close()
    assert all(source.closed for source in sources.values())
    assert device.pool.used_bytes == 0


@each(kind=["device", "host"])
def test_rows_are_written_in_any_order(kind: str) -> None:
    stream = CpuDevice().stream()
    store = make(kind, 5, stream.device)
    table = values(5)["motion_features"]
    write = store.writer("motion_features", stream)
    for start, stop in ((3, 5), (0, 3)):
        part = stream.device.array(table[start:stop], stream)
        write(start, part)
        part.free()
    np.testing.assert_array_equal(store.download("motion_features", stream), table)


@pytest.mark.parametrize("kind", ["device", "host"])
def test_every_row_is_computed_once_and_told_of(kind: str, stream: Stream) -> None:
    store, told = make(kind, 9, stream.device), []
    source = Source(values(9)["pose_latents"], stream)
    store.fill("pose_latents", source, stream, told.append)
    assert store.computes_once
    assert source.asked == [(0, 4), (4, 8), (8, 9)]
    assert told == [4, 8, 9]
    assert source.closed == 1


def test_a_step_computes_each_row_once_in_the_batches_of_the_others(stream: Stream) -> None:
    """Bits of a row may depend on what shares its batch; so batches are the same, wherever conditions wait."""
    frames, steps = 23, 3
    store, told = make("recompute", frames, stream.device), []
    source = Source(values(frames)["pose_latents"], stream)
    store.fill("pose_latents", source, stream, told.append)
    assert (source.asked, told, store.computes_once) == ([], [frames], False)
    other = Source(values(frames)["motion_features"], stream)
    store.fill("motion_features", other, stream, told.append)
    tiles = plan_tiles(frames, TILE, 2)
    store.plan([tile.frames for tile in tiles], stream)
    targets = {name: stream.device.empty((TILE, *shape), dtype) for name, (shape, dtype) in ROWS.items()}
    for _ in range(steps):
        for number, tile in enumerate(tiles):
            store.load(number, stream.device.array(tile.frames, stream), targets, stream)
    batches = [(start, min(start + TILE, frames)) for start in range(0, frames, TILE)]
    assert source.asked == other.asked == batches * steps


def test_nothing_is_computed_again_for_a_clip_of_two_batches() -> None:
    stream = CpuDevice().stream()
    store = make("recompute", 2 * TILE, stream.device)
    sources = fill(store, stream)
    tiles = plan_tiles(2 * TILE, TILE, 2)
    store.plan([tile.frames for tile in tiles], stream)
    targets = {name: stream.device.empty((TILE, *shape), dtype) for name, (shape, dtype) in ROWS.items()}
    for _ in range(3):
        for number, tile in enumerate(tiles):
            store.load(number, stream.device.array(tile.frames, stream), targets, stream)
    assert [source.asked for source in sources.values()] == [[(0, 4), (4, 8)]] * 2


def test_what_failed_once_is_computed_when_it_is_asked_for_again() -> None:
    stream = CpuDevice().stream()
    store = make("recompute", 3, stream.device)
    source = fill(store, stream)["pose_latents"]
    store.plan([tile.frames for tile in plan_tiles(3, TILE, 2)], stream)
    slots = stream.device.array(np.array([0, 1, 2, 2], np.int32), stream)
    targets = {name: stream.device.empty((TILE, *shape), dtype) for name, (shape, dtype) in ROWS.items()}
    compute, source.compute = source.compute, None  # type: ignore[assignment]
    with pytest.raises(TypeError):
        store.load(0, slots, targets, stream)
    source.compute = compute  # type: ignore[method-assign]
    store.load(0, slots, targets, stream)
    np.testing.assert_array_equal(targets["pose_latents"].download(stream), values(3)["pose_latents"][[0, 1, 2, 2]])


def test_sources_of_other_batches_are_refused() -> None:
    stream = CpuDevice().stream()
    store = make("recompute", 9, stream.device)
    source = Source(values(9)["pose_latents"], stream, limit=3)
    with pytest.raises(InputError, match="pose_latents is computed 3 frames at a time; expected 4"):
        store.fill("pose_latents", source, stream, lambda done: None)
    store.close()
    assert stream.device.pool.used_bytes == 0


@pytest.mark.parametrize("kind", ["device", "host"])
def test_cancelling_waits_for_copies_and_frees_everything(kind: str, stream: Stream) -> None:
    """A freed pinned array is overwritten on the deferred device: a late copy would be seen as a wrong write."""
    store = make(kind, 12, stream.device)
    source = Source(values(12)["pose_latents"], stream)

    def cancel(done: int) -> None:
        raise Cancelled(f"at {done}")

    with pytest.raises(Cancelled, match="at 4"):
        store.fill("pose_latents", source, stream, cancel)
    assert getattr(stream, "calls", None) in (None, [])
    assert source.closed == 1
    store.close()
    assert stream.device.pool.used_bytes == 0


def test_only_what_is_on_the_device_can_be_captured() -> None:
    device = CpuDevice()
    stream = device.stream()
    slots = device.array(np.arange(TILE, dtype=np.int32), stream)
    assert make("device", 5, device).on_device
    for kind in ("host", "recompute"):
        store = make(kind, 5, device)
        assert not store.on_device
        with pytest.raises(DeviceError, match="cannot be part of a graph"):
            stream.capture(lambda store=store: store.load(0, slots, {}, stream))  # type: ignore[misc]


@each(
    frames__expected=[
        ([0, 1, 2, 3], [(0, 0, 4)]),
        ([0, 5, 6, 7], [(0, 0, 1), (1, 5, 3)]),
        ([0, 1, 1, 1], [(0, 0, 2), (2, 1, 1), (3, 1, 1)]),
        ([0], [(0, 0, 1)]),
    ]
)
def test_runs_of_frames(frames: list[int], expected: list[tuple[int, int, int]]) -> None:
    assert runs(np.array(frames, np.int32)) == expected


@pytest.mark.parametrize("kind", ["device", "host"])
def test_a_store_that_does_not_fit_leaves_nothing_behind(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    device = CpuDevice()
    allocate, count = device.pool._allocate, iter(range(100))

    def refuse_later(size_bytes: int) -> int:
        if next(count):
            raise OutOfMemoryError("no room")
        return allocate(size_bytes)

    monkeypatch.setattr(device.pool, "_allocate", refuse_later)
    with pytest.raises(OutOfMemoryError):
        make(kind, 200, device)
    assert device.pool.used_bytes == 0


def test_a_place_without_rows_takes_the_same_memory_for_any_clip() -> None:
    used = []
    for frames in (9, 9000):
        device = CpuDevice()
        store = make("recompute", frames, device)
        used.append(device.pool.used_bytes)
        store.close()
        assert (
            fail_at_every_allocation(
                device, lambda frames=frames, device=device: make("recompute", frames, device).close()
            )
            == 2
        )  # type: ignore[misc]
    assert used[0] == used[1]
