"""Checks of a call's tensors against the contract, the same for every backend."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..contract import NetworkSpec, Sizes
from ..errors import InputError


def check_inputs(
    spec: NetworkSpec, sizes: Sizes, compute_dtype: str, inputs: Mapping[str, NDArray[Any]]
) -> dict[str, int]:
    """Check names, dtypes and shapes, and answer the value of every dynamic symbol.

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
        dtype = tensor.resolve_dtype(compute_dtype)
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
