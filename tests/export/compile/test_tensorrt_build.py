"""Plans are built for real, by TensorRT for RTX, which needs no GPU for it."""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from dispose_rt_export.compile import tensorrt as tensorrt_build
from dispose_rt_export.compile.tensorrt import CompiledPlan, build_plan
from dispose_rt_export.synthetic.full_pose_networks import build_estimator as build_full_estimator
from dispose_rt_export.synthetic.toy_pose_networks import build_estimator
from onnx import TensorProto, helper, numpy_helper

from dispose_rt.contract import NETWORKS, Sizes
from dispose_rt.engines.backends import tensorrt_flavour
from dispose_rt.engines.backends.tensorrt_flavour import Flavour, read_head
from dispose_rt.engines.signature import contract_signature
from dispose_rt.errors import EngineError, InputError, VerificationError
from dispose_rt.system.sealed_file import read_sealed, write_sealed

trt = pytest.importorskip("tensorrt_rtx")

SIZES = Sizes(64, 64, tile=4, chunk=3, channels=(8, 16, 32, 32), embed=24, dift=32, points=6)
POINTS = NETWORKS["point_encoder"]
TYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}
Shape = Sequence[int | str]


def write_graph(
    path: Path, nodes: list[onnx.NodeProto], inputs: dict[str, Any], outputs: dict[str, Any], *weights: Any
) -> Path:
    """Inputs and outputs are name -> (dtype, shape)."""
    infos = [
        [helper.make_tensor_value_info(name, TYPES[dtype], shape) for name, (dtype, shape) in table.items()]
        for table in (inputs, outputs)
    ]
    graph = helper.make_graph(nodes, "graph", *infos, initializer=list(weights))
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def write_point_encoder(path: Path, dtype: str = "float16", rows: int | str = "n", columns: int = SIZES.dift) -> Path:
    """A point encoder of one product per level."""
    random = np.random.default_rng(0)
    nodes, weights = [helper.make_node("Cast", ["embeddings"], ["cast"], to=TYPES[dtype])], []
    for level, channels in enumerate(SIZES.channels):
        values = helper.make_tensor(
            f"w{level}", TYPES[dtype], [columns, channels], random.standard_normal(columns * channels).tolist()
        )
        weights.append(values)
        nodes.append(helper.make_node("MatMul", ["cast", f"w{level}"], [f"point_features_{level}"], name=f"mm_{level}"))
    outputs = {f"point_features_{level}": (dtype, (rows, c)) for level, c in enumerate(SIZES.channels)}
    return write_graph(path, nodes, {"embeddings": ("float32", (rows, columns))}, outputs, *weights)


def build(path: Path, output: Path, dtype: str = "float16", **changes: Any) -> CompiledPlan:
    options = {"flavour": "tensorrt_rtx", "targets": (), "timing_cache": None, "output": output} | changes
    return build_plan(
        path, changes.pop("spec", POINTS), SIZES, dtype, **{k: v for k, v in options.items() if k != "spec"}
    )


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_the_signature_is_the_contracts(tmp_path: Path, dtype: str) -> None:
    signature, scratch_bytes = build(write_point_encoder(tmp_path / "p.onnx", dtype), tmp_path / "p.plan", dtype)
    assert scratch_bytes is not None  # the compiler says it without a GPU
    assert 0 <= scratch_bytes < 1 << 24
    assert signature == contract_signature("point_encoder", SIZES, dtype)
    assert signature["point_features_1"] == (dtype, ("points", 16))


def test_a_plan_is_what_the_backend_takes_for_one(tmp_path: Path) -> None:
    build(write_point_encoder(tmp_path / "p.onnx"), tmp_path / "p.plan")
    head, size = read_head(tmp_path / "p.plan")
    flavour = tensorrt_flavour.load_flavour("tensorrt_rtx")
    assert flavour.plan_problem(head, size) is None
    assert "header says" in str(flavour.plan_problem(head, size - 1))
    assert "no plan" in str(flavour.plan_problem(head[:31], 31))
    assert "no plan" in str(flavour.plan_problem(*read_head(tmp_path / "p.onnx")))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.onnx", "p.plan"]


def test_dynamic_dimensions_reach_from_one_to_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Any, ...]] = []

    class Profile:
        def set_shape(self, *shapes: Any) -> None:
            seen.append(shapes)

    config = SimpleNamespace(clear_flag=lambda flag: None, add_optimization_profile=lambda profile: 0)
    builder = SimpleNamespace(create_optimization_profile=Profile)
    backend = Flavour(SimpleNamespace(__version__="11.0", BuilderFlag=SimpleNamespace(TF32=1)))  # type: ignore[arg-type]
    for name in ("motion_encoder", "cmp_flow_decoder", "unet"):
        tensorrt_build._configure(backend, builder, None, config, NETWORKS[name], SIZES, ())
    flow, cmp_flow = ((1, 2, 64, 64), (4, 2, 64, 64)), ((1, 2, 384, 384), (4, 2, 384, 384))
    assert seen == [
        ("dense_flow", flow[0], flow[1], flow[1]),
        ("trajectory_flow", flow[0], flow[1], flow[1]),
        ("sparse_flow", cmp_flow[0], cmp_flow[1], cmp_flow[1]),
        ("mask", cmp_flow[0], cmp_flow[1], cmp_flow[1]),
    ]


def capabilities(plan: Path) -> int:
    """Bits of the compute capabilities in a plan's header."""
    return int(struct.unpack_from("<Q", plan.read_bytes(), 32)[0])


@pytest.mark.parametrize("targets", [("sm_89",), ("sm_120", "sm_89")])
def test_targets_end_up_in_the_plan(tmp_path: Path, targets: tuple[str, ...]) -> None:
    path = write_point_encoder(tmp_path / "p.onnx")
    plans = {chosen: tmp_path / f"{'_'.join(chosen) or 'all'}.plan" for chosen in ((), targets)}
    for chosen, plan in plans.items():
        build(path, plan, targets=chosen)
    every, some = (capabilities(plan) for plan in plans.values())
    assert some.bit_count() == len(targets)
    assert every & some == some
    assert every.bit_count() > len(targets)


def test_an_unknown_target_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot target sm_61; it knows sm_75, .*sm_120"):
        build(write_point_encoder(tmp_path / "p.onnx"), tmp_path / "p.plan", targets=("sm_61",))


def test_weights_in_a_file_beside_the_graph_are_read(tmp_path: Path) -> None:
    path = write_point_encoder(tmp_path / "p.onnx")
    build(path, tmp_path / "inside.plan")
    model = onnx.load(path)
    for weight in model.graph.initializer:
        weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight), weight.name))  # external data is raw
    onnx.save(model, path, save_as_external_data=True, location="p.onnx.data", size_threshold=0)
    assert (tmp_path / "p.onnx.data").stat().st_size >= 2 * SIZES.dift * sum(SIZES.channels)
    build(path, tmp_path / "outside.plan")
    sizes = [(tmp_path / name).stat().st_size for name in ("inside.plan", "outside.plan")]
    assert abs(sizes[0] - sizes[1]) < 1000
    (tmp_path / "p.onnx.data").unlink()
    with pytest.raises(EngineError, match=r"p\.onnx"):
        build(path, tmp_path / "none.plan")


def test_a_published_file_that_takes_any_batch_is_fixed_to_the_contracts(tmp_path: Path) -> None:
    model = build_estimator()
    for info in (*model.graph.input, *model.graph.output):
        info.type.tensor_type.shape.dim[0].dim_param = "batch"
    onnx.save(model, tmp_path / "pose.onnx")
    spec = NETWORKS["pose_estimator"]
    signature, _ = build(tmp_path / "pose.onnx", tmp_path / "pose.plan", "float32", spec=spec)
    assert signature == contract_signature("pose_estimator", SIZES, "float32")


# what is refused


@pytest.mark.parametrize(
    ("changes", "dtype", "words"),
    [
        ({"columns": 31}, "float16", r"embeddings is float32 \[points, 31\], expected float32 \[points, 32\]"),
        ({"rows": 3}, "float16", r"embeddings is float32 \[3, 32\], expected float32 \[points, 32\]"),
        ({"dtype": "float32"}, "float16", r"point_features_0 is float32 \[points, 8\], expected float16 \[points, 8\]"),
    ],
)
def test_other_tensors_than_the_contracts(tmp_path: Path, changes: dict[str, Any], dtype: str, words: str) -> None:
    path = write_point_encoder(tmp_path / "p.onnx", **changes)
    with pytest.raises(VerificationError, match=words):
        build(path, tmp_path / "p.plan", dtype)
    assert not (tmp_path / "p.plan").exists()


def test_all_missing_and_unknown_tensors_are_listed(tmp_path: Path) -> None:
    path = write_point_encoder(tmp_path / "p.onnx")
    with pytest.raises(VerificationError) as caught:
        build(path, tmp_path / "p.plan", spec=NETWORKS["image_encoder"])
    for name in ("pixel_values", "image_embeds", "embeddings", "point_features_3"):
        assert name in str(caught.value)


def relu(kind: str = "Relu", inputs: Sequence[str] = ("embeddings",), **attributes: Any) -> list[onnx.NodeProto]:
    return [helper.make_node(kind, inputs, ["point_features_0"], name="the_node", **attributes)]


@pytest.mark.parametrize(
    ("nodes", "words"),
    [
        (relu("NoSuchOperator"), r"node the_node \(NoSuchOperator\): .*Plugin not found"),
        (relu("Add", ("embeddings", "half")), r"node the_node \(Add\): .*must have same input types"),
        (relu("MatMul", ("embeddings", "embeddings")), r"node the_node \(MatMul\): .*must match"),
        (relu("NonZero"), r"node the_node \(NonZero\): "),
    ],
)
def test_a_node_that_the_parser_refuses_is_named(tmp_path: Path, nodes: list[onnx.NodeProto], words: str) -> None:
    inputs = {"embeddings": ("float32", (2, 32)), "half": ("float16", (2, 32))}
    path = write_graph(tmp_path / "bad.onnx", nodes, inputs, {"point_features_0": ("float32", None)})
    with pytest.raises(EngineError, match=words) as caught:
        build(path, tmp_path / "p.plan")
    message = str(caught.value)
    assert message.startswith("point_encoder: tensorrt_rtx")
    assert "cudaError" not in message
    assert len(message.splitlines()) == 2


@pytest.mark.parametrize("content", [None, b"", b"no graph at all" * 50])
def test_a_file_that_is_no_graph(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "p.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises((EngineError, VerificationError), match="point_encoder"):
        build(path, tmp_path / "p.plan")


def test_a_truncated_graph(tmp_path: Path) -> None:
    path = write_point_encoder(tmp_path / "p.onnx")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(EngineError, match="Failed to parse"):
        build(path, tmp_path / "p.plan")


def refusing_builder(message: str) -> type:
    class Refusing(trt.Builder):  # type: ignore[misc, name-defined]
        def __init__(self, log: Any) -> None:
            super().__init__(log)
            self.log = log

        def build_serialized_network(self, network: Any, config: Any) -> None:
            self.log.log(trt.ILogger.ERROR, message)

    return Refusing


@pytest.mark.parametrize(
    ("message", "advice"),
    [
        ("Internal error: empty runtime-fusion MVMF", "leave --target unset"),
        ("requested 10 GiB: Out of memory", "smaller --size"),
        ("something new", "--precision fp32"),
    ],
)
def test_what_the_compiler_said_is_quoted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, message: str, advice: str
) -> None:
    monkeypatch.setattr(trt, "Builder", refusing_builder(message))
    with pytest.raises(EngineError, match=f"(?s)point_encoder: .*cannot compile it:\n  {message}\n.*{advice}"):
        build(write_point_encoder(tmp_path / "p.onnx"), tmp_path / "p.plan")
    assert not (tmp_path / "p.plan").exists()


def test_the_workspace_is_limited(tmp_path: Path) -> None:
    onnx.save(build_full_estimator(channels=8), tmp_path / "e.onnx")
    options = {"dtype": "float32", "spec": NETWORKS["pose_estimator"]}
    build(tmp_path / "e.onnx", tmp_path / "e.plan", workspace_mib=64, **options)
    assert (tmp_path / "e.plan").exists()
    with pytest.raises(EngineError, match=r"(?s)cannot compile it:.*OutOfMemory.*more .* than --workspace 1 allows"):
        build(tmp_path / "e.onnx", tmp_path / "f.plan", workspace_mib=1, **options)
    assert not (tmp_path / "f.plan").exists()


def test_a_missing_package_names_the_command_that_installs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(EngineError, match=r"tensorrt cannot be imported.*pip install"):
        build(write_point_encoder(tmp_path / "p.onnx"), tmp_path / "p.plan", flavour="tensorrt")


# interruptions


def test_progress_counts_the_steps_of_each_phase(tmp_path: Path) -> None:
    heard: list[tuple[str, int, int]] = []
    path = write_point_encoder(tmp_path / "p.onnx")
    build(path, tmp_path / "p.plan", progress=lambda phase, done, steps: heard.append((phase, done, steps)))
    assert all(0 <= done <= steps for _, done, steps in heard)
    assert ("Building engine", 0, 6) in heard


@pytest.mark.parametrize("error", [KeyboardInterrupt(), BrokenPipeError("nobody listens")])
def test_what_progress_raises_ends_the_build_and_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    def interrupt(phase: str, done: int, steps: int) -> None:
        raise error

    path = write_point_encoder(tmp_path / "p.onnx")
    with pytest.raises(type(error)):
        build(path, tmp_path / "p.plan", progress=interrupt)
    assert [entry.name for entry in tmp_path.iterdir()] == ["p.onnx"]


def test_a_write_that_fails_leaves_the_old_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_point_encoder(tmp_path / "p.onnx")
    (tmp_path / "p.plan").write_bytes(b"old")

    def fill_disk(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fill_disk)
    with pytest.raises(OSError, match="No space left"):
        build(path, tmp_path / "p.plan")
    assert (tmp_path / "p.plan").read_bytes() == b"old"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["p.onnx", "p.plan"]


# timing cache, which only the data-centre flavour has


class FakeConfig:
    def __init__(self, accepted: Callable[[bytes], bool]) -> None:
        self.accepted = accepted
        self.attached: Any = None

    def create_timing_cache(self, content: bytes) -> Any:
        return SimpleNamespace(content=content)

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        if ignore_mismatch or not self.accepted(cache.content):
            return False
        self.attached = cache
        return True


def test_timings_are_loaded(tmp_path: Path) -> None:
    write_sealed(tmp_path / "timings", b"of earlier builds")
    config = FakeConfig(lambda content: True)
    assert tensorrt_build._load_timings(config, tmp_path / "timings") is config.attached
    assert config.attached.content == b"of earlier builds"


def test_a_missing_file_of_timings_is_an_empty_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = FakeConfig(lambda content: True)
    tensorrt_build._load_timings(config, tmp_path / "timings")
    assert config.attached.content == b""
    assert capsys.readouterr().out == ""


def test_damaged_timings_are_replaced_with_a_word(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_sealed(tmp_path / "timings", b"of earlier builds")
    content = (tmp_path / "timings").read_bytes()
    (tmp_path / "timings").write_bytes(content[:-1] + b"?")
    config = FakeConfig(lambda content: True)
    tensorrt_build._load_timings(config, tmp_path / "timings")
    assert config.attached.content == b""
    assert "timings is damaged and is replaced" in capsys.readouterr().out


def test_timings_of_another_gpu_are_left_aside(tmp_path: Path) -> None:
    write_sealed(tmp_path / "timings", b"of another GPU")
    config = FakeConfig(lambda content: content == b"")
    tensorrt_build._load_timings(config, tmp_path / "timings")
    assert config.attached.content == b""


def test_rtx_has_no_timing_cache_and_writes_none(tmp_path: Path) -> None:
    build(write_point_encoder(tmp_path / "p.onnx"), tmp_path / "p.plan", timing_cache=tmp_path / "timings")
    assert read_sealed(tmp_path / "timings") is None
    assert not (tmp_path / "timings").exists()


# all of them
