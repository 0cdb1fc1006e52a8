"""Calls of the CUDA runtime through cuda-python (`cuda.bindings`, for CUDA 12 and 13), and what their failures mean.

cuda-python is imported on first use, so that everything else works without it. Every failing call is a `DeviceError`
with CUDA's own name for what went wrong.
"""

from __future__ import annotations

import importlib
from typing import Any

from ..errors import DeviceError, DeviceLostError, OutOfMemoryError

_INSTALL = "Install cuda-python of the major version that the driver supports: pip install 'cuda-python>=13,<14'"

LOST = frozenset(
    {
        "cudaErrorAssert",
        "cudaErrorContained",
        "cudaErrorContextIsDestroyed",
        "cudaErrorECCUncorrectable",
        "cudaErrorExternalDevice",
        "cudaErrorHardwareStackError",
        "cudaErrorIllegalAddress",
        "cudaErrorIllegalInstruction",
        "cudaErrorInvalidAddressSpace",
        "cudaErrorInvalidPc",
        "cudaErrorLaunchFailure",
        "cudaErrorLaunchTimeout",
        "cudaErrorMisalignedAddress",
        "cudaErrorMpsClientTerminated",
        "cudaErrorNvlinkUncorrectable",
        "cudaErrorTensorMemoryLeak",
    }
)
"""After these, every further call of the process answers the same: its memory on the GPU is gone."""


def cuda_runtime() -> Any:
    """Import the bindings.

    Raises:
        DeviceError: cuda-python is not installed, or does not load.
    """
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
        OutOfMemoryError: CUDA says that there is no memory left.
        DeviceLostError: the GPU is lost to this process.
        DeviceError: any other code but success. Names the error, the call, and CUDA's explanation.
    """
    error, *values = result
    if int(error) == 0:
        return (values[0] if len(values) == 1 else tuple(values)) if values else None
    cuda_runtime().cudaGetLastError()  # it is dealt with: the next call shall not report it again
    message = f"{call} failed with {error.name}: {explain(error)}"
    if error.name == "cudaErrorMemoryAllocation":
        raise OutOfMemoryError(message)
    if error.name in LOST:
        raise DeviceLostError(
            f"{message}. This call or work that was queued before it did that, and the GPU is lost to this process: "
            "start the process again."
        )
    raise DeviceError(message)


def call_cuda(name: str, *arguments: Any) -> Any:
    """Call a function of the CUDA runtime by name; see `check`."""
    try:
        result = getattr(cuda_runtime(), name)(*arguments)
    except RuntimeError as error:  # cuda-python found no such function in the driver
        raise DeviceError(f"{name} failed: {error}. Update the NVIDIA driver, or: {_INSTALL}") from error
    return check(result, name)


def call_driver(name: str, *arguments: Any) -> Any:
    """Call a function of the CUDA driver by name; see `check`."""
    try:
        driver = importlib.import_module("cuda.bindings.driver")
        error, *values = getattr(driver, name)(*arguments)
    except (ImportError, RuntimeError) as problem:  # RuntimeError: cuda-python found no such function in the driver
        raise DeviceError(f"{name} failed: {problem}. Update the NVIDIA driver, or: {_INSTALL}") from problem
    if int(error) == 0:
        return (values[0] if len(values) == 1 else tuple(values)) if values else None
    text = driver.cuGetErrorString(error)[1]
    message = f"{name} failed with {error.name}: {text.decode() if isinstance(text, bytes) else text}"
    raise (OutOfMemoryError if error.name == "CUDA_ERROR_OUT_OF_MEMORY" else DeviceError)(message)


def explain(error: Any) -> str:
    """CUDA's explanation of an error code."""
    text = cuda_runtime().cudaGetErrorString(error)[1]
    return text.decode() if isinstance(text, bytes) else str(text)
