"""Device time of every network of an engine directory by itself, at its largest batch."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..contract import NETWORKS
from ..engines.backends import Engine
from ..engines.manifest import Manifest
from ..engines.open import Engines
from ..errors import Cancelled
from ..hooks.progress import ProgressCallback
from .runs import spread_of

WARM_UP, ROUNDS, MEASURE_S = 2, 9, 10.0
_COUNTED = {"chunk": "frames"}
"""What symbols of the contract count, where they are not called so."""


@dataclass(frozen=True)
class NetworkTime:
    """One network.

    Attributes:
        network: its name.
        backend: what runs it.
        device: where: "cpu" or "cuda:N".
        batch: dynamic dimensions of the run, at their largest; empty where all are static.
        seconds: median of a run, between two events on the engine's stream.
        spread_s: longest minus shortest.
        rounds: how many runs.
    """

    network: str
    backend: str
    device: str
    batch: Mapping[str, int]
    seconds: float
    spread_s: float
    rounds: int


def time_networks(
    manifest: Manifest,
    device: str,
    measure_s: float = MEASURE_S,
    progress: ProgressCallback | None = None,
    cancel: threading.Event | None = None,
) -> list[NetworkTime]:
    """Time all networks, one after the other; only one is open at a time.

    Args:
        manifest: of the engine directory.
        device: as `Animator` takes it.
        measure_s: no network is run again once it has taken this long, after the warm-up and one run.
        progress: hears ("network NAME", done, total).
        cancel: set it from another thread to end with `Cancelled` before the next network.

    Raises:
        EngineError: a network cannot be opened or run.
        DeviceError: the device is not there, fails, or lacks the memory.
        Cancelled: `cancel` was set.
    """
    times = []
    for done, name in enumerate(manifest.networks):
        if cancel is not None and cancel.is_set():
            raise Cancelled(f"cancelled before the network {name}")
        if progress is not None:
            progress(f"network {name}", done, len(manifest.networks))
        engines = Engines(manifest, device)
        try:
            times.append(_time_network(engines(name), manifest.networks[name].backend, measure_s))
        finally:
            engines.close()
    return times


def describe_batch(batch: Mapping[str, int]) -> str:
    """For example "16 frames"; nothing where all dimensions are static."""
    return ", ".join(f"{count} {_COUNTED.get(symbol, symbol)}" for symbol, count in batch.items())


def _time_network(engine: Engine, backend: str, measure_s: float) -> NetworkTime:
    engine.allocate()
    _fill_inputs(engine)
    stream = engine.stream
    begin, end = engine.device.event(), engine.device.event()
    seconds: list[float] = []
    start = time.perf_counter()
    try:
        for turn in range(WARM_UP + ROUNDS):
            begin.record(stream)
            engine.enqueue(stream)
            end.record(stream)
            end.synchronize()
            seconds.append(end.seconds_since(begin))
            if turn >= WARM_UP and time.perf_counter() - start > measure_s:
                break
    finally:
        begin.close()
        end.close()
    measured = spread_of(seconds[WARM_UP:])
    return NetworkTime(
        network=engine.name,
        backend=backend,
        device=engine.device.name,
        batch={symbol: engine.max_batch(symbol) for symbol in NETWORKS[engine.name].dynamic},
        seconds=measured.median,
        spread_s=measured.spread,
        rounds=len(seconds) - WARM_UP,
    )


def _fill_inputs(engine: Engine) -> None:
    """Unit noise: what memory happens to hold may be denormal, which is slow on a processor."""
    draw = np.random.default_rng(0)
    for tensor in NETWORKS[engine.name].inputs:
        array = engine.tensor(tensor.name)
        values = draw.standard_normal(array.shape, np.float32)
        array.upload(values if array.dtype != "float16" else values.astype(np.float16), engine.stream)
