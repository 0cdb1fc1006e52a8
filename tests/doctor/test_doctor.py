"""`dispose-rt doctor`: what it finds, what it says to type next, and its exit status."""

from __future__ import annotations

import dataclasses
import json
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from dispose_rt import cli, media
from dispose_rt.contract import NETWORKS
from dispose_rt.doctor import diagnosis, machine, trials
from dispose_rt.doctor.memory import parse_memory
from dispose_rt.engines.footprint import extrapolate, footprints, plan_memory
from dispose_rt.engines.manifest import read_manifest, write_manifest
from tests.engines.damaged_directory import flipped, link_copy, put_file, rehash, removed
from tests.engines.test_preflight import GPU, write_compiled
from tests.fakes import cards
from tests.golden_case import GoldenCase

Captured = pytest.CaptureFixture[str]
LIMITS = {"frames": 7, "chunk": 4, "points": 256}
"""Largest dynamic dimensions of the golden case's directory."""


@pytest.fixture(scope="module")
def engines(golden_engines: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return link_copy(golden_engines(GoldenCase("one_tile_64")), tmp_path_factory.mktemp("doctor") / "engines")


def test_the_machine_alone(capsys: Captured) -> None:
    assert cli.main(["doctor"]) == 0
    out = capsys.readouterr().out
    for word in ("python 3.", "dispose-rt ", "onnxruntime ", "CPU: ", "GPU: ", "kernels: cpu", "libx264"):
        assert word in out
    assert out.splitlines()[-1].startswith("all is well; next: dispose-rt build --weights WEIGHTS --output engines/")


def test_a_gpu_is_listed_and_used(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    monkeypatch.setattr(machine, "find_gpus", lambda: (GPU,))
    assert cli.main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "GPU: cuda:0 NVIDIA L40S, sm_89, 40.0 GB of 48.0 GB free, driver for CUDA 13.0" in out
    assert "--backend tensorrt_rtx --precision fp16" in out


def test_a_gpu_without_our_kernels_is_noted(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    """And TensorRT for RTX is not advised where it does not run."""
    monkeypatch.setattr(machine, "find_gpus", lambda: (dataclasses.replace(GPU, capability="sm_90"),))
    monkeypatch.setattr(machine, "OPTIONAL", ())
    monkeypatch.setattr(machine, "KERNELS", ("cpu",))
    assert cli.main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "note: our CUDA kernels are missing" in out
    assert "note: no TensorRT is installed: pip install" in out
    assert out.splitlines()[-1].endswith("--backend aotinductor --precision fp16")


def test_a_missing_encoder_is_a_problem(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    monkeypatch.setattr(machine, "ENCODER", "libx999")
    assert cli.main(["doctor"]) == 1
    assert capsys.readouterr().out.splitlines()[-1].startswith("something is wrong; next: PyAV has no libx999")


def test_every_network_is_loaded_and_run(engines: Path, capsys: Captured) -> None:
    assert cli.main(["doctor", str(engines), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["healthy"]
    assert found["next_step"].startswith(f"dispose-rt animate --engines {engines}")
    [directory] = found["directories"]
    assert [network["name"] for network in directory["networks"]] == list(NETWORKS)
    for network in directory["networks"]:
        dynamic = {
            symbol: {"frames": 7, "chunk": 4, "points": 256}[symbol] for symbol in NETWORKS[network["name"]].dynamic
        }
        smallest = dict.fromkeys(dynamic, 1)
        assert [run["dynamic"] for run in network["runs"]] == ([smallest, dynamic] if dynamic else [{}])
        assert all(run["seconds"] > 0 for run in network["runs"])
        assert network["failure"] == ""


def test_damage_is_found_although_it_is_remembered_as_intact(
    engines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    folder = link_copy(engines, tmp_path / "e")
    flipped("unet.onnx", 0.5, 0)(folder)
    removed("dift.onnx")(folder)
    assert cli.main(["doctor", str(folder)]) == 1
    out = capsys.readouterr().out
    assert "unet: unet.onnx has other contents" in out
    assert "dift: dift.onnx is missing" in out
    last = out.splitlines()[-1]
    assert last.startswith("something is wrong; next: Build the directory again")
    assert f"--output {folder} --backend onnxruntime" in last


def test_a_network_that_answers_nan_is_named(engines: Path, tmp_path: Path, capsys: Captured) -> None:
    folder = link_copy(engines, tmp_path / "e")
    model = onnx.load(folder / "point_encoder.onnx")
    for weight in model.graph.initializer:
        if weight.data_type == onnx.TensorProto.FLOAT:
            array = numpy_helper.to_array(weight)
            weight.CopyFrom(numpy_helper.from_array(np.full_like(array, np.nan), weight.name))
    put_file(folder / "point_encoder.onnx", model.SerializeToString())
    rehash(folder, "point_encoder")
    only = {name: spec for name, spec in NETWORKS.items() if name in ("point_encoder", "motion_encoder")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(diagnosis, "NETWORKS", only)
        assert cli.main(["doctor", str(folder)]) == 1
    lines = capsys.readouterr().out.splitlines()
    [line] = [line for line in lines if line.startswith("  point_encoder")]
    assert "FAILED: the network point_encoder returned non-finite values in float32" in line
    assert any(line.startswith("  motion_encoder     onnxruntime  loaded in") for line in lines)
    assert "Check the checkpoint" in lines[-1]


def test_load_only_runs_nothing(engines: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    monkeypatch.setattr(diagnosis, "NETWORKS", {"point_encoder": NETWORKS["point_encoder"]})
    monkeypatch.setattr(trials, "sample_inputs", None)
    assert cli.main(["doctor", str(engines), "--load-only"]) == 0
    assert "point_encoder      onnxruntime  loaded in" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["nowhere", "empty"])
def test_no_engine_directory(tmp_path: Path, name: str, capsys: Captured) -> None:
    (tmp_path / "empty").mkdir()
    assert cli.main(["doctor", str(tmp_path / name)]) == 1
    assert "dispose-rt build" in capsys.readouterr().out.splitlines()[-1]


def test_every_directory_of_a_folder_is_examined(tmp_path: Path, capsys: Captured) -> None:
    for name in ("a", "b"):
        write_compiled(tmp_path / name, "tensorrt")
        (tmp_path / name / "unet.plan").unlink()
    assert cli.main(["doctor", str(tmp_path), "--json"]) == 1
    reports: list[dict[str, Any]] = json.loads(capsys.readouterr().out)["directories"]
    assert [Path(report["folder"]).name for report in reports] == ["a", "b"]
    assert all("unet: unet.plan is missing" in report["failure"] for report in reports)
    assert all(report["networks"] == [] for report in reports)


def test_an_unknown_device(tmp_path: Path, capsys: Captured) -> None:
    write_compiled(tmp_path / "e")
    assert cli.main(["doctor", str(tmp_path / "e"), "--device", "tpu"]) == 1
    assert "tpu" in capsys.readouterr().err


def test_what_commands_and_outputs_lack(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "dispose-rt" / "poses").mkdir(parents=True)
    (tmp_path / "dispose-rt" / "poses" / "one.npz").write_bytes(bytes(1_500_000))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    real = machine._has_codec
    monkeypatch.setattr(machine, "_has_codec", lambda name, mode: name != "libvpx-vp9" and real(name, mode))
    monkeypatch.setattr(machine, "EXTRAS", {"export": ("numpy", "nosuchmodule"), "download": (), "page": ("numpy",)})
    assert cli.main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "outputs: mp4 m4v mov mkv, webm (lacks libvpx-vp9), gif" in lines
    assert "commands: build (lacks nosuchmodule), download, page" in lines
    assert f"pose cache: 1.5 MB in {tmp_path / 'dispose-rt' / 'poses'}" in lines
    assert lines[-1].startswith("all is well; next: pip install 'dispose-rt[export]', then dispose-rt build")


def test_every_output_that_can_be_written_is_looked_at() -> None:
    looked_at = {f".{suffix}" for suffixes in machine.examine_machine().outputs for suffix in suffixes.split()}
    assert looked_at == set(media.SUFFIXES)


def test_extras_are_those_of_the_package() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert set(machine.EXTRAS) <= set(project["optional-dependencies"])
    needed = {re.split(r"[<>=]", requirement)[0] for requirement in project["dependencies"]}
    assert set(machine.NEEDED.values()) == needed


def test_the_memory_of_cards_is_planned_without_a_gpu(tmp_path: Path, capsys: Captured) -> None:
    """By the plan of the runtime, from what the build recorded or, in older directories, from estimates."""
    folder = tmp_path / "e"
    manifest = write_compiled(folder)
    assert "scratch_bytes" not in (folder / "manifest.json").read_text(encoding="utf-8")  # as in older directories
    assert cli.main(["doctor", str(folder), "--plan"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"\n  unet +0.00 GB +0.00 GB +[\d.]+ GB  estimated\n", out)
    assert [line.split(",")[0] for line in out.splitlines() if "for the run" in line] == [
        f"{size}GB" for size in (8, 12, 16, 24, 32, 80)
    ]
    networks = {
        name: dataclasses.replace(
            record,
            files=(dataclasses.replace(record.files[0], size_bytes=int(cards.WEIGHTS_GB[name] * 1e9)),),
            scratch_bytes=int(cards.SCRATCH_GB[name] * 1e9),
        )
        for name, record in manifest.networks.items()
    }
    full = dataclasses.replace(manifest, networks=networks)
    write_manifest(full)
    assert read_manifest(folder) == full
    for card, code, residency in (
        ("8GB", 1, "stages"),
        ("12GB", 0, "stages"),
        ("15 GB", 0, "once"),
        ("24gb", 0, "all"),
    ):
        assert cli.main(["doctor", str(folder), "--plan", "--memory", card, "--json"]) == code
        [found] = json.loads(capsys.readouterr().out)["plans"]
        [plan] = found["cards"]
        assert all(network["measured"] for network in found["networks"])
        assert (plan["fits"], plan["residency"]) == (not code, residency)
        expected = plan_memory(
            footprints(full), full.sizes, parse_memory(card), controls=("motion", "points"), clip_bytes=0
        )
        assert [stage["peak_bytes"] for stage in plan["stages"]] == [one.peak_bytes for one in expected.stages]
        assert (plan["longest_tile"] or 0) >= (full.sizes.tile if plan["fits"] else 0)
    for wrong in (
        ["--memory", "12GB"],
        [str(folder), "--memory", "12GB"],
        ["--plan"],
        [str(folder), "--plan", "--memory", "big"],
    ):
        assert cli.main(["doctor", *wrong]) == 1, wrong
    longer = extrapolate(full, dataclasses.replace(full.sizes, tile=14))
    assert longer["unet"].scratch_bytes == pytest.approx(2 * footprints(full)["unet"].scratch_bytes)
    assert longer["dift"] == footprints(full)["dift"]


def test_an_error_as_json(tmp_path: Path, capsys: Captured) -> None:
    write_compiled(tmp_path / "e")
    assert cli.main(["doctor", str(tmp_path / "e"), "--device", "tpu", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["error"]["type"] in ("InputError", "DeviceError")
