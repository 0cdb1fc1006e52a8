"""Bars on a terminal: what they say, and that there are none elsewhere."""

from __future__ import annotations

import io
import re

import pytest

from dispose_rt.hooks import progress_bar
from dispose_rt.hooks.progress_bar import ProgressBar


class Terminal(io.StringIO):
    """A stream that says it is one, and what is on it now."""

    def isatty(self) -> bool:
        return True

    def lines(self) -> list[str]:
        """Every line as it looks in the end."""
        return [line.split("\r")[-1] for line in self.getvalue().split("\n")]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, to be set by the test."""
    now = [1000.0]
    monkeypatch.setattr(progress_bar.time, "time", lambda: now[0])
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    return now


def run(bar: ProgressBar, clock: list[float], seconds: float, *ticks: tuple[str, int, int | None]) -> None:
    for tick in ticks:
        clock[0] += seconds
        bar(*tick)


def test_a_bar_per_stage_with_speed_and_time_left(clock: list[float]) -> None:
    terminal = Terminal()
    with ProgressBar(terminal) as bar:
        run(bar, clock, 2.0, *[("denoise", done, 4) for done in range(4)])
        line = terminal.lines()[-1]
        assert re.match(r"denoise +: +75%\|.*\| 3/4 \[", line)
        assert line.endswith("[00:06<00:02,  2.00s/step]")
        run(bar, clock, 2.0, ("denoise", 4, 4))
        run(bar, clock, 0.1, *[("decode", done, 8) for done in (0, 3, 6, 8)])
    first, second, rest = terminal.lines()
    assert first.startswith("denoise")
    assert "100%" in first
    assert "4/4 [00:08<00:00" in first
    assert second.startswith("decode")
    assert "8/8" in second
    assert "frame/s]" in second
    assert rest == ""


def test_the_time_before_the_first_tick_counts(clock: list[float]) -> None:
    terminal = Terminal()
    with ProgressBar(terminal) as bar:
        run(bar, clock, 5.0, ("denoise", 1, 3))
        assert "[00:05<00:10,  5.00s/step]" in terminal.lines()[-1]


def test_an_unknown_total_is_no_percentage(clock: list[float]) -> None:
    terminal = Terminal()
    with ProgressBar(terminal) as bar:
        run(bar, clock, 0.5, *[("pose", done, None) for done in range(6)])
        assert re.fullmatch(r"pose +: 5 frames \[00:02, +2\.\d+frame/s\]", terminal.lines()[-1].rstrip())
        assert "%" not in terminal.getvalue()
        run(bar, clock, 0.5, ("pose", 5, 5))
    assert "100%" in terminal.lines()[0]
    assert "5/5" in terminal.lines()[0]


def test_more_than_was_expected(clock: list[float]) -> None:
    terminal = Terminal()
    with ProgressBar(terminal) as bar:
        run(bar, clock, 0.5, ("pose", 9, 10), ("pose", 10, None), ("pose", 11, None))
        assert "%" not in terminal.lines()[-1]
        run(bar, clock, 0.5, ("pose", 12, 12))
    assert "12/12" in terminal.lines()[0]


def test_a_stage_may_begin_again(clock: list[float]) -> None:
    terminal = Terminal()
    with ProgressBar(terminal) as bar:
        run(bar, clock, 1.0, ("denoise", 2, 9), ("denoise", 1, 3), ("unheard of", 3, 7))
    stages = [line.partition(":")[0].strip() for line in terminal.lines()]
    assert stages == ["denoise", "denoise", "unheard of", ""]


def test_an_interrupted_bar_leaves_the_line(clock: list[float]) -> None:
    terminal = Terminal()
    bar = ProgressBar(terminal)
    run(bar, clock, 1.0, ("denoise", 1, 9))
    bar.close()
    bar.close()
    assert terminal.getvalue().endswith("\n")


def test_nothing_where_nobody_looks_or_is_left(clock: list[float]) -> None:
    """A stream that is no terminal, and a terminal that goes away: tqdm itself expects some kinds of errors alone."""
    stream = io.StringIO()
    with ProgressBar(stream) as bar:
        bar("pose", 1, 2)
    assert stream.getvalue() == ""
    for error in (OSError(5, "Input/output error"), BlockingIOError(11, "busy"), BrokenPipeError(), ValueError("gone")):
        terminal = Terminal()

        def fail(text: str, error: Exception = error) -> int:
            raise error

        with ProgressBar(terminal) as bar:
            run(bar, clock, 1.0, ("denoise", 1, 9))
            terminal.write = fail  # type: ignore[method-assign]
            run(bar, clock, 1.0, ("denoise", 2, 9), ("denoise", 9, 9), ("decode", 0, 4), ("decode", 4, 4))
        assert "decode" not in terminal.getvalue()
