"""Comparing with PyTorch finds what is wrong, in every precision, and in processes that share a file alone."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from dispose_rt_export.compile import trace as onnx_export
from dispose_rt_export.compile.graph_passes import uses_bfloat16, widen_to_float32
from dispose_rt_export.compile.trace import TORCH_DTYPES, export_onnx
from dispose_rt_export.compile.verify import (
    compare_onnx,
    compare_outputs,
    comparison_sizes,
    expected_outputs,
    read_cases,
    relative_error,
)
from onnx import TensorProto, numpy_helper
from onnxscript.rewriter.rules.common import slice_split_rule
from torch import Tensor, nn

from dispose_rt.contract import NetworkSpec, Sizes, TensorSpec
from dispose_rt.errors import VerificationError

SIZES = Sizes(64, 64, tile=4)
SPEC = NetworkSpec(
    "pose_net",  # any name: errors show it
    (TensorSpec("images", ("frames", 3, "height/8", "width/8")), TensorSpec("features", ("frames", 8), "compute")),
    (TensorSpec("sums", ("frames", 8), "compute"), TensorSpec("means", ("frames", 3))),
)


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 8, 3)

    def forward(self, images: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.conv(images.to(self.conv.weight.dtype)).mean(dim=(2, 3))
        return torch.nn.functional.gelu(hidden) + 0.5 * features, images.mean(dim=(2, 3))


@pytest.fixture(params=["float32", "float16", "bfloat16"])
def exported(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path]:
    """An exported network and what PyTorch computes."""
    dtype = request.param
    expected_outputs(Network(), SPEC, SIZES, dtype, tmp_path / "expected.npz")
    export_onnx(Network().to(TORCH_DTYPES[dtype]).eval(), SPEC, SIZES, dtype, tmp_path / "network.onnx")
    return tmp_path / "network.onnx", tmp_path / "expected.npz"


def test_a_good_network_passes(exported: tuple[Path, Path]) -> None:
    path, expected = exported
    onnx.checker.check_model(path, full_check=True)
    errors = compare_onnx(SPEC, path, expected, tolerance=1e-2)
    assert list(errors) == ["sums", "means"]
    assert errors["means"] < 1e-6  # float32 in every precision


def test_a_wrong_weight_is_found(exported: tuple[Path, Path]) -> None:
    path, expected = exported
    model = onnx.load(path)
    weight = next(stored for stored in model.graph.initializer if stored.name.endswith("conv.weight"))
    values = numpy_helper.to_array(weight)
    weight.CopyFrom(numpy_helper.from_array((values * np.float32(1.5)).astype(values.dtype), weight.name))
    onnx.save(model, path)
    with pytest.raises(VerificationError, match="pose_net: .*sums .*allowed 1e-02"):
        compare_onnx(SPEC, path, expected, tolerance=1e-2)


def test_a_file_that_does_not_run_is_an_error(exported: tuple[Path, Path]) -> None:
    path, expected = exported
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(VerificationError, match="cannot run"):
        compare_onnx(SPEC, path, expected, tolerance=1)


def test_weights_in_a_file_of_their_own_give_the_same(
    exported: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Large networks are run without optimisations, from mapped weights."""
    path, expected = exported
    small = compare_onnx(SPEC, path, expected, tolerance=1e-2)
    monkeypatch.setattr(onnx_export, "EXTERNAL_DATA_BYTES", 0)
    large = tmp_path / "large.onnx"
    dtype = next(stored.data_type for stored in onnx.load(path).graph.initializer)
    name = {TensorProto.FLOAT: "float32", TensorProto.FLOAT16: "float16", TensorProto.BFLOAT16: "bfloat16"}[dtype]
    export_onnx(Network().to(TORCH_DTYPES[name]).eval(), SPEC, SIZES, name, large)
    assert large.with_name("large.onnx.data").exists()
    assert compare_onnx(SPEC, large, expected, tolerance=1e-2) == pytest.approx(small, rel=0.2, abs=1e-6)


def test_cases_hold_what_went_in_and_what_came_out(tmp_path: Path) -> None:
    path = tmp_path / "expected.npz"
    expected_outputs(Network(), SPEC, SIZES, "float16", path)
    cases = list(read_cases(path))
    assert [len(case.inputs["images"]) for case in cases] == [1, 4]
    for case in cases:
        assert list(case.inputs) == ["images", "features"]
        assert np.array_equal(case.inputs["features"], case.inputs["features"].astype(np.float16))
        with torch.no_grad():
            outputs = Network()(*(torch.from_numpy(value) for value in case.inputs.values()))
        for ours, theirs in zip(case.outputs.values(), outputs, strict=True):
            assert np.array_equal(ours, theirs.numpy())


@pytest.mark.parametrize("spoil", [lambda a: a * np.nan, lambda a: a + np.inf, lambda a: a[:, 1:], lambda a: a * 0])
def test_broken_outputs_are_misses(tmp_path: Path, spoil) -> None:
    path = tmp_path / "expected.npz"
    expected_outputs(Network(), SPEC, SIZES, "float32", path)
    cases = iter(list(read_cases(path)))

    def run(inputs: object) -> list[np.ndarray]:
        sums, means = next(cases).outputs.values()
        return [sums, spoil(means)]

    with pytest.raises(VerificationError, match="means"):
        compare_outputs(SPEC, run, path, tolerance=0.9)


def test_widened_graph_computes_in_float32_from_the_stored_weights(tmp_path: Path) -> None:
    path, widened = tmp_path / "network.onnx", tmp_path / "widened.onnx"
    export_onnx(Network().bfloat16().eval(), SPEC, SIZES, "bfloat16", path)
    assert uses_bfloat16(path)
    widen_to_float32(path, widened)
    model = onnx.shape_inference.infer_shapes(onnx.load(widened), strict_mode=True)
    onnx.checker.check_model(model, full_check=True)
    reduced = {TensorProto.BFLOAT16, TensorProto.FLOAT16}
    values = (*model.graph.input, *model.graph.output, *model.graph.value_info)
    assert not {value.type.tensor_type.elem_type for value in values} & reduced
    assert uses_bfloat16(widened)


def test_relative_errors_of_zeros_and_of_what_cannot_be_compared() -> None:
    ones, zeros, inf = np.ones(3, np.float32), np.zeros(3, np.float32), float("inf")
    pairs = [(zeros, zeros), (1.5 * ones, ones), (ones, zeros), (ones[:2], ones), (ones * np.nan, ones)]
    assert [relative_error(*pair) for pair in pairs] == [0, 0.5, inf, inf, inf]


def test_the_dtype_of_weights_is_read_without_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_export, "EXTERNAL_DATA_BYTES", 0)
    path = tmp_path / "network.onnx"
    export_onnx(Network().bfloat16().eval(), SPEC, SIZES, "bfloat16", path)
    path.with_name("network.onnx.data").unlink()
    assert uses_bfloat16(path)


def test_large_sizes_are_compared_at_small_ones() -> None:
    assert comparison_sizes(Sizes(64, 128, tile=4)) == Sizes(64, 128, tile=4)
    small = comparison_sizes(Sizes(576, 1024, tile=16))
    assert (small.width, small.height, small.tile) == (64, 128, 4)
    assert comparison_sizes(Sizes(1024, 576)).width == 128


class Halves(nn.Module):
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        first, second = images[..., :4], images[..., 4:]
        return first * second, torch.nn.functional.silu(second) + first


def test_the_quick_optimizer_writes_the_same_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its one rule for several outputs is kept away from nodes that it cannot match, and is itself again afterwards."""
    tensors = [TensorSpec(name, (1, 4, 8, width)) for name, width in (("images", 8), ("first", 4), ("second", 4))]
    spec = NetworkSpec("dift", tuple(tensors[:1]), tuple(tensors[1:]))
    match, seen = slice_split_rule.match, []
    export_onnx(Halves().eval(), spec, SIZES, "float32", tmp_path / "quick.onnx")
    assert slice_split_rule.match == match
    monkeypatch.setattr(onnx_export, "_splits_of_slices_only", nullcontext)
    monkeypatch.setattr(slice_split_rule, "match", lambda *args, **more: seen.append(args[2]) or match(*args, **more))
    export_onnx(Halves().eval(), spec, SIZES, "float32", tmp_path / "plain.onnx")
    assert {"Slice", "Mul"} <= {node.op_type for node in seen}
    assert (tmp_path / "quick.onnx").read_bytes() == (tmp_path / "plain.onnx").read_bytes()
