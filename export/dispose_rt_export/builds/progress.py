"""What a build prints: a line per network, the step at work, the time left, and the memory that was used."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from tqdm import tqdm

from dispose_rt.contract import NETWORKS
from dispose_rt.engines.manifest import NetworkRecord

from .records import expected_seconds
from .worker import BuildWorker, peak_memory_bytes

_SHARES = {
    **dict.fromkeys(NETWORKS, 1),
    **{"dift": 20, "cmp_image_encoder": 2, "cmp_flow_decoder": 2, "image_encoder": 10, "vae_encoder": 4},
    **{"controlnet": 20, "unet": 40, "vae_decoder": 6},
}
"""Rough shares of the networks in the time of a first build; later builds know their own times."""

_TELLING_SHARES = 5
"""Finished shares below which no time is estimated: so far, most of it went into starting compilers."""

_REFRESH_SECONDS = 1.0


@dataclass(frozen=True)
class BuildSummary:
    """The outcome of one engine directory.

    Attributes:
        directory: its path.
        complete: whether every network is there, so that the directory can be used.
        built: networks that were built, or shared with a directory beside this one.
        up_to_date: wanted networks that were finished before.
        missing: networks that are still to be built.
        seconds: wall time of the build.
        bytes: size of all finished networks.
        peak_bytes: largest main memory of the build's processes.
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

    In a terminal, the last line shows the network at work, the time it has taken, and the step.

    Args:
        output: the engine directory.
        only: networks that are wanted, in order.
        stale: networks that will be built.
        worker: the process whose memory counts as well.
    """

    def __init__(self, output: Path, only: Sequence[str], stale: Sequence[str], worker: BuildWorker) -> None:
        self._output = output
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
        self._step = ""
        self._line = tqdm(
            bar_format="{desc}{bar}", file=sys.stdout, disable=None, leave=False, dynamic_ncols=True, delay=1e9
        )
        self._stop = threading.Event()
        self._ticker = threading.Thread(target=self._tick, name="build-progress", daemon=True)

    def __enter__(self) -> BuildProgress:
        """Start refreshing the line, in a terminal."""
        if not self._line.disable:
            self._ticker.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop refreshing, and sum up where something was built."""
        self._stop.set()
        if not self._line.disable:
            self._ticker.join()
        self._line.clear()  # closing clears no line that came before the delay was over
        self._line.close()
        if error is None and self._known:
            peak = self._peak_bytes()
            seconds = time.perf_counter() - self._start
            print(f"built {len(self._known)} networks in {seconds:.0f} s, peak memory {peak / 1e9:.1f} GB", flush=True)

    def summarize(self, records: Mapping[str, NetworkRecord | None]) -> BuildSummary:
        """Sum up a build that has ended.

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
        """Print that a network is up to date."""
        self._print(f"{self._label(name)} up to date")

    def started(self, name: str) -> None:
        """Show a network as being built from now on."""
        self._current, self._network_start, self._step = name, time.perf_counter(), ""
        self._built_seconds = self._network_start - self._start
        self._draw()

    def step(self, text: str) -> None:
        """Show the step of the network at work: "tracing"."""
        self._step = text
        self._draw()

    def finished(self, name: str, record: NetworkRecord | None, *, shared: bool) -> None:
        """Print that a network is finished, and how well it agrees with PyTorch."""
        seconds = time.perf_counter() - self._network_start
        self._pending.remove(name)
        self._shares_done += _SHARES[name]
        self._current = ""
        megabytes = sum(file.size_bytes for file in record.files) / 1e6 if record else 0.0
        worst = max(record.verification.values(), default=None) if record else None
        checked = "copied as it is" if worst is None else f"relative error {worst:.1e}"
        checked += ", shared with a directory beside this one" if shared else ""
        left = self._remaining_seconds(time.perf_counter())
        remaining = f"  [{_duration(left)} left]" if left is not None and self._pending else ""
        self._print(f"{self._label(name)} {seconds:6.1f} s {megabytes:9.1f} MB  {checked}{remaining}")

    def _print(self, text: str) -> None:
        self._line.clear()
        print(text, flush=True)

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
        if not name:
            return
        seconds = time.perf_counter() - self._network_start
        expected = self._known[name]
        if expected is None and self._shares_done >= _TELLING_SHARES:
            expected = self._built_seconds / self._shares_done * _SHARES[name]
        of = f" of about {_duration(expected)}" if expected else ""
        self._line.set_description_str(f"{self._label(name)} {_duration(seconds)}{of}  {self._step}")

    def _tick(self) -> None:
        while not self._stop.wait(_REFRESH_SECONDS):
            self._draw()


def _duration(seconds: float) -> str:
    """For example "45 s" or "3 min 20 s"."""
    whole = round(seconds)
    return f"{whole} s" if whole < 60 else f"{whole // 60} min {whole % 60} s"
