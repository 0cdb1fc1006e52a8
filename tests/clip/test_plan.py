"""What a clip needs of the memory, where its conditions go, and what a run says of the memory that it took."""

from __future__ import annotations

import logging
import re
from dataclasses import replace

import pytest

from dispose_rt.clip import plan as memory
from dispose_rt.clip.plan import ClipPlan, FreeMemory, MemoryWatch, estimate_clip, place_conditions, plan_run, row_bytes
from dispose_rt.clip.recomputed import RecomputedClip
from dispose_rt.clip.store import ResidentClip, Rows, StreamedClip
from dispose_rt.contract import Sizes
from dispose_rt.device import CpuDevice, open_device
from dispose_rt.errors import OutOfMemoryError
from tests.every import each
from tests.fakes.cuda import FakeCuda, install
from tests.fakes.engine import FakeLoader
from tests.stages.denoise.test_loop import Clip, Setup

FULL = Sizes(1024, 576)
FULL_ROWS: dict[str, Rows] = dict.fromkeys(("pose_latents", "motion_features"), ((320, 72, 128), "float16"))
GB = 10**9
LARGE = FreeMemory(10**15, 10**15, shared=False)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    return install(monkeypatch, memory_bytes=1 << 20)


def test_on_a_gpu_it_is_what_the_driver_reports_engines_included(cuda: FakeCuda) -> None:
    device = open_device("cuda")
    cuda.cudaMalloc(1 << 10)  # of another program
    free, total = device.memory_bytes()
    engine = device.empty((1 << 16,), "uint8")
    for _ in range(2):  # the engine is loaded once, and counts in every run
        watch = MemoryWatch(device, total - free)
        array = device.empty((1 << 14,), "uint8")
        watch.look()
        array.free()
        watch.look()
        assert watch.peak_bytes == (1 << 16) + (1 << 14)
    engine.free()
    device.close()


def test_pinned_memory_of_the_last_clip_is_free_for_the_next(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    device = open_device("cuda")
    clip = device.pinned((1 << 20,), "uint8")
    monkeypatch.setattr(memory, "free_host_bytes", lambda: GB)  # beside what is pinned
    assert FreeMemory.of(device).host_bytes == GB
    clip.free()
    assert FreeMemory.of(device).host_bytes == GB + (1 << 20)
    longer = device.pinned((1 << 21,), "uint8")  # a longer clip, which does not fit into that block, takes its place
    assert sum(map(len, cuda.host_blocks.values())) == 1 << 21
    assert FreeMemory.of(device).host_bytes == GB
    longer.free()
    device.close()


def test_on_the_cpu_it_is_the_arrays() -> None:
    device = CpuDevice()
    kept = device.empty((1 << 10,), "uint8")
    watch = MemoryWatch(device, 0)
    device.empty((1 << 14,), "uint8").free()
    watch.look()
    assert watch.peak_bytes == (1 << 10) + (1 << 14)
    kept.free()


@each(controls=[True, False])
def test_the_denoiser_s_engines_take_all_they_need_before_conditions_are_placed(controls: bool) -> None:
    setup = Setup(controls, FakeLoader())
    pool = setup.loader.device.pool
    setup.denoiser.allocate()
    before = pool.used_bytes
    setup.run(Clip(5, ("motion", "points") if controls else ()))
    assert pool.used_bytes == before


def test_what_a_frame_takes_at_full_size() -> None:
    """The numbers of the documentation."""
    plans = {place: estimate_clip(9000, FULL, FULL_ROWS, place) for place in ("device", "host", "recompute")}
    assert row_bytes(FULL_ROWS) == 11_796_480
    assert plans["recompute"].device_frame_bytes == 600_064
    assert plans["device"].device_frame_bytes == plans["recompute"].device_frame_bytes + row_bytes(FULL_ROWS)
    assert plans["recompute"].host_frame_bytes == 17_408
    assert plans["host"].host_bytes > 100 * GB
    assert plans["recompute"].device_bytes < 6 * GB
    assert plans["recompute"].host_bytes < GB / 2
    assert plans["recompute"].device_once_bytes > 33 * row_bytes(FULL_ROWS)


def room_for(plan: ClipPlan, share: float = 1.0) -> FreeMemory:
    """Just enough for a plan that takes that share of what is free."""
    return FreeMemory(-int(-plan.device_bytes // share), -int(-plan.host_bytes // share), shared=False)


def plan_full(free: FreeMemory, place: str = "auto", frames: int = 9000, kept_bytes: int = 0) -> ClipPlan:
    return plan_run(frames, FULL, FULL_ROWS, place, free, kept_bytes)


def test_auto_takes_the_first_place_that_leaves_half_of_the_memory_free(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "dispose_rt")
    device, host, recompute = (estimate_clip(9000, FULL, FULL_ROWS, one) for one in ("device", "host", "recompute"))
    fits_device = room_for(device, 0.5)
    assert plan_full(fits_device) == device
    fits_host = replace(room_for(host, 0.5), device_bytes=fits_device.device_bytes - 2)
    assert plan_full(fits_host) == host
    assert plan_full(replace(fits_host, host_bytes=None)) == host  # nobody knows better
    assert not any("computed again" in one.message for one in caplog.records)
    assert plan_full(replace(fits_host, host_bytes=fits_host.host_bytes - 2)) == recompute
    [said] = [one for one in caplog.records if "computed again" in one.message]
    assert "106,168.3 MB" in said.message
    assert "once per step" in said.message


def test_the_plan_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "dispose_rt")
    plan_full(LARGE, "host", frames=100)
    [line] = [one.message for one in caplog.records]
    assert re.search(r"100 frames takes .* MB of device and .* MB of host memory .* 'host'", line)


@each(place=["device", "host", "recompute"])
def test_a_chosen_place_may_take_all_that_is_free_and_not_more(place: str) -> None:
    plan = estimate_clip(9000, FULL, FULL_ROWS, place)
    exact = room_for(plan)
    assert plan_full(exact, place) == plan
    assert plan_full(replace(exact, host_bytes=None), place) == plan
    with pytest.raises(OutOfMemoryError, match=r"9000 frames does not fit: 1 bytes of device memory are missing"):
        plan_full(replace(exact, device_bytes=exact.device_bytes - 1), place)
    with pytest.raises(OutOfMemoryError, match=r": 7 bytes of host memory are missing.*conditions_memory='auto'"):
        plan_full(replace(exact, host_bytes=exact.host_bytes - 7), place)


def test_what_does_not_fit_is_refused_with_what_helps() -> None:
    free = FreeMemory(3 * GB, GB, shared=False)
    with pytest.raises(OutOfMemoryError) as refused:
        plan_full(free)
    message = str(refused.value)
    needed = estimate_clip(9000, FULL, FULL_ROWS, "recompute").device_bytes
    assert f"{needed - 3 * GB:,} bytes of device memory are missing" in message
    [fitting] = re.findall(
        r"a shorter clip \((\d+) frames fit\), a larger stride, or engines of a smaller size", message
    )
    assert plan_full(free, "recompute", int(fitting))
    with pytest.raises(OutOfMemoryError):
        plan_full(free, "recompute", int(fitting) + 1)
    with pytest.raises(OutOfMemoryError, match="a shorter clip, a larger stride"):
        plan_full(FreeMemory(1000, 1000, shared=False))


def test_frames_that_are_kept_count() -> None:
    free = FreeMemory(10 * GB, 10 * GB, shared=False)
    assert plan_full(free).place == "recompute"
    with pytest.raises(OutOfMemoryError, match="of host memory are missing.*writing the frames to a file"):
        plan_full(free, kept_bytes=3 * FULL.width * FULL.height)


@each(place=["device", "host", "recompute"])
def test_on_the_cpu_both_take_the_same_memory(place: str) -> None:
    plan = estimate_clip(9000, FULL, FULL_ROWS, place)
    both = plan.device_bytes + plan.host_bytes
    assert plan_full(FreeMemory(both, both, shared=True), place) == plan
    with pytest.raises(OutOfMemoryError, match=r": 5 bytes of memory are missing.*\(8999 frames fit\)"):
        plan_full(FreeMemory(both - 5, both - 5, shared=True), place)


def test_the_room_of_the_cpu_is_that_of_the_host_and_what_the_pool_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_host_bytes", lambda: 1 << 30)
    device = CpuDevice()
    assert FreeMemory.of(device) == FreeMemory(1 << 30, 1 << 30, shared=True)
    device.empty((1 << 20,), "uint8").free()
    assert FreeMemory.of(device).device_bytes == (1 << 30) + (1 << 20)
    monkeypatch.setattr(memory, "free_host_bytes", lambda: None)
    assert FreeMemory.of(device).device_bytes == pytest.approx(device.memory_bytes()[0], rel=0.2)


def test_the_room_of_a_gpu_counts_what_others_give_back(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_host_bytes", lambda: 12345)
    device = open_device("cuda")
    cached = cuda.cudaMalloc(1 << 10)[1]
    assert FreeMemory.of(device) == FreeMemory((1 << 20) - (1 << 10), 12345, shared=False)
    device.pool.reclaim = lambda: cuda.cudaFree(cached)
    assert FreeMemory.of(device) == FreeMemory(1 << 20, 12345, shared=False)
    device.pool.reclaim = None
    device.close()


@each(place__kind=[("device", ResidentClip), ("host", StreamedClip), ("recompute", RecomputedClip)])
def test_the_plan_is_carried_out(place: str, kind: type) -> None:
    rows: dict[str, Rows] = {"pose_latents": ((3, 2), "float16")}
    plan = plan_run(9, Sizes(64, 64, tile=4), rows, place, LARGE)
    store = place_conditions(plan, rows, CpuDevice(), 4)
    assert type(store) is kind
    assert store.frames == 9
    store.close()
