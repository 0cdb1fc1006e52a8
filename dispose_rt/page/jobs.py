"""The animations that visitors ask for. Gradio's queue decides whose turn it is."""

from __future__ import annotations

import asyncio
import re
import secrets
import shutil
import threading
import warnings
from collections.abc import AsyncGenerator, Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Protocol

from ..errors import Cancelled, DisposeError, InputWarning, PerformanceWarning
from .browser_copy import make_browser_copy
from .problems import explain, hide_paths
from .stage_times import StageTimes
from .uploads import Uploads

POLL_S = 0.2
"""Interval at which the page looks at a job, in seconds."""

_SHOWN_WARNINGS = (InputWarning, PerformanceWarning)


class Runner(Protocol):
    """The part of `Animator` that the page uses."""

    @property
    def run(self) -> Callable[..., Any]:
        """See `Animator.run`."""


class JobState(Enum):
    """Where a job stands; the values are names of styles."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(eq=False)
class Job:
    """One animation for one visitor.

    Attributes:
        reference: picture.
        video: driving video.
        arguments: further arguments of `Animator.run`.
        folder: for the files that it writes.
        output: the result, once it is done.
        state: see `JobState`.
        cancel: ends the run at its next progress call.
        stages: progress of the run.
        caught: warnings that the run has raised so far.
        problem: reason of a failure, for the visitor to read.
        driving: the driving video, or a copy of it that browsers play.
        summary: frames, size, rate and seconds of the result.
    """

    reference: Path
    video: Path
    arguments: Mapping[str, Any]
    folder: Path
    output: Path
    state: JobState = JobState.WAITING
    cancel: threading.Event = field(default_factory=threading.Event)
    stages: StageTimes = field(default_factory=StageTimes)
    caught: list[warnings.WarningMessage] = field(default_factory=list)
    problem: str = ""
    driving: Path | None = None
    summary: str = ""

    @property
    def notices(self) -> list[str]:
        """Warnings that are meant for users, each once."""
        shown = [str(one.message) for one in list(self.caught) if issubclass(one.category, _SHOWN_WARNINGS)]
        return list(dict.fromkeys(map(self.hide_folders, shown)))

    def hide_folders(self, message: str) -> str:
        """Name files without the folders in which they lie here."""
        return hide_paths(message, (self.reference, self.video, self.output))


class Jobs:
    """The latest job of every visitor. Call `close` in the end.

    Args:
        animator: an `Animator`; closing it stays up to the caller.
        folder: for results; it must exist.
        copies: folder in whose subfolders Gradio keeps uploads, and copies of the files that it serves.

    Attributes:
        uploads: what visitors may name of `copies`.
    """

    def __init__(self, animator: Runner, folder: Path, copies: Path) -> None:
        self._animator = animator
        self._folder = folder
        self.uploads = Uploads(copies)
        self._latest: dict[str, Job] = {}
        self._checks: dict[str, set[threading.Event]] = {}
        self._at_work = threading.Lock()
        self._closed = False

    @property
    def visitors(self) -> Collection[str]:
        """Everyone who has a job, be it over or not."""
        return tuple(self._latest)

    def close(self) -> None:
        """Cancel all jobs and wait for the run at work. Calling it twice is fine."""
        self._closed = True
        for visitor in tuple(self._checks):
            self._end_checks(visitor)
        for job in list(self._latest.values()):
            job.cancel.set()
        with self._at_work:
            pass

    def add(self, visitor: str, reference: Path, video: Path, arguments: Mapping[str, Any]) -> Job:
        """Make a job out of a visitor's wish; it replaces the visitor's earlier one."""
        self.forget(visitor)
        token = secrets.token_hex(8)
        folder = self._folder / token
        output = folder / f"{_stem(reference)}-{_stem(video)}-{token[:6]}.mp4"
        job = self._latest[visitor] = Job(reference, video, dict(arguments), folder, output)
        return job

    @contextmanager
    def checking(self, visitor: str) -> Iterator[threading.Event]:
        """Yield an event that is set when the visitor cancels or leaves while an upload is checked."""
        cancel = threading.Event()
        self._checks.setdefault(visitor, set()).add(cancel)
        try:
            yield cancel
        finally:
            left = self._checks.get(visitor, set())
            left.discard(cancel)
            if not left:
                self._checks.pop(visitor, None)

    def _end_checks(self, visitor: str) -> None:
        for cancel in tuple(self._checks.get(visitor, ())):
            cancel.set()

    def cancel(self, visitor: str) -> Job | None:
        """Cancel a visitor's job and checks. A run that has begun ends with its current step."""
        self._end_checks(visitor)
        job = self._latest.get(visitor)
        if job is not None:
            job.cancel.set()
            if job.state in (JobState.WAITING, JobState.RUNNING):
                job.state = JobState.CANCELLED
        return job

    def forget(self, visitor: str) -> None:
        """Cancel a visitor's job and checks, and remove the job's files."""
        self._end_checks(visitor)
        job = self._latest.pop(visitor, None)
        if job is not None:
            job.cancel.set()
            self._remove(job)  # a run at work removes what it still writes

    async def animate(self, visitor: str) -> AsyncGenerator[Job, None]:
        """Run a visitor's job, and yield it whenever it may have changed, the last time when it is over.

        A visitor who leaves or cancels ends the iteration; it returns when the run has ended.
        """
        job = self._latest.get(visitor)
        if job is None or job.state is not JobState.WAITING:
            return
        work = asyncio.ensure_future(asyncio.to_thread(self._work, job))
        try:
            while not work.done():
                yield job
                await asyncio.wait((work,), timeout=POLL_S)
            yield job
        finally:
            job.cancel.set()
            await asyncio.wait((work,))

    def _work(self, job: Job) -> None:
        """Run a job in this thread; whatever it raises ends this job and no other."""
        with self._at_work:
            state = self._run(job)
        job.stages.stop()
        job.state = state
        if state is not JobState.DONE or job not in self._latest.values():
            self._remove(job)

    def _run(self, job: Job) -> JobState:
        if self._closed or job.cancel.is_set():
            return JobState.CANCELLED
        job.state = JobState.RUNNING
        try:
            with warnings.catch_warnings(record=True) as job.caught:
                for category in _SHOWN_WARNINGS:
                    warnings.simplefilter("always", category)
                self._animate(job)
        except Cancelled:
            return JobState.CANCELLED
        except Exception as error:
            job.problem = job.hide_folders(explain(error))
        else:
            return JobState.DONE
        finally:
            for one in job.caught:
                if not issubclass(one.category, _SHOWN_WARNINGS):
                    warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
        return JobState.FAILED

    def _animate(self, job: Job) -> None:
        job.folder.mkdir()
        job.stages = StageTimes()
        animation = self._animator.run(
            str(job.reference),
            str(job.video),
            output=job.output,
            keep_frames=False,
            progress=job.stages,
            cancel=job.cancel,
            **job.arguments,
        )
        job.stages.stop()
        height, width = animation.frames.shape[1:3]
        total_s = sum(animation.timings.values())
        frames = f"{animation.frame_count} frame{'s' if animation.frame_count != 1 else ''}"
        job.summary = f"{frames} of {width} x {height} pixels, {animation.fps:g} per second, made in {total_s:.1f} s"
        job.driving = _find_driving(job)

    def _remove(self, job: Job) -> None:
        shutil.rmtree(job.folder, ignore_errors=True)
        for name in (job.output.name, _driving_path(job).name):
            for copy in self.uploads.folder.glob(f"*/{name}"):
                copy.unlink(missing_ok=True)


def _driving_path(job: Job) -> Path:
    return job.output.with_stem(f"{job.output.stem}-driving")


def _find_driving(job: Job) -> Path:
    """Find or make the video that is shown beside the result, which is worth showing without it as well."""
    try:
        part = {name: job.arguments[name] for name in ("start_s", "duration_s") if name in job.arguments}
        return make_browser_copy(job.video, _driving_path(job), job.cancel, **part)
    except Cancelled:
        raise
    except DisposeError as error:
        warnings.warn(f"the driving video may not play beside the result: {error}", InputWarning, stacklevel=2)
        return job.video


def _stem(path: Path) -> str:
    """Part of a file name that every system takes."""
    return re.sub(r"[^A-Za-z0-9_]+", "-", path.stem).strip("-")[:40] or "input"
