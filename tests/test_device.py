"""The layer over the CUDA runtime: what it finds, what it refuses, and what it rounds."""

from __future__ import annotations

import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from fake_gpu import CudaError, FakeCuda

from dispose_rt import device
from dispose_rt.device import DeviceArray, DeviceMemory, Stream, check, find_gpus, resolve_device
from dispose_rt.errors import DeviceError, InputError


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda(gpus=2)
    monkeypatch.setattr(device, "_cuda", lambda: fake)
    return fake


@pytest.fixture
def no_bindings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    device._cuda.cache_clear()


def test_importing_it_imports_no_cuda() -> None:
    code = "import sys, dispose_rt.device; print([n for n in sys.modules if n.split('.')[0] == 'cuda'])"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "[]\n"


def test_the_fake_has_only_names_that_cuda_has() -> None:
    runtime = pytest.importorskip("cuda.bindings.runtime")
    assert {name for name in vars(FakeCuda) if name.startswith("cuda")} <= set(dir(runtime))


def test_every_gpu_is_described(cuda: FakeCuda) -> None:
    cuda.current = 1
    gpus = find_gpus()
    assert [(gpu.index, gpu.name, gpu.capability) for gpu in gpus] == [
        (0, "Fake GPU", "sm_86"),
        (1, "Fake GPU", "sm_87"),
    ]
    assert (gpus[0].total_bytes, gpus[0].free_bytes) == (1 << 28, 1 << 28)
    assert gpus[0].driver_version == "12.9"
    assert cuda.current == 1


@pytest.mark.parametrize(("text", "index"), [("auto", 0), ("cuda", 0), ("cuda:0", 0), ("cuda:1", 1)])
def test_device_strings(cuda: FakeCuda, text: str, index: int) -> None:
    assert resolve_device(text).index == index


@pytest.mark.parametrize("text", ["", "gpu", "cuda:", "cuda:x", "cuda:-1", "auto:1", "cuda:1:2", "cuda:²"])
def test_other_strings_are_refused(cuda: FakeCuda, text: str) -> None:
    with pytest.raises(InputError, match="cuda:N"):
        resolve_device(text)


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


def test_no_bindings_is_no_gpu(no_bindings: None) -> None:
    assert find_gpus() == ()
    with pytest.raises(DeviceError, match=r"pip install 'cuda-python"):
        resolve_device("cuda")


def test_a_failing_call_is_named(cuda: FakeCuda) -> None:
    with pytest.raises(DeviceError, match=r"cudaSetDevice\(9\) failed with cudaErrorInvalidDevice: explanation of"):
        device.set_device(9)


def test_results_are_unpacked() -> None:
    success = CudaError.cudaSuccess
    assert check((success,), "f") is None
    assert check((success, 5), "f") == 5
    assert check((success, 5, 6), "f") == (5, 6)


def test_out_of_memory_says_how_much_is_missing(cuda: FakeCuda) -> None:
    memory = DeviceMemory(200 << 20)
    with pytest.raises(DeviceError, match="105 MB wanted, 59 of 268 MB free"):
        DeviceMemory(100 << 20)
    memory.free()
    memory.free()
    assert cuda.used_bytes == 0


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_arrays_go_there_and_back(cuda: FakeCuda, dtype: str) -> None:
    stream, array = Stream(), DeviceArray((4, 3), dtype)
    values = np.arange(12, dtype=dtype).reshape(3, 4)
    array.upload(values.T, stream)  # not contiguous
    np.testing.assert_array_equal(array.download((4, 3), stream), values.T)


def test_fewer_rows_use_the_front(cuda: FakeCuda) -> None:
    stream, array = Stream(), DeviceArray((4, 3), "float32")
    array.upload(np.full((2, 3), 7, np.float32), stream)
    assert (array.download((2, 3), stream) == 7).all()
    assert np.isnan(array.download((4, 3), stream)[2:]).all()


@pytest.mark.parametrize("values", [np.zeros((5, 3), np.float32), np.zeros((4, 3), np.float64)])
def test_what_does_not_fit_is_refused(cuda: FakeCuda, values: np.ndarray) -> None:
    with pytest.raises(DeviceError, match="does not fit"):
        DeviceArray((4, 3), "float32").upload(values, Stream())


def every_kind_of_float() -> np.ndarray:
    bits = np.random.default_rng(0).integers(0, 1 << 32, 200_000, np.uint32, endpoint=False)
    ties = (bits[:1000] & 0xFFFF0000) | 0x8000
    special = np.array([0, -0.0, np.inf, -np.inf, np.nan, 3.4028235e38, 1e-45], np.float32).view(np.uint32)
    return np.concatenate([bits, ties, special]).view(np.float32)


def test_bfloat16_is_rounded_to_nearest_even(cuda: FakeCuda) -> None:
    values = every_kind_of_float()
    stream, array = Stream(), DeviceArray(values.shape, "bfloat16")
    array.upload(values, stream)
    with np.errstate(all="ignore"):
        expected = values.astype(ml_dtypes.bfloat16).astype(np.float32)
    actual = array.download(values.shape, stream)
    assert actual.dtype == np.float32
    np.testing.assert_array_equal(actual, expected)  # NaN equals NaN here


@pytest.mark.cuda
def test_a_real_gpu_keeps_what_it_is_given() -> None:
    gpu = resolve_device("auto") if find_gpus() else pytest.skip("no GPU here")
    assert 0 < gpu.free_bytes <= gpu.total_bytes
    device.set_device(gpu.index)
    stream, array = Stream(), DeviceArray((1000, 33), "bfloat16")
    values = np.random.default_rng(0).standard_normal((1000, 33), np.float32)
    sent = array.upload(values, stream)
    actual = array.download((1000, 33), stream)
    assert sent.nbytes == array.size_bytes
    np.testing.assert_array_equal(actual, values.astype(ml_dtypes.bfloat16).astype(np.float32))
    array.free()
    stream.close()
    with pytest.raises(DeviceError, match="out of memory"):
        DeviceMemory(1 << 60)
    DeviceMemory(1 << 20).free()  # the failure before is not reported again
