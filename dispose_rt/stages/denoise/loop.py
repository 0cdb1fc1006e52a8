"""The sampling loop: per sigma and tile ControlNet, UNet, accumulate; then one guided Euler step on all frames.

On a GPU work is captured into graphs after the first step, and launched for all others: a step as one graph where tiles
are short, or each network of a tile as one where they are long. Long graphs would gain nothing, idle while they are
captured, and keep a cancelled run waiting. Nothing in them waits, allocates or copies from or to the host. The host
checks the result of one piece of work while the next one runs.
"""

from __future__ import annotations

import math
import time
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from ...contract import Sizes
from ...device import Array, Graph, Stream
from ...engines.backends import Engine, EngineLoader
from ...errors import DeviceError, EngineError, OutOfMemoryError, PerformanceWarning
from ...hooks.observer import NO_OBSERVER, Observer, is_wanted
from ...hooks.progress import Progress
from ...noise import NoiseSource, draw_checked
from ...types import F32, StepTrace
from .scheduler import Schedule
from .step import ClipInputs, DenoisingStep, share_tensors, sum_weights
from .tiles import Tile

TILES_PER_GRAPH = 16
"""Largest number of tiles in a graph of a whole step."""

SHORT_TILE_S = 0.1
"""A tile that takes longer is no part of a larger graph: a launch costs a thousandth of it, or less."""

_UNITS_AHEAD = 2
"""Units of work queued ahead of the host: the device never idles, and a cancelled run ends soon."""

_Captured = TypeVar("_Captured")


def initial_latents(noise: NoiseSource, schedule: Schedule, frames: int, sizes: Sizes) -> F32:
    """Draw the start of the sampler: one tile of noise at the largest sigma, which `Denoiser.run` repeats along time.

    Returns:
        float32 [tile or frames, 4, height/8, width/8], whichever is less. As in the reference, frame k and frame
        k + tile start equal.
    """
    tile_noise = draw_checked(noise, "latents", (1, sizes.tile, 4, sizes.height // 8, sizes.width // 8))[0]
    start: F32 = tile_noise[:frames] * schedule.init_noise_sigma
    return start


@dataclass(frozen=True)
class _Unit:
    """Work that is queued as a whole, and how many tiles are done with it; 0 for the first part of one."""

    queue: Callable[[], None]
    tiles: int


class Denoiser:
    """The sampling loop over one pair of engines.

    Args:
        controlnet: the "controlnet" engine, or None to run the UNet alone (plain MimicMotion).
        unet: the "unet" engine.
        loader: what the engines share: their stream, and how their runs are captured.
    """

    def __init__(self, controlnet: Engine | None, unet: Engine, loader: EngineLoader) -> None:
        self._controlnet = controlnet
        self._unet = unet
        self._engines = [unet] if controlnet is None else [controlnet, unet]
        self._loader = loader
        self._stream = loader.stream

    def allocate(self) -> None:
        """Allocate all tensors of the networks, and share those that both use. `run` does it if this was not called.

        Raises:
            OutOfMemoryError: the device has no room.
        """
        if self._controlnet is not None:
            share_tensors(self._controlnet, self._unet)
        for engine in self._engines:
            engine.allocate()

    def run(
        self,
        latents: F32,
        inputs: ClipInputs,
        schedule: Schedule,
        tiles: Sequence[Tile],
        guidance_scale: float,
        progress: Progress,
        observer: Observer = NO_OBSERVER,
    ) -> Array:
        """Denoise a clip.

        Args:
            latents: float32 [n, 4, height/8, width/8], the start of the first n frames, which is that of every next n
                frames as well; not modified.
            inputs: conditions of all frames.
            schedule: sigmas and timesteps.
            tiles: cover every frame.
            guidance_scale: g of u + g (c - u).
            progress: gets a tick per tile, or per step where a step is one graph; asked twice a tile whether to go on.
            observer: gets every step; observing them makes the device wait for the host.

        Returns:
            float32 [frames, 4, height/8, width/8] on the device; the caller frees it.

        Raises:
            EngineError: a network failed, or returned non-finite values.
            OutOfMemoryError: the device has no room.
            Cancelled: the caller asked to stop.
        """
        self.allocate()
        is_observed = is_wanted(observer, "denoise_step")
        total = schedule.steps * len(tiles)
        with (
            closing(
                DenoisingStep(self._controlnet, self._unet, inputs, tiles, schedule, guidance_scale, self._stream)
            ) as step,
            closing(_Queue(step, self._engines, progress, total, self._stream)) as queue,
        ):
            graph: Graph | None = None
            try:
                step.start(latents)
                units = self._network_units(step, self._kept_graphs())
                for number in range(schedule.steps):
                    for unit in units:
                        queue.add(unit)
                    if number == 0 and schedule.steps > 1:  # by now the engines have compiled, tuned and allocated
                        queue.drain()
                        if _fits_one_graph(step) and queue.shortest_tile_s < SHORT_TILE_S:
                            graph = self._capture(lambda: self._loader.capture(step.queue))
                            units = self._step_units(step, graph) if graph is not None else units
                        else:
                            graphs = self._capture(lambda: [self._loader.capture_run(one) for one in self._engines])
                            units = self._network_units(step, graphs)
                    if is_observed:
                        queue.drain()
                        observer.denoise_step(_trace(number, step, tiles))
                queue.drain()
                return step.take_latents()
            finally:
                self._stream.synchronize()
                if graph is not None:
                    graph.close()
                if not self._loader.keeps_graphs:
                    self._loader.drop_graphs()

    def _kept_graphs(self) -> list[Graph] | None:
        """Graphs of the networks that an earlier run has left; None if one is missing."""
        kept = [graph for engine in self._engines if (graph := self._loader.find_graph(engine)) is not None]
        return kept if len(kept) == len(self._engines) else None

    def _capture(self, capture: Callable[[], _Captured]) -> _Captured | None:
        """Capture graphs; None where the backend cannot, which is reported once, or where memory is short."""
        loader = self._loader
        if loader.uncapturable is not None:
            return None
        problems = (engine.capture_problem(self._stream) for engine in self._engines)
        problem = loader.uncapturable = next((problem for problem in problems if problem is not None), None)
        if problem is None:
            try:
                return self._capture_in_room(capture)
            except OutOfMemoryError as error:  # in this run: the next one may find more
                problem = str(error)
            except (DeviceError, EngineError) as error:
                problem = loader.uncapturable = str(error)
        warnings.warn(
            f"denoising steps are not captured into a CUDA graph: {problem}. Every kernel is launched by itself "
            "instead, with the same results; small sizes run slower.",
            PerformanceWarning,
            stacklevel=2,
        )
        return None

    def _capture_in_room(self, capture: Callable[[], _Captured]) -> _Captured:
        """Capture; where memory is short, once more after giving back what is kept for later."""
        try:
            return capture()
        except OutOfMemoryError:
            self._loader.device.pool.trim()
            return capture()

    def _step_units(self, step: DenoisingStep, graph: Graph) -> list[_Unit]:
        """A step as one unit."""
        return [_Unit(lambda: graph.launch(self._stream), step.tiles)]

    def _network_units(self, step: DenoisingStep, graphs: Sequence[Graph] | None) -> list[_Unit]:
        """A step as one unit per tile and network, so that no more than a tile's work is ever queued ahead.

        Args:
            step: the step.
            graphs: of the networks, in their order; None queues them call by call.
        """
        queue = [partial(engine.enqueue, self._stream) for engine in self._engines]
        if graphs is not None:
            queue = [partial(graph.launch, self._stream) for graph in graphs]
        first, last = queue[0], queue[-1]
        units = []
        for tile in range(step.tiles):
            before = partial(step.queue_inputs, tile)
            after = partial(step.queue_outputs, tile)
            if len(queue) == 1:
                units.append(_Unit(partial(_call, before, first, after), 1))
            else:
                units += [_Unit(partial(_call, before, first), 0), _Unit(partial(_call, last, after), 1)]
        return units


def _call(*parts: Callable[[], None]) -> None:
    for part in parts:
        part()


def _fits_one_graph(step: DenoisingStep) -> bool:
    return step.capturable and step.tiles <= TILES_PER_GRAPH


def _trace(number: int, step: DenoisingStep, tiles: Sequence[Tile]) -> StepTrace:
    sums, latents = step.download()
    return StepTrace(number, sums, sum_weights(tiles, len(latents)), latents)


class _Queue:
    """Keeps the device busy with a little work ahead, and reports how far it has come.

    Attributes:
        shortest_tile_s: the shortest time that a tile has taken so far, in seconds, as the host sees it.
    """

    def __init__(
        self, step: DenoisingStep, engines: Sequence[Engine], progress: Progress, total: int, stream: Stream
    ) -> None:
        device = stream.device
        self._step = step
        self._engines = engines
        self._progress = progress
        self._total = total
        self._stream = stream
        self._done = 0
        self._since = time.perf_counter()
        self.shortest_tile_s = math.inf
        self._flags = device.pinned((_UNITS_AHEAD, 1), "int32")
        self._marks = [device.event() for _ in range(_UNITS_AHEAD)]
        self._free = list(range(_UNITS_AHEAD))
        self._queued: deque[tuple[int, int]] = deque()

    def add(self, unit: _Unit) -> None:
        """Queue a unit, after waiting for the one before the last.

        Raises:
            EngineError: a network failed, or returned non-finite values.
            Cancelled: the caller asked to stop.
        """
        # a unit of a single network is a whole tile, and a cancelled run waits for one, not for two
        alone = len(self._engines) == 1 and self.shortest_tile_s >= SHORT_TILE_S
        if len(self._queued) >= (1 if alone else _UNITS_AHEAD):
            self._finish_oldest()
        mark = self._free.pop()
        unit.queue()
        flag = self._flags.rows(mark, mark + 1)
        flag.copy_from(self._step.nonfinite.reshape(1, 1), self._stream)
        self._marks[mark].record(self._stream)
        self._queued.append((mark, unit.tiles))

    def drain(self) -> None:
        """Wait for everything, see `add`."""
        while self._queued:
            self._finish_oldest()

    def _finish_oldest(self) -> None:
        mark, tiles = self._queued.popleft()
        self._marks[mark].synchronize()
        self._free.append(mark)
        if self._flags.bits[mark, 0]:
            self._explain_nonfinite()
        if not tiles:
            self._progress.check(f"at denoise {self._done} of {self._total}")
            return
        now = time.perf_counter()
        self.shortest_tile_s = min(self.shortest_tile_s, (now - self._since) / tiles)
        self._since = now
        self._done += tiles
        self._progress.step("denoise", self._done, self._total)

    def _explain_nonfinite(self) -> None:
        self._stream.synchronize()
        self._step.check_conditions()
        for engine in self._engines:
            engine.check_finite()  # names the network and its tensors
        raise EngineError(
            "the networks controlnet and unet returned non-finite values: their precision is too small for these "
            "weights. Build the engines with --precision bf16 or fp32."
        )

    def close(self) -> None:
        """Free events and memory, after the work that uses them."""
        for mark in self._marks:
            mark.close()
        self._flags.free()
