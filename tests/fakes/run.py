"""A run that needs no engines, to look at what an Animator does around it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from typing import Any

import numpy as np

from dispose_rt.hooks.progress import STAGES, StageTimer


class FakeRun:
    """Goes through all stages, then yields chunks of two frames, each of which shows its number.

    Attributes:
        frames: of the next runs.
        height, width: of their frames.
        hook: called in the middle of every stage with its name.
        overlaps: how often one run began while another went on.
    """

    frames = 4
    height, width = 8, 8
    hook: Callable[[str], None] = staticmethod(lambda stage: None)
    overlaps = 0
    finished = 0
    _lock = threading.Lock()

    def __init__(
        self, settings: Any, engines: Any, manifest: Any, noise: Any, progress: Any, observer: Any = None, *rest: Any
    ) -> None:
        self._settings, self._progress = settings, progress
        self.frame_count, self.time_stamps = 0, None
        self.timer, self.peak_bytes = StageTimer(), 0
        self.timings = self.timer.seconds

    def chunks(self, *arguments: Any) -> Generator[np.ndarray]:
        kind = type(self)
        if not kind._lock.acquire(blocking=False):
            kind.overlaps += 1
            raise AssertionError("two runs at once")
        try:
            for stage in STAGES[:-1]:
                self._progress.begin(stage, 1)
                kind.hook(stage)
                self._progress.end(stage)
            self.frame_count = kind.frames
            self._progress.begin("decode", kind.frames)
            for start in range(0, kind.frames, 2):
                kind.hook("decode")
                shape = (2, kind.height, kind.width, 3)
                yield np.full(shape, self._settings.seed, np.uint8) + np.arange(
                    start, start + 2, dtype=np.uint8
                ).reshape(2, 1, 1, 1)
                self._progress.step("decode", start + 2, kind.frames)
            kind.finished += 1
        finally:
            kind._lock.release()
