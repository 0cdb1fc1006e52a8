"""Checks of a call's tensors against the contract, the same for every backend."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...contract import NetworkSpec, Sizes
from ...device import Array
from ...errors import EngineError, InputError

_ADVICE = {
    "float16": "The weights or values are too large for fp16; build the engines with --precision bf16 or fp32.",
    "bfloat16": "Build the engines with --precision fp32.",
    "float32": "No precision is larger: its weights or inputs are at fault. Check the checkpoint against its published "
    "hashes and build the engines again; `dispose-rt doctor` tries every network of a directory.",
}


def host_dtype(dtype: str) -> str:
    """Return the numpy dtype in which a tensor travels to and from an engine.

    numpy has no bfloat16, so such tensors are float32 on the host, and the backend rounds them.

    Args:
        dtype: "float32", "float16" or "bfloat16".
    """
    return "float32" if dtype == "bfloat16" else dtype


def check_inputs(
    spec: NetworkSpec, sizes: Sizes, compute_dtype: str, inputs: Mapping[str, NDArray[Any]]
) -> dict[str, int]:
    """Check names, dtypes and shapes, and return the value of every dynamic symbol.

    Raises:
        InputError: lists every tensor that is missing, unknown, or of another dtype or shape.
    """
    expected = {tensor.name for tensor in spec.inputs}
    problems = [f"{name} is missing" for name in expected - inputs.keys()]
    problems += [f"{name} is no input of it" for name in inputs.keys() - expected]
    dynamic: dict[str, int] = {}
    for tensor in spec.inputs:
        array = inputs.get(tensor.name)
        if array is None:
            continue
        dtype = host_dtype(tensor.resolve_dtype(compute_dtype))
        shape = sizes.resolve(tensor.shape)
        fits = len(shape) == array.ndim
        for want, got in zip(shape, array.shape, strict=False):
            if isinstance(want, str):
                fits &= dynamic.setdefault(want, got) == got and 1 <= got <= sizes.limit(want)
            else:
                fits &= want == got
        if not fits or array.dtype != np.dtype(dtype):
            problems.append(f"{tensor.name} is {array.dtype} {array.shape}, expected {dtype} {shape}")
    if problems:
        raise InputError(f"the network {spec.name} cannot take these tensors: " + "; ".join(sorted(problems)))
    return dynamic


def check_alive(arrays: Iterable[Array]) -> None:
    """Check that none of an engine's arrays was freed.

    Raises:
        DeviceError: an array was freed.
    """
    for array in arrays:
        _ = array.address


def check_outputs_finite(network: str, compute_dtype: str, outputs: Mapping[str, NDArray[Any]]) -> None:
    """Refuse outputs that hold NaN or infinity. Takes 6 ms for 100 MB, in any precision.

    Args:
        network: its name.
        compute_dtype: what it computes in, "float32", "float16" or "bfloat16".
        outputs: float arrays by tensor name.

    Raises:
        EngineError: names the network, its tensors, and the precision to use instead.
    """
    broken = [name for name, array in outputs.items() if not _is_finite(array)]
    if broken:
        found = "; ".join(_describe(name, outputs[name]) for name in broken)
        raise EngineError(
            f"the network {network} returned non-finite values in {compute_dtype}: {found}. {_ADVICE[compute_dtype]}"
        )


def _is_finite(array: NDArray[Any]) -> bool:
    """Compare bit patterns: for float16, np.isfinite takes nine times as long and a temporary array.

    Read as integers, floats of one sign are in the order of their magnitudes, infinity and NaN on top. The largest
    signed integer finds positive ones, the largest unsigned integer negative ones.
    """
    if array.dtype.kind != "f" or not array.size:
        return True
    signed, unsigned = np.dtype(f"i{array.itemsize}"), np.dtype(f"u{array.itemsize}")
    infinity = np.array(np.inf, array.dtype)
    largest_positive, largest_negative = array.view(signed).max(), array.view(unsigned).max()
    return bool(largest_positive < infinity.view(signed) and largest_negative < (-infinity).view(unsigned))


def _describe(name: str, array: NDArray[Any]) -> str:
    """For example "residual_0: 12 of 4096 values"."""
    count = int(array.size - np.count_nonzero(np.isfinite(array)))
    return f"{name}: {count} of {array.size} values"
