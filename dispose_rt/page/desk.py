"""Runs animations for many visitors, one at a time, in the order in which they asked."""

from __future__ import annotations

import logging
import re
import secrets
import shutil
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Protocol, TextIO

from ..errors import BusyError, Cancelled, DisposeError, InputWarning, PerformanceWarning
from .browser_copy import make_browser_copy
from .stage_clock import StageClock

LONGEST_QUEUE = 20
"""Visitors who may wait; more are sent away with a message."""

_LOG = logging.getLogger("dispose_rt")
_INTERNAL_ERROR = (
    "Something went wrong inside dispose-rt ({kind}). That is a bug, not your input; the terminal in which the page "
    "was started shows where. The page goes on: change something and try again."
)


class Runner(Protocol):
    """The part of `Animator` that the desk uses."""

    @property
    def run(self) -> Callable[..., Any]:
        """See `Animator.run`."""


class JobState(Enum):
    """What became of a visitor's wish."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        """Whether nothing more will happen."""
        return self in (JobState.DONE, JobState.FAILED, JobState.CANCELLED)


@dataclass(eq=False)
class Job:
    """One animation that somebody asked for.

    Attributes:
        visitor: who asked.
        reference: picture.
        video: driving video.
        arguments: of `Animator.run`, the settings foremost.
        folder: what it writes.
        output: the result, once it is done.
        state: see `JobState`.
        cancel: set it to end the job at the run's next tick.
        clock: how far it is.
        notices: warnings of the run.
        problem: why it failed, for the visitor to read.
        driving: a copy of the driving video that browsers play; the video itself where they play that.
        summary: frames, size, rate and seconds of the result.
    """

    visitor: str
    reference: Path
    video: Path
    arguments: Mapping[str, Any]
    folder: Path
    output: Path
    state: JobState = JobState.WAITING
    cancel: threading.Event = field(default_factory=threading.Event)
    clock: StageClock = field(default_factory=StageClock)
    notices: list[str] = field(default_factory=list)
    problem: str = ""
    driving: Path | None = None
    summary: str = ""


class Desk:
    """Takes wishes and works them off in a thread of its own.

    Use it as a context manager, or call `close`.

    Args:
        animator: an `Animator`, which stays the caller's to close.
        folder: for results; it must exist.
        copies: in whose subfolders the web server keeps copies of what it was handed.
        longest_queue: how many may wait.
    """

    def __init__(self, animator: Runner, folder: Path, copies: Path, longest_queue: int = LONGEST_QUEUE) -> None:
        self._animator = animator
        self._folder = folder
        self._copies = copies
        self._longest_queue = longest_queue
        self._waiting: deque[Job] = deque()
        self._latest: dict[str, Job] = {}
        self._running: Job | None = None
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="animation desk", daemon=True)
        self._thread.start()

    def __enter__(self) -> Desk:
        """Return itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close it."""
        self.close()

    def submit(self, visitor: str, reference: Path, video: Path, arguments: Mapping[str, Any]) -> Job:
        """Queue an animation, and forget the visitor's earlier one.

        Args:
            visitor: who asks; one wish at a time.
            reference: picture.
            video: driving video.
            arguments: of `Animator.run`; checked by the run.

        Returns:
            The job, to be looked at until its state is final.

        Raises:
            BusyError: the visitor's last wish is still being worked on, too many wait, or the desk is closed.
        """
        with self._changed:
            if self._closed:
                raise BusyError("the page is being shut down; start it again: dispose-rt page")
            before = self._latest.get(visitor)
            if before is not None and not before.state.is_final:
                raise BusyError("your last animation is still at work; wait for it, or cancel it first")
            if len(self._waiting) >= self._longest_queue:
                raise BusyError(f"{len(self._waiting)} others are waiting already; try again in a few minutes")
            if before is not None:
                self._remove(before)
            token = secrets.token_hex(8)
            folder = self._folder / token
            output = folder / f"{_stem(reference)}-{_stem(video)}-{token[:6]}.mp4"
            job = Job(visitor, reference, video, dict(arguments), folder, output)
            self._latest[visitor] = job
            self._waiting.append(job)
            self._changed.notify_all()
            return job

    def count_before(self, job: Job) -> int:
        """How many jobs come before a waiting one; 0 for any other."""
        with self._changed:
            if job not in self._waiting:
                return 0
            return self._waiting.index(job) + (self._running is not None)

    def cancel(self, visitor: str) -> None:
        """End a visitor's job: at once if it waits, at the run's next tick if it runs."""
        with self._changed:
            job = self._latest.get(visitor)
            if job is not None:
                self._cancel(job)

    def _cancel(self, job: Job) -> None:
        job.cancel.set()
        if job in self._waiting:
            self._waiting.remove(job)
            job.state = JobState.CANCELLED

    def forget(self, visitor: str) -> None:
        """End a visitor's job and remove its files: nobody looks any more."""
        with self._changed:
            job = self._latest.pop(visitor, None)
            if job is not None:
                self._cancel(job)
                if job.state.is_final:  # else the worker removes it
                    self._remove(job)

    def close(self) -> None:
        """Cancel everything and wait for the thread. Calling it twice is fine."""
        with self._changed:
            self._closed = True
            for job in (*self._latest.values(), self._running):
                if job is not None:
                    self._cancel(job)
            self._changed.notify_all()
        self._thread.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    return
                job = self._running = self._waiting.popleft()
                job.state = JobState.RUNNING
            state = self._serve(job)
            with self._changed:
                job.clock.stop()
                job.state, self._running = state, None
                if state is not JobState.DONE or self._latest.get(job.visitor) is not job:
                    self._remove(job)

    def _serve(self, job: Job) -> JobState:
        """Run a job; whatever it raises ends this job and no other."""
        try:
            with _noting_warnings(lambda notice: _note(notice, job)):
                self._animate(job)
                job.driving = _find_driving(job)
        except Cancelled:
            return JobState.CANCELLED
        except DisposeError as error:
            job.problem = _hide_folders(str(error), job)
        except MemoryError:
            job.problem = "The machine has too little memory for this; take a shorter video, or a larger stride."
        except Exception as error:
            _LOG.exception("a run of the page failed")
            job.problem = _INTERNAL_ERROR.format(kind=type(error).__name__)
        else:
            return JobState.DONE
        return JobState.FAILED

    def _animate(self, job: Job) -> None:
        job.folder.mkdir()
        job.clock.start()
        animation = self._animator.run(
            str(job.reference),
            str(job.video),
            output=job.output,
            keep_frames=False,
            progress=job.clock.tick,
            cancel=job.cancel,
            **job.arguments,
        )
        job.clock.stop()
        height, width = animation.frames.shape[1:3]
        total_s = sum(animation.timings.values())
        frames = f"{animation.frame_count} frame{'s' if animation.frame_count != 1 else ''}"
        job.summary = f"{frames} of {width} x {height} pixels, {animation.fps:g} per second, made in {total_s:.1f} s"

    def _remove(self, job: Job) -> None:
        shutil.rmtree(job.folder, ignore_errors=True)
        for name in (job.output.name, _driving_path(job).name):
            for copy in self._copies.glob(f"*/{name}"):
                copy.unlink(missing_ok=True)


def _driving_path(job: Job) -> Path:
    return job.output.with_stem(f"{job.output.stem}-driving")


def _find_driving(job: Job) -> Path:
    """Find or make the video that is shown beside the result; a result is worth showing without it, too."""
    try:
        return make_browser_copy(job.video, _driving_path(job), job.cancel)
    except Cancelled:
        raise
    except DisposeError as error:
        _note(f"the driving video may not play beside the result: {error}", job)
        return job.video


def _note(notice: str, job: Job) -> None:
    notice = _hide_folders(notice, job)
    if notice not in job.notices:
        job.notices.append(notice)


def _stem(path: Path) -> str:
    """A file's name as part of another one, on any system."""
    return re.sub(r"[^A-Za-z0-9_]+", "-", path.stem).strip("-")[:40] or "input"


def _hide_folders(message: str, job: Job) -> str:
    """Name uploads as the visitor knows them, without the folders that they were put into here."""
    for path in (job.reference, job.video, job.output):
        message = message.replace(str(path), path.name)
    return message


@contextmanager
def _noting_warnings(note: Callable[[str], None]) -> Iterator[None]:
    """Note the warnings that are meant for users, each time anew; others take their usual way."""
    with warnings.catch_warnings():
        for category in (InputWarning, PerformanceWarning):
            warnings.simplefilter("always", category)
        pass_on = warnings.showwarning

        def show(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            if issubclass(category, (InputWarning, PerformanceWarning)):
                note(str(message))
            else:
                pass_on(message, category, filename, lineno, file, line)

        warnings.showwarning = show
        yield
