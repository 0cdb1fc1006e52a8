"""Run after run, good, failed, cancelled and left ones, in one process: nothing grows."""

from __future__ import annotations

import gc
import os
import threading
import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dispose_rt.errors import Cancelled, DisposeError, InputError, NoPersonError

from . import materials
from .conftest import Workshop

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="reads Linux's /proc")
MEGABYTE = 1 << 20


@dataclass(frozen=True)
class Usage:
    """What a process holds."""

    traced_bytes: int
    resident_bytes: int
    device_bytes: int
    descriptors: int
    threads: int

    @classmethod
    def of(cls, shop: Workshop) -> Usage:
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return cls(
            tracemalloc.get_traced_memory()[0],
            pages * os.sysconf("SC_PAGE_SIZE"),
            shop.used_bytes,
            len(list(Path("/proc/self/fd").iterdir())),
            threading.active_count() + len(list(Path("/proc/self/task").iterdir())),
        )


class Ways:
    """Ways for a run to go, one after the other."""

    def __init__(self, shop: Workshop, folder: Path) -> None:
        self._shop = shop
        self._output = folder / "out.mp4"
        self._backdrop = np.full((48, 32, 3), 127, np.uint8)
        self._video = materials.film(folder / "short.mkv", materials.draw_film(1))

    def __iter__(self) -> Iterator[Any]:
        return cycle((self.good, self.fail, self.good, self.cancel, self.stream, self.good, self.refuse, self.leave))

    def good(self) -> None:
        self._run(output=self._output)

    def fail(self) -> None:
        """In the last stage, by an observer, while a file is written."""

        def observe(name: str, value: Any) -> None:
            if name == "frames":
                raise InputError("as planned")

        with pytest.raises(InputError, match="as planned"):
            self._run(output=self._output, observer=observe)

    def cancel(self) -> None:
        cancel = threading.Event()

        def progress(stage: str, done: int, total: int) -> None:
            if stage == "denoise":
                cancel.set()

        with pytest.raises(Cancelled):
            self._run(progress=progress, cancel=cancel)

    def stream(self) -> None:
        assert len(list(self._open_stream())) == 1

    def leave(self) -> None:
        """A stream after its first frame."""
        for _ in self._open_stream():
            break

    def refuse(self) -> None:
        with pytest.raises(NoPersonError):
            self._run(ref=self._backdrop)
        for changes in ({"ref": "no.png"}, {"video": "no.mp4"}, {"steps": 0}):
            with pytest.raises(DisposeError):
                self._run(**changes)

    def _run(self, **changes: Any) -> None:
        self._shop.run(**{"video": self._video} | changes)

    def _open_stream(self) -> Iterator[Any]:
        return self._shop.animator.stream(**self._shop.options | {"video": self._video})


def measure_growth(shop: Workshop, folder: Path, first: int, last: int) -> tuple[Usage, Usage]:
    """Use after `first` and after `last` runs."""
    ways = iter(Ways(shop, folder))
    tracemalloc.start()
    try:
        for run in islice(ways, first):
            run()
        early = Usage.of(shop)
        for run in islice(ways, last - first):
            run()
        return early, Usage.of(shop)
    finally:
        tracemalloc.stop()


def check_growth(early: Usage, late: Usage) -> None:
    """What is counted does not grow at all.

    Python's objects grew by 38 kB from run 8 to run 40 and by 46 kB from run 20 to run 200 (caches of the libraries),
    the process by 2 to 9 MB (how the C allocator lays things out). One kept frame a run would be 390 kB in 32 runs.
    """
    assert (late.descriptors, late.threads, late.device_bytes) == (early.descriptors, early.threads, early.device_bytes)
    assert late.traced_bytes - early.traced_bytes < 200_000
    assert late.resident_bytes - early.resident_bytes < 24 * MEGABYTE


def test_many_runs(shop: Workshop, tmp_path: Path) -> None:
    early, late = measure_growth(shop, tmp_path, 8, 40)
    check_growth(early, late)


@pytest.mark.slow
def test_two_hundred_runs(shop: Workshop, tmp_path: Path) -> None:
    early, late = measure_growth(shop, tmp_path, 20, 200)
    check_growth(early, late)
