"""Jobs of visitors: cancelled, failed and forgotten ones leave nothing behind, and the next one runs."""

from __future__ import annotations

import asyncio
import logging
import re
import threading
import warnings
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from dispose_rt.cli.console import Console
from dispose_rt.errors import EngineError, NoPersonError
from dispose_rt.media import open_video, read_metadata, write_video
from dispose_rt.page.jobs import Job, Jobs, JobState

from .fake_runner import FakeRunner, wait_until


@pytest.fixture
def runner() -> FakeRunner:
    return FakeRunner()


@pytest.fixture
def jobs(runner: FakeRunner, tmp_path: Path) -> Jobs:
    (tmp_path / "results").mkdir()
    (tmp_path / "copies").mkdir()
    write_video(tmp_path / "dance.mp4", np.zeros((2, 16, 16, 3), np.uint8), 8)
    return Jobs(runner, tmp_path / "results", tmp_path / "copies")


def add(jobs: Jobs, folder: Path, visitor: str = "anna", video: str = "dance.mp4") -> Job:
    return jobs.add(visitor, folder / "my photo.png", folder / video, {"steps": 3})


async def animate(jobs: Jobs, visitor: str = "anna") -> list[JobState]:
    """Run a visitor's job to its end, as Gradio does. Returns the states that the page saw."""
    async with aclosing(jobs.animate(visitor)) as looks:
        return [job.state async for job in looks]


def finish(jobs: Jobs, folder: Path, **named: Any) -> Job:
    job = add(jobs, folder, **named)
    asyncio.run(animate(jobs, named.get("visitor", "anna")))
    return job


def at_work(jobs: Jobs, runner: FakeRunner, folder: Path, act: Callable[[asyncio.Task[Any]], Awaitable[Any]]) -> Job:
    """Begin a job, and act while it runs."""

    async def begin() -> Job:
        job = add(jobs, folder)
        task = asyncio.create_task(animate(jobs))
        await asyncio.to_thread(wait_until, lambda: runner.at_work == 1)
        await act(task)
        await asyncio.wait((task,), timeout=20)
        assert task.done()
        return job

    return asyncio.run(begin())


def results(folder: Path) -> list[Path]:
    return [path for path in (folder / "results").rglob("*") if path.is_file()]


def test_a_job_reaches_the_animator_and_its_result_the_visitor(jobs: Jobs, runner: FakeRunner, tmp_path: Path) -> None:
    runner.go_on.set()
    job = finish(jobs, tmp_path)
    assert job.state is JobState.DONE
    [call] = runner.calls
    reference, video = str(tmp_path / "my photo.png"), str(tmp_path / "dance.mp4")
    assert call == {"ref": reference, "video": video, "keep_frames": False, "steps": 3}
    assert sum(1 for _ in open_video(job.output).frames(1)) == 4
    assert job.output.name.startswith("my-photo-dance-")
    assert job.driving == tmp_path / "dance.mp4"
    assert job.summary == "4 frames of 24 x 16 pixels, 8 per second, made in 2.2 s"
    long = add(jobs, tmp_path, video=f"{'x' * 50}.mp4")
    assert long.output.name.startswith(f"my-photo-{'x' * 40}-")


def test_the_page_sees_a_run_at_work_and_its_end(jobs: Jobs, runner: FakeRunner, tmp_path: Path) -> None:
    seen: list[JobState] = []

    async def let_go(task: asyncio.Task[Any]) -> None:
        await asyncio.sleep(0.5)
        runner.go_on.set()
        seen.extend(await task)

    at_work(jobs, runner, tmp_path, let_go)
    assert JobState.RUNNING in seen
    assert seen[-1] is JobState.DONE


def test_a_new_job_replaces_the_earlier_one(jobs: Jobs, runner: FakeRunner, tmp_path: Path) -> None:
    runner.go_on.set()
    first = finish(jobs, tmp_path)
    copy = tmp_path / "copies" / "0123" / first.output.name
    copy.parent.mkdir()
    copy.write_bytes(first.output.read_bytes())  # as the web server does
    second = finish(jobs, tmp_path)
    assert results(tmp_path) == [second.output]
    assert not copy.exists()


def test_every_way_to_end_a_run_early(jobs: Jobs, runner: FakeRunner, tmp_path: Path) -> None:
    async def cancel(task: asyncio.Task[Any]) -> None:
        job = jobs.cancel("anna")
        assert job is not None
        assert job.state is JobState.CANCELLED  # what is shown at once

    async def be_cancelled_by_gradio(task: asyncio.Task[Any]) -> None:
        task.cancel()

    async def leave(task: asyncio.Task[Any]) -> None:
        jobs.forget("anna")

    async def start_another(task: asyncio.Task[Any]) -> None:
        add(jobs, tmp_path)

    async def close(task: asyncio.Task[Any]) -> None:
        await asyncio.to_thread(jobs.close)
        assert runner.at_work == 0

    wrong = []
    for end in (cancel, be_cancelled_by_gradio, leave, start_another, close):
        job = at_work(jobs, runner, tmp_path, end)
        if (job.state, runner.at_work, results(tmp_path)) != (JobState.CANCELLED, 0, []):
            wrong.append((end.__name__, job.state, runner.at_work, results(tmp_path)))
    assert wrong == []


def test_cancelled_before_their_turn(jobs: Jobs, runner: FakeRunner, tmp_path: Path) -> None:
    runner.go_on.set()
    add(jobs, tmp_path)
    jobs.cancel("anna")
    assert asyncio.run(animate(jobs)) == []
    assert finish(jobs, tmp_path).state is JobState.DONE
    add(jobs, tmp_path)
    jobs.forget("anna")
    assert asyncio.run(animate(jobs)) == []
    assert len(runner.calls) == 1
    assert jobs.cancel("nobody") is None
    jobs.forget("nobody")
    jobs.close()
    jobs.close()
    assert finish(jobs, tmp_path).state is JobState.CANCELLED
    assert len(runner.calls) == 1


def test_one_runs_at_a_time(jobs: Jobs, runner: FakeRunner, tmp_path: Path) -> None:
    async def begin() -> None:
        for visitor in ("anna", "ben", "carla"):
            add(jobs, tmp_path, visitor)
        threading.Timer(0.3, runner.go_on.set).start()
        await asyncio.gather(*(animate(jobs, visitor) for visitor in ("anna", "ben", "carla")))

    asyncio.run(begin())
    assert len(runner.calls) == 3
    assert runner.most_at_work == 1


def test_an_error_is_explained_without_our_folders(jobs: Jobs, runner: FakeRunner, tmp_path: Path) -> None:
    runner.go_on.set()
    runner.failure = NoPersonError(f"nobody was found in {tmp_path / 'my photo.png'}; pass another")
    job = finish(jobs, tmp_path)
    assert job.state is JobState.FAILED
    assert job.problem == "nobody was found in my photo.png; pass another"
    for said, shown in {
        "the engine unet failed; build it again": "the engine unet failed; build it again",
        f"{tmp_path}/engines/unet.onnx is damaged": "unet.onnx is damaged",
        "rebuild: dispose-rt build --output /srv/a-b/576x1024 (mp4/webm)": (
            "rebuild: dispose-rt build --output 576x1024 (mp4/webm)"
        ),
        "see https://example.org/a/b, and '/home/anna/my engines/x': C:\\Users\\anna\\a.png": (
            "see https://example.org/a/b, and 'x': a.png"
        ),
    }.items():
        runner.failure = EngineError(said)
        assert finish(jobs, tmp_path).problem == shown
    for failure in (  # whoever finds that memory lacks
        MemoryError(),
        np._core._exceptions._ArrayMemoryError((2**40,), np.dtype(np.uint8)),
        RuntimeError("onnxruntime: Failed to allocate memory for requested buffer of size 99"),
        cv2.error("OpenCV(4.12.0) alloc.cpp:73: error: (-4:Insufficient memory) Failed to allocate 9 bytes"),
    ):
        runner.failure = failure
        assert finish(jobs, tmp_path).problem.startswith("The machine has too little memory for this")
    runner.failure = None
    assert finish(jobs, tmp_path).state is JobState.DONE


def test_a_bug_is_logged_and_not_shown(
    jobs: Jobs,
    runner: FakeRunner,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    runner.go_on.set()
    runner.failure = KeyError("secret detail")
    with caplog.at_level(logging.ERROR, "dispose_rt"):
        job = finish(jobs, tmp_path)
    assert job.state is JobState.FAILED
    found = re.search(r"\(KeyError, reference ([0-9a-f]{8})\)", job.problem)
    assert found
    assert "secret detail" not in job.problem
    assert f"reference {found[1]}: KeyError: 'secret detail'" in caplog.text
    for options in ([], ["--debug"]):
        with Console(options).attached():
            finish(jobs, tmp_path)
        printed = capsys.readouterr().err
        assert "reference" in printed
        assert ("Traceback" in printed and "raise self.failure" in printed) is bool(options)


def test_warnings_are_noted_each_time(jobs: Jobs, runner: FakeRunner, tmp_path: Path) -> None:
    runner.go_on.set()
    runner.warning = "nobody was found in the video's frames 4, 6"
    for _ in range(2):
        assert finish(jobs, tmp_path).notices == [runner.warning]
    runner.category = DeprecationWarning
    with warnings.catch_warnings(record=True) as others:
        warnings.simplefilter("always")
        assert finish(jobs, tmp_path).notices == []
    assert runner.warning in [str(one.message) for one in others]  # on its usual way


def test_a_video_that_browsers_do_not_play_is_copied(jobs: Jobs, runner: FakeRunner, tmp_path: Path) -> None:
    times_s = [0.0, 0.1, 0.5]  # an even copy would be off by 0.15 s
    mark = {"comment": 'Generated\n{"format": "dispose_rt provenance", "versions": {"dispose-rt": "0\\u0000"}}'}
    write_video(tmp_path / "dance.mkv", np.zeros((3, 16, 16, 3), np.uint8), 8, times_s=times_s, metadata=mark)
    runner.go_on.set()
    job = finish(jobs, tmp_path, video="dance.mkv")
    assert job.driving is not None
    assert job.driving.suffix == ".mp4"
    assert [float(time_s) for _, time_s in open_video(job.driving).timed_frames()] == pytest.approx(times_s, abs=0.002)
    assert "dispose_rt provenance" in read_metadata(job.driving)["comment"]
    jobs.forget("anna")
    assert results(tmp_path) == []
