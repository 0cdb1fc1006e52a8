"""The desk: one run at a time, in order; cancelled, failed and forgotten runs leave nothing behind."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from dispose_rt.errors import BusyError, EngineError, NoPersonError
from dispose_rt.media import open_video, write_video
from dispose_rt.page.desk import Desk, Job, JobState

from .fake_runner import FakeRunner, wait_until


@pytest.fixture
def runner() -> FakeRunner:
    return FakeRunner()


@pytest.fixture
def desk(runner: FakeRunner, tmp_path: Path) -> Iterator[Desk]:
    (tmp_path / "results").mkdir()
    (tmp_path / "copies").mkdir()
    write_video(tmp_path / "dance.mp4", np.zeros((2, 16, 16, 3), np.uint8), 8)
    with Desk(runner, tmp_path / "results", tmp_path / "copies", longest_queue=2) as opened:
        yield opened


def submit(desk: Desk, folder: Path, visitor: str = "anna", video: str = "dance.mp4") -> Job:
    return desk.submit(visitor, folder / "my photo.png", folder / video, {"steps": 3})


def finish(job: Job) -> Job:
    wait_until(lambda: job.state.is_final)
    return job


def results(folder: Path) -> list[Path]:
    return [path for path in (folder / "results").rglob("*") if path.is_file()]


def test_a_job_reaches_the_animator_and_its_result_the_visitor(desk: Desk, runner: FakeRunner, tmp_path: Path) -> None:
    runner.go_on.set()
    job = finish(submit(desk, tmp_path))
    assert job.state is JobState.DONE
    [call] = runner.calls
    reference, video = str(tmp_path / "my photo.png"), str(tmp_path / "dance.mp4")
    assert call == {"ref": reference, "video": video, "keep_frames": False, "steps": 3}
    assert sum(1 for _ in open_video(job.output).frames(1)) == 4
    assert job.output.name.startswith("my-photo-dance-")
    assert job.driving == tmp_path / "dance.mp4"
    assert job.summary == "4 frames of 24 x 16 pixels, 8 per second, made in 2.2 s"


def test_one_runs_and_the_others_see_their_place(desk: Desk, runner: FakeRunner, tmp_path: Path) -> None:
    jobs = [submit(desk, tmp_path, "anna")]
    wait_until(lambda: jobs[0].state is JobState.RUNNING)
    jobs += [submit(desk, tmp_path, visitor) for visitor in ("ben", "carla")]
    assert [desk.count_before(job) for job in jobs] == [0, 1, 2]
    with pytest.raises(BusyError, match="2 others are waiting"):
        submit(desk, tmp_path, "dora")
    runner.go_on.set()
    assert {finish(job).state for job in jobs} == {JobState.DONE}
    assert runner.most_at_work == 1


def test_a_visitor_has_one_wish(desk: Desk, runner: FakeRunner, tmp_path: Path) -> None:
    first = submit(desk, tmp_path)
    with pytest.raises(BusyError, match="cancel it first"):
        submit(desk, tmp_path)
    runner.go_on.set()
    copy = tmp_path / "copies" / "0123" / finish(first).output.name
    copy.parent.mkdir()
    copy.write_bytes(first.output.read_bytes())  # as the web server does
    second = finish(submit(desk, tmp_path))
    assert results(tmp_path) == [second.output]
    assert not copy.exists()


def test_cancelling_a_run_ends_it_and_the_next_begins(desk: Desk, runner: FakeRunner, tmp_path: Path) -> None:
    running = submit(desk, tmp_path, "anna")
    wait_until(lambda: running.state is JobState.RUNNING)
    waiting, last = submit(desk, tmp_path, "ben"), submit(desk, tmp_path, "carla")
    desk.cancel("ben")
    assert waiting.state is JobState.CANCELLED
    assert desk.count_before(last) == 1
    desk.cancel("anna")
    assert finish(running).state is JobState.CANCELLED
    runner.go_on.set()
    assert finish(last).state is JobState.DONE
    assert len(runner.calls) == 2
    assert results(tmp_path) == [last.output]


def test_an_error_is_told_without_our_folders(desk: Desk, runner: FakeRunner, tmp_path: Path) -> None:
    runner.go_on.set()
    runner.failure = NoPersonError(f"nobody was found in {tmp_path / 'my photo.png'}; pass another")
    job = finish(submit(desk, tmp_path))
    assert job.state is JobState.FAILED
    assert job.problem == "nobody was found in my photo.png; pass another"
    runner.failure = EngineError("the engine unet failed; build it again")
    assert finish(submit(desk, tmp_path)).problem == "the engine unet failed; build it again"
    runner.failure = None
    assert finish(submit(desk, tmp_path)).state is JobState.DONE


def test_a_bug_is_logged_and_not_shown(
    desk: Desk, runner: FakeRunner, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    runner.go_on.set()
    runner.failure = KeyError("secret detail")
    with caplog.at_level(logging.ERROR, "dispose_rt"):
        job = finish(submit(desk, tmp_path))
    assert job.state is JobState.FAILED
    assert "KeyError" in job.problem
    assert "secret detail" not in job.problem
    assert "secret detail" in caplog.text


def test_warnings_are_noted_each_time(desk: Desk, runner: FakeRunner, tmp_path: Path) -> None:
    runner.go_on.set()
    runner.warning = "nobody was found in the video's frames 4, 6"
    for _ in range(2):
        assert finish(submit(desk, tmp_path)).notices == [runner.warning]


def test_visitors_who_leave_are_forgotten(desk: Desk, runner: FakeRunner, tmp_path: Path) -> None:
    running, waiting = submit(desk, tmp_path, "anna"), submit(desk, tmp_path, "ben")
    wait_until(lambda: running.state is JobState.RUNNING)
    desk.forget("ben")
    desk.forget("anna")
    assert finish(running).state is JobState.CANCELLED
    assert waiting.state is JobState.CANCELLED
    runner.go_on.set()
    done = finish(submit(desk, tmp_path, "ben"))
    assert results(tmp_path) == [done.output]
    desk.forget("ben")
    assert results(tmp_path) == []
    desk.forget("nobody")


def test_closing_ends_everything(runner: FakeRunner, tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    with Desk(runner, tmp_path / "results", tmp_path) as desk:
        running, waiting = submit(desk, tmp_path, "anna"), submit(desk, tmp_path, "ben")
        wait_until(lambda: running.state is JobState.RUNNING)
    assert {running.state, waiting.state} == {JobState.CANCELLED}
    with pytest.raises(BusyError, match="shut down"):
        submit(desk, tmp_path, "carla")
    desk.close()


def test_a_video_that_browsers_do_not_play_is_copied(desk: Desk, runner: FakeRunner, tmp_path: Path) -> None:
    write_video(tmp_path / "dance.mkv", np.zeros((3, 16, 16, 3), np.uint8), 8)
    runner.go_on.set()
    job = finish(submit(desk, tmp_path, video="dance.mkv"))
    assert job.driving is not None
    assert job.driving.suffix == ".mp4"
    assert sum(1 for _ in open_video(job.driving).frames(1)) == 3
    desk.forget(job.visitor)
    assert results(tmp_path) == []
