"""What a build prints: a line per network, and in a terminal one that says what is being done."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from dispose_rt_export.builds import progress as build_progress
from dispose_rt_export.builds.progress import BuildProgress

from dispose_rt.engines.manifest import FileRecord, NetworkRecord

NETWORKS = ("pose_net", "dift", "unet")
GIGABYTE = 10**9


class Terminal(io.StringIO):
    """Interprets the text written to it, as a screen of 60 columns does."""

    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        return 1

    @property
    def lines(self) -> list[str]:
        screen, column = [""], 0
        for part in self.getvalue().replace("\033[K", "\v").replace("\033[A", "\f"):
            if part == "\n":
                screen.append("")
                column = 0
            elif part == "\r":
                column = 0
            elif part == "\v":
                screen[-1] = screen[-1][:column]
            else:
                screen[-1] = screen[-1][:column].ljust(column) + part + screen[-1][column + 1 :]
                column += 1
        return [line.rstrip() for line in screen]


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    one = Clock()
    monkeypatch.setattr(build_progress, "time", SimpleNamespace(perf_counter=one))
    monkeypatch.setattr(build_progress, "peak_memory_bytes", lambda: 2 * GIGABYTE)
    monkeypatch.setattr(build_progress, "_REFRESH_SECONDS", 1e6)
    monkeypatch.setattr("os.get_terminal_size", lambda *_: os.terminal_size((60, 20)))
    return one


def record(network: str, megabytes: float, error: float | None) -> NetworkRecord:
    files = (FileRecord(f"{network}.onnx", int(megabytes * 1e6), "0" * 64),)
    return NetworkRecord(files, "key", "float32", {} if error is None else {"output": error / 2, "other": error})


def open_progress(output: Path, only: tuple[str, ...] = NETWORKS, stale: tuple[str, ...] = NETWORKS) -> BuildProgress:
    worker: Any = SimpleNamespace(peak_bytes=GIGABYTE)
    return BuildProgress(output, only, stale, worker)


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, float]], None]:
    """Seconds that networks took in earlier builds of the directory."""
    times: dict[str, float] = {}
    monkeypatch.setattr(build_progress, "expected_seconds", lambda output, network: times.get(network))
    return times.update


def test_a_line_per_network_and_the_sum(
    clock: Clock, tmp_path: Path, capsys: pytest.CaptureFixture[str], known: Callable[[dict[str, float]], None]
) -> None:
    records = {"pose_net": record("pose_net", 1.5, None), "dift": record("dift", 250, 2e-6), "unet": None}
    with open_progress(tmp_path, stale=("dift", "unet")) as progress:
        progress.kept("pose_net")
        progress.started("dift")
        progress.step("tracing")
        clock.now_s += 30
        progress.finished("dift", records["dift"], shared=False)
        progress.started("unet")
        clock.now_s += 100
        progress.finished("unet", record("unet", 3000, 5e-5), shared=True)
    assert capsys.readouterr().out.splitlines() == [
        "[ 1/3] pose_net           up to date",
        "[ 2/3] dift                 30.0 s     250.0 MB  relative error 2.0e-06  [1 min 0 s left]",
        "[ 3/3] unet                100.0 s    3000.0 MB  relative error 5.0e-05"
        ", shared with a directory beside this one",
        "built 2 networks in 130 s, peak memory 3.0 GB",
    ]
    summary = progress.summarize(records)
    assert (summary.directory, summary.complete, summary.seconds) == (str(tmp_path), False, 130.0)
    assert (summary.built, summary.up_to_date, summary.missing) == (["dift", "unet"], ["pose_net"], ["unet"])
    assert (summary.bytes, summary.peak_bytes) == (251_500_000, 3 * GIGABYTE)


def test_what_is_left_comes_from_earlier_builds_where_there_were_any(
    clock: Clock, tmp_path: Path, capsys: pytest.CaptureFixture[str], known: Callable[[dict[str, float]], None]
) -> None:
    known({"pose_net": 1, "dift": 70, "unet": 200})
    with open_progress(tmp_path) as progress:
        for name, seconds in (("pose_net", 1), ("dift", 500)):
            progress.started(name)
            clock.now_s += seconds
            progress.finished(name, record(name, 1, None), shared=False)
    first, second, _ = capsys.readouterr().out.splitlines()
    assert first.endswith("copied as it is  [4 min 30 s left]")
    assert second.endswith("copied as it is  [3 min 20 s left]")


def test_nothing_is_said_of_what_is_left_before_there_is_a_measure(
    clock: Clock, tmp_path: Path, capsys: pytest.CaptureFixture[str], known: Callable[[dict[str, float]], None]
) -> None:
    with open_progress(tmp_path) as progress:
        progress.started("pose_net")
        clock.now_s += 9
        progress.finished("pose_net", record("pose_net", 1, 1e-6), shared=False)
    assert "left" not in capsys.readouterr().out


def test_nothing_is_summed_up_where_nothing_was_built_or_the_build_failed(
    clock: Clock, tmp_path: Path, capsys: pytest.CaptureFixture[str], known: Callable[[dict[str, float]], None]
) -> None:
    with open_progress(tmp_path, stale=()) as progress:
        progress.kept("unet")
    with suppress(RuntimeError), open_progress(tmp_path) as progress:
        progress.started("unet")
        raise RuntimeError
    assert capsys.readouterr().out == "[ 3/3] unet               up to date\n"


def test_a_terminal_shows_what_is_being_done(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: Callable[[dict[str, float]], None]
) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    known({"dift": 70})
    with open_progress(tmp_path) as progress:
        progress.started("dift")
        assert terminal.lines == ["[ 2/3] dift               0 s of about 1 min 10 s"]
        clock.now_s += 61
        progress.step("tracing")
        assert terminal.lines == ["[ 2/3] dift               1 min 1 s of about 1 min 10 s  tr"[:59].rstrip()]
        progress.finished("dift", record("dift", 1, 1e-6), shared=False)
        progress.started("unet")  # twice the share of dift
        progress.step("x")
        assert terminal.lines[1] == "[ 3/3] unet               0 s of about 2 min 2 s  x"
        progress.finished("unet", record("unet", 1, 1e-6), shared=False)
    assert [line[:7] for line in terminal.lines] == ["[ 2/3] ", "[ 3/3] ", "built 3", ""]
    assert terminal.lines[0].startswith("[ 2/3] dift                 61.0 s       1.0 MB  relative error 1.0e-06")


def test_the_line_of_a_terminal_goes_on_by_itself(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: Callable[[dict[str, float]], None]
) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    monkeypatch.setattr(build_progress, "_REFRESH_SECONDS", 0.01)
    with suppress(KeyboardInterrupt), open_progress(tmp_path) as progress:
        progress.started("unet")
        clock.now_s += 7
        while "7 s" not in terminal.lines[-1]:
            pass
        raise KeyboardInterrupt
    assert terminal.lines == [""]
