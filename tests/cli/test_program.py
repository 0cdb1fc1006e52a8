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

from .conftest import Captured, FakeAnimator

COMMANDS = tuple(program._COMMANDS)
HEAVY = ("cv2", "av", "onnxruntime", "gradio", "torch", "diffusers", "transformers", "onnx", "PIL", "huggingface_hub")


@pytest.mark.parametrize("argv", [["fly"], ["inspect"], ["animate"], ["--fast"], ["--quiet", "animate"]])
def test_unknown_commands(argv: list[str], capsys: Captured) -> None:
    assert cli.main(argv) == 2
    assert "usage: dispose-rt" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "hint"),
    [
        (["animte"], "unknown command 'animte'; did you mean animate?"),
        (["Doctor"], "unknown command 'Doctor'; did you mean doctor?"),
        (["xyzzy"], "unknown command 'xyzzy'; choose from animate, build, download, bench, inspect, doctor, page"),
        (["doctor", "--load-onyl"], "unrecognized arguments: --load-onyl; did you mean --load-only?"),
        (["doctor", "--jsn=1"], "unrecognized arguments: --jsn=1; did you mean --json?"),
        (["doctor", "--load"], "unrecognized arguments: --load"),  # no abbreviations
    ],
)
def test_the_nearest_name_is_suggested(argv: list[str], hint: str, capsys: Captured) -> None:
    assert cli.main(argv) == 2
    assert hint in capsys.readouterr().err


def test_no_command_prints_the_help(capsys: Captured) -> None:
    assert cli.main([]) == 2
    assert "examples:" in capsys.readouterr().out


@pytest.mark.parametrize("argv", [["--help"], *([name, "--help"] for name in COMMANDS)], ids=" ".join)
def test_help_has_examples(argv: list[str], capsys: Captured) -> None:
    assert cli.main(argv) == 0
    out = capsys.readouterr().out
    assert "examples:" in out
    assert f"usage: dispose-rt {argv[0] if len(argv) > 1 else '[-h]'}" in out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_speaks_json_and_debugs(name: str, capsys: Captured) -> None:
    assert cli.main([name, "--help"]) == 0
    out = capsys.readouterr().out
    assert "--json" in out
    assert "--debug" in out


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


def test_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "dispose_rt", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"dispose-rt {dispose_rt.__version__}\n"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (EngineError("e"), 1),
        (DeviceError("there is no cuda:7"), 1),
        (OutOfMemoryError("3 GB are free, 5 GB are needed"), 3),
        (DeviceLostError("the GPU is gone"), 3),
        (MemoryError(), 3),
        (OSError(28, "No space left on device"), 1),
        (AttributeError("bug"), 70),
        (KeyboardInterrupt(), 130),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_exit_codes(
    animator: type[FakeAnimator],
    arguments: list[str],
    error: BaseException,
    code: int,
    tmp_path: Path,
    capsys: Captured,
) -> None:
    animator.failure = error
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


@pytest.mark.parametrize("argv", [["--help"], ["animate", "--help"], ["inspect", "nowhere"], ["bench", "--help"]])
def test_the_command_line_imports_little(argv: list[str]) -> None:
    code = (
        "import sys; from dispose_rt import cli; cli.main(sys.argv[2:]);"
        "print('imported', sorted(set(sys.argv[1].split()) & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, " ".join((*HEAVY, "tqdm")), *argv]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "imported []"


def test_the_command_line_imports_no_torch(arguments: list[str]) -> None:
    code = (
        "import sys; from dispose_rt import cli; cli.main(['inspect', 'nowhere']); cli.main(sys.argv[1:]);"
        "print(sorted({'torch', 'diffusers', 'transformers', 'onnx', 'PIL'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


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


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_names_that_cannot_be_printed(engine_directory: Path, encoding: str) -> None:
    odd = engine_directory.with_name(os.fsdecode("scène-".encode() + b"\xff"))  # the last byte is no UTF-8
    engine_directory.rename(odd)
    command = [sys.executable, "-m", "dispose_rt", "inspect", odd]
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    done = subprocess.run(command, capture_output=True, env=environment, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    printed = r"sc\xe8ne-\udcff" if encoding == "ascii" else r"scène-\udcff"
    assert done.stdout.splitlines()[0].endswith(printed.encode())
