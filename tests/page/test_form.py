"""What the page shows and takes: stages and their times, messages, settings."""

from __future__ import annotations

import html
import re
import warnings
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from dispose_rt.contract import Sizes
from dispose_rt.errors import InputError, InputWarning
from dispose_rt.hooks.progress import STAGES
from dispose_rt.page.fields import list_fields, read_form
from dispose_rt.page.fragments import format_duration, show_job, show_problem
from dispose_rt.page.jobs import Job, JobState
from dispose_rt.page.stage_times import StageTimes
from dispose_rt.settings import Settings

SIZES = (Sizes(width=64, height=128, tile=16, chunk=8), Sizes(width=128, height=64, tile=4, chunk=3))


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_time_left_follows_the_pace() -> None:
    now = Clock()
    times = StageTimes(now)
    for seconds, stage, done, total in ((2, "pose", 4, 4), (1, "denoise", 0, 10), (4, "denoise", 2, 10)):
        now.now_s += seconds
        times(stage, done, total)
    now.now_s += 1
    stages = {stage.name: stage for stage in times.read()}
    assert list(stages) == list(STAGES)
    assert stages["pose"].is_over
    assert stages["pose"].elapsed_s == 2
    assert stages["load"].elapsed_s is None
    # two of ten in 5 s; 20 s to go, of which one has passed
    assert stages["denoise"].left_s == pytest.approx(19)
    assert stages["denoise"].elapsed_s == 6
    times.stop()
    now.now_s += 1
    assert {stage.left_s for stage in times.read()} == {None}
    assert [stage.elapsed_s for stage in times.read() if stage.name == "denoise"] == [6]


def test_an_unknown_total_gives_no_time_left() -> None:
    now = Clock()
    times = StageTimes(now)
    now.now_s += 2
    times("pose", 3, None)
    [pose] = [stage for stage in times.read() if stage.name == "pose"]
    assert (pose.done, pose.total, pose.left_s) == (3, None, None)
    job = make_job(state=JobState.RUNNING, stages=times)
    assert "3 so far, 2.0 s" in show_job(job)
    times("pose", 4, 4)
    assert "4 of 4" in show_job(job)


def test_durations_read_well() -> None:
    texts = {0.44: "0.4 s", 9.96: "10 s", 59.7: "1 min 0 s", 200: "3 min 20 s", 7500: "2 h 5 min"}
    assert {seconds: format_duration(seconds) for seconds in texts} == texts


def make_job(**changes: Any) -> Job:
    job = Job(Path("a.png"), Path("b.mp4"), {}, Path("f"), Path("f/o.mp4"))
    for name, value in changes.items():
        setattr(job, name, value)
    return job


def test_every_state_has_words() -> None:
    assert "Waiting for its turn" in show_job(make_job())
    job = make_job(state=JobState.RUNNING)
    job.stages("pose", 3, 12)
    shown = show_job(job)
    assert "3 of 12" in shown
    assert 'aria-valuenow="25"' in shown
    job.stages.stop()
    job.state = JobState.CANCELLED
    assert "Cancelled" in show_job(job)
    assert "dr-over" not in show_job(job)  # the stage was not finished
    job = make_job(state=JobState.DONE, summary="4 frames, made in 2 s")
    job.stages("pose", 12, 12)
    job.stages.stop()
    assert "made in 2 s" in show_job(job)
    assert 'class="dr-over"' in show_job(job)
    assert 'aria-valuenow="100"' in show_job(job)


def test_nothing_from_outside_becomes_markup() -> None:
    evil = '<script>alert("x")</script>'
    caught = [warnings.WarningMessage(InputWarning(evil), InputWarning, "a.py", 1)]
    job = make_job(state=JobState.FAILED, problem=evil, caught=caught)
    for shown in (show_job(job), show_problem(evil, evil)):
        assert "<script" not in shown
        assert html.escape(evil) in shown
    assert show_job(job).count(html.escape(evil)) == 2


class TestForm:
    """The form covers all settings, and what it sends is what a run takes."""

    def test_it_covers_all_settings(self) -> None:
        named = [field.name for field in list_fields(SIZES)]
        assert set(named) == {field.name for field in fields(Settings)} | {"audio"}
        assert len(named) == len(set(named))

    def test_its_defaults_are_the_runs(self) -> None:
        form = list_fields(SIZES[:1])
        arguments = read_form(form, [None if field.is_optional else field.default for field in form])
        assert arguments.pop("audio") is True
        assert Settings(**arguments) == Settings()

    def test_ranges_fit_the_engines(self) -> None:
        form = {field.name: field for field in list_fields(SIZES)}
        assert "1 to 1000." in form["steps"].hint
        assert "0 to 2." in form["overlap"].hint
        assert form["overlap"].default is None
        assert "1 to 3." in form["decode_chunk"].hint

    def test_what_browsers_send_gets_its_type(self) -> None:
        form = list_fields(SIZES)
        sent = {"steps": 4.0, "guidance_scale": 3, "controls": ["points"], "fps": " 12.5", "decode_chunk": "2"}
        sent |= {"person": " 1 ", "reference_person": "0.25, 1", "start_s": 2, "duration_s": "1.5"}
        arguments = read_form(form, [sent.get(field.name) for field in form])
        del arguments["audio"]
        settings = Settings(**arguments)
        assert (settings.steps, settings.guidance_scale, settings.controls) == (4, 3.0, ("points",))
        assert (settings.person, settings.reference_person, settings.crop) == (1, (0.25, 1.0), "centre")
        assert (settings.start_s, settings.duration_s) == (2.0, 1.5)
        assert (settings.fps, settings.decode_chunk, settings.stride) == (12.5, 2, Settings().stride)

    def test_words_for_numbers_are_refused(self) -> None:
        form = list_fields(SIZES)
        with pytest.raises(InputError, match=re.escape("Frames per second is 'fast'; enter a number")):
            read_form(form, ["fast" if field.name == "fps" else None for field in form])
        with pytest.raises(InputError, match=re.escape("Person in the video is 'left'; pass 'largest', the person's")):
            read_form(form, ["left" if field.name == "person" else None for field in form])
        with pytest.raises(InputError, match="a whole number"):
            read_form(form, ["1.5" if field.name == "decode_chunk" else None for field in form])
