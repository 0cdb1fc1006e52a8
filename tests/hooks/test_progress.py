"""What progress callbacks get."""

from __future__ import annotations

import io
import logging
import sys
import threading
from typing import Any

import pytest

from dispose_rt.errors import Cancelled
from dispose_rt.hooks.progress import Progress, StageTimer
from tests.every import each


def ticks_of(*calls: tuple[Any, ...]) -> list[tuple[str, int, int | None]]:
    """What is reported of some calls of `begin`, `step` and `end`."""
    ticks: list[tuple[str, int, int | None]] = []
    progress = Progress(lambda *tick: ticks.append(tick))
    for name, *arguments in calls:
        getattr(progress, name)(*arguments)
    return ticks


def test_every_stage_has_a_beginning_and_an_end() -> None:
    assert ticks_of(("begin", "load", 2), ("step", "load", 1, 2), ("end", "load")) == [
        ("load", 0, 2),
        ("load", 1, 2),
        ("load", 2, 2),
    ]


def test_a_stage_without_work_has_one_unit() -> None:
    assert ticks_of(("begin", "motion", 0), ("end", "motion")) == [("motion", 0, 1), ("motion", 1, 1)]


def test_nothing_is_told_twice_and_nothing_falls() -> None:
    calls = [("begin", "pose", 5), *(("step", "pose", done, 5) for done in (0, 1, 1, 3, 2, 5)), ("end", "pose")]
    assert [done for _, done, _ in ticks_of(*calls)] == [0, 1, 3, 5]


@each(expected__came=[(5, 3), (3, 5)])
def test_the_end_says_how_many_there_were(expected: int, came: int) -> None:
    steps = [("step", "pose", done, max(expected, done)) for done in range(1, came + 1)]
    assert ticks_of(("begin", "pose", expected), *steps, ("end", "pose", came))[-1] == ("pose", came, came)


def test_a_stage_may_begin_again() -> None:
    twice = [("begin", "load", 1), ("end", "load")] * 2
    assert [done for _, done, _ in ticks_of(*twice)] == [0, 1, 0, 1]


@each(last__total=[((), 3), ((7,), 7)])
def test_an_unknown_total_is_none_until_the_end(last: tuple[int, ...], total: int) -> None:
    steps = [("step", "pose", done, None) for done in (1, 2, 3)]
    ticks = ticks_of(("begin", "pose", None), *steps, ("end", "pose", *last))
    assert ticks == [*[("pose", done, None) for done in range(4)], ("pose", total, total)]


def test_cancelling_says_where() -> None:
    cancel = threading.Event()
    progress = Progress(False, cancel)
    progress.begin("denoise", 8)
    cancel.set()
    with pytest.raises(Cancelled, match="cancelled at denoise 3 of 8"):
        progress.step("denoise", 3, 8)
    with pytest.raises(Cancelled, match="cancelled at denoise 8 of 8"):
        progress.end("denoise")
    with pytest.raises(Cancelled, match="cancelled at pose 3$"):
        progress.step("pose", 3, None)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("stream", "report", "drawn"), [
    (Terminal, True, True), (Terminal, False, False), (io.StringIO, True, False),
])  # fmt: skip
def test_bars_are_drawn_on_terminals_alone(
    monkeypatch: pytest.MonkeyPatch, stream: type[io.StringIO], report: bool, drawn: bool
) -> None:
    stderr = stream()
    monkeypatch.setattr(sys, "stderr", stderr)
    progress = Progress(report)
    progress.begin("denoise", 4)
    progress.step("denoise", 2, 4)
    progress.close()
    progress.close()
    assert ("denoise" in stderr.getvalue()) is drawn


def test_without_a_standard_error_nothing_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)  # as under pythonw
    Progress(True).begin("pose", 1)


def test_the_timer_adds_up_and_counts_what_failed() -> None:
    timer = StageTimer()
    for _ in range(2):
        with pytest.raises(KeyError), timer.stage("pose"):
            raise KeyError
    assert list(timer.seconds) == ["pose"]


def test_the_library_logs_and_does_not_print(capsys: pytest.CaptureFixture[str]) -> None:
    assert not logging.getLogger("dispose_rt").handlers
    Progress(True).begin("pose", 1)
    assert capsys.readouterr() == ("", "")
