"""The command `dispose-rt`, for real: build, inspect, animate, in processes of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dispose_rt import Animator
from dispose_rt.media import open_video
from tests.golden_case import GoldenCase
from tests.golden_data import GOLDEN

MEDIA = ("--reference", str(GOLDEN / "ref.png"), "--video", str(GOLDEN / "drive.mkv"))
OPTIONS = ("--steps", "1", "--overlap", "2", "--stride", "6", "--seed", "3")


@pytest.fixture(scope="module")
def engines(golden_engines: Callable[..., Path]) -> Path:
    return golden_engines(GoldenCase("one_tile_64"))


@pytest.fixture(autouse=True)
def caches(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nobody's real caches."""
    folder = tmp_path_factory.mktemp("caches")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


def command_line(*arguments: object) -> list[str]:
    return [str(Path(sys.executable).with_name("dispose-rt")), *map(str, arguments)]


def dispose_rt(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command_line(*arguments), capture_output=True, text=True, check=False)


def test_animate_writes_what_the_api_returns(engines: Path, tmp_path: Path) -> None:
    done = dispose_rt("animate", "--engines", engines, *MEDIA, "--output", tmp_path / "out.mp4", *OPTIONS)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]
    written = open_video(tmp_path / "out.mp4")
    assert written.fps == pytest.approx(4)
    frames = np.stack(list(written.frames()))
    with Animator(engines) as animator:
        expected = animator.run(MEDIA[1], MEDIA[3], steps=1, overlap=2, stride=6, seed=3, progress=False).frames
    assert frames.shape == expected.shape
    # H.264 halves the resolution of colour and rounds: near in the mean, not pixel by pixel
    assert np.abs(frames.mean((1, 2)) - expected.mean((1, 2))).max() < 4


def test_animate_for_machines(engines: Path, tmp_path: Path, caches: Path) -> None:
    """One document, a tick per line, pictures of the stages, and poses that the next run need not look for."""
    output, seen = tmp_path / "tänzerin 舞.gif", tmp_path / "seen"
    animate = ("animate", *MEDIA, *OPTIONS, "--output", output, "--json", "--progress", "json", "--debug-dir", seen)
    done = subprocess.run(
        command_line(*animate),
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"DISPOSE_RT_ENGINES": str(engines)},
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    written = list(open_video(output).frames())
    assert (result["output"], result["frames"], result["size"]) == (str(output), len(written), [64, 64])
    assert result["peak_bytes"] > 0
    stages = ["pose", "load", "motion", "appearance", "conditions", "denoise", "decode"]
    assert list(result["stages_s"]) == stages
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    ticks = [line for line in lines if "stage" in line]
    assert list(dict.fromkeys(tick["stage"] for tick in ticks)) == stages
    for stage in stages:
        last = [tick for tick in ticks if tick["stage"] == stage][-1]
        assert last["done"] == last["total"]
    assert (seen / "index.html").exists()
    assert len(list((caches / "dispose-rt" / "poses").iterdir())) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="signals of this kind are POSIX")
def test_sigterm_ends_a_run_in_order(engines: Path, tmp_path: Path) -> None:
    output = (
        "--output",
        tmp_path / "out.mp4",
        "--steps",
        "1000",
        "--overlap",
        "2",
        "--controls",
        "none",
        "--progress",
        "json",
    )
    command = command_line("animate", "--engines", engines, *MEDIA, *output)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if json.loads(line).get("stage") == "denoise":
                break
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=120)
    assert process.returncode == 143
    assert json.loads(err.splitlines()[-1]) == {"error": {"type": "Interrupted", "message": "interrupted"}}
    assert out == ""
    assert list(tmp_path.iterdir()) == []


def test_inspect_describes_the_directory(engines: Path) -> None:
    done = dispose_rt("inspect", engines, "--verify")
    assert done.returncode == 0, done.stderr
    for word in ("64x64", "fp32", "onnxruntime", "unet", "motion_features"):
        assert word in done.stdout


def test_build_builds(golden_checkpoint: Path, tmp_path: Path) -> None:
    output = ("--output", tmp_path / "e", "--size", "64x64", "--only", "point_encoder")
    done = dispose_rt("build", "--weights", golden_checkpoint, *output)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "e" / "point_encoder.onnx").exists()


def test_errors_are_one_message(engines: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    video = ("--reference", MEDIA[1], "--video", tmp_path / "empty.mp4", "--output", tmp_path / "out.mp4")
    done = dispose_rt("animate", "--engines", engines, *video)
    assert done.returncode == 1
    assert "empty.mp4" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out.mp4").exists()
