"""Starts workers, ends those that hang, and keeps what failed."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

START_S = 180.0
_DUMP_S = 1.0
"""Time in which a worker that hangs may write where."""


@dataclass(frozen=True)
class Failure:
    """A case that did what must not happen."""

    area: str
    number: int
    done: str
    problem: str


@dataclass
class Tally:
    """What came of the cases of an area. Slowest and largest are pairs of a value and the case's number."""

    cases: int = 0
    accepted: int = 0
    refused: int = 0
    failures: list[Failure] = field(default_factory=list)
    slowest: tuple[float, int] = (0.0, -1)
    largest: tuple[int, int] = (0, -1)


class Watch:
    """One area's worker, which is started again after a crash or hang.

    Args:
        area: name of the area.
        seed: of all cases.
        folder: for the worker.
        keep: for files of cases that fail.
    """

    def __init__(self, area: str, seed: int, folder: Path, keep: Path) -> None:
        self.tally = Tally()
        self._area, self._seed, self._folder, self._keep = area, seed, folder, keep
        self._worker: subprocess.Popen[bytes] | None = None
        self._limit_s = START_S
        self._heard = b""

    def start(self) -> subprocess.Popen[bytes]:
        """Start a worker, and wait until it is ready."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)
        self._heard = b""
        script = Path(__file__).resolve().parents[1] / "fuzz.py"
        command = [sys.executable, str(script), "--worker", str(self._folder), "--only", self._area]
        environment = {**os.environ, "TMPDIR": str(self._folder), "OMP_NUM_THREADS": "1"}
        self._worker = subprocess.Popen(
            [*command, "--seed", str(self._seed)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            start_new_session=True,
        )
        try:
            self._limit_s = self._hear(START_S)["limit_s"]
        except (EOFError, TimeoutError) as error:
            self._end()
            raise RuntimeError(f"the worker for {self._area} did not start:\n{self._read_log()}") from error
        return self._worker

    def run(self, number: int) -> None:
        """Run one case, and note what becomes of it."""
        worker = self._worker or self.start()
        assert worker.stdin is not None
        done = "not drawn"
        try:
            worker.stdin.write(b"%d\n" % number)
            worker.stdin.flush()
            done = self._hear(self._limit_s)["done"]
            end = self._hear(self._limit_s + _DUMP_S)
            if end["seconds"] > self._limit_s:
                end |= {"outcome": "failed", "problem": f"hang: took {end['seconds']:.1f} s"}
        except TimeoutError:
            end = {
                "outcome": "failed",
                "problem": f"hang: no end within {self._limit_s:.0f} s",
                "seconds": self._limit_s,
            }
        except (EOFError, BrokenPipeError):
            end = {"outcome": "failed", "problem": f"crash: {_name_status(worker.wait(START_S))}", "seconds": 0.0}
        self._note(number, done, end)

    def close(self) -> None:
        """End the worker."""
        if self._worker is None:
            return
        assert self._worker.stdin is not None
        with suppress(OSError):
            self._worker.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self._worker.wait(10)
        self._end()

    def _hear(self, limit_s: float) -> dict[str, Any]:
        """The worker's next line."""
        assert self._worker is not None
        assert self._worker.stdout is not None
        pipe, end_s = self._worker.stdout.fileno(), time.monotonic() + limit_s
        while b"\n" not in self._heard:
            if not select.select([pipe], [], [], max(0, end_s - time.monotonic()))[0]:
                raise TimeoutError
            piece = os.read(pipe, 1 << 16)
            if not piece:
                raise EOFError
            self._heard += piece
        line, _, self._heard = self._heard.partition(b"\n")
        heard: dict[str, Any] = json.loads(line)
        return heard

    def _note(self, number: int, done: str, end: dict[str, Any]) -> None:
        tally = self.tally
        tally.cases += 1
        tally.slowest = max(tally.slowest, (end["seconds"], number))
        tally.largest = max(tally.largest, (end.get("growth", 0), number))
        if end["outcome"] != "failed":
            tally.accepted += end["outcome"] == "accepted"
            tally.refused += end["outcome"] == "refused"
            return
        problem = str(end["problem"])
        if problem.startswith(("hang", "crash")):
            self._end()  # a worker that hangs writes down where
            problem = f"{problem}\n{self._read_log()}"
        failure = Failure(self._area, number, done, problem)
        tally.failures.append(failure)
        self._keep_case(failure)

    def _keep_case(self, failure: Failure) -> None:
        folder = self._keep / f"{failure.area}-{self._seed}-{failure.number}"
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):
            shutil.copytree(self._folder / "case", folder, symlinks=True)
        folder.mkdir(parents=True, exist_ok=True)
        text = f"seed {self._seed}, {failure.area}, case {failure.number}\n{failure.done}\n\n{failure.problem}\n"
        (folder / "failure.txt").write_text(text, encoding="utf-8", errors="backslashreplace")

    def _end(self) -> None:
        """End the worker and all that it has started; first it may say where it hangs."""
        worker, self._worker = self._worker, None
        if worker is None:
            return
        if worker.poll() is None:
            worker.send_signal(signal.SIGABRT)
            with suppress(subprocess.TimeoutExpired):
                worker.wait(_DUMP_S)
        with suppress(ProcessLookupError):
            os.killpg(worker.pid, signal.SIGKILL)  # its own session, see `start`
        worker.wait()
        for pipe in (worker.stdin, worker.stdout):
            with suppress(OSError):
                if pipe is not None:
                    pipe.close()

    def _read_log(self) -> str:
        with suppress(OSError):
            return (self._folder / "stderr.txt").read_text(encoding="utf-8", errors="replace")[-6000:]
        return ""


def run_for(watch: Watch, first: int, count: int | None, minutes: float) -> None:
    """Run the cases from `first` on, until there were `count` or the minutes are over, which begin with the first."""
    watch.start()
    end_s, number = time.monotonic() + 60 * minutes, first
    while time.monotonic() < end_s and (count is None or number < first + count):
        watch.run(number)
        number += 1


def _name_status(status: int) -> str:
    return f"ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
