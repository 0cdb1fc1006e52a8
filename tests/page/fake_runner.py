"""A stand-in for the Animator that tests of the page steer."""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from dispose_rt.errors import Cancelled, InputWarning
from dispose_rt.media import write_video


class FakeRunner:
    """Reports progress until `go_on` is set or the run is cancelled; then writes four frames or raises `failure`."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []
        self.go_on = threading.Event()
        self.failure: BaseException | None = None
        self.warning = ""
        self.category: type[Warning] = InputWarning
        self.at_work = 0
        self.most_at_work = 0

    def run(self, ref: Any, video: Any, *, output: Path, progress: Any, cancel: threading.Event, **rest: Any) -> Any:
        self.calls.append({"ref": ref, "video": video, **rest})
        self.at_work += 1
        self.most_at_work = max(self.most_at_work, self.at_work)
        try:
            progress("pose", 1, 4)
            if self.warning:
                warnings.warn(self.warning, self.category, stacklevel=1)
            while not self.go_on.wait(0.005):
                if cancel.is_set():
                    raise Cancelled("cancelled at pose 1 of 4")
            if self.failure is not None:
                raise self.failure
            write_video(output, np.zeros((4, 16, 24, 3), np.uint8), 8)
        finally:
            self.at_work -= 1
        return SimpleNamespace(
            frames=np.zeros((0, 16, 24, 3), np.uint8), frame_count=4, fps=8.0, timings={"pose": 1.5, "decode": 0.75}
        )


def wait_until(condition: Callable[[], bool], limit_s: float = 20.0) -> None:
    """Wait for something that happens in another thread."""
    end_s = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end_s, "it did not happen"
        time.sleep(0.005)
