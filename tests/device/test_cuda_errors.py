"""What goes wrong on a GPU: it runs full, calls fail, kernels crash, captures break, threads and GPUs are mixed up."""

from __future__ import annotations

import inspect
import sys
import threading
from collections.abc import Callable

import numpy as np
import pytest

from dispose_rt.device import Array, CudaDevice, Stream, open_device
from dispose_rt.device.cuda_runtime import LOST
from dispose_rt.errors import DeviceError, DeviceLostError, OutOfMemoryError
from tests.every import every_item
from tests.fakes.cuda import CudaError, FakeCuda

MB = 1 << 20


def gather_into(target: Array, source: Array, stream: Stream) -> None:
    frames = target.device.array(np.zeros(1, np.int32), stream)
    target.device.launch("gather_frames", (source, frames, target, 1, 1, target.nbytes), stream)


@pytest.fixture
def stream(gpu: CudaDevice) -> Stream:
    return gpu.stream()


@pytest.fixture
def array(gpu: CudaDevice, stream: Stream) -> Array:
    return gpu.array(np.array([1, 2, 3], np.float32), stream)


# Memory


def test_out_of_memory_says_how_much_is_missing(gpu: CudaDevice, cuda: FakeCuda) -> None:
    first = gpu.empty((200 * MB,), "uint8")
    with pytest.raises(OutOfMemoryError, match=r"105 MB wanted, 59 of 268 MB free.*--tile-frames") as caught:
        gpu.empty((100 * MB,), "uint8")
    assert "cudaMalloc failed with cudaErrorMemoryAllocation: explanation" in str(caught.value.__cause__)
    first.free()
    gpu.empty((210 * MB,), "uint8")  # what the first one left is given up for it
    assert cuda.used_bytes == 210 * MB


def test_out_of_pinned_memory_is_the_hosts(gpu: CudaDevice, cuda: FakeCuda) -> None:
    cuda.failing["cudaHostAlloc"] = CudaError.cudaErrorMemoryAllocation
    with pytest.raises(OutOfMemoryError, match="the host is out of memory: 2 MB wanted"):
        gpu.pinned((500_000,), "float32")
    assert gpu.pinned((500_000,), "float32").nbytes == 2_000_000


def test_pinned_memory_is_pinned_once(gpu: CudaDevice, cuda: FakeCuda) -> None:
    for _ in range(3):
        pinned = gpu.pinned((1000, 3), "float32")
        pinned.free()
    assert cuda.calls.count("cudaHostAlloc") == 1
    assert cuda.calls.count("cudaFreeHost") == 0
    gpu.close()
    assert cuda.host_blocks == {}


def test_free_memory_is_the_gpus_and_what_is_kept(gpu: CudaDevice) -> None:
    gpu.empty((100 * MB,), "uint8").free()
    held = gpu.empty((50 * MB,), "uint8")
    assert gpu.memory_bytes() == ((256 - 50) * MB, 256 * MB)
    held.free()
    assert gpu.memory_bytes() == (256 * MB, 256 * MB)


def test_nothing_is_left_behind(gpu: CudaDevice, cuda: FakeCuda, stream: Stream, array: Array) -> None:
    gpu.pinned((3,), "float32")
    gpu.event().record(stream)
    stream.capture(lambda: array.clear(stream)).launch(stream)
    gpu.close()
    for things in (cuda.blocks, cuda.host_blocks, cuda.streams, cuda.events, cuda.graphs, cuda.executables):
        assert things == {}


# Failing calls


def test_a_failing_call_is_named(gpu: CudaDevice, cuda: FakeCuda, stream: Stream, array: Array) -> None:
    uses: list[tuple[str, Callable[[], object]]] = [
        ("cudaStreamCreateWithFlags", gpu.stream),
        ("cudaEventCreateWithFlags", gpu.event),
        ("cudaMemcpyAsync", lambda: array.upload(np.zeros(3, np.float32), stream)),
        ("cudaMemsetAsync", lambda: array.clear(stream)),
        ("cudaStreamSynchronize", stream.synchronize),
        ("cudaStreamWaitEvent", lambda: stream.wait(gpu.event())),
        ("cudaEventRecordWithFlags", lambda: gpu.event().record(stream)),
        ("cudaEventSynchronize", lambda: gpu.event().synchronize()),
        ("cudaStreamBeginCapture", lambda: stream.capture(lambda: None)),
        ("cudaStreamEndCapture", lambda: stream.capture(lambda: None)),
        ("cudaGraphInstantiate", lambda: stream.capture(lambda: None)),
        ("cudaGraphLaunch", lambda: stream.capture(lambda: None).launch(stream)),
        ("cudaMemGetInfo", gpu.memory_bytes),
        ("cudaSetDevice", gpu.event),
    ]
    with every_item() as every:
        for call, use in uses:
            cuda.failing = {call: CudaError.cudaErrorInvalidValue}
            with every(call):
                with pytest.raises(DeviceError, match=f"{call} failed with cudaErrorInvalidValue: explanation of"):
                    use()
                assert cuda.failing == {}
                assert cuda.last_error == CudaError.cudaSuccess
                assert (gpu.capturing, stream.capturing, gpu.lost) == (False, False, False)
                if call != "cudaStreamEndCapture":  # which fails here and leaves the fake stream as it was
                    array.download(stream)
            cuda.streams[stream.handle].capture = None


def test_a_stream_is_destroyed_even_if_its_work_failed(gpu: CudaDevice, cuda: FakeCuda, stream: Stream) -> None:
    cuda.failing["cudaStreamSynchronize"] = CudaError.cudaErrorInvalidValue
    with pytest.raises(DeviceError, match="cudaStreamSynchronize failed"):
        stream.close()
    assert cuda.streams == {}
    stream.close()


def test_closing_goes_wrong_once(gpu: CudaDevice, cuda: FakeCuda) -> None:
    streams = [gpu.stream(), gpu.stream()]
    cuda.failing["cudaStreamSynchronize"] = CudaError.cudaErrorInvalidValue
    with pytest.raises(DeviceError, match="cudaStreamSynchronize failed"):
        gpu.close()
    asked = len(cuda.selected)
    for stream in streams:
        stream.close()
    gpu.close()
    assert len(cuda.selected) == asked  # a closed device has nothing to do with CUDA


# Crashing kernels


def test_a_crash_shows_when_somebody_waits(gpu: CudaDevice, cuda: FakeCuda, stream: Stream, array: Array) -> None:
    target = gpu.empty((3,), "float32")
    cuda.faults.append(CudaError.cudaErrorLaunchFailure)
    gather_into(target, array, stream)
    with pytest.raises(DeviceLostError, match="cudaStreamSynchronize failed with cudaErrorLaunchFailure: expl.*again"):
        stream.synchronize()
    assert gpu.lost
    with pytest.raises(DeviceLostError, match="cudaMemsetAsync failed with cudaErrorLaunchFailure"):
        array.clear(stream)
    gpu.close()  # quietly: it was said before
    assert gpu.closed


def test_a_launch_behind_a_crash_says_so(gpu: CudaDevice, cuda: FakeCuda, stream: Stream, array: Array) -> None:
    cuda.faults.append(CudaError.cudaErrorIllegalAddress)
    frames = gpu.array(np.zeros(1, np.int32), stream)
    gather_with(frames, array, stream)
    cuda.cudaStreamSynchronize(stream.handle)  # nobody looks at what it answers
    with pytest.raises(DeviceLostError, match="cudaErrorIllegalAddress: explanation.*work that was queued before"):
        gather_with(frames, array, stream)
    assert gpu.lost


def gather_with(frames: Array, array: Array, stream: Stream) -> None:
    array.device.launch("gather_frames", (array, frames, array, 1, 1, 4), stream)


def test_a_crash_that_nobody_waited_for_shows_at_the_end(gpu: CudaDevice, cuda: FakeCuda, array: Array) -> None:
    stream = gpu.stream()
    cuda.faults.append(CudaError.cudaErrorIllegalAddress)
    gather_into(gpu.empty((3,), "float32"), array, stream)
    with pytest.raises(DeviceLostError, match="cudaStreamSynchronize failed with cudaErrorIllegalAddress"):
        gpu.close()
    assert gpu.closed
    assert "cudaStreamDestroy" not in cuda.calls
    gpu.close()


def test_a_lost_gpu_is_closed_without_another_error(gpu: CudaDevice, cuda: FakeCuda, stream: Stream) -> None:
    array, event, graph = gpu.zeros((3,), "float32", stream), gpu.event(), stream.capture(lambda: None)
    cuda.faults.append(CudaError.cudaErrorIllegalAddress)
    gather_into(gpu.empty((3,), "float32"), array, stream)
    with pytest.raises(DeviceLostError):
        array.download(stream)
    for one in (graph, event, stream):
        one.close()
    array.free()
    gpu.close()


def test_a_crash_ends_a_capture(gpu: CudaDevice, cuda: FakeCuda, stream: Stream, array: Array) -> None:
    other = gpu.stream()
    target = gpu.empty((3,), "float32")

    def body() -> None:
        cuda.faults.append(CudaError.cudaErrorIllegalAddress)
        other.synchronize()

    gather_into(target, array, other)
    with pytest.raises(DeviceLostError):
        stream.capture(body)
    assert (gpu.capturing, stream.capturing) == (False, False)


def test_memory_of_the_host_is_none_for_kernels(gpu: CudaDevice, stream: Stream, array: Array) -> None:
    on_host = np.zeros(3, np.float32)
    frames = gpu.array(np.zeros(1, np.int32), stream)
    gpu.launch("gather_frames", (on_host.ctypes.data, frames, array, 1, 1, 12), stream)
    with pytest.raises(DeviceLostError, match="cudaErrorIllegalAddress"):
        stream.synchronize()


def test_a_function_that_the_driver_lacks(gpu: CudaDevice, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError('Function "cudaMemGetInfo" not found')

    monkeypatch.setattr(cuda, "cudaMemGetInfo", fail)
    with pytest.raises(DeviceError, match='cudaMemGetInfo failed: Function "cudaMemGetInfo" not found. Update the'):
        gpu.memory_bytes()


def test_errors_that_end_cuda_exist() -> None:
    """The first versions of CUDA 12 lack two of them."""
    runtime = pytest.importorskip("cuda.bindings.runtime")
    known = LOST - {"cudaErrorContained", "cudaErrorTensorMemoryLeak"}
    assert [name for name in sorted(known) if not hasattr(runtime.cudaError_t, name)] == []


def test_no_error_that_ends_cuda_is_missing() -> None:
    """NVIDIA's description of each says so."""
    runtime = pytest.importorskip("cuda.bindings.runtime")
    told = {error.name for error in runtime.cudaError_t if "relaunched" in (inspect.getdoc(error) or "")}
    if not told:
        pytest.skip("these bindings describe no errors")
    assert told <= LOST


# Kernels


def test_kernels_that_were_not_built(gpu: CudaDevice, stream: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dispose_rt._kernels_cuda", None)
    with pytest.raises(DeviceError, match="compiled cuda kernels of dispose_rt cannot be loaded.*nvcc"):
        gpu.launch("gather_frames", (), stream)


def test_a_kernel_of_another_version(gpu: CudaDevice, stream: Stream) -> None:
    with pytest.raises(DeviceError, match="compiled cuda kernels have no abacus"):
        gpu.launch("abacus", (), stream)


def test_a_refused_launch_names_kernel_and_gpu(cuda: FakeCuda, gpu: CudaDevice, array: Array) -> None:
    foreign = open_device("cuda:1").stream()
    message = r"gather_frames could not be launched on cuda:0 \(Fake GPU, sm_86\): explanation of cudaErrorInvalidRes"
    with pytest.raises(DeviceError, match=message):
        gather_into_with(foreign, array)


def gather_into_with(stream: Stream, array: Array) -> None:
    array.device.launch("gather_frames", (array, array, array, 1, 1, 4), stream)


# Captures


def test_a_broken_capture_says_what_may_have_broken_it(gpu: CudaDevice, cuda: FakeCuda, array: Array) -> None:
    """Libraries call CUDA as well, and may not tell."""
    stream = gpu.stream()

    def body() -> None:
        error, _ = cuda.cudaMalloc(100)
        assert error == CudaError.cudaErrorStreamCaptureUnsupported

    message = "could not be captured.*cudaStreamEndCapture failed with cudaErrorStreamCaptureInvalidated.*allocates"
    with pytest.raises(DeviceError, match=message):
        stream.capture(body)
    assert cuda.graphs == {}
    stream.capture(lambda: array.clear(stream)).launch(stream)
    assert not array.download(stream).any()


def test_work_behind_what_broke_a_capture_is_refused(gpu: CudaDevice, cuda: FakeCuda, array: Array) -> None:
    stream = gpu.stream()

    def body() -> None:
        cuda.cudaMalloc(100)
        array.clear(stream)

    with pytest.raises(DeviceError, match="cudaMemsetAsync failed with cudaErrorStreamCaptureInvalidated"):
        stream.capture(body)
    assert not stream.capturing
    array.clear(stream)
    assert not array.download(stream).any()


def test_a_graph_that_was_given_up_is_destroyed(gpu: CudaDevice, cuda: FakeCuda, stream: Stream, array: Array) -> None:
    def body() -> None:
        array.clear(stream)
        raise KeyError

    with pytest.raises(KeyError):
        stream.capture(body)
    assert (cuda.graphs, cuda.executables) == ({}, {})
    cuda.failing["cudaGraphInstantiate"] = CudaError.cudaErrorMemoryAllocation
    with pytest.raises(OutOfMemoryError, match="cudaGraphInstantiate"):
        stream.capture(lambda: array.clear(stream))
    assert (cuda.graphs, cuda.executables) == ({}, {})


# Several GPUs, several threads


def test_every_thread_gets_the_gpu_of_the_device(cuda: FakeCuda) -> None:
    """A new thread begins with the first GPU; our own calls must not go there."""
    first, second = open_device("cuda:0"), open_device("cuda:1")
    on_first = first.zeros((3,), "float32", first.stream())
    results: list[np.ndarray] = []

    def work() -> None:
        assert cuda.current == 0
        stream = second.stream()
        source, target = second.array(np.array([5], np.float32), stream), second.empty((1,), "float32")
        gather_into(target, source, stream)
        graph = stream.capture(lambda: gather_into_with_frames(target, source, frames, stream))
        graph.launch(stream)
        on_first.clear(first.stream())
        done = second.event()
        done.record(stream)
        results.append(target.download(stream))
        pinned = second.pinned((1,), "float32")
        pinned.free()

    frames = second.array(np.zeros(1, np.int32), second.stream())
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert results == [5]
    second.close()
    first.close()
    assert cuda.blocks == {}


def gather_into_with_frames(target: Array, source: Array, frames: Array, stream: Stream) -> None:
    target.device.launch("gather_frames", (source, frames, target, 1, 1, target.nbytes), stream)


def test_nothing_but_the_work_is_asked_while_a_graph_is_captured(cuda: FakeCuda, stream: Stream, array: Array) -> None:
    asked: list[int] = []

    def body() -> None:
        asked.append(len(cuda.selected))
        array.clear(stream)
        asked.append(len(cuda.selected))

    stream.capture(body)
    assert asked[0] == asked[1]
