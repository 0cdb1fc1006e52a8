"""The compiled kernels, one module per target."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from ..errors import DeviceError

REINSTALL = "pip install --force-reinstall --no-deps dispose-rt"
"""Command that compiles the kernels again."""


def compiled_module(target: str) -> Any:
    """Load the kernels of one target.

    Args:
        target: "cpu", or "cuda", which is present where a CUDA compiler was found at installation.

    Raises:
        DeviceError: they were not built, or do not load.
    """
    try:
        return importlib.import_module(f"dispose_rt._kernels_{target}")
    except ImportError as error:
        raise DeviceError(
            f"the compiled {target} kernels of dispose_rt cannot be loaded ({error}). Install the package again"
            + (" where a CUDA compiler is (nvcc on the PATH, or CUDACXX)" if target == "cuda" else "")
            + f": {REINSTALL}"
        ) from error


def find_kernel(target: str, kernel: str) -> Callable[..., str | None]:
    """Look up a compiled kernel; it answers None, or what went wrong.

    Raises:
        DeviceError: the kernels of the target were not built, or lack this one.
    """
    found: Callable[..., str | None] | None = getattr(compiled_module(target), kernel, None)
    if found is None:
        raise DeviceError(
            f"the compiled {target} kernels have no {kernel}: they are of another version of dispose_rt. "
            f"Install the package again: {REINSTALL}"
        )
    return found
