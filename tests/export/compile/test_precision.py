"""What keeps float32 in an engine of reduced precision does so, and only that; and it is needed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from dispose_rt_export.compile.precision import (
    FLOAT32_ALWAYS,
    NORMS,
    POLICIES,
    Float32Layer,
    Policy,
    apply_precision,
    reduce_precision,
)
from dispose_rt_export.compile.trace import TORCH_DTYPES, export_onnx, sample_inputs
from dispose_rt_export.compile.verify import TOLERANCES, relative_error
from dispose_rt_export.synthetic.random_weights import random_module
from onnx import TensorProto
from torch import Tensor, nn

from dispose_rt.contract import NETWORKS, NetworkSpec, Sizes, TensorSpec
from tests.every import each
from tests.golden_case import GoldenCase

SIZES = Sizes(64, 64, tile=2, chunk=2, channels=(32, 64, 128, 128), embed=48, dift=96)
REDUCED = [name for name in NETWORKS if name not in FLOAT32_ALWAYS]


class Small(nn.Module):
    """Two norms and an attention between convolutions, with inputs that grow large."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv_in = nn.Conv2d(4, 32, 3, padding=1)
        self.norm = nn.GroupNorm(8, 32)
        self.linear = nn.Linear(32, 32)
        self.norm_out = nn.LayerNorm(32)
        self.register_buffer("table", torch.ones(32))
        self.register_buffer("steps", torch.arange(3))

    def forward(self, image: Tensor) -> Tensor:
        hidden = self.norm(self.conv_in(image)).flatten(2).transpose(1, 2)
        return self.norm_out(self.linear(hidden)) * self.table


def run(network: nn.Module, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    with torch.inference_mode():
        outputs = network(*inputs)
    return (outputs,) if isinstance(outputs, Tensor) else outputs


@each(dtype=[torch.float16, torch.bfloat16])
def test_norms_keep_float32_and_their_unrounded_weights(dtype: torch.dtype) -> None:
    module = Small()
    nn.init.normal_(module.norm.weight)
    weight = module.norm.weight.detach().clone()
    reduce_precision(module, Policy("test", norms=True), dtype)
    assert isinstance(module.norm, Float32Layer)
    assert torch.equal(module.norm.layer.weight, weight)
    assert {parameter.dtype for parameter in module.parameters()} == {dtype}  # nobody takes the network for float32
    assert (module.table.dtype, module.steps.dtype) == (dtype, torch.int64)
    assert module(torch.randn(1, 4, 8, 8, dtype=dtype)).dtype == dtype


def test_parts_keep_float32_and_their_own_norms() -> None:
    module = nn.Sequential(Small(), Small())
    reduce_precision(module, Policy("test", norms=True, parts=("1",)), torch.float16)
    first, second = module
    assert first.conv_in.weight.dtype == torch.float16
    assert {tensor.dtype for tensor in second.parameters()} == {torch.float32}
    assert isinstance(second.norm, nn.GroupNorm)


@each(policy=[Policy("test", reduced=False), Policy("test")])
def test_nothing_changes_where_nothing_is_reduced(policy: Policy) -> None:
    module = Small()
    reduce_precision(module, policy, torch.float32 if policy.reduced else torch.float16)
    assert {tensor.dtype for tensor in module.parameters()} == {torch.float32}
    assert isinstance(module.norm, nn.GroupNorm)


def plain_norm(hidden: Tensor) -> Tensor:
    centred = hidden - hidden.mean(-1, keepdim=True)
    return centred * torch.rsqrt((centred * centred).mean(-1, keepdim=True) + 1e-5)


def test_squares_of_a_norm_do_not_fit_half_precision() -> None:
    """The reason for the rule: activations of a few hundred are usual, and their squares exceed 65504."""
    hidden = 300 * torch.randn(2, 64, generator=torch.Generator().manual_seed(0))
    expected = plain_norm(hidden)
    half = hidden.half()
    assert relative_error(plain_norm(half).float().numpy(), expected.numpy()) > 0.1
    layer = nn.LayerNorm(64, elementwise_affine=False)
    assert relative_error(Float32Layer(layer)(half).float().numpy(), expected.numpy()) < 1e-3


@each(name=[name for name in NETWORKS if not NETWORKS[name].published])
def test_every_part_of_the_table_exists(name: str) -> None:
    module = random_module(name, scale="toy")
    for part in POLICIES[name].parts:
        module.get_submodule(part)


@each(name=REDUCED, precision=["fp16", "bf16"])
def test_reduced_networks_are_close_to_float32_in_torch(name: str, precision: str) -> None:
    """PyTorch rounds every result, which ONNX Runtime does not: it computes half-precision graphs in float32."""
    dtype = {"fp16": "float16", "bf16": "bfloat16"}[precision]
    spec = NETWORKS[name]
    module = random_module(name, scale="toy")
    inputs = sample_inputs(spec, SIZES, "float32", dict.fromkeys(spec.dynamic, 2))
    expected = run(module, list(inputs.values()))
    apply_precision(module, name, dtype)
    feeds = [inputs[tensor.name].to(TORCH_DTYPES[tensor.resolve_dtype(dtype)]) for tensor in spec.inputs]
    for tensor, ours, theirs in zip(spec.outputs, run(module, feeds), expected, strict=True):
        assert ours.dtype == TORCH_DTYPES[tensor.resolve_dtype(dtype)]
        assert relative_error(ours.float().numpy(), theirs.numpy()) < TOLERANCES[precision][name]


def assert_norms_are_nodes(path: Path, count: int) -> None:
    """Taken apart, or as instance norms, they would be computed in whatever the compiler likes."""
    onnx.checker.check_model(path, full_check=True)
    nodes = onnx.load(path).graph.node
    found = [node for node in nodes if node.op_type in ("GroupNormalization", "LayerNormalization")]
    assert len(found) == count
    for node in found:
        assert {a.name: a.i for a in node.attribute}.get("stash_type", TensorProto.FLOAT) == TensorProto.FLOAT
    assert not {node.op_type for node in nodes} & {"InstanceNormalization", "Pow", "Sqrt", "ReduceSumSquare"}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_norms_are_nodes_with_float32_statistics(tmp_path: Path, dtype: str) -> None:
    images, tokens = TensorSpec("images", (1, 4, 8, 8), "compute"), TensorSpec("tokens", (1, 64, 32), "compute")
    spec = NetworkSpec("vae_decoder", (images,), (tokens,))  # any name: errors show it
    export_onnx(Small().to(TORCH_DTYPES[dtype]).eval(), spec, SIZES, dtype, tmp_path / "small.onnx")
    assert_norms_are_nodes(tmp_path / "small.onnx", 2)


def test_norms_of_a_whole_network_are_nodes(golden_engines: Callable[..., Path]) -> None:
    module = random_module("dift", scale="toy")
    count = sum(isinstance(layer, NORMS) for layer in module.modules())
    assert count > 30
    assert_norms_are_nodes(golden_engines(GoldenCase("one_tile_64"), "fp16") / "dift.onnx", count)


def test_networks_that_stay_float32_are_those_of_the_table() -> None:
    assert set(POLICIES) == set(NETWORKS)
    assert set(FLOAT32_ALWAYS) == {name for name, policy in POLICIES.items() if not policy.reduced}
    assert {name for name in NETWORKS if NETWORKS[name].published} < set(FLOAT32_ALWAYS)
