"""A worker of a production service: engines are loaded once, jobs come from a queue, and each job may be cancelled.

Reads one JSON object per line from standard input, {"id", "reference", "video", "output"}, or {"id", "cancel": true},
and writes one per line to standard output: {"id", "stage", "done", "total"} while it works, and in the end
{"id", "output", "frames"} or {"id", "error"}.

    python examples/serve_jobs.py engines < jobs.jsonl
"""

from __future__ import annotations

import argparse
import json
import logging
import queue
import sys
import threading
import time
from typing import Any

import dispose_rt

TELL_EVERY_S = 0.5


class Worker:
    """A thread that makes the videos of queued jobs.

    Args:
        animator: runs all jobs; it may be shared with other threads, whose runs are queued.
        settings: settings of every job, see `dispose_rt.Settings`.
    """

    def __init__(self, animator: dispose_rt.Animator, **settings: Any) -> None:
        self._animator = animator
        self._settings = settings
        self._jobs: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._cancels: dict[str, threading.Event] = {}
        self._writing = threading.Lock()
        self._thread = threading.Thread(target=self._work, name="animation worker")
        self._thread.start()

    def submit(self, message: dict[str, Any]) -> None:
        """Queue a job, or cancel one, whether it has begun or not."""
        if message.get("cancel"):
            if message["id"] in self._cancels:
                self._cancels[message["id"]].set()
            return
        self._cancels[message["id"]] = threading.Event()
        self._jobs.put(message)

    def finish(self) -> None:
        """Wait until all jobs are done."""
        self._jobs.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            name = job["id"]
            try:
                animation = self._animator.run(
                    job["reference"],
                    job["video"],
                    **self._settings,
                    output=job["output"],
                    keep_frames=False,
                    progress=self._teller(name),
                    cancel=self._cancels[name],
                )
                self._tell(id=name, output=job["output"], frames=animation.frame_count)
            except dispose_rt.DisposeError as error:  # bad input or a cancelled job does not affect the next one
                self._tell(id=name, error=f"{type(error).__name__}: {error}")
            finally:
                del self._cancels[name]

    def _teller(self, name: str) -> dispose_rt.ProgressCallback:
        """Return the progress callback of one job, which prints at most one tick per TELL_EVERY_S."""
        last_s = 0.0

        def tell(stage: str, done: int, total: int | None) -> None:
            nonlocal last_s
            if time.monotonic() - last_s >= TELL_EVERY_S or done == total:
                last_s = time.monotonic()
                self._tell(id=name, stage=stage, done=done, total=total)

        return tell

    def _tell(self, **message: object) -> None:
        with self._writing:
            print(json.dumps(message), flush=True)


def main() -> int:
    """Serve until standard input ends."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engines", help="engine directory, or a folder of several")
    parser.add_argument("--steps", type=int, default=25)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)  # dispose_rt logs, it never prints
    try:
        with dispose_rt.Animator(arguments.engines) as animator:
            animator.warmup()  # so that the first job does not wait for engines
            worker = Worker(animator, steps=arguments.steps)
            try:
                for line in sys.stdin:
                    worker.submit(json.loads(line))
            finally:
                worker.finish()
    except dispose_rt.DisposeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
