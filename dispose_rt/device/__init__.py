"""One surface over the CPU and NVIDIA GPUs: arrays from one pool, pinned memory, streams, events, graphs."""

from .arrays import DTYPE_BYTES, Array, PinnedArray
from .base import Device, Event, Graph, Stream
from .bfloat16 import round_to_bfloat16, widen_bfloat16
from .cpu import CpuDevice
from .cuda import CudaDevice
from .cuda_runtime import check
from .gpus import (
    Gpu,
    check_device_name,
    describe_gpu,
    find_gpus,
    is_device_name,
    parse_device,
    resolve_device,
    set_device,
)
from .modules import compiled_module

__all__ = [
    "DTYPE_BYTES",
    "Array",
    "CpuDevice",
    "CudaDevice",
    "Device",
    "Event",
    "Gpu",
    "Graph",
    "PinnedArray",
    "Stream",
    "check",
    "check_device_name",
    "compiled_module",
    "describe_gpu",
    "find_gpus",
    "is_device_name",
    "open_device",
    "parse_device",
    "resolve_device",
    "round_to_bfloat16",
    "set_device",
    "widen_bfloat16",
]


def open_device(name: str) -> Device:
    """Open a device.

    Args:
        name: "cpu", "cuda" (the first GPU), or "cuda:N".

    Raises:
        InputError: the name is of another form.
        DeviceError: there is no such GPU.
    """
    return CpuDevice() if name == "cpu" else CudaDevice(resolve_device(name))
