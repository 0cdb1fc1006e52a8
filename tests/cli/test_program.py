"""The command as a whole: help, usage errors, exit codes, and what importing it costs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import dispose_rt
from dispose_rt import cli
from dispose_rt.cli import program
from dispose_rt.cli.exit_codes import MEANINGS, ExitCode
from dispose_rt.errors import DeviceError, DeviceLostError, EngineError, OutOfMemoryError
from tests.every import every_item

from .conftest import Captured, FakeAnimator

COMMANDS = tuple(program._COMMANDS)
HEAVY = ("cv2", "av", "onnxruntime", "gradio", "torch", "diffusers", "transformers", "onnx", "PIL", "huggingface_hub")


def test_misused_commands(capsys: Captured) -> None:
    """Unknown words are answered with the usage, and the nearest known name."""
    hints = {
        "fly": "unknown command 'fly'",
        "inspect": "usage: dispose-rt inspect",
        "animate": "usage: dispose-rt animate",
        "--fast": "",
        "--quiet animate": "unrecognized arguments: --quiet",
        "animte": "unknown command 'animte'; did you mean animate?",
        "Doctor": "unknown command 'Doctor'; did you mean doctor?",
        "xyzzy": "unknown command 'xyzzy'; choose from animate, build, download, bench, inspect, doctor, page",
        "doctor --load-onyl": "unrecognized arguments: --load-onyl; did you mean --load-only?",
        "doctor --jsn=1": "unrecognized arguments: --jsn=1; did you mean --json?",
        "doctor --load": "unrecognized arguments: --load",  # no abbreviations
    }
    with every_item() as every:
        for line, hint in hints.items():
            with every(line):
                assert cli.main(line.split()) == 2
                err = capsys.readouterr().err
                assert hint in err
                assert "usage: dispose-rt" in err


def test_no_command_prints_the_help(capsys: Captured) -> None:
    assert cli.main([]) == 2
    assert "examples:" in capsys.readouterr().out


def test_help_has_examples(capsys: Captured) -> None:
    assert len(COMMANDS) == 8
    with every_item() as every:
        for argv in (["--help"], *([name, "--help"] for name in COMMANDS)):
            with every(*argv):
                assert cli.main(argv) == 0
                out = capsys.readouterr().out
                assert "examples:" in out
                assert f"usage: dispose-rt {argv[0] if len(argv) > 1 else '[-h]'}" in out
                assert len(argv) == 1 or "--json" in out
                assert len(argv) == 1 or "--debug" in out


def test_the_help_lists_every_command_and_exit_code(capsys: Captured) -> None:
    cli.main(["--help"])
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    for name in COMMANDS:
        assert any(line.startswith(f"{name} ") for line in lines)
    assert set(MEANINGS) == set(ExitCode)
    for code, meaning in MEANINGS.items():
        assert f"{code:d}  {meaning}" in lines


def test_version(capsys: Captured) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"dispose-rt {dispose_rt.__version__}\n"


ENDS: list[tuple[BaseException, int]] = [
    (EngineError("e"), 1),
    (DeviceError("there is no cuda:7"), 1),
    (OutOfMemoryError("3 GB are free, 5 GB are needed"), 3),
    (DeviceLostError("the GPU is gone"), 3),
    (MemoryError(), 3),
    (OSError(28, "No space left on device"), 1),
    (AttributeError("bug"), 70),
    (KeyboardInterrupt(), 130),
]


def test_exit_codes(animator: type[FakeAnimator], arguments: list[str], tmp_path: Path, capsys: Captured) -> None:
    with every_item() as every:
        for error, code in ENDS:
            animator.failure = error
            with every(type(error).__name__):
                assert cli.main([*arguments, "--json"]) == code
                out, err = capsys.readouterr()
                assert "Traceback" not in err
                assert err.strip().count("\n") == 0
                found = json.loads(out)["error"]
                assert found["type"] == ("Interrupted" if code == 130 else type(error).__name__)
                assert found["message"]
                assert list(tmp_path.iterdir()) == []


def test_a_bug_is_one_line(animator: type[FakeAnimator], arguments: list[str], capsys: Captured) -> None:
    animator.failure = AttributeError("no\n  such thing")
    assert cli.main(arguments) == 70
    err = capsys.readouterr().err
    assert err.startswith("dispose-rt: error: AttributeError: no such thing (a bug of dispose-rt; add --debug")
    assert err.count("\n") == 1


def test_a_bug_with_its_traceback(animator: type[FakeAnimator], arguments: list[str], capsys: Captured) -> None:
    animator.failure = AttributeError("bug")
    assert cli.main([*arguments, "--debug"]) == 70
    err = capsys.readouterr().err
    assert "Traceback (most recent call last)" in err
    assert "raise self.failure" in err
    assert "the traceback is above" in err.splitlines()[-1]


def test_usage_errors_as_json(capsys: Captured) -> None:
    assert cli.main(["animate", "--json", "--steps", "many"]) == 2
    out, err = capsys.readouterr()
    assert json.loads(out) == {
        "error": {"type": "UsageError", "message": "argument --steps: invalid int value: 'many'"}
    }
    assert "usage: dispose-rt animate" in err


IMPORTING = """
import json, sys
from dispose_rt import cli
heavy, light, run = json.loads(sys.argv[1])
for argv in light:
    cli.main(argv)
    print("imported", argv, sorted(set(heavy) & set(sys.modules)))
cli.main(run)
print("imported", run, sorted({"torch", "diffusers", "transformers", "onnx"} & set(sys.modules)))
"""


def test_the_command_line_imports_little(arguments: list[str]) -> None:
    """Help and refusals load nothing heavy, and a run loads no training framework. One process for all of them."""
    light = [["--help"], ["animate", "--help"], ["bench", "--help"], ["inspect", "nowhere"]]
    words = json.dumps([[*HEAVY, "tqdm", "matplotlib"], light, arguments])
    done = subprocess.run([sys.executable, "-c", IMPORTING, words], capture_output=True, text=True, check=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("imported")]
    assert lines == [f"imported {argv} []" for argv in (*light, arguments)]


@pytest.fixture
def into_a_closed_pipe() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the command with one of its outputs connected to a pipe that nobody reads."""

    def run(stream: str, *argv: str) -> subprocess.CompletedProcess[str]:
        reader, writer = os.pipe()
        os.close(reader)
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | {stream: writer}
        command = [sys.executable, "-u", "-m", "dispose_rt", *argv]
        done = subprocess.run(command, **streams, text=True, check=False)
        os.close(writer)
        return done

    return run


def test_help_into_a_closed_pipe(into_a_closed_pipe: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = into_a_closed_pipe("stdout", "--help")
    assert (done.returncode, done.stderr) == (0, "")


def test_errors_into_a_closed_pipe(into_a_closed_pipe: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    """That nobody reads messages changes no exit code."""
    done = into_a_closed_pipe("stderr", "inspect", "nowhere", "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["error"]["type"] == "ManifestError"


def test_names_that_cannot_be_printed(engine_directory: Path) -> None:
    odd = engine_directory.with_name(os.fsdecode("scène-".encode() + b"\xff"))  # the last byte is no UTF-8
    engine_directory.rename(odd)
    command = [sys.executable, "-m", "dispose_rt", "inspect", odd]
    with every_item() as every:
        for encoding, printed in (("ascii", rb"sc\xe8ne-\udcff"), ("utf-8", "scène-".encode() + rb"\udcff")):
            with every(encoding):
                environment = os.environ | {"PYTHONIOENCODING": encoding}
                done = subprocess.run(command, capture_output=True, env=environment, check=False)
                assert (done.returncode, done.stderr) == (0, b"")
                assert done.stdout.splitlines()[0].endswith(printed)
