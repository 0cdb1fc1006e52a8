"""Conditions of a clip: on the device or streamed from the host, the engines read the same."""

from __future__ import annotations

import numpy as np
import pytest

from dispose_rt.clip_store import ClipStore, ResidentClip, Rows, StreamedClip, runs
from dispose_rt.device import CpuDevice
from dispose_rt.errors import DeviceError, OutOfMemoryError
from dispose_rt.memory import place_conditions, row_bytes
from dispose_rt.tiles import plan_tiles

ROWS: dict[str, Rows] = {"pose_latents": ((3, 2), "float16"), "motion_features": ((5,), "float32")}
TILE = 4


def values(frames: int) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(frames)
    return {name: draw.standard_normal((frames, *shape)).astype(dtype) for name, (shape, dtype) in ROWS.items()}


def make(kind: str, frames: int, device: CpuDevice) -> ClipStore:
    if kind == "device":
        return ResidentClip(frames, ROWS, device)
    return StreamedClip(frames, ROWS, device, TILE)


@pytest.mark.parametrize("kind", ["device", "host"])
@pytest.mark.parametrize("frames", [1, 3, 4, 5, 9, 16])
def test_every_tile_gets_its_frames_step_after_step(kind: str, frames: int) -> None:
    device = CpuDevice()
    stream = device.stream()
    store, expected = make(kind, frames, device), values(frames)
    for name, rows in expected.items():
        write = store.writer(name, stream)
        for start in range(0, frames, 3):
            part = device.array(rows[start : start + 3], stream)
            write(start, part)
            part.free()
    tiles = plan_tiles(frames, TILE, 2)
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
    assert device.pool.used_bytes == 0


def test_only_what_is_on_the_device_can_be_captured() -> None:
    device = CpuDevice()
    stream = device.stream()
    store = make("host", 5, device)
    store.plan([tile.frames for tile in plan_tiles(5, TILE, 2)], stream)
    slots = device.array(np.arange(TILE, dtype=np.int32), stream)
    assert not store.on_device
    assert make("device", 5, device).on_device
    with pytest.raises(DeviceError, match="cannot be part of a graph"):
        stream.capture(lambda: store.load(0, slots, {}, stream))


@pytest.mark.parametrize(
    ("frames", "expected"),
    [
        ([0, 1, 2, 3], [(0, 0, 4)]),
        ([0, 5, 6, 7], [(0, 0, 1), (1, 5, 3)]),
        ([0, 1, 1, 1], [(0, 0, 2), (2, 1, 1), (3, 1, 1)]),
        ([0], [(0, 0, 1)]),
    ],
)
def test_runs_of_frames(frames: list[int], expected: list[tuple[int, int, int]]) -> None:
    assert runs(np.array(frames, np.int32)) == expected


class SmallDevice(CpuDevice):
    """A device with little memory."""

    def memory_bytes(self) -> tuple[int, int]:
        return 10 * row_bytes(ROWS), 100 * row_bytes(ROWS)


@pytest.mark.parametrize(
    ("place", "frames", "on_device"),
    [("auto", 5, True), ("auto", 6, False), ("device", 6, True), ("host", 1, False)],
)
def test_conditions_take_half_of_what_is_free(place: str, frames: int, on_device: bool) -> None:
    with_store = place_conditions(place, frames, ROWS, SmallDevice(), TILE)
    assert with_store.on_device == on_device


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
