"""`dispose-rt inspect`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dispose_rt import cli
from dispose_rt.contract import NETWORKS
from dispose_rt.media import write_video
from tests.engines.test_preflight import write_compiled
from tests.every import every_item

from .conftest import Captured


def test_inspect(engine_directory: Path, capsys: Captured) -> None:
    assert cli.main(["inspect", str(engine_directory)]) == 0
    out = capsys.readouterr().out
    lines = [line.strip() for line in out.splitlines()]
    assert lines[0] == str(engine_directory)
    assert "output     128x192 pixels, tiles of 8 frames, decoded 4 at a time" in lines
    assert "engines    onnxruntime, fp16, 91.0 KB" in lines
    assert "built with dispose_rt 0.1.0, torch 2.13.0" in lines
    assert "weights    DisPose.pth sha256 0123456789abcdef" in lines
    assert "unet: 12.0 KB, float16, unet.onnx" in lines
    assert "in  sparse_flow float32 [frames<=8, 2, 384, 384]" in lines
    assert "in  pose_latents float16 [8, 320, 24, 16]" in lines
    assert "out residual_0 float16 [16, 320, 24, 16]" in lines
    assert "out frames float32 [chunk<=4, 3, 192, 128]" in lines
    for name in NETWORKS:
        assert f"  {name}: " in out


def test_inspect_compiled_engines(tmp_path: Path, capsys: Captured) -> None:
    write_compiled(tmp_path / "e", "tensorrt")
    assert cli.main(["inspect", str(tmp_path / "e")]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert any(line.startswith("engines    tensorrt, fp16, ") for line in lines)
    assert "targets    sm_89, sm_120" in lines
    assert "person_detector: 754 bytes, float32, person_detector.onnx, onnxruntime" in lines
    assert "unet: 248 bytes, float16, unet.plan" in lines


def test_inspect_a_folder_of_directories(engine_directory: Path, capsys: Captured) -> None:
    assert cli.main(["inspect", str(engine_directory.parent), "--verify"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(str(engine_directory))
    assert out.endswith("all files have the recorded sizes and hashes\n")


def test_inspect_finds_damage(engine_directory: Path, capsys: Captured) -> None:
    (engine_directory / "unet.onnx").write_bytes(b"short")
    (engine_directory / "dift.onnx").unlink()
    assert cli.main(["inspect", str(engine_directory), "--verify"]) == 1
    err = capsys.readouterr().err
    assert "unet: unet.onnx has 5 bytes" in err
    assert "dift: dift.onnx is missing" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("name", ["empty", "missing", "file"])
def test_inspect_of_something_else(tmp_path: Path, name: str, capsys: Captured) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_bytes(b"x")
    assert cli.main(["inspect", str(tmp_path / name)]) == 1
    err = capsys.readouterr().err
    assert err.startswith("dispose-rt: error: ")
    assert "Traceback" not in err


def test_inspect_of_videos(tmp_path: Path, capsys: Captured) -> None:
    """A record is shown and its control characters are escaped; anything else in a comment is not shown at all."""
    path, frames = tmp_path / "out.mp4", np.zeros((1, 64, 64, 3), np.uint8)
    record = {"format": "dispose_rt provenance", "settings": {"seed": 3}, "versions": {"x": "\x1b[2J\u202e\x00"}}
    write_video(path, frames, 8, metadata={"comment": f"\x1b[31mred\n{json.dumps(record)}"})
    assert cli.main(["inspect", str(path)]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{path}\n{{\n")
    assert '"seed": 3' in out
    assert out.isascii()
    assert "\x1b" not in out
    assert "red" not in out
    assert cli.main(["inspect", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"video": str(path), "provenance": record}
    with every_item() as every:
        for comment in (
            *("made with another program", "{", "[" * 50_000, '{"a": ' * 50_000, '{"seed": ' + "9" * 5000 + "}"),
            *('{"format": "dispose_rt provenance", "x": NaN}', '{"format": "another"}', "3", "\x1b[2J"),
            json.dumps({**record, "x": [[[[[3]]]]]}),
            json.dumps({**record, "x": "x" * 70_000}),
        ):
            with every(comment[:40]):
                write_video(path, frames, 8, metadata={"comment": comment})
                assert cli.main(["inspect", str(path)]) == 1
                out, err = capsys.readouterr()
                assert out == ""
                assert f"the video {path} has no record of how it was made" in err
        for arguments, words in (([str(path), "--verify"], "leave it out"), (["none.mp4"], "does not exist")):
            with every(*arguments):
                assert cli.main(["inspect", *arguments]) == 1
                assert words in capsys.readouterr().err


def test_a_closed_pipe_is_no_error(engine_directory: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-u", "-m", "dispose_rt", "inspect", str(engine_directory)]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


def test_inspect_as_json(engine_directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    monkeypatch.setenv("DISPOSE_RT_ENGINES", str(engine_directory.parent))
    assert cli.main(["inspect", "--json", "--verify"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["verified"]
    [directory] = found["directories"]
    assert directory["directory"] == str(engine_directory)
    assert (directory["width"], directory["height"], directory["tile_frames"]) == (128, 192, 8)
    assert (directory["backend"], directory["precision"], directory["size_bytes"]) == ("onnxruntime", "fp16", 91_000)
    networks = {network["name"]: network for network in directory["networks"]}
    assert list(networks) == list(NETWORKS)
    assert networks["unet"]["files"] == ["unet.onnx"]
    assert networks["unet"]["compute_dtype"] == "float16"
    frames = {"name": "frames", "dtype": "float32", "shape": ["chunk<=4", "3", "192", "128"]}
    assert frames in networks["vae_decoder"]["outputs"]


def test_damage_as_json(engine_directory: Path, capsys: Captured) -> None:
    (engine_directory / "unet.onnx").unlink()
    assert cli.main(["inspect", str(engine_directory), "--json", "--verify"]) == 1
    out, err = capsys.readouterr()
    error = json.loads(out)["error"]
    assert error["type"] == "ManifestError"
    assert "unet: unet.onnx is missing" in error["message"]
    assert "unet: unet.onnx is missing" in err
