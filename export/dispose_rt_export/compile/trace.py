"""From a PyTorch module to an ONNX file; names, shapes and samples come from the contract."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from onnxscript.rewriter.rules.common import slice_split_rule
from torch import Tensor, nn

from dispose_rt.contract import NetworkSpec, Sizes, TensorSpec

OPSETS = {"float32": 20, "float16": 21, "bfloat16": 22}
"""By compute dtype, as old as possible so that older parsers read them. From 21 on there is a node for group norms that
keeps their statistics in float32 (before, they are three nodes that do not); from 22 on, convolutions of bfloat16."""

EXTERNAL_DATA_BYTES = 1 << 30
"""Weights above this size go into a file of their own: one protobuf message holds at most 2 GiB."""

TORCH_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

_CONSTANTS = {"added_time_ids": [[6.0, 127.0, 0.0]], "timestep": [0.9]}
"""Inputs that are not drawn: the published ids, and 0.25 ln sigma in the middle of a usual schedule."""


def sample_inputs(
    spec: NetworkSpec, sizes: Sizes, compute_dtype: str, dynamic: Mapping[str, int], seed: int = 0
) -> dict[str, Tensor]:
    """Draw plausible inputs for tracing and comparing, in the contract's order.

    Args:
        spec: the network.
        sizes: resolves static symbols.
        compute_dtype: dtype of tensors marked "compute".
        dynamic: a value for every dynamic symbol.
        seed: the same seed gives the same numbers, up to rounding to the precision.
    """
    random = np.random.Generator(np.random.PCG64(seed))
    samples = {}
    for tensor in spec.inputs:
        shape = sizes.resolve(tensor.shape, dynamic)
        values = torch.from_numpy(_sample(tensor, tuple(int(dim) for dim in shape), random))
        samples[tensor.name] = values.to(TORCH_DTYPES[tensor.resolve_dtype(compute_dtype)])
    return samples


def _sample(tensor: TensorSpec, shape: tuple[int, ...], random: np.random.Generator) -> NDArray[np.float32]:
    if tensor.name in _CONSTANTS:
        return np.array(_CONSTANTS[tensor.name], np.float32)
    values = random.standard_normal(shape, dtype=np.float32)
    if tensor.name in ("image", "pose_images"):
        return np.tanh(values)
    if tensor.name == "mask":
        return (values > 2).astype(np.float32)
    if tensor.name == "sparse_flow":
        return np.where(np.abs(values) > 2, 10 * values, np.float32(0))
    if tensor.name.startswith("residual_") or tensor.name.endswith("_flow"):
        values *= np.float32(0.3)
    return values


def trace_sizes(spec: NetworkSpec, sizes: Sizes) -> dict[str, int]:
    """Return values of the dynamic symbols to trace with: never 1, which tracers take for a constant."""
    return {symbol: max(2, min(3, sizes.limit(symbol))) for symbol in spec.dynamic}


def export_onnx(module: nn.Module, spec: NetworkSpec, sizes: Sizes, compute_dtype: str, path: Path) -> None:
    """Trace a module and write it as ONNX, with constants folded.

    Args:
        module: in evaluation mode, with the contract's inputs in order as arguments.
        spec: the network; names every tensor of the file.
        sizes: resolves the contract's shapes.
        compute_dtype: dtype of the module's parameters and of tensors marked "compute".
        path: file to write; weights above EXTERNAL_DATA_BYTES go into `path` + ".data" beside it.
    """
    samples = sample_inputs(spec, sizes, compute_dtype, trace_sizes(spec, sizes))
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of torchvision's absence, network by network
    with _splits_of_slices_only(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracers warn about their own internals, and the result is compared anyway
        program = torch.onnx.export(
            module,
            tuple(samples.values()),
            dynamo=True,
            opset_version=OPSETS[compute_dtype],
            input_names=[tensor.name for tensor in spec.inputs],
            output_names=[tensor.name for tensor in spec.outputs],
            dynamic_shapes=_dynamic_shapes(spec),
            optimize=True,
            verbose=False,
        )
    assert program is not None
    weight_bytes = sum(p.numel() * p.element_size() for p in (*module.parameters(), *module.buffers()))
    program.save(str(path), external_data=weight_bytes > EXTERNAL_DATA_BYTES)


@contextlib.contextmanager
def _splits_of_slices_only() -> Iterator[None]:
    """Keep one rule of the optimizer away from nodes that it cannot match, which takes half of the export's time.

    It is the only rule of onnxscript 0.7 that matches two outputs, both of slices. For every node of the graph it
    first lists all nodes of the graph. Files stay the same to the last byte.
    """
    match = slice_split_rule.match

    def match_slice(model: Any, graph: Any, node: Any, **options: Any) -> Any:
        return match(model, graph, node, **options) if node.op_type == "Slice" else None

    slice_split_rule.match = match_slice
    try:
        yield
    finally:
        del slice_split_rule.match  # the method is seen again


def _dynamic_shapes(spec: NetworkSpec) -> list[dict[int, object]] | None:
    if not spec.dynamic:
        return None
    return [
        {axis: torch.export.Dim.DYNAMIC for axis, dim in enumerate(tensor.shape) if dim in spec.dynamic}
        for tensor in spec.inputs
    ]
