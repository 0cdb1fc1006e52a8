"""The examples, for real: each in a process of its own, on toy engines."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dispose_rt_export.command import add_arguments

from dispose_rt.media import open_video, read_image, write_video
from dispose_rt.pictures import save_png
from dispose_rt.puppet import Stance, dance, draw_puppet, place_joints
from examples import demo

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
WIDTH, HEIGHT, FRAMES = 128, 192, 3


@pytest.fixture(scope="module")
def engines(toy_engines: Callable[[int, int], Path]) -> Path:
    return toy_engines(WIDTH, HEIGHT)


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    picture = draw_puppet(place_joints(Stance(), WIDTH / HEIGHT), HEIGHT, WIDTH)
    return save_png(tmp_path_factory.mktemp("media") / "photo.png", picture)


@pytest.fixture(scope="module")
def clip(photo: Path) -> Path:
    figures = dance(2 * FRAMES, WIDTH / HEIGHT, stance=Stance(), period=24)
    return write_video(photo.with_name("dance.mp4"), [draw_puppet(one, HEIGHT, WIDTH) for one in figures], 24)


def run_example(name: str, *arguments: object, text: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), *map(str, arguments), "--steps", "1"]
    return subprocess.run(command, input=text, capture_output=True, text=True, check=False, timeout=300)


def test_every_example_is_tried() -> None:
    names = ["animate_clip", "demo", "serve_jobs", "stream_frames"]
    assert sorted(path.stem for path in EXAMPLES.glob("*.py")) == names


def test_demo(
    engines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With engines that are built already; the command that would build them is one that the exporter takes."""
    commands: list[list[str]] = []

    def link(command: list[str], *, check: bool) -> None:
        commands.append(command)
        (tmp_path / "out" / "engines").parent.mkdir()
        (tmp_path / "out" / "engines").symlink_to(engines)

    monkeypatch.setattr(subprocess, "run", link)
    assert demo.main(["--output", str(tmp_path / "out"), "--frames", "4", "--steps", "1"]) == 0
    [[*python, command], words] = commands[0][:4], commands[0][4:]
    assert (python, command) == ([sys.executable, "-m", "dispose_rt"], "build")
    options = add_arguments(argparse.ArgumentParser()).parse_args(words)
    assert (options.random_weights, options.output) == ("toy", tmp_path / "out" / "engines")
    video, sheet = open_video(tmp_path / "out" / "demo.mp4"), tmp_path / "out" / "demo.png"
    assert len(list(video.frames())) == 2  # every other one of 24 per second
    assert read_image(sheet).shape[0] > 6 * 192  # rows of pictures
    assert "the same by hand: " in capsys.readouterr().out


def test_animate_clip(engines: Path, photo: Path, clip: Path, tmp_path: Path) -> None:
    done = run_example("animate_clip", engines, photo, clip, tmp_path / "out.mp4")
    assert done.returncode == 0, done.stderr
    assert f"{FRAMES} frames" in done.stdout
    assert len(list(open_video(tmp_path / "out.mp4").frames())) == FRAMES


def test_animate_clip_explains_an_error(engines: Path, photo: Path, tmp_path: Path) -> None:
    done = run_example("animate_clip", engines, photo, tmp_path / "none.mp4", tmp_path / "out.mp4")
    assert done.returncode == 1
    assert "does not exist" in done.stderr
    assert "Traceback" not in done.stderr


def test_stream_frames(engines: Path, photo: Path, clip: Path, tmp_path: Path) -> None:
    done = run_example("stream_frames", engines, photo, clip, tmp_path / "frames")
    assert done.returncode == 0, done.stderr
    written = open_video(tmp_path / "frames")
    assert [one.name for one in sorted((tmp_path / "frames").iterdir())] == [f"{k:05}.png" for k in range(FRAMES)]
    assert np.stack(list(written.frames())).shape == (FRAMES, HEIGHT, WIDTH, 3)


def test_serve_jobs(engines: Path, photo: Path, clip: Path, tmp_path: Path) -> None:
    def job(name: str, video: Path) -> dict[str, Any]:
        return {"id": name, "reference": str(photo), "video": str(video), "output": str(tmp_path / f"{name}.mp4")}

    messages = [job("good", clip), job("bad", tmp_path / "none.mp4"), job("unwanted", clip), job("last", clip)]
    messages.append({"id": "unwanted", "cancel": True})
    done = run_example("serve_jobs", engines, text="".join(json.dumps(message) + "\n" for message in messages))
    assert done.returncode == 0, done.stderr
    told = [json.loads(line) for line in done.stdout.splitlines()]
    ends = {message["id"]: message for message in told if "stage" not in message}
    assert ends["good"]["frames"] == ends["last"]["frames"] == FRAMES
    assert ends["bad"]["error"].startswith("InputError: ")
    assert ends["unwanted"]["error"].startswith("Cancelled: ")
    assert {path.name for path in tmp_path.iterdir()} == {"good.mp4", "last.mp4"}
    assert {"pose", "load", "denoise", "decode"} <= {message.get("stage") for message in told}
