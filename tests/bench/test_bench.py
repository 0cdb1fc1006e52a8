"""`dispose-rt bench`: what it prints, writes, compares and refuses. test_latency.py looks at what it measures."""

from __future__ import annotations

import argparse
import copy
import io
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dispose_rt.bench import command, comparison, measurement, networks, table
from dispose_rt.bench.clip import Clip, draw_clip, open_clip
from dispose_rt.bench.measurement import Plan, complete_plan
from dispose_rt.bench.plot import save_plot
from dispose_rt.contract import SchedulerConstants, Sizes
from dispose_rt.engines.manifest import Manifest
from dispose_rt.errors import Cancelled, EngineError, InputError, ManifestError, OutputError
from tests.every import each
from tests.golden_case import GoldenCase
from tests.golden_data import GOLDEN

STAGES = ("pose", "load", "motion", "appearance", "conditions", "denoise", "decode")
TOY = Sizes(64, 64, tile=4, chunk=3, channels=(32, 64, 128, 128), embed=48)
MANIFEST = Manifest(Path("engines"), "onnxruntime", "fp32", TOY, SchedulerConstants(), {})
REFERENCE, DRIVE = str(GOLDEN / "ref.png"), str(GOLDEN / "drive.mkv")
COMMAND = """
import sys
from dispose_rt.cli import main
status = main(sys.argv[1:])
loaded = {"torch", "diffusers", "transformers", "onnx", "export", "dispose_rt_export", "benchmarks"} & set(sys.modules)
sys.exit(f"{loaded} were imported" if loaded else status)
"""


def run_record(total_s: float) -> dict[str, Any]:
    shares = dict(zip(STAGES, (0.1, 0.0, 0.2, 0.05, 0.05, 0.5, 0.1), strict=True))
    return {
        **{"frames": 8, "total_s": total_s, "s_per_frame": total_s / 8, "first_frame_s": 0.95 * total_s},
        **{"peak_bytes": 5_000_000, "launches_per_step": 1, "graph_problem": None},
        "stages_s": {stage: max(share * total_s, 1e-6) for stage, share in shares.items()},
    }


def spreads(totals: list[float]) -> dict[str, Any]:
    runs = [run_record(total) for total in totals]

    def spread(values: list[float]) -> dict[str, float]:
        return {"median": float(np.median(values)), "spread": max(values) - min(values)}

    names = ("total_s", "s_per_frame", "first_frame_s", "peak_bytes")
    stages = {stage: spread([run["stages_s"][stage] for run in runs]) for stage in STAGES}
    return {**{name: spread([run[name] for run in runs]) for name in names}, "stages_s": stages}


def made_record(setup: measurement.Setup, totals: list[float]) -> dict[str, Any]:
    """What `measure` answers after runs that took so long."""
    return {
        "date": "2026-11-21T15:21:11+00:00",
        "machine": {"platform": "Linux", "cpu": "CPU, 2 cores", "memory_bytes": 25_000_000_000, "gpus": []},
        "versions": {"python": "3.11.7", "dispose-rt": "0.1.0", "onnxruntime": "1.31.1"},
        "engines": setup.describe_engines(),
        "device": {"asked": "auto", "opened": setup.device, "name": setup.device_name},
        "settings": setup.describe_settings(8),
        **{"load_s": 0.5, "warm_up": run_record(9.0), "runs": [run_record(total) for total in totals]},
        "summary": spreads(totals),
        "graph": {"captured": True, "launches_per_step": 1, "problem": None},
        **{"tile_step_s": 0.01, "lengths": [], "networks": [], "baseline": None},
    }


class Bench:
    """The command with runs that are made up: `totals` are their seconds."""

    def __init__(self, engines: Path) -> None:
        self.engines = engines
        self.totals = [2.0, 2.1, 2.2]
        self.failure: BaseException | None = None
        self.measured = 0

    def measure(self, setup: measurement.Setup, progress: Any, cancel: threading.Event | None) -> dict[str, Any]:
        self.measured += 1
        progress("run 1 of 3: denoise", 1, 25)
        if self.failure is not None:
            raise self.failure
        return made_record(setup, self.totals)

    def run(self, *words: str, device: str = "cpu") -> int:
        parser = argparse.ArgumentParser()
        command.add_arguments(parser)
        return command.run(parser.parse_args([str(self.engines), "--frames", "8", "--device", device, *words]))


@cache
def drawn_clip() -> Clip:
    return draw_clip(64, 64, 8)


def prepare(plan: Plan, manifest: Manifest) -> measurement.Setup:
    """Ask for no device."""
    assert plan.frames == 8
    return measurement.Setup(plan, manifest, drawn_clip(), "cpu", "CPU, 2 cores")


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    folder = tmp_path / "engines"
    manifest = replace(MANIFEST, folder=folder)
    made = Bench(folder)
    monkeypatch.setattr("dispose_rt.engines.manifest.read_manifests", lambda root: [manifest])
    monkeypatch.setattr(measurement, "measure", made.measure)
    monkeypatch.setattr(measurement, "prepare", prepare)
    return made


Captured = pytest.CaptureFixture[str]


# the command itself, on small engines


@pytest.fixture(scope="module")
def measured(golden_engines: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The command in a process of its own, outside the source tree."""
    folder = tmp_path_factory.mktemp("bench")
    engines = golden_engines(GoldenCase("one_tile_64"))
    words = ["bench", str(engines), "--frames", "2", "--steps", "2", "--runs", "1", "--lengths", "8"]
    words += ["--json", "new.json", "--plot", "new.png"]
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, *words], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in folder.iterdir()) == ["new.json", "new.png"]
    record = json.loads((folder / "new.json").read_text())
    return {"record": record, "out": done.stdout, "plot": folder / "new.png", "engines": engines, "folder": folder}


def test_the_table_says_what_the_record_says(measured: dict[str, Any]) -> None:
    record, lines = measured["record"], measured["out"].splitlines()
    cells = {line.split()[0]: line.split() for line in lines if line.startswith("  ")}
    for stage in STAGES:
        numbers = record["summary"]["stages_s"][stage]
        assert float(cells[stage][1]) == pytest.approx(numbers["median"], abs=6e-5)
        assert float(cells[stage][3]) == pytest.approx(numbers["spread"], abs=6e-5)
        share = 100 * numbers["median"] / record["summary"]["total_s"]["median"]
        assert float(cells[stage][5]) == pytest.approx(share, abs=0.06)
    assert cells["total"][5] == "100.0"
    assert float(cells["most"][2]) == pytest.approx(record["summary"]["peak_bytes"]["median"] / 1e6, abs=0.06)
    assert record["machine"]["cpu"] in next(line for line in lines if line.startswith("machine "))
    assert f"reproduce  {record['command']}" in lines


def test_lengths_are_measured_with_the_same_engines(measured: dict[str, Any]) -> None:
    record = measured["record"]
    [longer] = record["lengths"]
    assert (record["settings"]["frames"], record["settings"]["tiles"]) == (2, 1)
    assert (longer["frames"], longer["tiles"]) == (8, 2)
    assert tuple(longer["stages_s"]) == STAGES
    assert longer["s_per_frame"]["median"] == pytest.approx(longer["total_s"]["median"] / 8)


def test_the_reproducing_command_asks_for_the_same(measured: dict[str, Any]) -> None:
    record = measured["record"]
    words = record["command"].split()
    assert words[:3] == ["dispose-rt", "bench", str(measured["engines"])]
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    options = parser.parse_args(words[2:])
    plan = command.read_plan(options, command.read_engines(options.engines))
    assert (plan.frames, plan.steps, plan.overlap, plan.runs, plan.lengths) == (2, 2, 2, 1, (8,))
    assert command.reproducing_command(options, plan) == record["command"]


def test_the_plot_shows_the_record(measured: dict[str, Any], tmp_path: Path) -> None:
    save_plot(tmp_path / "again.png", measured["record"])
    assert (tmp_path / "again.png").read_bytes() == measured["plot"].read_bytes()


def test_a_plot_without_matplotlib_is_refused_before_the_runs(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match=r"pip install 'dispose-rt\[bench\]'"):
        bench.run("--plot", str(tmp_path / "new.png"))
    assert bench.measured == 0


def test_a_record_compares_with_itself(measured: dict[str, Any]) -> None:
    record, path = measured["record"], measured["folder"] / "new.json"
    earlier = comparison.read_record(path)
    comparison.refuse_others(path, earlier, record["engines"], record["settings"])
    ratios = comparison.compare_records(path, earlier, record)["ratios"]
    assert set(ratios) == {*STAGES, "total", "per frame", "first frame after"}
    assert set(ratios.values()) == {1.0}


# what it prints and writes


def test_json_without_a_file_is_all_that_is_printed(bench: Bench, capsys: Captured) -> None:
    assert bench.run("--json") == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["settings"]["frames"] == 8
    assert err == ""


def test_a_record_appears_whole_under_its_name(bench: Bench, tmp_path: Path, capsys: Captured) -> None:
    path = tmp_path / "new.json"
    path.write_text("old")
    assert bench.run("--json", str(path)) == 0
    assert json.loads(path.read_text())["summary"]["total_s"]["median"] == 2.1
    assert list(tmp_path.iterdir()) == [path]
    out = capsys.readouterr().out
    assert f"written    {path}: the record" in out
    assert "2.1000 s" in out


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), Cancelled("cancelled at denoise 1 of 25")])
def test_an_interrupted_measurement_leaves_files_as_they_were(
    failure: BaseException, bench: Bench, tmp_path: Path
) -> None:
    path, plot = tmp_path / "new.json", tmp_path / "new.png"
    path.write_text("old")
    bench.failure = failure
    with pytest.raises(type(failure)):
        bench.run("--json", str(path), "--plot", str(plot))
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_cannot_be_written_is_refused_before_the_runs(bench: Bench, tmp_path: Path) -> None:
    for words, message in (
        (["--json", str(tmp_path / "none" / "new.json")], "there is no folder"),
        (["--json", str(tmp_path)], "is a folder"),
        (["--plot", str(tmp_path / "new.jpg")], "ends in .png"),
        (["--plot", str(tmp_path / "none" / "new.png")], "there is no folder"),
    ):
        with pytest.raises(OutputError, match=message):
            bench.run(*words)
    assert bench.measured == 0


def test_what_is_measured_is_not_replaced(bench: Bench, tmp_path: Path) -> None:
    photo = tmp_path / "photo.png"
    photo.write_bytes(Path(REFERENCE).read_bytes())
    options = argparse.Namespace(json=None, plot=photo, ref=str(photo), video=DRIVE)
    options.__dict__.update(frames=None, stride=2, device="cpu", steps=2, overlap=None, runs=1, lengths=())
    with pytest.raises(OutputError, match="is what is measured"):
        command.read_plan(options, MANIFEST)


def test_a_record_that_cannot_be_written_in_the_end_is_a_typed_error(bench: Bench, tmp_path: Path) -> None:
    folder = tmp_path / "results"
    folder.mkdir()
    before = bench.measure

    def measure(*arguments: Any) -> dict[str, Any]:
        folder.rmdir()
        folder.write_text("no folder any more")
        return before(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measurement, "measure", measure)
        with pytest.raises(OutputError, match="writable folder"):
            bench.run("--json", str(folder / "new.json"))


def test_what_was_measured_is_kept_where_a_network_fails(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise EngineError("unet failed")

    monkeypatch.setattr(networks, "time_networks", fail)
    with pytest.raises(EngineError):
        bench.run("--networks", "--json", str(tmp_path / "new.json"), "--plot", str(tmp_path / "new.png"))
    assert json.loads((tmp_path / "new.json").read_text())["summary"]["total_s"]["median"] == 2.1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new.json", "new.png"]


def test_what_was_measured_is_kept_where_nobody_reads_the_table(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class ClosedPipe(io.StringIO):
        def writelines(self, lines: Any) -> None:
            if any("stage" in line for line in lines):
                raise BrokenPipeError

    monkeypatch.setattr(sys, "stdout", ClosedPipe())
    with pytest.raises(BrokenPipeError):
        bench.run("--json", str(tmp_path / "new.json"))
    assert json.loads((tmp_path / "new.json").read_text())["summary"]["total_s"]["median"] == 2.1


class FakeTerminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_a_line_that_is_gone_in_the_end(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = FakeTerminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    bench.run()
    assert "run 1 of 3: denoise 1/25" in terminal.getvalue()
    assert terminal.getvalue().endswith("\r\x1b[K")
    assert "\n" not in terminal.getvalue()


def test_noisy_runs_are_called_so(bench: Bench, capsys: Captured) -> None:
    bench.run()
    assert "note:" not in capsys.readouterr().out
    bench.totals = [2.0, 2.1, 3.0]
    bench.run()
    assert "note: the runs differ by 48 % of their median" in capsys.readouterr().out
    bench.totals = [2.0]
    bench.run()
    assert "note: one run has no spread" in capsys.readouterr().out


def test_a_gpu_and_its_backend_are_named() -> None:
    record = {
        "machine": {"cpu": "CPU", "memory_bytes": 1e11, "platform": "Linux", "gpus": [
            {"name": "NVIDIA H200", "driver_version": "13.0"}]},
        "versions": {"python": "3.11.7", "torch": "2.13.0", "tensorrt": "10.8"},
        "engines": {"backend": "aotinductor"}, "date": "today", "command": "dispose-rt bench engines",
    }  # fmt: skip
    machine, versions, _, reproduce = table.foot_lines(record)
    assert "NVIDIA H200 (driver for CUDA 13.0)" in machine
    assert versions == "versions   python 3.11.7, torch 2.13.0"
    assert reproduce == "reproduce  dispose-rt bench engines"


# comparing


def store_record(bench: Bench, path: Path, change: Callable[[dict[str, Any]], object] = lambda _: None) -> Path:
    bench.run("--json", str(path))
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))
    return path


def test_ratios_are_then_over_now(bench: Bench, tmp_path: Path, capsys: Captured) -> None:
    old = store_record(bench, tmp_path / "old.json", lambda record: record["engines"].update(precision="bf16"))
    bench.totals = [1.0, 1.05, 1.1]
    bench.run("--compare", str(old), "--json", str(tmp_path / "new.json"))
    lines = capsys.readouterr().out.partition(f"against {old}")[2].splitlines()
    assert "precision: bf16 then, fp32 now" in [line.strip() for line in lines]
    cells = {line.split()[0]: line.split() for line in lines[1:] if line}
    assert cells["denoise"] == ["denoise", "1.0500", "s", "0.5250", "s", "2.00"]
    ratios = json.loads((tmp_path / "new.json").read_text())["comparison"]["ratios"]
    assert ratios["denoise"] == pytest.approx(2)
    assert ratios["total"] == pytest.approx(2)


def test_a_ratio_within_the_spread_is_called_so(bench: Bench, tmp_path: Path, capsys: Captured) -> None:
    old = store_record(bench, tmp_path / "old.json")
    bench.totals = [1.9, 2.0, 2.1]
    bench.run("--compare", str(old))
    lines = capsys.readouterr().out.partition("against")[2].splitlines()
    assert next(line for line in lines if line.startswith("  total")).endswith("1.05   within the spread")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda record: record["settings"].update(steps=10), "steps: 10 there, 25 here"),
        (lambda record: record["settings"].update(frames=9, tiles=5), "frames: 9 there, 8 here\n  - tiles: 5 there"),
        (lambda record: record["settings"].update(clip_sha256="0" * 64), "but of other content"),
        (lambda record: record["settings"].update(clip="a.png", clip_sha256="0"), "clip: a.png there, a drawn puppet"),
        (lambda record: record["engines"]["sizes"].update(width=128), "width: 128 there, 64 here"),
        (lambda record: record["engines"]["sizes"].update(channels=[1, 2, 3, 4]), r"channels: \[1, 2, 3, 4\] there"),
    ],
)
def test_other_work_is_refused_before_the_runs(
    change: Callable[[dict[str, Any]], object], message: str, bench: Bench, tmp_path: Path
) -> None:
    old = store_record(bench, tmp_path / "old.json", change)
    with pytest.raises(InputError, match=f"(?s)old.json was measured with another clip.*{message}.*Measure the same: "):
        bench.run("--compare", str(old))
    assert bench.measured == 1


def test_the_same_pictures_may_have_other_names(bench: Bench, tmp_path: Path) -> None:
    old = store_record(bench, tmp_path / "old.json", lambda record: record["settings"].update(clip="elsewhere"))
    assert bench.run("--compare", str(old)) == 0


def test_records_from_before_clips_had_digests_are_compared_by_name(bench: Bench, tmp_path: Path) -> None:
    def age(record: dict[str, Any]) -> None:
        del record["settings"]["clip_sha256"], record["settings"]["stride"], record["lengths"]

    old = store_record(bench, tmp_path / "old.json", age)
    assert bench.run("--compare", str(old)) == 0
    store_record(bench, old, lambda record: (age(record), record["settings"].update(clip="another")))
    with pytest.raises(InputError, match="clip: another there"):
        bench.run("--compare", str(old))


def paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield (*path, key)
            yield from paths(inner, (*path, key))


def test_no_damage_to_a_record_shows_up_after_the_runs(bench: Bench, tmp_path: Path) -> None:
    """Every value taken out or replaced: the record is refused as one, or it does no harm."""
    whole = json.loads(store_record(bench, tmp_path / "old.json").read_text())
    refused, bench.measured = 0, 0
    for path in paths(whole):
        for damage in (None, "text", 0):
            body = copy.deepcopy(whole)
            inner = body
            for key in path[:-1]:
                inner = inner[key]
            inner[path[-1]] = damage
            (tmp_path / "damaged.json").write_text(json.dumps(body))
            before = bench.measured
            try:
                bench.run("--compare", str(tmp_path / "damaged.json"))
            except InputError:
                refused += 1
                assert bench.measured == before, (path, damage)
    assert refused > 50


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"settings": {}}', "{", '{"a": NaN}', "[" * 100_000])
def test_what_is_no_record_is_refused(text: str, bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / "old.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"old.json .*pass what --json FILE wrote"):
        bench.run("--compare", str(path))
    with pytest.raises(InputError, match="none.json"):
        bench.run("--compare", str(tmp_path / "none.json"))
    assert bench.measured == 0


# plans, clips, engines


@each(
    plan__message=[
        (Plan(ref="a.png"), "--ref and --video go together"),
        (Plan(ref="a.png", video="b.mp4", frames=3), "a video has its own"),
        (Plan(runs=0, frames=0), "--runs is 0.*--frames is 0"),
        (Plan(frames=10_001), "at most 10000"),
        (Plan(lengths=(3, 0)), "--lengths is 0"),
        (Plan(lengths=(3, 3)), "a length twice"),
        (Plan(overlap=3), r"overlap is 3; with tiles of 4 frames it must lie in 0\.\.2"),
        (Plan(steps=0), "steps is 0"),
        (Plan(stride=0), "stride is 0"),
    ]
)
def test_plans_that_do_not_fit_are_refused(plan: Plan, message: str) -> None:
    with pytest.raises(InputError, match=message):
        complete_plan(plan, TOY)


def test_plans_are_completed_for_the_engines() -> None:
    assert complete_plan(Plan(), TOY) == Plan(frames=12, overlap=2)
    assert complete_plan(Plan(), Sizes(576, 1024)) == Plan(frames=75, overlap=6)
    assert complete_plan(Plan(), replace(TOY, tile=3)).overlap == 1
    assert complete_plan(Plan(ref="a.png", video="b.mp4"), TOY).frames is None


def test_clips_are_known_by_their_content(tmp_path: Path) -> None:
    photo = tmp_path / "photo.png"
    photo.write_bytes(Path(REFERENCE).read_bytes())
    clip, renamed = open_clip(REFERENCE, DRIVE, 2), open_clip(str(photo), DRIVE, 2)
    assert clip.sha256 == renamed.sha256
    assert clip.description != renamed.description
    photo.write_bytes(photo.read_bytes() + b"\0")
    assert open_clip(str(photo), DRIVE, 2).sha256 != clip.sha256
    assert draw_clip(64, 64, 3).sha256 == draw_clip(64, 64, 3).sha256 != draw_clip(64, 64, 4).sha256
    with pytest.raises(InputError, match=r"none\.png"):
        open_clip(str(tmp_path / "none.png"), DRIVE, 2)


def test_one_of_several_directories_has_to_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    one = replace(MANIFEST, folder=Path("engines/a b"))
    both = [one, replace(one, folder=Path("engines/c"))]
    monkeypatch.setattr("dispose_rt.engines.manifest.read_manifests", lambda root: both)
    with pytest.raises(ManifestError, match="(?s)dispose-rt bench 'engines/a b'.*dispose-rt bench engines/c"):
        command.read_engines(Path("engines"))


def test_networks_are_not_timed_after_a_cancellation() -> None:
    cancel = threading.Event()
    cancel.set()
    manifest: Any = argparse.Namespace(networks={"unet": None})
    with pytest.raises(Cancelled, match="before the network unet"):
        networks.time_networks(manifest, "cpu", cancel=cancel)
