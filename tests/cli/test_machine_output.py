"""What `animate` prints for machines, and how quiet it can be."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from dispose_rt import cli
from dispose_rt.errors import EngineError

from .conftest import Captured, FakeAnimator


def test_the_result_as_json(
    animator: type[FakeAnimator], arguments: list[str], tmp_path: Path, capsys: Captured
) -> None:
    assert cli.main([*arguments, "--json"]) == 0
    out, err = capsys.readouterr()
    warning = "nobody was found in the video's frames 4, 6"
    assert json.loads(out) == {
        "output": str(tmp_path / "out.mp4"),
        "frames": 3,
        "fps": 12.0,
        "size": [96, 64],
        "seconds": 3.5,
        "stages_s": {"pose": 1.0, "denoise": 2.5},
        "peak_bytes": 12_345,
        "warnings": [warning],
    }
    assert out.count("\n") == 1
    assert err == f"dispose-rt: warning: {warning}\n"


def test_progress_as_json(animator: type[FakeAnimator], arguments: list[str], capsys: Captured) -> None:
    assert cli.main([*arguments, "--progress", "json", "--debug-dir", str(Path(arguments[-1]).parent / "seen")]) == 0
    out, err = capsys.readouterr()
    lines = [json.loads(line) for line in err.splitlines()]
    ticks = [line for line in lines if "stage" in line]
    assert [(tick["stage"], tick["done"], tick["total"]) for tick in ticks] == [
        ("decode", done, 3) for done in (1, 2, 3)
    ]
    assert all(tick["elapsed_s"] >= 0 for tick in ticks)
    assert [list(line) for line in lines[3:]] == [["warning"], ["note"]]
    assert out.startswith(arguments[-1])


def test_an_error_among_progress_as_json(animator: type[FakeAnimator], arguments: list[str], capsys: Captured) -> None:
    animator.failure = EngineError("unet failed")
    assert cli.main([*arguments, "--progress=json", "--json"]) == 1
    out, err = capsys.readouterr()
    assert json.loads(out) == {"error": {"type": "EngineError", "message": "unet failed"}}
    assert json.loads(err.splitlines()[-1]) == {"error": {"type": "EngineError", "message": "unet failed"}}


def test_who_draws_the_progress(animator: type[FakeAnimator], arguments: list[str]) -> None:
    for options, progress in (([], True), (["--quiet"], False), (["--progress", "none"], False)):
        assert cli.main([*arguments, *options]) == 0
        assert (options, animator.calls[-1]["progress"]) == (options, progress)


def test_quiet_prints_warnings_alone(animator: type[FakeAnimator], arguments: list[str], capsys: Captured) -> None:
    assert cli.main([*arguments, "--quiet", "--debug-dir", str(Path(arguments[-1]).parent / "seen")]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "dispose-rt: warning: nobody was found in the video's frames 4, 6\n"


def test_log_messages(arguments: list[str], animator: type[FakeAnimator], monkeypatch: pytest.MonkeyPatch) -> None:
    """Warnings of the library's log are warnings; what is below them is shown with --debug alone."""
    log = logging.getLogger("dispose_rt")

    def run(self: FakeAnimator, *sources: object, **settings: object) -> None:
        log.warning("%s is damaged", "a file")
        log.info("a detail")
        raise EngineError("enough")

    monkeypatch.setattr(animator, "run", run)
    for options, details in (([], 0), (["--debug"], 1)):
        with pytest.MonkeyPatch.context() as patch:
            lines: list[str] = []
            patch.setattr(sys, "stderr", _Lines(lines))
            assert cli.main([*arguments, *options]) == 1
        assert lines.count("dispose-rt: warning: a file is damaged") == 1
        assert lines.count("dispose-rt: a detail") == details
    assert log.handlers == []


class _Lines:
    """A text stream that collects lines."""

    def __init__(self, lines: list[str]) -> None:
        self._lines = lines

    def write(self, text: str) -> int:
        self._lines += [line for line in text.split("\n") if line]
        return len(text)

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return False


_LEFT_ALONE = """
import sys
import dispose_rt
from dispose_rt import cli

class Animator:
    def __init__(self, engines, **options): pass
    def __enter__(self): return self
    def __exit__(self, *error): pass
    def run(self, ref, video, *, output, progress, **settings):
        for number in range(2000):
            progress("denoise", number + 1, 2000)
        output.write_bytes(b"written")
        raise SystemExit(0)

dispose_rt.Animator = Animator
sys.exit(cli.main(sys.argv[1:]))
"""


def test_a_reader_of_progress_that_leaves_does_not_stop_the_run(arguments: list[str]) -> None:
    command = [sys.executable, "-c", _LEFT_ALONE, *arguments, "--progress", "json"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert json.loads(process.stderr.readline())["done"] == 1
        process.stderr.close()
    assert Path(arguments[-1]).read_bytes() == b"written"
