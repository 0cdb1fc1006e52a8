"""What a build prints: a line per network, what is being done, how long it may still take, and the memory it took."""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from dispose_rt.engines.manifest import NetworkRecord

from .plan import NetworkPlan
from .records import expected_seconds
from .worker import BuildWorker, peak_memory_bytes

_SHARES = {
    "person_detector": 1,
    "pose_estimator": 1,
    "dift": 20,
    "cmp_image_encoder": 2,
    "cmp_flow_decoder": 2,
    "image_encoder": 10,
    "vae_encoder": 4,
    "pose_net": 1,
    "motion_encoder": 1,
    "point_encoder": 1,
    "controlnet": 20,
    "unet": 40,
    "vae_decoder": 6,
}
"""How the time of a first build is spread over the networks, roughly; later builds know their own times."""

_TELLING_SHARES = 5
"""Below it the time so far is mostly that of starting compilers, and says nothing about what is left."""

_REFRESH_SECONDS = 1.0


@dataclass(frozen=True)
class BuildSummary:
    """What one engine directory came to.

    Attributes:
        directory: its path.
        complete: whether every network is there, so that the directory can be used.
        built: networks that were built, or taken from a directory beside this one.
        up_to_date: networks that were asked for, and finished before.
        missing: networks that are still to be built.
        seconds: that it took.
        bytes: of all finished networks.
        peak_bytes: the most main memory that the build's processes had.
    """

    directory: str
    complete: bool
    built: list[str]
    up_to_date: list[str]
    missing: list[str]
    seconds: float
    bytes: int
    peak_bytes: int


class BuildProgress:
    """Prints the progress of one engine directory. Use it as a context manager.

    Args:
        output: the engine directory.
        plans: of every network.
        only: networks that are wanted, in order.
        stale: networks that will be built.
        worker: whose memory counts.
    """

    def __init__(
        self,
        output: Path,
        plans: Mapping[str, NetworkPlan],
        only: Sequence[str],
        stale: Sequence[str],
        worker: BuildWorker,
    ) -> None:
        self._output = output
        self._plans = plans
        self._only = list(only)
        self._stale = tuple(stale)
        self._pending = list(stale)
        self._worker = worker
        self._known = {name: expected_seconds(output, name) for name in stale}
        self._shares_done = 0.0
        self._start = time.perf_counter()
        self._built_seconds = 0.0
        self._current = ""
        self._network_start = self._start
        self._doing = ""
        self._live = sys.stdout.isatty()
        self._stop = threading.Event()
        self._ticker = threading.Thread(target=self._tick, name="build-progress", daemon=True)

    def __enter__(self) -> BuildProgress:
        """Start refreshing the line, in a terminal."""
        if self._live:
            self._ticker.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop refreshing; sum up where something was built."""
        self._stop.set()
        if self._live:
            self._ticker.join()
            self._clear_line()
        if error is None and self._known:
            peak = self._peak_bytes()
            seconds = time.perf_counter() - self._start
            print(f"built {len(self._known)} networks in {seconds:.0f} s, peak memory {peak / 1e9:.1f} GB", flush=True)

    def summarize(self, records: Mapping[str, NetworkRecord | None]) -> BuildSummary:
        """Sum up a build that came to its end.

        Args:
            records: of every network; None where it is not built.
        """
        finished = [record for record in records.values() if record is not None]
        return BuildSummary(
            directory=str(self._output),
            complete=len(finished) == len(records),
            built=[name for name in self._only if name in self._stale],
            up_to_date=[name for name in self._only if name not in self._stale],
            missing=[name for name, record in records.items() if record is None],
            seconds=round(time.perf_counter() - self._start, 3),
            bytes=sum(file.size_bytes for record in finished for file in record.files),
            peak_bytes=self._peak_bytes(),
        )

    def _peak_bytes(self) -> int:
        return peak_memory_bytes() + self._worker.peak_bytes

    def kept(self, name: str) -> None:
        """Say that a network is up to date."""
        print(f"{self._label(name)} up to date")

    def started(self, name: str) -> None:
        """Say that a network is being built from now on."""
        self._current, self._network_start, self._doing = name, time.perf_counter(), ""
        self._built_seconds = self._network_start - self._start
        self._draw()

    def step(self, text: str) -> None:
        """Say what is being done for the network at work: "tracing"."""
        self._doing = text
        self._draw()

    def finished(self, name: str, record: NetworkRecord | None, *, shared: bool) -> None:
        """Say that a network is finished, and how well it agrees with PyTorch."""
        seconds = time.perf_counter() - self._network_start
        self._pending.remove(name)
        self._shares_done += _SHARES[name]
        self._current = ""
        megabytes = sum(file.size_bytes for file in record.files) / 1e6 if record else 0.0
        worst = max(record.verification.values(), default=None) if record else None
        checked = "published file" if worst is None else f"relative error {worst:.1e}"
        checked += ", shared with a directory beside this one" if shared else ""
        left = self._remaining_seconds(time.perf_counter())
        remaining = f"  [{_duration(left)} left]" if left is not None and self._pending else ""
        self._clear_line()
        print(f"{self._label(name)} {seconds:6.1f} s {megabytes:9.1f} MB  {checked}{remaining}", flush=True)

    def _label(self, name: str) -> str:
        return f"[{self._only.index(name) + 1:2}/{len(self._only)}] {name:18}"

    def _remaining_seconds(self, now: float) -> float | None:
        """Known times where every pending network was built here before, else the spread of the time so far."""
        known = [self._known[name] for name in self._pending]
        times = [seconds for seconds in known if seconds]
        if len(times) == len(self._pending):
            return sum(times)
        if self._shares_done < _TELLING_SHARES:
            return None
        pending = sum(_SHARES[name] for name in self._pending)
        return (now - self._start) / self._shares_done * pending

    def _draw(self) -> None:
        name = self._current
        if not self._live or not name:
            return
        seconds = time.perf_counter() - self._network_start
        expected = self._known[name]
        if expected is None and self._shares_done >= _TELLING_SHARES:
            expected = self._built_seconds / self._shares_done * _SHARES[name]
        of = f" of about {_duration(expected)}" if expected else ""
        line = f"{self._label(name)} {_duration(seconds)}{of}  {self._doing}"
        columns = shutil.get_terminal_size().columns - 1
        print(f"\r{line[:columns]:{columns}}", end="", flush=True)

    def _clear_line(self) -> None:
        if self._live:
            print("\r\033[K", end="")

    def _tick(self) -> None:
        while not self._stop.wait(_REFRESH_SECONDS):
            self._draw()


def _duration(seconds: float) -> str:
    """For example "45 s" or "3 min 20 s"."""
    whole = round(seconds)
    return f"{whole} s" if whole < 60 else f"{whole // 60} min {whole % 60} s"
