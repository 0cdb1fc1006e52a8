"""What `dispose-rt bench`, benchmarks/speed/latency.py and benchmarks/speed/graph_step.py report is what happened."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from dispose_rt import Animation
from dispose_rt.bench import measurement
from dispose_rt.bench.clip import Clip, draw_clip
from dispose_rt.bench.networks import time_networks
from dispose_rt.bench.runs import Runner, RunTimes, summarise
from dispose_rt.contract import Sizes
from dispose_rt.device import Graph
from dispose_rt.engines.backends.aotinductor_package import PackageLabel
from dispose_rt.engines.backends.onnxruntime import OnnxRuntimeLoader
from dispose_rt.engines.manifest import FileRecord, Manifest, NetworkRecord, read_manifest
from dispose_rt.engines.signature import contract_signature
from dispose_rt.errors import DeviceError, InputError
from dispose_rt.stages.denoise.tiles import plan_tiles
from tests.golden_case import GoldenCase
from tests.stages.denoise.test_loop import Clip as DenoisedClip
from tests.stages.denoise.test_loop import CountingLoader, Setup

pytest.importorskip("torch")

from benchmarks.reference.results import Baseline, BaselineSetting, StepTimes
from benchmarks.speed import graph_step, latency, unfinished_directory
from benchmarks.speed.latency_baseline import Comparison, Ours, measure_beside, scale_of
from tests.every import each

CASE = GoldenCase("one_tile_64")
STAGES = ("pose", "load", "motion", "appearance", "conditions", "denoise", "decode")


@pytest.fixture(scope="module")
def engines(golden_engines: Callable[..., Path]) -> Path:
    """Tiles of 7 frames; the detectors of the golden checkpoint find one person in anything."""
    return golden_engines(CASE)


@pytest.fixture(scope="module")
def measured(engines: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """A record as it was written, and the plot."""
    folder = tmp_path_factory.mktemp("latency")
    record, plot = folder / "latency.json", folder / "latency.png"
    words = [str(engines), "--frames", "8", "--steps", "2", "--runs", "2", "--json", str(record), "--plot", str(plot)]
    assert latency.main(words) == 0
    return json.loads(record.read_text()), plot


def test_runs_are_measured_stage_by_stage(measured: tuple[dict[str, Any], Path], engines: Path) -> None:
    record, _ = measured
    assert record["command"].startswith(f"python benchmarks/speed/latency.py {engines} --frames 8")
    assert record["settings"]["frames"] == 8
    assert record["settings"]["tiles"] == len(plan_tiles(9, 7, 2)) == 2
    assert len(record["runs"]) == 2
    for run in (record["warm_up"], *record["runs"]):
        assert tuple(run["stages_s"]) == STAGES
        assert sum(run["stages_s"].values()) <= run["total_s"]
        before_decoding = sum(seconds for stage, seconds in run["stages_s"].items() if stage != "decode")
        assert before_decoding < run["first_frame_s"] < run["total_s"]
        assert run["s_per_frame"] == run["total_s"] / 8
        assert run["peak_bytes"] > 0
    assert record["warm_up"]["stages_s"]["load"] > 10 * record["runs"][0]["stages_s"]["load"]
    assert record["load_s"] > record["warm_up"]["stages_s"]["load"]


def test_the_summary_is_of_the_measured_runs(measured: tuple[dict[str, Any], Path]) -> None:
    record, _ = measured
    totals = [run["total_s"] for run in record["runs"]]
    assert record["summary"]["total_s"] == {
        "median": pytest.approx(sum(totals) / 2),
        "spread": pytest.approx(abs(totals[0] - totals[1])),
    }
    denoise_s = record["summary"]["stages_s"]["denoise"]["median"]
    assert record["tile_step_s"] == pytest.approx(denoise_s / (2 * 2))
    assert record["graph"]["launches_per_step"] in (1, 2)  # a whole step, or its tiles where the machine is slow
    assert record["graph"] | {"launches_per_step": 1} == {"captured": True, "launches_per_step": 1, "problem": None}
    assert record["networks"] == []
    assert record["baseline"] is None


def test_the_plot_is_a_picture(measured: tuple[dict[str, Any], Path]) -> None:
    assert cv2.imread(str(measured[1])).shape[1] == 1400


class RefusingLoader(CountingLoader):
    """What cannot capture anything."""

    def capture(self, body: Callable[[], None]) -> Graph:
        raise DeviceError("somebody waits")


class DenoisingAnimator:
    """Denoises with the runtime's own loop, and makes the other stages up."""

    def __init__(self, loader: CountingLoader) -> None:
        self.setup = Setup(loader=loader)

    def run(self, ref: Any, video: Any, *, progress: Any, output: Path, steps: int, **_: Any) -> Animation:
        self.setup.ticks.clear()
        self.setup.run(DenoisedClip(7))
        for done, total in self.setup.ticks:
            progress("denoise", done, total)
        progress("decode", 0, 6)
        progress("decode", 3, 6)
        return Animation(np.zeros((6, 2, 2, 3), np.uint8), 24, {"denoise": 1.0}, 5)


@each(captured=[True, False])
def test_whether_steps_were_captured_is_said_in_every_run(captured: bool) -> None:
    loader = CountingLoader() if captured else RefusingLoader()
    animator: Any = DenoisingAnimator(loader)
    runner = Runner(animator, Clip("ref", "video", 1, ""), {"steps": 4})
    tiles = len(plan_tiles(7, 4, 2))
    for _ in range(2):  # the runtime warns in the first one alone
        run = runner.run()
        assert run.graph_problem is None if captured else "somebody waits" in str(run.graph_problem)
        assert run.launches_per_step == (1 if captured else tiles)
        assert run.peak_bytes == 5


def test_every_network_is_timed_at_its_largest_batch(engines: Path) -> None:
    manifest = read_manifest(engines)
    chosen = {name: manifest.networks[name] for name in ("person_detector", "pose_net", "unet", "vae_decoder")}
    times = time_networks(replace(manifest, networks=chosen), "cpu", measure_s=0)
    assert [time.network for time in times] == list(chosen)
    assert [time.batch for time in times] == [{}, {"frames": 7}, {}, {"chunk": 4}]
    assert all(time.rounds == 1 and time.seconds > 0 and time.device == "cpu" for time in times)


def test_summaries_take_medians_and_spreads() -> None:
    run = RunTimes(4, 10.0, {"pose": 2.0}, 9.0, 7, 1, None)
    summary = summarise([run, replace(run, total_s=13.0, stages_s={"pose": 5.0}), replace(run, total_s=40.0)])
    assert summary["total_s"] == {"median": 13.0, "spread": 30.0}
    assert summary["s_per_frame"] == {"median": 3.25, "spread": 7.5}
    assert summary["stages_s"] == {"pose": {"median": 2.0, "spread": 3.0}}


def test_ratios_are_baseline_over_ours_and_say_what_was_measured() -> None:
    step = StepTimes(tile_s=0.6, spread_s=0.0, tiles_measured=3, parts_s={}, per_step_s=0.0)
    baseline = Baseline(BaselineSetting("cpu", frames=16), "CPU", {"decode": 15.0}, step, step, finite=True)
    comparison = Comparison(baseline, Ours(tile_step_s=0.2, s_per_frame=0.5))
    assert comparison.tile_step_ratio == pytest.approx(3)
    assert comparison.s_per_frame_ratio == pytest.approx((25 * 0.6 / 10 + 1) / 0.5)
    assert comparison.record()["ratio"] == {"tile_step": pytest.approx(3), "s_per_frame": pytest.approx(5)}
    tile_step, s_per_frame = (line for line in str(comparison).splitlines() if "ratio" in line)
    assert "extrapolated" not in tile_step
    assert "ratio 3.00" in tile_step
    assert "extrapolated" in s_per_frame.partition("ours")[0]
    assert "measured" in s_per_frame.partition("ours")[2]
    assert Comparison(baseline, Ours(0.2, None)).record()["ratio"]["s_per_frame"] is None


def test_scales_are_told_by_the_widths() -> None:
    assert scale_of(Sizes(64, 64)) == "full"
    assert scale_of(Sizes(64, 64, channels=(32, 64, 128, 128), embed=48)) == "toy"
    assert scale_of(Sizes(64, 64, channels=(32, 64, 128, 128))) is None


def test_the_drawn_clip_has_the_engines_size() -> None:
    clip = draw_clip(64, 128, 3)
    assert (np.shape(clip.ref), np.shape(clip.video), clip.stride) == ((128, 64, 3), (3, 128, 64, 3), 1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--ref", "a.png"], "--ref and --video go together"),
        (["--ref", "a.png", "--video", "b.mp4", "--frames", "3"], "a video has its own"),
        (["--runs", "0"], "--runs is 0"),
        (["--frames", "0"], "--frames is 0"),
        (["--scale", "full"], "these engines are of toy scale"),
        (["--baseline", "--steps", "1"], "--baseline: it needs at least 2 steps"),
        (["--baseline", "--overlap", "0"], "it needs an overlap of 1..5"),
        (["--baseline", "--frames", "5"], "at least 6 frames beside the reference"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(
    words: list[str], message: str, engines: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert latency.main([str(engines), *words]) == 2
    assert message in capsys.readouterr().err


def test_the_baseline_needs_widths_that_random_weights_have(
    engines: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = read_manifest(engines)
    other = replace(manifest, sizes=replace(manifest.sizes, channels=(4, 8, 12, 16)))
    monkeypatch.setattr(latency, "read_engines", lambda folder: other)
    assert latency.main([str(engines), "--baseline"]) == 2
    assert "--random-weights" in capsys.readouterr().err
    with pytest.raises(InputError, match="--random-weights"):
        measure_beside(other, "cpu", 7, 2, 3, 2.0, 1.0)


def test_what_was_measured_is_kept_where_the_baseline_fails(
    measured: tuple[dict[str, Any], Path], engines: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*_: Any) -> Baseline:
        raise InputError("no room")

    monkeypatch.setattr(measurement, "measure", lambda *_: measured[0])
    monkeypatch.setattr(latency, "measure_beside", fail)
    path = tmp_path / "latency.json"
    assert latency.main([str(engines), "--baseline", "--json", str(path)]) == 1
    assert json.loads(path.read_text())["runs"] == measured[0]["runs"]


def test_a_directory_that_is_none_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert latency.main([str(tmp_path)]) == 2
    assert str(tmp_path) in capsys.readouterr().err


@pytest.mark.slow
def test_toy_engines_beside_the_baseline(toy_engines: Callable[[int, int], Path], tmp_path: Path) -> None:
    """The whole command at once, with a puppet that the pose networks find."""
    record = tmp_path / "latency.json"
    words = [str(toy_engines(64, 128)), "--frames", "5", "--steps", "3", "--runs", "1"]
    assert latency.main([*words, "--networks", "--baseline", "--json", str(record)]) == 0
    body = json.loads(record.read_text())
    assert len(body["networks"]) == len(read_manifest(Path(words[0])).networks)
    assert body["baseline"]["setting"]["frames"] == body["settings"]["frames"] + 1 == 6
    assert body["baseline"]["ratio"]["tile_step"] == body["baseline"]["step"]["tile_s"] / body["tile_step_s"]


# whole steps as graphs


def test_a_step_is_one_graph_and_computes_the_same(engines: Path, tmp_path: Path) -> None:
    path = tmp_path / "graph.json"
    assert graph_step.main([str(engines), "--frames", "9", "--overlap", "2", "--json", str(path)]) == 0
    step = json.loads(path.read_text())["step"]
    assert step["tiles"] == 2
    assert step["problem"] is None
    assert step["difference"] == 0
    assert step["finite"]
    assert step["tile_step_s"] == step["graph_s"] / 2 > 0


def test_a_step_that_cannot_be_captured_is_a_failure(
    engines: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(loader: OnnxRuntimeLoader, body: Callable[[], None]) -> Graph:
        raise DeviceError("somebody waits")

    monkeypatch.setattr(OnnxRuntimeLoader, "capture", refuse)
    assert graph_step.main([str(engines), "--frames", "3", "--overlap", "2"]) == 1
    assert "NOT captured: somebody waits" in capsys.readouterr().out


def write_unfinished(folder: Path, sizes: Sizes, backend: str = "aotinductor") -> dict[str, NetworkRecord]:
    (folder / ".build").mkdir(parents=True)
    records = {}
    for name in ("controlnet", "unet"):
        files = (FileRecord(f"{name}.pt2", 3, "0" * 64),)
        records[name] = NetworkRecord(files, "key", "float16", {"noise_pred": 0.1}, backend)
        body = {"record": records[name].to_json(), "stamps": {}, "seconds": 1.0}
        (folder / ".build" / f"{name}.json").write_text(json.dumps(body))
    return records


def test_an_unfinished_directory_has_the_sizes_of_its_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = Sizes(576, 1024, tile=12, channels=(32, 64, 96, 128), embed=48)

    def label(path: Path) -> PackageLabel:
        signature = contract_signature(path.stem, sizes, "float16")
        return PackageLabel(path.stem, "sm_90", "2.11.0", "linux x86_64", (), {}, signature)

    monkeypatch.setattr(unfinished_directory, "read_label", label)
    records = write_unfinished(tmp_path / "engines", sizes)
    manifest: Manifest = unfinished_directory.read_directory(tmp_path / "engines")
    assert manifest.sizes == sizes
    assert manifest.networks == records
    assert (manifest.precision, manifest.targets) == ("fp16", ("sm_90",))


def test_an_unfinished_directory_without_the_packages_says_how_to_build_them(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="neither a manifest nor a finished controlnet; build it: dispose-rt build"):
        unfinished_directory.read_directory(tmp_path)
    write_unfinished(tmp_path / "engines", Sizes(64, 64), "onnxruntime")
    with pytest.raises(InputError, match="its controlnet is for onnxruntime"):
        unfinished_directory.read_directory(tmp_path / "engines")
