"""Compares what an exported network computes with what PyTorch computes. A miss fails the build."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dispose_rt.contract import NETWORKS, NetworkSpec, Sizes
from dispose_rt.errors import VerificationError

from .onnx_export import sample_inputs

TOLERANCES = {
    "fp32": dict.fromkeys(NETWORKS, 1e-4),
    "fp16": dict.fromkeys(NETWORKS, 1e-2),
}
"""Largest relative error, |ours - torch| / |torch| in the Euclidean norm, per precision and network."""

LARGEST_COMPARED_PIXELS = 512 * 512 * 2
"""Pixels of all frames of a tile above which a network is not run for comparison. At 576x1024 the outermost attention
has 9216 positions: ONNX Runtime holds 9216 x 9216 weights per head and frame, more than fits a build machine."""


def comparison_sizes(sizes: Sizes) -> Sizes:
    """The sizes to compare networks at: their own, or small ones where a CPU could not run their own.

    Modules do not know their size before they are traced, so a small trace of the same module holds the same nodes and
    weights with other constants for shapes.
    """
    if sizes.width * sizes.height * sizes.tile <= LARGEST_COMPARED_PIXELS:
        return sizes
    width, height = (64, 128) if sizes.width < sizes.height else (128, 64)
    return replace(sizes, width=width, height=height, tile=min(sizes.tile, 4))


def relative_error(actual: NDArray[np.generic], expected: NDArray[np.generic]) -> float:
    """Euclidean norm of the difference over that of the expected array; infinite where anything is not finite."""
    ours, theirs = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    if ours.shape != theirs.shape or not np.isfinite(ours).all():
        return float("inf")
    norm = float(np.linalg.norm(theirs))
    difference = float(np.linalg.norm(ours - theirs))
    return difference / norm if norm else (0.0 if difference == 0 else float("inf"))


def dynamic_sizes(spec: NetworkSpec, sizes: Sizes) -> Iterator[dict[str, int]]:
    """The dynamic sizes to compare at: the smallest and the largest."""
    if not spec.dynamic:
        yield {}
        return
    for pick in (lambda limit: 1, lambda limit: min(limit, 5)):
        yield {symbol: pick(sizes.limit(symbol)) for symbol in spec.dynamic}


def verify_onnx(
    module: nn.Module, spec: NetworkSpec, sizes: Sizes, compute_dtype: str, path: Path, tolerance: float
) -> dict[str, float]:
    """Run an ONNX file in ONNX Runtime and the module in PyTorch in float32, on the same inputs.

    Args:
        module: float32, in evaluation mode.
        spec: the network.
        sizes: resolves the contract's shapes.
        compute_dtype: dtype that the file computes in.
        path: the ONNX file.
        tolerance: largest relative error allowed.

    Returns:
        The largest relative error of every output.

    Raises:
        VerificationError: an output misses the tolerance, or the file does not run.
    """
    try:
        session = onnxruntime.InferenceSession(str(path), _quiet_options(), providers=["CPUExecutionProvider"])
        errors = _measure(module, session, spec, sizes, compute_dtype)
    except VerificationError:
        raise
    except Exception as error:  # ONNX Runtime raises a dozen unrelated types
        raise VerificationError(f"{spec.name}: ONNX Runtime cannot run the exported network: {error}") from error
    missed = {name: error for name, error in errors.items() if not error <= tolerance}
    if missed:
        listed = ", ".join(f"{name} {error:.1e}" for name, error in missed.items())
        raise VerificationError(
            f"{spec.name}: it differs from PyTorch: relative error {listed}, allowed {tolerance:.0e}. "
            "The weights may hold values that this precision cannot represent; try --precision fp32."
        )
    return errors


def _quiet_options() -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return options


def _measure(
    module: nn.Module, session: onnxruntime.InferenceSession, spec: NetworkSpec, sizes: Sizes, compute_dtype: str
) -> dict[str, float]:
    names = [tensor.name for tensor in spec.outputs]
    errors = dict.fromkeys(names, 0.0)
    for seed, dynamic in enumerate(dynamic_sizes(spec, sizes), start=1):
        inputs = sample_inputs(spec, sizes, compute_dtype, dynamic, seed)
        with torch.inference_mode():
            expected = module(*(value.float() for value in inputs.values()))
        expected = (expected,) if isinstance(expected, Tensor) else expected
        actual = session.run(names, {name: value.numpy() for name, value in inputs.items()})
        for name, ours, theirs in zip(names, actual, expected, strict=True):
            errors[name] = max(errors[name], relative_error(ours, theirs.numpy()))
    return errors
