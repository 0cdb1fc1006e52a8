"""Our arrays as tensors of torch, which the caller has imported."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...device import Array
from ...device.cpu import as_numpy


def view_as_tensor(torch: Any, array: Array) -> Any:
    """Return a tensor of torch that shares an array's memory; it is valid until the array is freed."""
    half = array.dtype == "bfloat16"
    if array.device.name == "cpu":
        host = as_numpy(array)
        bits = torch.from_numpy(host.view(np.int16) if half else host)
    else:
        bits = torch.as_tensor(_CudaMemory(array), device=array.device.name)
    return bits.view(torch.bfloat16) if half else bits


class _CudaMemory:
    """An array under the protocol by which torch accepts foreign memory; bfloat16, which it lacks, travels as int16."""

    def __init__(self, array: Array) -> None:
        dtype = np.dtype("int16" if array.dtype == "bfloat16" else array.dtype)
        self.__cuda_array_interface__ = {
            "shape": array.shape,
            "typestr": dtype.str,
            "data": (array.address, False),
            "version": 3,
        }
