"""Where the kernel tests run: the CPU module as the package calls it, and the CUDA module on a GPU.

A launch on the GPU copies the arrays to device memory, runs on a stream, copies everything back, and demands the bits
that the CPU module leaves in the same arrays. So a test of a kernel checks there that it agrees with its numpy
reference and with the CPU.
"""

from __future__ import annotations

import importlib
from contextlib import ExitStack
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dispose_rt import device, kernels
from dispose_rt.errors import DeviceError

launch_on_cpu = kernels._launch


def missing_for_cuda() -> str | None:
    """Why the CUDA kernels cannot run here, or None if they can."""
    try:
        kernels.compiled_module("cuda")
        return None if device.find_gpus() else "no NVIDIA GPU"
    except DeviceError as error:
        return str(error)


class CudaLauncher:
    """Takes the place of the launch in `dispose_rt.kernels`.

    Args:
        offset: elements between the start of an allocation and the array in it. At 0, arrays are aligned to 256 bytes
            and kernels move words of 16; at 1 they have to take one element at a time.
    """

    def __init__(self, offset: int = 0) -> None:
        self._offset = offset
        self._stream = device.Stream()

    def __call__(self, kernel: str, *arguments: NDArray[Any] | int | float) -> None:
        arrays = {i: argument for i, argument in enumerate(arguments) if isinstance(argument, np.ndarray)}
        with ExitStack() as allocations:
            addresses = {i: self._upload(array, allocations) for i, array in arrays.items()}
            plain = [addresses.get(i, argument) for i, argument in enumerate(arguments)]
            error = getattr(kernels.compiled_module("cuda"), kernel)(*plain, self._stream.handle)
            assert error is None, f"{kernel}: {error}"
            results = {i: self._download(addresses[i], array) for i, array in arrays.items()}
        launch_on_cpu(kernel, *arguments)
        for i, result in results.items():
            np.testing.assert_array_equal(result, arrays[i], err_msg=f"{kernel}: argument {i}, GPU and CPU")

    def _upload(self, array: NDArray[Any], allocations: ExitStack) -> int:
        shift = self._offset * array.itemsize
        memory = device.DeviceMemory(array.nbytes + shift)
        allocations.callback(memory.free)
        self._copy(memory.address + shift, array.ctypes.data, array.nbytes, "cudaMemcpyHostToDevice")
        return memory.address + shift

    def _download(self, address: int, like: NDArray[Any]) -> NDArray[Any]:
        array = np.empty_like(like)
        self._copy(array.ctypes.data, address, array.nbytes, "cudaMemcpyDeviceToHost")
        self._stream.synchronize()
        return array

    def _copy(self, target: int, source: int, size_bytes: int, kind: str) -> None:
        cuda = importlib.import_module("cuda.bindings.runtime")
        copied = cuda.cudaMemcpyAsync(
            target, source, size_bytes, getattr(cuda.cudaMemcpyKind, kind), self._stream.handle
        )
        device.check(copied, f"cudaMemcpyAsync, {kind}")

    def close(self) -> None:
        self._stream.close()
