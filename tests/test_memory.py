"""What a run says of the memory that it took; where conditions go is in test_clip_store.py."""

from __future__ import annotations

import pytest
from fake_cuda import FakeCuda, install
from fake_engine import FakeOpener
from test_denoise import Clip, Setup

from dispose_rt.device import CpuDevice, open_device
from dispose_rt.memory import MemoryWatch


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


def test_on_the_cpu_it_is_the_arrays() -> None:
    device = CpuDevice()
    kept = device.empty((1 << 10,), "uint8")
    watch = MemoryWatch(device, 0)
    device.empty((1 << 14,), "uint8").free()
    watch.look()
    assert watch.peak_bytes == (1 << 10) + (1 << 14)
    kept.free()


@pytest.mark.parametrize("controls", [True, False])
def test_the_denoiser_s_engines_take_all_they_need_before_conditions_are_placed(controls: bool) -> None:
    setup = Setup(controls, FakeOpener())
    pool = setup.opener.device.pool
    setup.denoiser.allocate()
    before = pool.used_bytes
    setup.run(Clip(5, ("motion", "points") if controls else ()))
    assert pool.used_bytes == before
