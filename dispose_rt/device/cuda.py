"""An NVIDIA GPU as a device: memory, streams, events and graphs of the CUDA runtime.

Several copies of the CUDA runtime live in a process: in cuda-python, linked into our compiled kernels, in TensorRT.
They share what the driver holds: streams, memory, and per thread the current context. cudaSetDevice of any of them
makes the GPU's primary context current with the driver for the calling thread, and calls of all of them work in the
context that is current there ("Interactions with the CUDA Driver API" in NVIDIA's reference). So every call here first
makes its GPU current, from whatever thread it comes, and a kernel is launched on that same GPU.
"""

from __future__ import annotations

import ctypes
import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DeviceError, DeviceLostError, OutOfMemoryError
from .arrays import DTYPE_BYTES, Array, PinnedArray, check_form, storage_dtype
from .base import Device, Event, Graph, Stream
from .cuda_runtime import call_cuda, cuda_runtime
from .gpus import Gpu
from .modules import find_kernel
from .pool import Pool


class CudaDevice(Device):
    """One NVIDIA GPU.

    Args:
        gpu: which one; see `resolve_device`.

    Attributes:
        gpu: which one.
        lost: whether work on it failed in a way that ends CUDA for this process.
    """

    def __init__(self, gpu: Gpu) -> None:
        super().__init__(f"cuda:{gpu.index}", self._allocate, self._release)
        self.gpu = gpu
        self.lost = False
        # what it keeps counts as free: a clip that no kept block fits may not come on top of them
        self._host_pool = Pool(self._allocate_host, self._release_host, most_reserved=1.0)
        self._open: dict[int, _Handle] = {}

    def call(self, name: str, *arguments: Any) -> Any:
        """Call the CUDA runtime with this GPU current.

        Args:
            name: of the function.
            arguments: as `cuda.bindings.runtime` takes them.

        Returns:
            What the function answers behind the error code.

        Raises:
            OutOfMemoryError: CUDA says that there is no memory left.
            DeviceLostError: this call or work before it ended CUDA for this process.
            DeviceError: the call failed, or the device was closed.
        """
        self.check_open()
        return self._call(name, *arguments)

    def _call(self, name: str, *arguments: Any) -> Any:
        try:
            self.make_current()
            return call_cuda(name, *arguments)
        except DeviceLostError:
            self.lost = True
            raise

    def make_current(self) -> None:
        """Make this GPU the current one of the calling thread, for every library that calls CUDA."""
        if not self.capturing:  # it became current when the capture began
            call_cuda("cudaSetDevice", self.gpu.index)

    def _allocate(self, size_bytes: int) -> int:
        try:
            return int(self._call("cudaMalloc", size_bytes))
        except OutOfMemoryError as error:
            free, total = self._call("cudaMemGetInfo")
            raise OutOfMemoryError(
                f"the GPU is out of memory: {size_bytes / 1e6:,.0f} MB wanted, {free / 1e6:,.0f} of "
                f"{total / 1e6:,.0f} MB free. Close other programs on it, or build with a smaller --size or "
                "--tile-frames."
            ) from error

    def _release(self, address: int) -> None:
        self._call("cudaFree", address)  # waits for the whole GPU, so that no queued work still uses the block

    def _allocate_host(self, size_bytes: int) -> int:
        try:
            return int(self._call("cudaHostAlloc", size_bytes, cuda_runtime().cudaHostAllocDefault))
        except OutOfMemoryError as error:
            raise OutOfMemoryError(
                f"the host is out of memory: {size_bytes / 1e6:,.0f} MB wanted that the GPU can copy from and to by "
                "itself. Close other programs, or use a shorter video."
            ) from error

    def _release_host(self, address: int) -> None:
        self._call("cudaFreeHost", address)

    def pinned(self, shape: Sequence[int], dtype: str) -> PinnedArray:
        """See `Device.pinned`. Pinning takes long: what is freed is kept for the next ones, until the device closes."""
        shape = tuple(shape)
        check_form(shape, dtype)
        self.check_allocation()
        size_bytes = math.prod(shape) * DTYPE_BYTES[dtype]
        block = self._host_pool.take(size_bytes)
        memory = np.ctypeslib.as_array((ctypes.c_uint8 * block.size_bytes).from_address(block.address))
        bits: NDArray[Any] = memory[:size_bytes].view(storage_dtype(dtype)).reshape(shape)
        return PinnedArray(bits, dtype, lambda: self._host_pool.give(block))

    @property
    def kept_host_bytes(self) -> int:
        """See `Device.kept_host_bytes`."""
        return self._host_pool.kept_bytes

    def stream(self) -> CudaStream:
        """See `Device.stream`."""
        return CudaStream(self)

    def event(self) -> CudaEvent:
        """See `Device.event`."""
        return CudaEvent(self)

    def launch(self, kernel: str, arguments: Sequence[Array | int | float], stream: Stream) -> None:
        """See `Device.launch`."""
        self.check_open()
        plain = [argument.address if isinstance(argument, Array) else argument for argument in arguments]
        run = find_kernel("cuda", kernel)
        self.make_current()
        problem = run(*plain, stream.handle)
        if problem is not None:
            if not self.capturing:
                self._call("cudaMemGetInfo")  # which knows by name whether an earlier kernel has crashed
            where = f"{self.name} ({self.gpu.name}, {self.gpu.capability})"
            raise DeviceError(f"the kernel {kernel} could not be launched on {where}: {problem}")

    def copy(self, target: int, source: int, size_bytes: int, stream: Stream) -> None:
        """See `Device.copy`.

        cudaMemcpyDefault tells host from device by the address. Memory of the host that is not pinned is staged by the
        driver, which may or may not be done with it on return: callers go by the worse case.
        """
        if size_bytes:
            kind = cuda_runtime().cudaMemcpyKind.cudaMemcpyDefault
            self.call("cudaMemcpyAsync", target, source, size_bytes, kind, stream.handle)

    def clear(self, target: int, size_bytes: int, stream: Stream) -> None:
        """See `Device.clear`."""
        if size_bytes:
            self.call("cudaMemsetAsync", target, 0, size_bytes, stream.handle)

    def memory_bytes(self) -> tuple[int, int]:
        """See `Device.memory_bytes`."""
        free, total = self.call("cudaMemGetInfo")
        return int(free) + self.pool.kept_bytes, int(total)

    def close(self) -> None:
        """See `Device.close`. Of a GPU that is lost, the driver frees everything when the process ends."""
        if self.closed:
            return
        self.refuse_capture("closing the device")
        try:
            if not self.lost:
                for handle in reversed(list(self._open.values())):  # streams may be waiting for events
                    handle.close()
                self._host_pool.close()
                self.pool.close()
        finally:
            self.closed = True
            self._open.clear()


class _Handle:
    """Something of the CUDA runtime that is destroyed once: by its owner, or with its device.

    Args:
        device: to which it belongs.
        what: it is, for messages.
        value: what the runtime calls it.
    """

    def __init__(self, device: CudaDevice, what: str, value: Any) -> None:
        self._cuda = device
        self._what = what
        self._value: int | None = int(value)
        device._open[id(self)] = self

    @property
    def handle(self) -> int:
        """What the runtime calls it.

        Raises:
            DeviceError: it or its device was closed.
        """
        self._cuda.check_open()
        if self._value is None:
            raise DeviceError(f"the {self._what} was closed")
        return self._value

    def close(self) -> None:
        """Give it back. Calling it twice is fine, and so is closing it after its device, or after the GPU was lost."""
        if self._value is None:
            return
        try:
            if not (self._cuda.closed or self._cuda.lost):
                self._destroy(self._value)
        finally:
            self._value = None
            self._cuda._open.pop(id(self), None)

    @abstractmethod
    def _destroy(self, value: int) -> None: ...


class CudaStream(_Handle, Stream):
    """A stream that does not wait for the default stream."""

    def __init__(self, device: CudaDevice) -> None:
        Stream.__init__(self, device)
        flags = cuda_runtime().cudaStreamNonBlocking
        _Handle.__init__(self, device, "stream", device.call("cudaStreamCreateWithFlags", flags))

    def _synchronize(self) -> None:
        self._cuda.call("cudaStreamSynchronize", self.handle)

    def wait(self, event: Event) -> None:
        """See `Stream.wait`. In a graph, each launch waits for the event as it was last recorded by then."""
        assert isinstance(event, CudaEvent)
        cuda = cuda_runtime()
        flags = cuda.cudaEventWaitExternal if self.capturing else cuda.cudaEventWaitDefault
        self._cuda.call("cudaStreamWaitEvent", self.handle, event.handle, flags)

    def capture(self, body: Callable[[], None]) -> CudaGraph:
        """See `Stream.capture`.

        Calls that would break the capture are forbidden to this thread alone: others may allocate and copy meanwhile.
        """
        device = self._cuda
        device.refuse_capture("capturing another graph")
        mode = cuda_runtime().cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        device.call("cudaStreamBeginCapture", self.handle, mode)
        with device.recording():
            self.capturing = True
            try:
                body()
            except BaseException:
                self._drop_capture()
                raise
            finally:
                self.capturing = False
            graph = self._end_capture()
        try:
            return CudaGraph(device, device.call("cudaGraphInstantiate", graph, 0))
        finally:
            device.call("cudaGraphDestroy", graph)

    def _end_capture(self) -> Any:
        try:
            return self._cuda.call("cudaStreamEndCapture", self.handle)
        except DeviceLostError:
            raise
        except DeviceError as error:
            raise DeviceError(
                f"the work could not be captured into a graph: {error}. Something in it allocates, waits, copies from "
                "or to the host, or uses another stream."
            ) from error

    def _drop_capture(self) -> None:
        """End a capture whose body raised. What this call answers is no news: that the capture is invalid, at worst."""
        cuda = cuda_runtime()
        error, graph = cuda.cudaStreamEndCapture(self.handle)
        if int(error) == 0:
            cuda.cudaGraphDestroy(graph)
        else:
            cuda.cudaGetLastError()

    def close(self) -> None:
        """See `Stream.close`. Waits for what it holds."""
        self.refuse_capture("closing its stream")
        super().close()

    def _destroy(self, value: int) -> None:
        try:
            self._cuda._call("cudaStreamSynchronize", value)
            self._held.clear()
        finally:
            if not self._cuda.lost:
                self._cuda._call("cudaStreamDestroy", value)


class CudaEvent(_Handle, Event):
    """An event that takes the time. The host sleeps while it waits for one, so that it has its cores for other work."""

    def __init__(self, device: CudaDevice) -> None:
        flags = cuda_runtime().cudaEventBlockingSync
        super().__init__(device, "event", device.call("cudaEventCreateWithFlags", flags))
        self._recorded = False

    def record(self, stream: Stream) -> None:
        """See `Event.record`. In a graph, each launch records it."""
        cuda = cuda_runtime()
        flags = cuda.cudaEventRecordExternal if stream.capturing else cuda.cudaEventRecordDefault
        self._cuda.call("cudaEventRecordWithFlags", self.handle, stream.handle, flags)
        self._recorded = True

    def synchronize(self) -> None:
        """See `Event.synchronize`."""
        self._cuda.refuse_capture("waiting for an event")
        self._cuda.call("cudaEventSynchronize", self.handle)

    def seconds_since(self, earlier: Event) -> float:
        """See `Event.seconds_since`."""
        if not (isinstance(earlier, CudaEvent) and self._recorded and earlier._recorded):
            raise DeviceError("an event was not recorded, so no time has passed since then")
        return float(self._cuda.call("cudaEventElapsedTime", earlier.handle, self.handle)) / 1e3

    def _destroy(self, value: int) -> None:
        self._cuda._call("cudaEventDestroy", value)


class CudaGraph(_Handle, Graph):
    """An executable graph."""

    def __init__(self, device: CudaDevice, value: Any) -> None:
        super().__init__(device, "graph", value)

    def launch(self, stream: Stream) -> None:
        """See `Graph.launch`."""
        stream.refuse_capture("launching another graph")
        self._cuda.call("cudaGraphLaunch", self.handle, stream.handle)

    def _destroy(self, value: int) -> None:
        self._cuda._call("cudaGraphExecDestroy", value)
