"""The build command: resumes, shares, refuses, and never leaves a directory that is half of something."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from dispose_rt_export.builds import network as network_build
from dispose_rt_export.builds import plan as build_plan
from dispose_rt_export.builds import records as build_records
from dispose_rt_export.builds.plan import RECIPES, BuildTarget, plan_network
from dispose_rt_export.builds.records import clear_leftovers
from dispose_rt_export.builds.worker import BuildWorker
from dispose_rt_export.checkpoints import Checkpoint
from dispose_rt_export.command import (
    build_engines,
    main,
    parse_only,
    parse_size,
    parse_targets,
    sizes_of,
    unfused_attention_bytes,
)
from dispose_rt_export.compile import trace as onnx_export

from dispose_rt.contract import NETWORKS, Sizes
from dispose_rt.engines.manifest import FILE_NAME, read_manifest
from dispose_rt.errors import EngineError, InputError, ManifestError, VerificationError
from tests.every import each

SMALL = ("pose_net", "point_encoder")
SIZE = (64, 64)


def build_small(checkpoint: Path, output: Path, **changes) -> None:
    options = {"size": SIZE, "tile": 3, "chunk": 2, "only": SMALL} | changes
    assert build_engines(checkpoint, output, **options) is None  # eleven networks are missing


def build_files(output: Path) -> set[str]:
    """What a build remembers, but for its lock."""
    return {path.name for path in (output / ".build").iterdir()} - {"lock"}


def engine_files(output: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in output.glob("*.onnx")}


def test_finished_networks_are_not_built_again(golden_checkpoint, tmp_path, capsys):
    build_small(golden_checkpoint, tmp_path / "e")
    before = engine_files(tmp_path / "e")
    assert set(before) == {"pose_net.onnx", "point_encoder.onnx"}
    build_small(golden_checkpoint, tmp_path / "e")
    assert engine_files(tmp_path / "e") == before
    assert capsys.readouterr().out.count("up to date") == 2
    assert not (tmp_path / "e" / FILE_NAME).exists()


def test_force_builds_again(golden_checkpoint, tmp_path):
    build_small(golden_checkpoint, tmp_path / "e", only=("point_encoder",))
    before = engine_files(tmp_path / "e")
    build_small(golden_checkpoint, tmp_path / "e", only=("point_encoder",), force=True)
    assert engine_files(tmp_path / "e") != before


def test_other_sizes_share_what_does_not_depend_on_them(golden_checkpoint, tmp_path, capsys):
    build_small(golden_checkpoint, tmp_path / "one")
    capsys.readouterr()
    build_small(golden_checkpoint, tmp_path / "two", size=(128, 64))
    lines = {line.split()[2]: line for line in capsys.readouterr().out.splitlines() if line.startswith("[")}
    assert "shared with" in lines["point_encoder"]
    assert "shared with" not in lines["pose_net"]
    same = [(tmp_path / name / "point_encoder.onnx").stat().st_ino for name in ("one", "two")]
    assert same[0] == same[1]


def test_a_damaged_sibling_is_not_shared(golden_checkpoint, tmp_path, capsys):
    build_small(golden_checkpoint, tmp_path / "one", only=("point_encoder",))
    path = tmp_path / "one" / "point_encoder.onnx"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    capsys.readouterr()
    build_small(golden_checkpoint, tmp_path / "two", only=("point_encoder",))
    assert "shared with" not in capsys.readouterr().out


def test_other_precisions_and_sizes_are_built_again(golden_checkpoint, tmp_path):
    build_small(golden_checkpoint, tmp_path / "e")
    before = engine_files(tmp_path / "e")
    build_small(golden_checkpoint, tmp_path / "e", precision="fp16")
    after = engine_files(tmp_path / "e")
    assert all(after[name] != before[name] for name in before)


def test_a_miss_fails_the_build_and_leaves_nothing(golden_checkpoint, tmp_path, monkeypatch):
    """The first module is traced, the second is what the file is compared with: make them differ."""
    built = []

    def build_another(weights):
        module = RECIPES["point_encoder"].build(weights)
        built.append(module)
        if len(built) == 2:
            module.register_forward_hook(lambda module, inputs, outputs: [1.01 * one for one in outputs])
        return module

    class Recipe:
        build = staticmethod(build_another)

    monkeypatch.setattr(network_build, "RECIPES", {**RECIPES, "point_encoder": Recipe})
    with pytest.raises(VerificationError, match=r"point_encoder.*relative error.*allowed 1e-04"):
        build_small(golden_checkpoint, tmp_path / "e", only=("point_encoder",))
    assert engine_files(tmp_path / "e") == {}
    assert not any((tmp_path / "e").rglob("*.onnx"))
    assert len(built) == 2


def test_an_interrupted_build_goes_on_where_it_stopped(golden_checkpoint, tmp_path, monkeypatch, capsys):
    export_onnx = network_build.export_onnx

    def interrupt(module, spec, *rest):
        if spec.name == "point_encoder":
            raise KeyboardInterrupt
        export_onnx(module, spec, *rest)

    monkeypatch.setattr(network_build, "export_onnx", interrupt)
    arguments = ["--weights", str(golden_checkpoint), "--output", str(tmp_path / "e"), "--size", "64x64"]
    arguments += ["--tile-frames", "3", "--decode-chunk", "2", "--only", ",".join(SMALL)]
    assert main(arguments) == 130
    assert "run the same command again" in capsys.readouterr().err
    monkeypatch.undo()
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert printed.count("up to date") == 1
    assert "still lacks" in printed
    assert {path.name for path in (tmp_path / "e").iterdir()} == {"pose_net.onnx", "point_encoder.onnx", ".build"}
    assert build_files(tmp_path / "e") == {"pose_net.json", "point_encoder.json"}


def test_a_rebuild_removes_the_manifest_first(golden_checkpoint, tmp_path):
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / FILE_NAME).write_text("{}")
    build_small(golden_checkpoint, tmp_path / "e", only=("point_encoder",))
    assert not (tmp_path / "e" / FILE_NAME).exists()


def test_a_changed_source_is_a_changed_build(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a network, a pass, and a backend's own part of the runtime, by the backends that it concerns."""
    hash_sources, read = build_plan._source_hash.__wrapped__, Path.read_bytes
    concerned = {
        "unet.py": {"onnxruntime", "tensorrt_rtx", "aotinductor"},
        "graph_passes.py": {"onnxruntime", "tensorrt_rtx"},
        "tensorrt_flavour.py": {"tensorrt_rtx"},
        "aotinductor.py": {"aotinductor"},
    }
    before = {backend: hash_sources(backend) for backend in ("onnxruntime", "tensorrt_rtx", "aotinductor")}
    for name, backends in concerned.items():
        monkeypatch.setattr(Path, "read_bytes", lambda path, name=name: read(path) + b"#" * (path.name == name))
        assert {backend for backend in before if hash_sources(backend) != before[backend]} == backends, name


@pytest.mark.parametrize("force", [False, True])
def test_a_folder_of_other_things_is_not_touched(golden_checkpoint, tmp_path, force):
    (tmp_path / "thesis.doc").write_text("years of work")
    with pytest.raises(ManifestError, match=r"thesis\.doc"):
        build_engines(golden_checkpoint, tmp_path, size=SIZE, force=force)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.doc"]


def test_unusable_sizes_are_refused_before_anything_is_written(golden_checkpoint, tmp_path):
    with pytest.raises(InputError, match="width is 100"):
        build_engines(golden_checkpoint, tmp_path / "e", size=(100, 64))
    assert not (tmp_path / "e").exists()


@each(text=["", "576", "576x", "x576", "576 1024", "576x1024x3", "-64x64", "6.4x64", "axb"])
def test_unreadable_sizes_are_refused(text):
    with pytest.raises(InputError, match="WIDTHxHEIGHT"):
        parse_size(text)


def test_sizes_and_selections_are_parsed():
    assert parse_size("576x1024") == (576, 1024)
    assert parse_only(None) == tuple(NETWORKS)
    assert parse_only(" unet, dift ") == ("dift", "unet")
    for text in ("nothing", "unet,nothing", "", ","):
        with pytest.raises(InputError, match="choose from"):
            parse_only(text)


def test_missing_weights_are_one_message_and_exit_code_1(tmp_path, capsys):
    (tmp_path / "weights").mkdir()
    assert main(["--weights", str(tmp_path / "weights"), "--output", str(tmp_path / "e")]) == 1
    message = capsys.readouterr().err
    assert "MimicMotion_1-1.pth" in message
    assert "DisPose.pth" in message
    assert "Traceback" not in message
    assert not (tmp_path / "e").exists()


def test_the_script_runs_from_anywhere(tmp_path):
    script = Path(__file__).resolve().parents[2] / "export" / "build_engines.py"
    done = subprocess.run(
        [sys.executable, str(script), "--help"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "--tile-frames" in done.stdout


def test_a_whole_directory_records_what_it_is(golden_engines, golden_checkpoint):
    from tests.golden_case import GoldenCase

    manifest = read_manifest(golden_engines(GoldenCase("one_tile_64")))
    assert set(manifest.networks) == set(NETWORKS)
    assert manifest.sizes.channels == (32, 64, 128, 128)
    assert manifest.weights["DisPose.pth"]["size_bytes"] == (golden_checkpoint / "DisPose.pth").stat().st_size
    for name, record in manifest.networks.items():
        assert set(record.verification) == ({t.name for t in NETWORKS[name].outputs} if name in RECIPES else set())
        assert all(error <= 1e-4 for error in record.verification.values())


def test_what_is_too_large_to_run_is_compared_through_a_small_trace(golden_checkpoint, tmp_path, monkeypatch):
    compared = []
    compare, run = network_build.compare_onnx, network_build.run_network

    def note_sizes(plan, weights, sizes, *rest):
        compared.append((plan.spec.name, sizes.width, sizes.height, sizes.tile))
        return run(plan, weights, sizes, *rest)

    def note_folder(spec, path, *rest):
        compared.append(path.parent.name)
        return compare(spec, path, *rest)

    monkeypatch.setattr(network_build, "run_network", note_sizes)
    monkeypatch.setattr(network_build, "compare_onnx", note_folder)
    build_small(golden_checkpoint, tmp_path / "e", size=(576, 1024), tile=16)
    # the point encoder does not depend on the size: its own file is compared
    assert compared == [("pose_net", 64, 128, 4), "compared", ("point_encoder", 64, 128, 4), "scratch"]
    model = onnx.load(tmp_path / "e" / "pose_net.onnx")
    [shape] = [
        [dim.dim_value or dim.dim_param for dim in tensor.type.tensor_type.shape.dim] for tensor in model.graph.input
    ]
    assert shape[1:] == [3, 1024, 576]
    assert build_files(tmp_path / "e") == {"pose_net.json", "point_encoder.json"}


def test_weights_of_another_size_are_held_once(golden_checkpoint, tmp_path, monkeypatch):
    """The graphs differ in the constants of their shapes, the weights beside them do not."""
    monkeypatch.setattr(onnx_export, "EXTERNAL_DATA_BYTES", 1000)
    monkeypatch.setattr(build_records, "SHARED_ABOVE_BYTES", 1000)
    for name, size in (("one", (64, 64)), ("two", (128, 64))):
        build_small(golden_checkpoint, tmp_path / name, size=size, only=("pose_net",))
    graphs = [(tmp_path / name / "pose_net.onnx").read_bytes() for name in ("one", "two")]
    assert graphs[0] != graphs[1]
    weights = [(tmp_path / name / "pose_net.onnx.data").stat().st_ino for name in ("one", "two")]
    assert weights[0] == weights[1]


def test_several_sizes_make_a_directory_each(golden_checkpoint, tmp_path, capsys):
    arguments = ["--weights", str(golden_checkpoint), "--output", str(tmp_path), "--size", "64x64,128x64,64x64"]
    assert main([*arguments, "--tile-frames", "3", "--decode-chunk", "2", "--only", "point_encoder"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["128x64", "64x64"]
    assert "shared with" in capsys.readouterr().out


def test_a_second_build_of_the_same_directory_is_refused(golden_checkpoint, tmp_path):
    (tmp_path / "e").mkdir()
    with build_records.exclusive(tmp_path / "e"), pytest.raises(ManifestError, match="another build is writing"):
        build_small(golden_checkpoint, tmp_path / "e", only=("point_encoder",))


def test_damage_is_mended_by_the_same_command(golden_checkpoint, tmp_path, capsys):
    """One byte changed, the size kept: the network is built again although its record is there."""
    build_small(golden_checkpoint, tmp_path / "e", only=("point_encoder",))
    path = tmp_path / "e" / "point_encoder.onnx"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    capsys.readouterr()
    build_small(golden_checkpoint, tmp_path / "e", only=("point_encoder",))
    assert "up to date" not in capsys.readouterr().out
    assert path.read_bytes() == content


def test_touched_and_linked_files_are_still_up_to_date(golden_checkpoint, tmp_path, capsys):
    build_small(golden_checkpoint, tmp_path / "e", only=("point_encoder",))
    path = tmp_path / "e" / "point_encoder.onnx"
    os.utime(path, (1, 1))
    (tmp_path / "link").hardlink_to(path)
    capsys.readouterr()
    build_small(golden_checkpoint, tmp_path / "e", only=("point_encoder",))
    assert "up to date" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("backend", "precision", "targets", "message"),
    [
        ("onnxruntime", "fp32", ("sm_89",), "runs on the CPU"),
        ("onnxruntime", "bf16", (), "no bf16 kernels"),
        ("tensorrt_rtx", "fp16", ("cpu",), "runs on GPUs alone"),
        ("tensorrt_rtx", "fp16", ("sm_11",), "cannot target sm_11"),
        ("tensorflow", "fp16", (), "unknown"),
        ("onnxruntime", "fp8", (), "unknown"),
    ],
)
def test_combinations_that_cannot_be_built_are_refused(
    golden_checkpoint, tmp_path, backend, precision, targets, message
):
    with pytest.raises(InputError, match=message):
        build_engines(
            golden_checkpoint, tmp_path / "e", size=SIZE, backend=backend, precision=precision, targets=targets
        )
    assert not (tmp_path / "e").exists()


def test_the_workspace_belongs_to_tensorrt_and_to_the_build_key(golden_checkpoint, tmp_path, monkeypatch, capsys):
    for backend, workspace, message in (
        ("onnxruntime", "64", "onnxruntime has no limit of scratch memory: leave --workspace out"),
        ("aotinductor", "64", "aotinductor has no limit of scratch memory"),
        ("tensorrt_rtx", "0", "--workspace 0 is out of range"),
        ("tensorrt_rtx", "99999999999", "out of range"),
    ):
        arguments = ["--weights", str(golden_checkpoint), "--output", str(tmp_path / "e"), "--size", "64x64"]
        assert main([*arguments, "--backend", backend, "--workspace", workspace]) == 1
        assert message in capsys.readouterr().err
        assert not (tmp_path / "e").exists()

    weights = Checkpoint(golden_checkpoint)
    sizes = sizes_of(weights, SIZE, 3, 2)
    plans = [
        plan_network("point_encoder", weights, sizes, BuildTarget("tensorrt_rtx", "fp16", (), workspace))
        for workspace in (None, 64, 65)
    ]
    assert len({plan.build_key for plan in plans}) == 3
    hashed = []
    monkeypatch.setattr(build_plan.json, "dumps", lambda value, **_: hashed.append(value) or "")
    plan_network("point_encoder", weights, sizes, BuildTarget("tensorrt_rtx", "fp16"))
    assert "workspace_mib" not in hashed[0]  # directories from before there was a limit stay up to date

    received = []
    monkeypatch.setattr(network_build, "build_plan", lambda *_, **options: received.append(options["workspace_mib"]))
    for plan in plans:
        network_build.compile_engine(plan, tmp_path / "p.onnx", tmp_path / "timings")
    assert received == [None, 64, 65]


def test_float32_attention_at_full_size_is_more_than_a_gpu_holds():
    """FP16 attention is fused; of FP32, TensorRT holds all scores: 32 frames x 5 heads x 9216 x 9216."""
    assert unfused_attention_bytes(Sizes(576, 1024)) == 32 * 5 * 9216 * 9216 * 4


@each(text=["", "89", "sm89", "sm_", "sm_9", "gpu", "sm_89,", "sm_89 sm_120"])
def test_unreadable_targets_are_refused(text):
    with pytest.raises(InputError, match="no compute capability"):
        parse_targets(text)


def test_targets_are_parsed():
    assert parse_targets(None) == ()
    assert parse_targets("sm_89, sm_120,sm_89") == ("sm_89", "sm_120")
    assert parse_targets("cpu") == ("cpu",)


def test_large_weights_lie_beside_the_graph(golden_checkpoint, tmp_path, monkeypatch, capsys):
    """One protobuf message holds at most 2 GiB; here the limit is lowered instead of the weights raised."""
    monkeypatch.setattr(onnx_export, "EXTERNAL_DATA_BYTES", 1000)
    names = {"point_encoder.onnx", "point_encoder.onnx.data"}
    build_small(golden_checkpoint, tmp_path / "one", only=("point_encoder",))
    assert {path.name for path in (tmp_path / "one").glob("*.onnx*")} == names
    build_small(golden_checkpoint, tmp_path / "two", only=("point_encoder",))
    assert "shared with" in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "two").glob("*.onnx*")} == names
    session = onnxruntime.InferenceSession(str(tmp_path / "two" / "point_encoder.onnx"))
    [output, *_] = session.run(None, {"embeddings": np.ones((2, 96), np.float32)})
    assert np.isfinite(output).all()
    (tmp_path / "two" / "point_encoder.onnx.data").unlink()
    capsys.readouterr()
    build_small(golden_checkpoint, tmp_path / "two", only=("point_encoder",))
    assert "up to date" not in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "two").glob("*.onnx*")} == names


def test_a_graph_that_a_compiler_refuses_is_kept_for_reducing(golden_checkpoint, tmp_path):
    """With the command that finds the part that is refused, and only until the next build."""

    class RefusingWorker(BuildWorker):
        def run(self, label, step, *arguments, progress=None):
            raise EngineError(f"{label}: no kernel for it")

    weights = Checkpoint(golden_checkpoint)
    sizes = sizes_of(weights, SIZE, 3, 2)
    plan = plan_network("point_encoder", weights, sizes, BuildTarget("tensorrt_rtx", "fp16"))
    output = tmp_path / "e"
    output.mkdir()
    with pytest.raises(EngineError, match=r"(?s)no kernel for it.*POLYGRAPHY_USE_TENSORRT_RTX=1 polygraphy") as caught:
        network_build.build_network(plan, weights, output, RefusingWorker(tmp_path / "w"), lambda text: None)
    kept = output / ".build" / "failed" / "point_encoder.onnx"
    assert str(kept) in str(caught.value)
    onnx.checker.check_model(onnx.load(kept))
    assert build_files(output) == {"failed"}
    clear_leftovers(output)
    assert build_files(output) == set()


def test_an_output_below_a_file_is_refused_before_the_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("no folder")
    words = ["--weights", str(tmp_path / "none"), "--output", str(tmp_path / "file" / "engines")]
    assert main(words) == 1
    assert "file is a file, so" in capsys.readouterr().err
