"""Times whole denoising steps as the runtime runs them: one graph per step, beside the same step queued from Python.

    python benchmarks/speed/graph_step.py ENGINES [--baseline] [--json FILE]

ENGINES is an engine directory; of an unfinished one of AOTInductor's, controlnet and unet are enough. A made-up clip is
denoised: gathering, ControlNet, UNet and accumulation per tile, guidance and Euler step per step, all on one stream.
The step is queued from Python, then captured and launched; both start from the same latents, and their results are
compared. A capture refuses whatever waits for the device, allocates, or copies from or to the host: that it succeeds
is the proof that a step has none of it. --baseline measures eager PyTorch in the same process, see
benchmarks/reference/baseline.py, and prints the ratio of a tile-step.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.speed.latency_baseline import Comparison, Ours, measure_beside, scale_of
from benchmarks.speed.unfinished_directory import read_directory
from dispose_rt.clip.store import ResidentClip
from dispose_rt.contract import POSE_LEVELS
from dispose_rt.device import Array, CudaDevice, Event, Stream
from dispose_rt.engines.backends import Engine
from dispose_rt.engines.manifest import Manifest
from dispose_rt.engines.open import Engines
from dispose_rt.errors import DeviceError, DisposeError, EngineError
from dispose_rt.stages.denoise.scheduler import Schedule, karras_schedule
from dispose_rt.stages.denoise.step import ClipInputs, DenoisingStep, share_tensors
from dispose_rt.stages.denoise.tiles import plan_tiles
from dispose_rt.types import F32, JOINTS, PointTables

STEPS, GUIDANCE = 25, 2.0
WARM_UP, ROUNDS, MEASURE_S = 2, 10, 20.0


@dataclass(frozen=True)
class StepTimes:
    """Measurements of whole steps.

    Attributes:
        tiles: per step.
        queued_s: device time of a step that is queued from Python, median.
        graph_s: of a step that is launched as one graph; None where it cannot be captured.
        spread_s: of `graph_s`, or else of `queued_s`: longest minus shortest.
        launch_s: time that the host spends to launch the graph, median.
        capture_s: time to capture it.
        problem: why it cannot be captured.
        difference: between the latents behind a queued and a launched step, relative to their norm.
        finite: whether all predictions were.
    """

    tiles: int
    queued_s: float
    graph_s: float | None
    spread_s: float
    launch_s: float | None
    capture_s: float | None
    problem: str | None
    difference: float | None
    finite: bool

    @property
    def tile_step_s(self) -> float:
        """Seconds of a tile of a step, in the faster way that works."""
        return (self.queued_s if self.graph_s is None else self.graph_s) / self.tiles

    def __str__(self) -> str:
        lines = [f"queued from Python  {self.queued_s / self.tiles * 1e3:10.3f} ms per tile-step, {self.tiles} tiles"]
        if self.graph_s is None or self.launch_s is None or self.capture_s is None:
            lines.append(f"one graph           NOT captured: {self.problem}")
        else:
            lines.append(
                f"one graph           {self.graph_s / self.tiles * 1e3:10.3f} ms per tile-step   (+-"
                f"{self.spread_s / self.tiles * 1e3:.3f}; the host spends {self.launch_s * 1e6:.0f} us per step)"
            )
            lines.append(
                f"captured in {self.capture_s:.2f} s: a step is one launch, with 0 synchronizations, 0 allocations and "
                "0 copies from or to the host, which capturing would have refused"
            )
            lines.append(f"latents of the two ways differ by {self.difference:.1e}")
        if not self.finite:
            lines.append("predictions are not finite: the times hold, the numbers do not")
        return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark. Returns the exit status: 1 if a step failed or could not be captured."""
    arguments = _parse(argv)
    try:
        manifest = read_directory(arguments.engines)
        engines = Engines(manifest, arguments.device)
        try:
            device = engines.loader.device
            name = device.gpu.name if isinstance(device, CudaDevice) else "CPU"
            size = f"{manifest.sizes.width}x{manifest.sizes.height}"
            print(f"{manifest.backend} {manifest.precision}, {size}, {arguments.frames} frames, on {name}", flush=True)
            times = measure_steps(engines, manifest, arguments.frames, arguments.overlap)
        finally:
            engines.close()
        print(times, flush=True)
        comparison = _compare(arguments, manifest, device.name, times) if arguments.baseline else None
    except DisposeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if arguments.json:
        record = {
            "device": name,
            "backend": manifest.backend,
            "precision": manifest.precision,
            "sizes": asdict(manifest.sizes),
            "scale": scale_of(manifest.sizes),
            "frames": arguments.frames,
            "overlap": arguments.overlap,
            "step": {**asdict(times), "tile_step_s": times.tile_step_s},
            "baseline": comparison,
        }
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")
    return 0 if times.problem is None else 1


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engines", type=Path, metavar="ENGINES", help="an engine directory")
    parser.add_argument("--device", default="auto", help='"auto", "cpu" or "cuda[:N]"')
    parser.add_argument("--frames", type=int, default=16, help="of the clip, the reference included (default: 16)")
    parser.add_argument("--overlap", type=int, default=6, help="frames that tiles share (default: 6)")
    parser.add_argument("--baseline", action="store_true", help="measure eager PyTorch, too")
    parser.add_argument("--baseline-seconds", type=float, default=600, metavar="S")
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser.parse_args(argv)


def _compare(arguments: argparse.Namespace, manifest: Manifest, device: str, times: StepTimes) -> dict[str, Any]:
    """Measure the baseline and print the ratio of a tile-step. Returns its JSON record."""
    baseline = measure_beside(
        manifest, device, arguments.frames, arguments.overlap, STEPS, GUIDANCE, arguments.baseline_seconds
    )
    comparison = Comparison(baseline, Ours(times.tile_step_s, None))
    print(comparison, flush=True)
    return comparison.record()


def measure_steps(engines: Engines, manifest: Manifest, frames: int, overlap: int) -> StepTimes:
    """Time steps of a synthetic clip.

    Args:
        engines: of a directory with controlnet and unet.
        manifest: of the directory.
        frames: of the clip, at least 1.
        overlap: frames that tiles share.

    Raises:
        DisposeError: an engine or the device failed.
    """
    loader = engines.loader
    stream, networks = loader.stream, (engines("controlnet"), engines("unet"))
    tiles = plan_tiles(frames, manifest.sizes.tile, overlap)
    schedule = karras_schedule(STEPS, manifest.scheduler)
    with ExitStack() as held:
        inputs = _draw_inputs(*networks, frames, held)
        share_tensors(*networks)
        step = DenoisingStep(*networks, inputs, tiles, schedule, GUIDANCE, stream)
        held.callback(step.close)
        run = _Steps(step, schedule, stream)
        run.first(step.queue)  # engines compile, tune and allocate
        expected, finite = run.first(step.queue)
        queued = run.time(step.queue)
        problem = next((text for engine in networks if (text := engine.capture_problem(stream)) is not None), None)
        if problem is None:
            start = time.perf_counter()
            try:
                graph = held.enter_context(closing(loader.capture(step.queue)))
            except (DeviceError, EngineError) as error:
                problem = str(error)
        if problem is not None:
            return StepTimes(
                step.tiles, statistics.median(queued), None, _spread(queued), None, None, problem, None, finite
            )
        capture_s = time.perf_counter() - start
        launches: list[float] = []

        def launch() -> None:
            before = time.perf_counter()
            graph.launch(stream)
            launches.append(time.perf_counter() - before)

        got, finite_too = run.first(launch)
        launched = run.time(launch)
        return StepTimes(
            tiles=step.tiles,
            queued_s=statistics.median(queued),
            graph_s=statistics.median(launched),
            spread_s=_spread(launched),
            launch_s=statistics.median(launches),
            capture_s=capture_s,
            problem=None,
            difference=float(np.linalg.norm(got.astype(np.float64) - expected) / np.linalg.norm(expected)),
            finite=finite and finite_too,
        )


def _spread(seconds: Sequence[float]) -> float:
    return max(seconds) - min(seconds)


class _Steps:
    """Runs steps from the same start again and again."""

    def __init__(self, step: DenoisingStep, schedule: Schedule, stream: Stream) -> None:
        self._step = step
        self._stream = stream
        noise = np.random.default_rng(0).standard_normal(step.latents.shape, np.float32)
        self._start: F32 = noise * schedule.init_noise_sigma

    def first(self, queue: Callable[[], None]) -> tuple[F32, bool]:
        """Do the first step. Returns the latents after it, and whether all predictions were finite."""
        self._begin()
        queue()
        _, latents = self._step.download()
        return latents, not self._step.nonfinite.download(self._stream)[0]

    def _begin(self) -> None:
        self._step.start(self._start)
        self._stream.synchronize()

    def time(self, queue: Callable[[], None]) -> list[float]:
        """Return the seconds of the steps after the warm-up, between events on the device."""
        self._begin()
        seconds: list[float] = []
        start = time.perf_counter()
        with _events(self._stream) as (begin, end):
            for turn in range(WARM_UP + ROUNDS):
                begin.record(self._stream)
                queue()
                end.record(self._stream)
                end.synchronize()
                seconds.append(end.seconds_since(begin))
                if turn >= WARM_UP and time.perf_counter() - start > MEASURE_S:
                    break
        return seconds[WARM_UP:]


@contextmanager
def _events(stream: Stream) -> Iterator[tuple[Event, Event]]:
    with closing(stream.device.event()) as begin, closing(stream.device.event()) as end:
        yield begin, end


def _draw_inputs(controlnet: Engine, unet: Engine, frames: int, held: ExitStack) -> ClipInputs:
    """Unit noise in the place of a clip's conditions; a group of points per joint."""
    draw, stream = np.random.default_rng(1), unet.stream
    device = stream.device
    sources = {"pose_latents": unet.tensor("pose_latents"), "motion_features": controlnet.tensor("motion_features")}
    rows = {name: (tensor.shape[1:], tensor.dtype) for name, tensor in sources.items()}
    store = held.enter_context(closing(ResidentClip(frames, rows, device)))
    for name, tensor in sources.items():
        write = store.writer(name, stream)
        with _freed(_noise(draw, (1, *tensor.shape[1:]), tensor.dtype, stream)) as row:
            for frame in range(frames):
                write(frame, row)
            stream.synchronize()
    grid = controlnet.tensor("point_features_0").shape[2:]
    cells = np.full((frames, *grid), -1, np.int32)
    for frame in cells:
        frame.reshape(-1)[draw.integers(0, frame.size, JOINTS)] = np.arange(JOINTS)
    levels = [controlnet.tensor(f"point_features_{level}") for level in range(POSE_LEVELS)]
    tables = tuple(_noise(draw, (JOINTS, level.shape[1]), level.dtype, stream) for level in levels)
    points = held.enter_context(closing(PointTables(cells, tables)))
    return ClipInputs(
        image_embeds=draw.standard_normal(unet.shape("image_embeds"), np.float32),
        image_latents=draw.standard_normal(unet.shape("image_latents"), np.float32),
        added_time_ids=np.array([[6, 127, 0]], np.float32),
        store=store,
        points=points,
    )


@contextmanager
def _freed(array: Array) -> Iterator[Array]:
    """Free an array after the block."""
    try:
        yield array
    finally:
        array.free()


def _noise(draw: np.random.Generator, shape: tuple[int, ...], dtype: str, stream: Stream) -> Array:
    values = draw.standard_normal(shape, np.float32)
    return stream.device.array(values.astype(np.float16) if dtype == "float16" else values, stream, dtype)


if __name__ == "__main__":
    sys.exit(main())
