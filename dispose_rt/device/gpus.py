"""The GPUs of this machine, and which one a device name means."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..errors import DeviceError, InputError
from .cuda_runtime import call_driver, check, cuda_runtime, explain

_NO_DRIVER = ("cudaErrorInsufficientDriver", "cudaErrorNoDevice", "cudaErrorStubLibrary")
"""What CUDA returns on a machine without an NVIDIA driver or without a GPU."""


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU.

    Attributes:
        index: CUDA's number for it, the N of "cuda:N".
        name: product name.
        capability: compute capability, e.g. "sm_90".
        total_bytes: its memory.
        free_bytes: its free memory at the time of the query.
        driver_version: newest CUDA version that the driver supports, e.g. "13.0".
    """

    index: int
    name: str
    capability: str
    total_bytes: int
    free_bytes: int
    driver_version: str


def find_gpus() -> tuple[Gpu, ...]:
    """List the GPUs of this machine; none where there is no driver or no cuda-python.

    Raises:
        DeviceError: there is a driver, and it fails.
    """
    count, _ = _count_gpus()
    return tuple(describe_gpu(index) for index in range(count))


def _count_gpus() -> tuple[int, str]:
    """The number of GPUs, and why there is none."""
    try:
        result = cuda_runtime().cudaGetDeviceCount()
    except (DeviceError, RuntimeError) as error:  # without a driver, cuda-python 12 raises what 13 returns
        return 0, str(error)
    if result[0].name in _NO_DRIVER:
        return 0, f"{result[0].name}: {explain(result[0])}"
    return int(check(result, "cudaGetDeviceCount")), "the driver knows no GPU"


def describe_gpu(index: int) -> Gpu:
    """Describe one GPU. Which GPU is current stays as it is, and no other GPU is touched.

    Raises:
        DeviceError: there is no such GPU, or the driver fails.
    """
    cuda = cuda_runtime()
    properties = check(cuda.cudaGetDeviceProperties(index), "cudaGetDeviceProperties")
    version = check(cuda.cudaDriverGetVersion(), "cudaDriverGetVersion")
    free, total = _memory_bytes(index)
    return Gpu(
        index,
        properties.name.decode(errors="replace").rstrip("\0"),
        f"sm_{properties.major}{properties.minor}",
        total,
        free,
        f"{version // 1000}.{version % 1000 // 10}",
    )


def _memory_bytes(index: int) -> tuple[int, int]:
    """Free and total memory of a GPU.

    Asked of the driver, since going back with the runtime's cudaSetDevice would open a context on the GPU that was
    current before, even where nothing had used it: hundreds of megabytes, or a failure where that GPU is exclusive.
    """
    call_driver("cuInit", 0)
    device = call_driver("cuDeviceGet", index)
    context = call_driver("cuDevicePrimaryCtxRetain", device)
    try:
        call_driver("cuCtxPushCurrent", context)
        try:
            free, total = call_driver("cuMemGetInfo")
        finally:
            call_driver("cuCtxPopCurrent")
    finally:
        call_driver("cuDevicePrimaryCtxRelease", device)
    return int(free), int(total)


def is_device_name(device: object) -> bool:
    """Whether it is "auto", "cpu", "cuda" or "cuda:N"."""
    return isinstance(device, str) and re.fullmatch(r"auto|cpu|cuda(:[0-9]+)?", device) is not None


def parse_device(device: str) -> tuple[str, int]:
    """Split a device name into its kind and number.

    Args:
        device: "auto", "cpu", "cuda" or "cuda:N".

    Returns:
        "auto", "cpu" or "cuda"; and N, which is 0 where the name has no number.

    Raises:
        InputError: the name is of another form.
    """
    if not is_device_name(device):
        raise InputError(f"the device {device!r} is not known; pass auto, cpu, cuda or cuda:N")
    kind, _, number = device.partition(":")
    return kind, int(number or 0)


def check_device_name(device: str) -> None:
    """Refuse a name that no device on any machine has.

    Raises:
        InputError: it is none of "auto", "cpu", "cuda" and "cuda:N".
    """
    parse_device(device)


def resolve_device(device: str) -> Gpu:
    """Find the GPU that a device name means.

    Args:
        device: "auto" or "cuda" (the first GPU), or "cuda:N".

    Raises:
        InputError: the name is of another form.
        DeviceError: the name is "cpu", there is no GPU, or none with that number.
    """
    kind, index = parse_device(device)
    if kind == "cpu":
        raise DeviceError("these engines run on an NVIDIA GPU alone; build the directory with --backend onnxruntime")
    count, why_none = _count_gpus()
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
    check(cuda_runtime().cudaSetDevice(index), f"cudaSetDevice({index})")
