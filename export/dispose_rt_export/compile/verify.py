"""Compares the outputs of an exported network with PyTorch's. A miss fails the build.

The two steps can run in different processes: neither needs the memory of the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dispose_rt.contract import NETWORKS, NetworkSpec, Sizes
from dispose_rt.errors import VerificationError

from .graph_passes import uses_bfloat16, widen_to_float32
from .trace import sample_inputs

TOLERANCES = {
    "fp32": dict.fromkeys(NETWORKS, 1e-4),
    "fp16": dict.fromkeys(NETWORKS, 1e-2),
    "bf16": {**dict.fromkeys(NETWORKS, 3e-2), "controlnet": 4e-2, "unet": 6e-2},
}
"""Largest relative error, |ours - torch| / |torch| in the Euclidean norm, per precision and network: about twice what
`benchmarks/accuracy/precision.py` measures where every result is rounded (4e-3 in half precision, 3e-2 in bfloat16)."""

LARGEST_COMPARED_PIXELS = 512 * 512 * 2
"""Pixels of all frames of a tile above which a network is not run for comparison. At 576x1024 the outermost attention
has 9216 positions: ONNX Runtime holds 9216 x 9216 weights per head and frame, more than fits a build machine."""

F32 = NDArray[np.float32]

_NUMPY_DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
"""By ONNX Runtime's names."""


@dataclass(frozen=True)
class Case:
    """Inputs of a network in the contract's order and PyTorch's outputs, all float32."""

    inputs: Mapping[str, F32]
    outputs: Mapping[str, F32]


def comparison_sizes(sizes: Sizes) -> Sizes:
    """Return the sizes to compare networks at: their own, or small ones where a CPU could not run their own.

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
    """Yield the dynamic sizes to compare at: the smallest and the largest."""
    if not spec.dynamic:
        yield {}
        return
    for pick in (lambda limit: 1, lambda limit: min(limit, 5)):
        yield {symbol: pick(sizes.limit(symbol)) for symbol in spec.dynamic}


def expected_outputs(module: nn.Module, spec: NetworkSpec, sizes: Sizes, compute_dtype: str, path: Path) -> None:
    """Run a network in PyTorch in float32, and store its inputs and outputs.

    Args:
        module: float32, in evaluation mode, on any device.
        spec: the network.
        sizes: resolves the contract's shapes.
        compute_dtype: dtype of the network to be compared: inputs of that dtype are rounded to it.
        path: file to write, for `read_cases`.
    """
    device = next(module.parameters()).device
    arrays: dict[str, F32] = {}
    for number, dynamic in enumerate(dynamic_sizes(spec, sizes), start=1):
        inputs = {
            name: value.float() for name, value in sample_inputs(spec, sizes, compute_dtype, dynamic, number).items()
        }
        with torch.inference_mode():
            results = module(*(value.to(device) for value in inputs.values()))
        outputs = (results,) if isinstance(results, Tensor) else results
        arrays |= {f"{number}/input/{name}": value.numpy() for name, value in inputs.items()}
        for tensor, output in zip(spec.outputs, outputs, strict=True):
            arrays[f"{number}/output/{tensor.name}"] = output.cpu().numpy()
    with path.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]  # numpy types the keywords as one of its own options


def read_cases(path: Path) -> Iterator[Case]:
    """Read the file of `expected_outputs`, one case at a time."""
    with np.load(path, allow_pickle=False) as arrays:
        numbers = dict.fromkeys(key.split("/")[0] for key in arrays.files)
        for number in numbers:
            sides: dict[str, dict[str, F32]] = {"input": {}, "output": {}}
            for key in arrays.files:
                if key.startswith(f"{number}/"):
                    _, side, name = key.split("/")
                    sides[side][name] = arrays[key]
            yield Case(sides["input"], sides["output"])


def compare_outputs(
    spec: NetworkSpec,
    run: Callable[[Mapping[str, F32]], Sequence[NDArray[np.generic]]],
    expected: Path,
    tolerance: float,
) -> dict[str, float]:
    """Run a built network on stored inputs and compare.

    Args:
        spec: the network.
        run: float32 inputs by name -> outputs in the contract's order; rounds inputs to the network's own dtypes.
        expected: file that `expected_outputs` wrote.
        tolerance: largest relative error allowed.

    Returns:
        The largest relative error of every output.

    Raises:
        VerificationError: an output misses the tolerance.
    """
    errors = {tensor.name: 0.0 for tensor in spec.outputs}
    for case in read_cases(expected):
        for name, ours in zip(errors, run(case.inputs), strict=True):
            errors[name] = max(errors[name], relative_error(ours, case.outputs[name]))
    missed = {name: error for name, error in errors.items() if not error <= tolerance}
    if missed:
        listed = ", ".join(f"{name} {error:.1e}" for name, error in missed.items())
        raise VerificationError(
            f"{spec.name}: it differs from PyTorch: relative error {listed}, allowed {tolerance:.0e}. "
            "The weights may hold values that this precision cannot represent; try --precision fp32."
        )
    return errors


def compare_onnx(spec: NetworkSpec, path: Path, expected: Path, tolerance: float) -> dict[str, float]:
    """Run an ONNX file in ONNX Runtime on stored inputs and compare.

    Args:
        spec: the network.
        path: the ONNX file.
        expected: file that `expected_outputs` wrote.
        tolerance: largest relative error allowed.

    Returns:
        The largest relative error of every output.

    Raises:
        VerificationError: an output misses the tolerance, or the file does not run.
    """
    try:
        run = _open_session(spec, path)
        return compare_outputs(spec, run, expected, tolerance)
    except VerificationError:
        raise
    except Exception as error:  # ONNX Runtime raises a dozen unrelated types
        raise VerificationError(f"{spec.name}: ONNX Runtime cannot run the exported network: {error}") from error


def _open_session(spec: NetworkSpec, path: Path) -> Callable[[Mapping[str, F32]], Sequence[NDArray[np.generic]]]:
    runnable = path
    if uses_bfloat16(path):  # ONNX Runtime has no arithmetic for it on the CPU
        runnable = path.with_name(f"{path.stem}-float32.onnx")
        widen_to_float32(path, runnable)
    large = path.with_name(f"{path.name}.data").exists()
    session = onnxruntime.InferenceSession(runnable, _session_options(large), providers=["CPUExecutionProvider"])
    dtypes = {value.name: _NUMPY_DTYPES[value.type] for value in session.get_inputs()}
    names = [tensor.name for tensor in spec.outputs]

    def run(inputs: Mapping[str, F32]) -> Sequence[NDArray[np.generic]]:
        feeds = {name: value.astype(dtypes[name]) for name, value in inputs.items()}
        results: Sequence[NDArray[np.generic]] = session.run(names, feeds)
        return results

    return run


def _session_options(large: bool) -> onnxruntime.SessionOptions:
    """For large networks, leave the weights mapped from their file: no converted, folded or packed copies of them.

    The full-size UNet in half precision then takes 1.2 GB and 36 s instead of 8.4 GB and 87 s.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if large:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.add_session_config_entry("session.disable_prepacking", "1")
        options.enable_cpu_mem_arena = False
        options.enable_mem_pattern = False
    return options
