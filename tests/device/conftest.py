"""Devices to test: the CPU, a fake GPU whose work waits until somebody waits for it, and a real GPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dispose_rt.device import CudaDevice, Device, Stream, compiled_module, find_gpus, open_device
from dispose_rt.errors import DeviceError
from tests.fakes.cuda import FakeCuda, install


@pytest.fixture(params=["cpu", "fake cuda", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    if request.param == "fake cuda":
        install(monkeypatch)
    elif request.param == "cuda":
        require_gpu()
    device = open_device(request.param.removeprefix("fake "))
    yield device
    device.close()


def require_gpu() -> None:
    """Skip the test where there is no GPU, or no kernels for it."""
    if not find_gpus():
        pytest.skip("no NVIDIA GPU")
    try:
        compiled_module("cuda")
    except DeviceError as error:
        pytest.skip(str(error))


@pytest.fixture
def stream(device: Device) -> Stream:
    return device.stream()


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    """Two fake GPUs."""
    return install(monkeypatch, gpus=2)


@pytest.fixture
def gpu(cuda: FakeCuda) -> Iterator[CudaDevice]:
    """The first of the fake GPUs."""
    device = open_device("cuda")
    assert isinstance(device, CudaDevice)
    yield device
    device.close()
