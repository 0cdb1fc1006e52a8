"""What `animate` prints for machines, and how quiet it can be."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from dispose_rt import cli
from dispose_rt.errors import EngineError
from tests.every import every_item

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


class Streams:
    """Runs a command whose standard error is open, closed, on a full disk, or read by someone who leaves."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def run(self, way: str, command: list[str]) -> tuple[int, str, str]:
        """Return the exit status, and what arrived on standard output and standard error."""
        redirection = {"closed": "2>&-", "full": "2>/dev/full"}.get(way, "")
        shell = ["sh", "-c", f'exec "$@" {redirection}', "sh", *command]
        with subprocess.Popen(
            shell, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=self._folder
        ) as process:
            assert process.stderr is not None
            if way == "left":
                assert json.loads(process.stderr.readline())
                process.stderr.close()
                assert process.stdout is not None
                return process.wait(60), process.stdout.read(), ""
            out, err = process.communicate(timeout=60)
            return process.returncode, out, err


def damaged_png() -> bytes:
    """A PNG with a wrong byte in its pixels, which makes libpng print warnings."""
    data = bytearray(cv2.imencode(".png", np.arange(3072, dtype=np.uint8).reshape(32, 32, 3))[1].tobytes())
    data[data.index(b"IDAT") + 60] ^= 0xFF
    return bytes(data)


@pytest.mark.skipif(os.name == "nt", reason="needs a shell and /dev/full")
def test_losing_standard_error_stops_nothing_and_leaves_standard_output_clean(
    arguments: list[str], tmp_path: Path
) -> None:
    """Closed, full or left alone: a run goes on, and a failed one says why in JSON and nothing else."""
    streams = Streams(tmp_path)
    (tmp_path / "damaged.png").write_bytes(damaged_png())
    fails = [sys.executable, "-m", "dispose_rt", *arguments, "--progress=json", "--json"]
    fails[fails.index("--reference") + 1] = "damaged.png"
    with every_item() as every:
        for way in ("open", "closed", "full", "left"):
            with every(way):
                Path(arguments[-1]).unlink(missing_ok=True)
                command = [sys.executable, "-c", _LEFT_ALONE, *arguments, "--progress", "json"]
                code, out, err = streams.run(way, command)
                assert (code, out) == (0, "")
                assert Path(arguments[-1]).read_bytes() == b"written"
                ticks = [json.loads(line)["done"] for line in err.splitlines()]
                assert ticks == (list(range(1, 2001)) if way == "open" else [])
            if way != "left":
                with every(way, "damaged"):
                    code, out, err = streams.run(way, fails)
                    assert code == 1
                    assert json.loads(out)["error"]["type"] == "InputError"
                    assert "damaged.png" in json.loads(out)["error"]["message"]
                    lines = [json.loads(line) for line in err.splitlines()]
                    assert lines == ([json.loads(out)] if way == "open" else [])
            if way == "closed":
                with every("for people"):
                    code, out, err = streams.run(way, [one for one in fails if "json" not in one])
                    assert (code, out) == (1, "")
        with every("the descriptor of standard error belongs to no file"):
            code = (
                "import os; from dispose_rt.cli import main; main(['--version']); print(os.path.realpath('/dev/fd/2'))"
            )
            status, out, _ = streams.run("closed", [sys.executable, "-c", code])
            assert (status, out.splitlines()[-1]) == (0, os.devnull)
