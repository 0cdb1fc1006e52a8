"""The fake GPU is as strict as a real one, and has nothing that CUDA has not."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest

from dispose_rt.device import Array, CudaDevice, Stream
from tests.every import every_item
from tests.fakes.cuda import CudaError, FakeCuda

FUNCTIONS = sorted(name for name, member in vars(FakeCuda).items() if name.startswith("cuda") and callable(member))


def host(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


@pytest.fixture
def stream(gpu: CudaDevice) -> Stream:
    return gpu.stream()


@pytest.fixture
def array(gpu: CudaDevice, stream: Stream) -> Array:
    array = gpu.array(host(1, 2, 3), stream)
    stream.synchronize()
    return array


def on_gpu(cuda: FakeCuda, array: Array) -> list[float]:
    """What lies there now, whether anybody waited or not."""
    return cuda.floats(array.address, array.shape, array.dtype).tolist()


# Names and signatures


def test_functions_have_the_parameters_of_cudas() -> None:
    runtime = pytest.importorskip("cuda.bindings.runtime")
    with every_item() as every:
        for name in FUNCTIONS:
            _, *ours = inspect.signature(getattr(FakeCuda, name)).parameters
            with every(name):
                assert ours == list(inspect.signature(getattr(runtime, name)).parameters)


def test_constants_have_the_values_of_cudas() -> None:
    runtime = pytest.importorskip("cuda.bindings.runtime")
    constants = {name: value for name, value in vars(FakeCuda).items() if name.startswith("cuda")}
    for name in FUNCTIONS:
        del constants[name]
    for name, value in constants.items():
        if isinstance(value, SimpleNamespace):
            assert vars(value) == {one: int(getattr(getattr(runtime, name), one)) for one in vars(value)}
        else:
            assert value == getattr(runtime, name)
    assert {error.name: error.value for error in CudaError} == {
        error.name: int(getattr(runtime.cudaError_t, error.name)) for error in CudaError
    }


# Work is done when somebody waits


def test_nothing_is_done_before_somebody_waits(cuda: FakeCuda, stream: Stream, array: Array) -> None:
    array.clear(stream)
    assert on_gpu(cuda, array) == [1, 2, 3]
    stream.synchronize()
    assert on_gpu(cuda, array) == [0, 0, 0]


def test_a_source_that_changes_too_early_shows(stream: Stream, array: Array) -> None:
    values = host(4, 5, 6)
    array.upload(values, stream)
    values[:] = 9
    assert array.download(stream).tolist() == [9, 9, 9]


def test_a_missing_wait_between_streams_shows(gpu: CudaDevice, stream: Stream, array: Array) -> None:
    other, copied = gpu.stream(), gpu.empty((3,), "float32")
    array.upload(host(4, 5, 6), stream)
    copied.copy_from(array, other)
    assert copied.download(other).tolist() == [1, 2, 3]


def test_reading_pinned_memory_too_early_shows(gpu: CudaDevice, stream: Stream, array: Array) -> None:
    pinned = gpu.pinned((3,), "float32")
    pinned.copy_from(array, stream)
    assert np.isnan(pinned.bits).all()
    stream.synchronize()
    assert pinned.bits.tolist() == [1, 2, 3]


def test_a_block_that_is_lent_again_too_early_shows(gpu: CudaDevice, stream: Stream, array: Array) -> None:
    other = gpu.stream()
    target = gpu.empty((3,), "float32")
    target.copy_from(array, other)
    array.free()  # while the other stream still reads it
    gpu.array(host(7, 8, 9), stream)
    stream.synchronize()
    assert target.download(other).tolist() == [7, 8, 9]


def test_waiting_for_an_event_does_what_precedes_it_and_no_more(
    cuda: FakeCuda, gpu: CudaDevice, stream: Stream, array: Array
) -> None:
    event = gpu.event()
    array.upload(host(4, 5, 6), stream)
    event.record(stream)
    array.clear(stream)
    event.synchronize()
    assert on_gpu(cuda, array) == [4, 5, 6]
    with pytest.raises(Exception, match="cudaErrorNotReady"):
        unfinished(gpu, stream).seconds_since(event)


def unfinished(gpu: CudaDevice, stream: Stream) -> object:
    event = gpu.event()
    event.record(stream)
    return event


def test_an_event_means_what_it_marked_when_somebody_began_to_wait(
    cuda: FakeCuda, gpu: CudaDevice, stream: Stream, array: Array
) -> None:
    other, event = gpu.stream(), gpu.event()
    event.record(stream)
    other.wait(event)
    array.clear(stream)
    event.record(stream)
    other.synchronize()
    assert on_gpu(cuda, array) == [1, 2, 3]


def test_immediate_work_is_done_at_once(gpu: CudaDevice, cuda: FakeCuda, stream: Stream, array: Array) -> None:
    cuda.immediate = True
    array.clear(stream)
    assert on_gpu(cuda, array) == [0, 0, 0]


# Memory


def test_new_memory_is_no_number(gpu: CudaDevice, stream: Stream) -> None:
    assert np.isnan(gpu.empty((3,), "float32").download(stream)).all()


def test_freeing_waits_for_the_gpu(cuda: FakeCuda, gpu: CudaDevice, stream: Stream, array: Array) -> None:
    copied = gpu.empty((3,), "float32")
    copied.copy_from(array, stream)
    array.free()
    gpu.pool.trim()
    assert on_gpu(cuda, copied) == [1, 2, 3]


def test_freed_memory_is_gone(cuda: FakeCuda, gpu: CudaDevice, stream: Stream, array: Array) -> None:
    address = array.address
    array.free()
    gpu.pool.trim()
    assert cuda.cudaMemsetAsync(address, 0, 12, stream.handle) == (CudaError.cudaErrorInvalidValue,)
    with pytest.raises(KeyError):
        cuda.floats(address, (3,), "float32")
    assert cuda.cudaFree(address) == (CudaError.cudaErrorInvalidValue,)


def test_copies_end_within_their_block(cuda: FakeCuda, stream: Stream, array: Array) -> None:
    values = np.zeros(1000, np.float32)
    copied = cuda.cudaMemcpyAsync(array.address, values.ctypes.data, 4000, 4, stream.handle)
    assert copied == (CudaError.cudaErrorInvalidValue,)


# Captures


def forbidden(cuda: FakeCuda, stream: Stream, array: Array) -> dict[str, Callable[[], tuple[object, ...]]]:
    values = host(1, 2, 3)
    return {
        "cudaMalloc": lambda: cuda.cudaMalloc(100),
        "cudaFree": lambda: cuda.cudaFree(array.address),
        "cudaHostAlloc": lambda: cuda.cudaHostAlloc(100, 0),
        "cudaFreeHost": lambda: cuda.cudaFreeHost(1),
        "cudaMemcpyAsync": lambda: cuda.cudaMemcpyAsync(array.address, values.ctypes.data, 12, 4, stream.handle),
        "cudaStreamSynchronize": lambda: cuda.cudaStreamSynchronize(stream.handle),
        "cudaEventSynchronize": lambda: cuda.cudaEventSynchronize(1),
    }


def test_calls_that_break_a_capture(cuda: FakeCuda, stream: Stream, array: Array) -> None:
    mode = cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
    invalid = CudaError.cudaErrorStreamCaptureInvalidated
    with every_item() as every:
        for name, call in forbidden(cuda, stream, array).items():
            with every(name):
                assert cuda.cudaStreamBeginCapture(stream.handle, mode) == (CudaError.cudaSuccess,)
                assert call()[0] == CudaError.cudaErrorStreamCaptureUnsupported
                assert cuda.cudaMemsetAsync(array.address, 0, 12, stream.handle) == (invalid,)
                assert cuda.cudaStreamEndCapture(stream.handle) == (invalid, None)
                assert cuda.cudaMemsetAsync(array.address, 0, 12, stream.handle) == (CudaError.cudaSuccess,)


def test_a_capture_ends_in_the_thread_where_it_began(cuda: FakeCuda, stream: Stream) -> None:
    cuda.cudaStreamBeginCapture(stream.handle, 1)
    answers: list[tuple[object, ...]] = []
    thread = threading.Thread(target=lambda: answers.append(cuda.cudaStreamEndCapture(stream.handle)))
    thread.start()
    thread.join()
    assert answers == [(CudaError.cudaErrorStreamCaptureWrongThread, None)]
    assert cuda.cudaStreamEndCapture(stream.handle)[0] == CudaError.cudaSuccess


def test_an_event_of_a_stream_that_is_not_captured_breaks_a_capture(
    cuda: FakeCuda, gpu: CudaDevice, stream: Stream
) -> None:
    event, other = gpu.event(), gpu.stream()
    event.record(other)  # type: ignore[attr-defined]
    cuda.cudaStreamBeginCapture(stream.handle, 1)
    waited = cuda.cudaStreamWaitEvent(stream.handle, event.handle, cuda.cudaEventWaitDefault)
    assert waited == (CudaError.cudaErrorStreamCaptureIsolation,)
    assert cuda.cudaStreamEndCapture(stream.handle)[0] == CudaError.cudaErrorStreamCaptureInvalidated


def test_an_event_that_was_captured_says_nothing_outside(cuda: FakeCuda, gpu: CudaDevice, stream: Stream) -> None:
    event = gpu.event()
    cuda.cudaStreamBeginCapture(stream.handle, 1)
    cuda.cudaEventRecordWithFlags(event.handle, stream.handle, cuda.cudaEventRecordDefault)
    cuda.cudaStreamEndCapture(stream.handle)
    assert cuda.cudaEventSynchronize(event.handle) == (CudaError.cudaErrorCapturedEvent,)


def test_what_was_destroyed_is_unknown(cuda: FakeCuda) -> None:
    calls = {
        "streams": lambda: cuda.cudaStreamSynchronize(5),
        "events": lambda: cuda.cudaEventSynchronize(5),
        "graphs": lambda: cuda.cudaGraphInstantiate(5, 0),
        "executables": lambda: cuda.cudaGraphLaunch(5, 5),
    }
    with every_item() as every:
        for kind, call in calls.items():
            with every(kind):
                assert call()[0] == CudaError.cudaErrorInvalidResourceHandle
