"""Which GPUs are found, which one a device name means, and how the first calls of CUDA can fail."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from dispose_rt.device import (
    CpuDevice,
    CudaDevice,
    check,
    check_device_name,
    find_gpus,
    is_device_name,
    open_device,
    parse_device,
    resolve_device,
    set_device,
)
from dispose_rt.errors import DeviceError, InputError
from tests.every import every_item
from tests.fakes.cuda import CudaError, FakeCuda


@pytest.fixture
def no_bindings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)


def test_every_gpu_is_described(cuda: FakeCuda) -> None:
    cuda.current = 1
    gpus = find_gpus()
    assert (cuda.selected, cuda.contexts) == ([], set())
    assert [(gpu.index, gpu.name, gpu.capability) for gpu in gpus] == [
        (0, "Fake GPU", "sm_86"),
        (1, "Fake GPU", "sm_87"),
    ]
    assert (gpus[0].total_bytes, gpus[0].free_bytes) == (1 << 28, 1 << 28)
    assert gpus[0].driver_version == "12.9"
    assert cuda.current == 1


def test_a_gpu_that_is_not_used_stays_untouched(cuda: FakeCuda) -> None:
    """Another process may keep it for itself; a context on it takes hundreds of megabytes."""
    driver: Any = sys.modules["cuda.bindings.driver"]
    driver.exclusive = {0}
    device = open_device("cuda:1")
    device.empty((4,), "float32").free()
    device.close()
    assert cuda.contexts == {1}
    with pytest.raises(DeviceError, match=r"cuDevicePrimaryCtxRetain failed with CUDA_ERROR_DEVICE_UNAVAILABLE: expl"):
        resolve_device("cuda:0")


def test_device_names(cuda: FakeCuda) -> None:
    names = {"auto": ("auto", 0), "cuda": ("cuda", 0), "cuda:0": ("cuda", 0), "cuda:1": ("cuda", 1)}
    with every_item() as every:
        for text, (kind, index) in names.items():
            with every(text):
                assert parse_device(text) == (kind, index)
                assert resolve_device(text).index == index
    assert parse_device("cpu") == ("cpu", 0)


def test_other_names_are_refused(cuda: FakeCuda) -> None:
    others: list[Any] = [
        "",
        "gpu",
        "cuda:",
        "cuda:x",
        "cuda:-1",
        "auto:1",
        "cuda:1:2",
        "cuda:²",
        "cpu:0",
        "cuda\n",
        None,
    ]
    with every_item() as every:
        for text in others:
            assert not is_device_name(text)
            for find in (parse_device, check_device_name, resolve_device, open_device):
                with every(repr(text), find.__name__), pytest.raises(InputError, match="cuda:N"):
                    find(text)


def test_the_cpu_is_refused(cuda: FakeCuda) -> None:
    with pytest.raises(DeviceError, match="--backend onnxruntime"):
        resolve_device("cpu")


def test_a_number_too_high_lists_what_there_is(cuda: FakeCuda) -> None:
    with pytest.raises(DeviceError, match="no device 'cuda:2'.*cuda:0, cuda:1"):
        resolve_device("cuda:2")


def test_no_driver_is_no_gpu(cuda: FakeCuda) -> None:
    cuda.gpus = 0
    assert find_gpus() == ()
    with pytest.raises(DeviceError, match="cudaErrorInsufficientDriver: explanation.*nvidia-smi"):
        resolve_device("auto")


def test_no_driver_is_no_gpu_for_older_bindings(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError("Failed to dlopen libcuda.so.1")

    monkeypatch.setattr(cuda, "cudaGetDeviceCount", fail)
    assert find_gpus() == ()
    with pytest.raises(DeviceError, match=r"none was found \(Failed to dlopen libcuda.so.1\)"):
        resolve_device("cuda")


def test_no_bindings_is_no_gpu(no_bindings: None) -> None:
    assert find_gpus() == ()
    with pytest.raises(DeviceError, match=r"pip install 'cuda-python"):
        resolve_device("cuda")


def test_a_failing_call_is_named(cuda: FakeCuda) -> None:
    with pytest.raises(DeviceError, match=r"cudaSetDevice\(9\) failed with cudaErrorInvalidDevice: explanation of"):
        set_device(9)


def test_results_are_unpacked() -> None:
    success = CudaError.cudaSuccess
    assert check((success,), "f") is None
    assert check((success, 5), "f") == 5
    assert check((success, 5, 6), "f") == (5, 6)


def test_devices_are_opened_by_name(cuda: FakeCuda) -> None:
    with every_item() as every:
        for name, kind in (("cpu", CpuDevice), ("cuda", CudaDevice), ("cuda:1", CudaDevice)):
            with every(name):
                device = open_device(name)
                assert isinstance(device, kind)
                assert device.name == {"cuda": "cuda:0"}.get(name, name)
                device.close()


@pytest.mark.cuda
def test_a_real_gpu_is_described() -> None:
    gpus = find_gpus() or pytest.skip("no NVIDIA GPU")
    for gpu in gpus:
        assert 0 < gpu.free_bytes <= gpu.total_bytes
        assert gpu.capability.startswith("sm_")
