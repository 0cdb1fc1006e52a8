"""A small layer over the CUDA runtime: which GPU, its streams and its memory.

cuda-python (`cuda.bindings`, for CUDA 12 or 13) is imported on first use, so that everything else works without it.
Every failing call is a `DeviceError` with CUDA's own name for what went wrong.
"""

from __future__ import annotations

import importlib
import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import DeviceError, InputError

_INSTALL = "Install cuda-python of the major version that the driver supports: pip install 'cuda-python>=13,<14'"
_NO_DRIVER = ("cudaErrorInsufficientDriver", "cudaErrorNoDevice", "cudaErrorStubLibrary")
"""What CUDA answers on a machine without an NVIDIA driver or without a GPU."""

_DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU.

    Attributes:
        index: CUDA's number for it; what N in "cuda:N" means.
        name: product name.
        capability: compute capability, e.g. "sm_90".
        total_bytes: its memory.
        free_bytes: memory that was free when it was asked.
        driver_version: newest CUDA version that the driver supports, e.g. "13.0".
    """

    index: int
    name: str
    capability: str
    total_bytes: int
    free_bytes: int
    driver_version: str


@cache
def _cuda() -> Any:
    try:
        return importlib.import_module("cuda.bindings.runtime")
    except ImportError as error:
        raise DeviceError(f"the CUDA bindings for Python cannot be imported: {error}. {_INSTALL}") from error


def check(result: tuple[Any, ...], call: str) -> Any:
    """Unpack what a call of `cuda.bindings` returned.

    Args:
        result: the error code and whatever else the call returns.
        call: what was called, for the message.

    Returns:
        The values behind the error code: nothing, one, or a tuple of several.

    Raises:
        DeviceError: the code is not success. Names the error, the call, and CUDA's explanation.
    """
    error, *values = result
    if int(error) != 0:
        raise DeviceError(f"{call} failed with {error.name}: {_explain(error)}")
    if not values:
        return None
    return values[0] if len(values) == 1 else tuple(values)


def _explain(error: Any) -> str:
    text = _cuda().cudaGetErrorString(error)[1]
    return text.decode() if isinstance(text, bytes) else str(text)


def find_gpus() -> tuple[Gpu, ...]:
    """List the GPUs of this machine; none where there is no driver or no cuda-python.

    Raises:
        DeviceError: there is a driver, and it fails.
    """
    count, _ = _count_gpus()
    return tuple(describe_gpu(index) for index in range(count))


def _count_gpus() -> tuple[int, str]:
    """How many GPUs there are; where none, why."""
    try:
        cuda = _cuda()
    except DeviceError as error:
        return 0, str(error)
    result = cuda.cudaGetDeviceCount()
    if result[0].name in _NO_DRIVER:
        return 0, f"{result[0].name}: {_explain(result[0])}"
    return int(check(result, "cudaGetDeviceCount")), "the driver knows no GPU"


def describe_gpu(index: int) -> Gpu:
    """Describe one GPU, leaving the current one current.

    Raises:
        DeviceError: there is no such GPU, or the driver fails.
    """
    cuda = _cuda()
    before = check(cuda.cudaGetDevice(), "cudaGetDevice")
    properties = check(cuda.cudaGetDeviceProperties(index), "cudaGetDeviceProperties")
    version = check(cuda.cudaDriverGetVersion(), "cudaDriverGetVersion")
    set_device(index)
    try:
        free, total = check(cuda.cudaMemGetInfo(), "cudaMemGetInfo")
    finally:
        set_device(before)
    return Gpu(
        index,
        properties.name.decode(errors="replace").rstrip("\0"),
        f"sm_{properties.major}{properties.minor}",
        int(total),
        int(free),
        f"{version // 1000}.{version % 1000 // 10}",
    )


def resolve_device(device: str) -> Gpu:
    """Find the GPU that a device string means.

    Args:
        device: "auto" or "cuda" (the first GPU), or "cuda:N".

    Raises:
        InputError: the string is of another form.
        DeviceError: the string says "cpu", there is no GPU, or none with that number.
    """
    if device == "cpu":
        raise DeviceError("these engines run on an NVIDIA GPU alone; build the directory with --backend onnxruntime")
    kind, _, number = device.partition(":")
    numbered = device != kind
    if (kind, numbered) not in (("auto", False), ("cuda", False), ("cuda", True)) or numbered > number.isdecimal():
        raise InputError(f"the device {device!r} is not known; pass auto, cpu, cuda or cuda:N")
    count, why_none = _count_gpus()
    index = int(number) if numbered else 0
    if count == 0:
        raise DeviceError(
            f"the device {device!r} needs an NVIDIA GPU, and none was found ({why_none}). Check that nvidia-smi lists "
            "one; on a machine without a GPU, use a directory built with --backend onnxruntime."
        )
    if index >= count:
        known = ", ".join(f"cuda:{i}" for i in range(count))
        raise DeviceError(f"there is no device {device!r}; this machine has {known}")
    return describe_gpu(index)


def set_device(index: int) -> None:
    """Make a GPU the current one of the calling thread."""
    check(_cuda().cudaSetDevice(index), f"cudaSetDevice({index})")


def round_to_bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Round float32 to bfloat16, to nearest, ties to even; returns the bits. NaN stays NaN."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)  # wraps for NaN alone
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)


def widen_bfloat16(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Turn bits of bfloat16 into the same numbers in float32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


class Stream:
    """A stream of the current GPU that does not wait for the default stream."""

    def __init__(self) -> None:
        cuda = _cuda()
        created = check(cuda.cudaStreamCreateWithFlags(cuda.cudaStreamNonBlocking), "cudaStreamCreateWithFlags")
        self.handle = int(created)

    def synchronize(self) -> None:
        """Wait until everything on it is done.

        Raises:
            DeviceError: something on it failed.
        """
        check(_cuda().cudaStreamSynchronize(self.handle), "cudaStreamSynchronize")

    def close(self) -> None:
        """Give it back. Calling it twice is fine."""
        if self.handle:
            check(_cuda().cudaStreamDestroy(self.handle), "cudaStreamDestroy")
            self.handle = 0


class DeviceMemory:
    """Bytes on the current GPU, aligned to 256 bytes; freed by `free` alone."""

    def __init__(self, size_bytes: int) -> None:
        """Allocate.

        Raises:
            DeviceError: there is not that much free memory; the message says how much there is.
        """
        self.size_bytes = size_bytes
        cuda = _cuda()
        result = cuda.cudaMalloc(max(size_bytes, 1))
        if result[0].name == "cudaErrorMemoryAllocation":
            cuda.cudaGetLastError()  # it is dealt with: the next call shall not report it again
            free, total = check(cuda.cudaMemGetInfo(), "cudaMemGetInfo")
            raise DeviceError(
                f"the GPU is out of memory: {size_bytes / 1e6:,.0f} MB wanted, {free / 1e6:,.0f} of "
                f"{total / 1e6:,.0f} MB free. Close other programs on it, or build with a smaller --size or "
                "--tile-frames."
            )
        self.address = int(check(result, f"cudaMalloc({size_bytes})"))

    def free(self) -> None:
        """Give it back. Calling it twice is fine."""
        if self.address:
            check(_cuda().cudaFree(self.address), "cudaFree")
            self.address = 0


class DeviceArray(DeviceMemory):
    """A C-contiguous tensor on the current GPU.

    numpy has no bfloat16: on the host such tensors are float32, rounded to the nearest bfloat16, ties to even, on
    their way to the GPU.

    Attributes:
        shape: largest shape; an upload or download of fewer leading rows uses the front of it.
        dtype: "float32", "float16" or "bfloat16".
        address: where it starts.
    """

    def __init__(self, shape: tuple[int, ...], dtype: str) -> None:
        self.shape = shape
        self.dtype = dtype
        super().__init__(math.prod(shape) * _DTYPE_BYTES[dtype])

    def upload(self, values: NDArray[Any], stream: Stream) -> NDArray[Any]:
        """Copy from the host, on a stream.

        Args:
            values: float32 for bfloat16, else of this array's dtype; at most as large as this array.
            stream: the copy is queued on it.

        Returns:
            What the copy reads: keep it until the stream was synchronized.
        """
        bits = round_to_bfloat16(values) if self.dtype == "bfloat16" else np.ascontiguousarray(values)
        self._check_size(bits)
        cuda = _cuda()
        kind = cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        copied = cuda.cudaMemcpyAsync(self.address, bits.ctypes.data, bits.nbytes, kind, stream.handle)
        check(copied, "cudaMemcpyAsync to the GPU")
        return bits

    def download(self, shape: tuple[int, ...], stream: Stream) -> NDArray[Any]:
        """Copy the front of the array to the host, waiting for what the stream holds.

        Returns:
            An array of `shape`; float32 for bfloat16, else of this array's dtype.
        """
        bits = np.empty(shape, np.uint16 if self.dtype == "bfloat16" else self.dtype)
        self._check_size(bits)
        cuda = _cuda()
        kind = cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        copied = cuda.cudaMemcpyAsync(bits.ctypes.data, self.address, bits.nbytes, kind, stream.handle)
        check(copied, "cudaMemcpyAsync from the GPU")
        stream.synchronize()
        return widen_bfloat16(bits) if self.dtype == "bfloat16" else bits

    def _check_size(self, bits: NDArray[Any]) -> None:
        if bits.itemsize != _DTYPE_BYTES[self.dtype] or bits.nbytes > self.size_bytes:
            raise DeviceError(
                f"{bits.dtype} {bits.shape} does not fit into the {self.dtype} {self.shape} that was allocated"
            )
