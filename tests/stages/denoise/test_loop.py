"""The sampling loop on device arrays against the same loop in numpy, captured into a graph or not."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from dispose_rt.clip.recomputed import RecomputedClip
from dispose_rt.clip.store import ResidentClip, StoredClip, StreamedClip
from dispose_rt.contract import NETWORKS, SchedulerConstants, Sizes
from dispose_rt.device import Array, Graph, Stream, open_device
from dispose_rt.errors import Cancelled, DeviceError, EngineError, InputError, OutOfMemoryError, PerformanceWarning
from dispose_rt.hooks.observer import Observer, as_observer
from dispose_rt.hooks.progress import Progress
from dispose_rt.settings import CONTROLS
from dispose_rt.stages.denoise import loop as denoise
from dispose_rt.stages.denoise.loop import Denoiser, initial_latents
from dispose_rt.stages.denoise.scheduler import karras_schedule
from dispose_rt.stages.denoise.step import ClipInputs, DenoisingStep, sum_weights
from dispose_rt.stages.denoise.tiles import Tile, plan_tiles
from dispose_rt.types import F32, PointTables, StepTrace
from tests.every import each
from tests.fakes.cuda import install
from tests.fakes.engine import Compute, FakeEngine, FakeLoader
from tests.kernels.references import guided_euler_step, scatter_point_features

SIZES = Sizes(64, 128, tile=4, channels=(4, 8, 12, 16), embed=5, dift=6)
HEIGHT, WIDTH = SIZES.height // 8, SIZES.width // 8
STEPS, GUIDANCE = 4, 2.5
SCHEDULE = karras_schedule(STEPS, SchedulerConstants())
Tensors = Mapping[str, np.ndarray]


def controlnet(inputs: Tensors) -> dict[str, Any]:
    """Residuals that tell every input apart."""
    common = np.sin(inputs["latents"]).mean(axis=1, keepdims=True) + np.float32(0.1) * inputs["timestep"]
    common = common + inputs["image_embeds"].sum() + inputs["added_time_ids"].sum() / np.float32(100)
    common = common + inputs["motion_features"].mean(axis=1, keepdims=True)
    doubled = np.concatenate([common, common + inputs["image_latents"].mean()])
    answers = {f"residual_{number}": np.float32(doubled.mean() + number) for number in range(13)}
    answers["residual_0"] = np.broadcast_to(doubled, (8, 4, HEIGHT, WIDTH))
    for level in range(4):
        answers[f"residual_{level + 1}"] = inputs[f"point_features_{level}"].sum(dtype=np.float32)
    return answers


def unet(inputs: Tensors) -> dict[str, Any]:
    """A prediction per guidance half that tells every input apart."""
    residuals = sum(inputs[f"residual_{number}"].mean() * np.float32(0.01) for number in range(1, 13))
    halves = inputs["residual_0"].reshape(2, 4, 4, HEIGHT, WIDTH)
    pose = inputs["pose_latents"].mean(axis=1, keepdims=True)
    values = np.cos(inputs["latents"]) + pose + halves * np.float32(0.1) + residuals
    return {"noise_pred": values + inputs["timestep"] * np.float32(0.05)}


class HostRows:
    """Conditions that are uploaded when they are asked for."""

    limit = SIZES.tile

    def __init__(self, values: np.ndarray, stream: Stream) -> None:
        self._values, self._stream = values, stream
        self._rows = stream.device.empty((self.limit, *values.shape[1:]), values.dtype.name)

    def compute(self, start: int, stop: int) -> Array:
        rows = self._rows.rows(0, stop - start)
        rows.upload(self._values[start:stop], self._stream)
        return rows

    def close(self) -> None:
        self._rows.free()


class Clip:
    """A clip's conditions on the host and as the denoiser takes them."""

    def __init__(self, frames: int, controls: tuple[str, ...] = CONTROLS, dtype: str = "float32") -> None:
        draw = np.random.default_rng(frames)
        self.frames, self.dtype = frames, dtype
        self.rows = {"pose_latents": ((4, HEIGHT, WIDTH), dtype)}
        if "motion" in controls:
            self.rows["motion_features"] = ((4, HEIGHT, WIDTH), dtype)
        self.host = {
            name: draw.standard_normal((frames, *shape)).astype(kind) for name, (shape, kind) in self.rows.items()
        }
        self.once = {
            "image_embeds": draw.standard_normal((1, 1, 5)).astype(np.float32),
            "image_latents": draw.standard_normal((1, 4, HEIGHT, WIDTH)).astype(np.float32),
            "added_time_ids": np.array([[6, 127, 0]], np.float32),
        }
        self.cells = draw.integers(-1, 3, (frames, SIZES.height // 16, SIZES.width // 16)).astype(np.int32)
        self.tables = [draw.standard_normal((3, count)).astype(dtype) for count in SIZES.channels]
        self.start = draw.standard_normal((frames, 4, HEIGHT, WIDTH)).astype(np.float32) * SCHEDULE.init_noise_sigma
        self.controls = controls
        self.levels = scatter_point_features(self.tables, self.cells)

    def inputs(self, stream: Stream, place: str = "device") -> ClipInputs:
        device, tile = stream.device, SIZES.tile
        store: StoredClip | RecomputedClip = {
            "device": lambda: ResidentClip(self.frames, self.rows, device),
            "host": lambda: StreamedClip(self.frames, self.rows, device, tile),
            "recompute": lambda: RecomputedClip(self.frames, self.rows, device, tile),
        }[place]()
        for name, values in self.host.items():
            if isinstance(store, RecomputedClip):
                store.fill(name, HostRows(values, stream), stream, lambda done: None)
                continue
            whole = device.array(values, stream)
            store.writer(name, stream)(0, whole)
            stream.synchronize()
            whole.free()
        points = None
        if "points" in self.controls:
            points = PointTables(self.cells, tuple(device.array(table, stream) for table in self.tables))
        return ClipInputs(**self.once, store=store, points=points)


def denoise_plainly(clip: Clip, tiles: tuple[Tile, ...], guidance: float) -> list[np.ndarray]:
    """Latents after every step, in numpy."""
    latents = clip.start
    scaled = latents / SCHEDULE.input_divisor(0)
    results = []
    for step in range(STEPS):
        sums, weights = np.zeros((2, *latents.shape), np.float32), np.zeros(clip.frames, np.float32)
        for tile in tiles:
            inputs = {"latents": scaled[tile.frames], "timestep": SCHEDULE.timesteps[step : step + 1], **clip.once}
            residuals: dict[str, Any] = {f"residual_{number}": np.float32(0) for number in range(13)}
            residuals["residual_0"] = np.zeros((8, 4, HEIGHT, WIDTH), np.float32)
            if clip.controls:
                points = {f"point_features_{n}": level[tile.frames] for n, level in enumerate(clip.levels)}
                if "points" not in clip.controls:
                    points = {name: np.zeros_like(level) for name, level in points.items()}
                motion = clip.host.get("motion_features", np.zeros_like(clip.host["pose_latents"]))[tile.frames]
                residuals = controlnet(inputs | points | {"motion_features": motion})
            pose = {"pose_latents": clip.host["pose_latents"][tile.frames]}
            prediction = unet(inputs | residuals | pose)["noise_pred"]
            for slot in np.flatnonzero(tile.weights):
                sums[:, tile.frames[slot]] += tile.weights[slot] * prediction[:, slot]
                weights[tile.frames[slot]] += tile.weights[slot]
        sigma, following = SCHEDULE.sigmas[step : step + 2]
        latents, scaled = guided_euler_step(latents, sums, weights, guidance, sigma, following)
        results.append(latents)
    return results


class Setup:
    """Engines, and a run of the denoiser on them."""

    def __init__(self, controls: bool = True, loader: FakeLoader | None = None) -> None:
        self.loader = loader or FakeLoader()
        stream = self.loader.stream
        self.controlnet = FakeEngine("controlnet", SIZES, controlnet, stream=stream) if controls else None
        self.unet = FakeEngine("unet", SIZES, unet, stream=stream)
        self.denoiser = Denoiser(self.controlnet, self.unet, self.loader)
        self.ticks: list[tuple[int, int]] = []
        self.seen: list[StepTrace] = []

    def run(
        self, clip: Clip, place: str = "device", observe: bool = False, overlap: int = 2, **changes: Any
    ) -> np.ndarray:
        stream = self.loader.stream
        inputs = clip.inputs(stream, place)
        progress = Progress(lambda stage, done, total: self.ticks.append((done, total)), changes.pop("cancel", None))
        try:
            latents = self.denoiser.run(
                clip.start,
                inputs,
                changes.pop("schedule", SCHEDULE),
                plan_tiles(clip.frames, SIZES.tile, overlap),
                changes.pop("guidance", GUIDANCE),
                progress,
                as_observer((lambda name, trace: self.seen.append(trace)) if observe else None),
            )
        finally:
            inputs.store.close()
            if inputs.points is not None:
                inputs.points.close()
        result = latents.download(stream)
        latents.free()
        return result


def relative(actual: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(actual.astype(np.float64) - expected) / np.linalg.norm(expected))


@each(guidance=[1.0, GUIDANCE], controls=[CONTROLS, (), ("motion",), ("points",)], frames=[1, 3, 4, 7, 11])
def test_the_loop_computes_what_the_plain_loop_does(frames: int, controls: tuple[str, ...], guidance: float) -> None:
    clip, setup = Clip(frames, controls), Setup(bool(controls))
    result = setup.run(clip, observe=True, guidance=guidance)
    expected = denoise_plainly(clip, plan_tiles(frames, SIZES.tile, 2), guidance)
    assert [trace.step for trace in setup.seen] == list(range(STEPS))
    for trace, latents in zip(setup.seen, expected, strict=True):
        assert relative(trace.latents, latents) <= 1e-5
    np.testing.assert_array_equal(result, setup.seen[-1].latents)


@pytest.mark.parametrize("place", ["device", "host", "recompute"])
@pytest.mark.parametrize("frames", [3, 9, 23])
def test_graph_fallback_and_every_place_give_the_same_bits(
    frames: int, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = Clip(frames)
    whole = Setup().run(clip)
    np.testing.assert_array_equal(Setup().run(clip, place), whole)
    refused = Setup()
    refused.loader.uncapturable = "the backend says no"
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it was said before
        np.testing.assert_array_equal(refused.run(clip, place), whole)
    monkeypatch.setattr(denoise, "TILES_PER_GRAPH", 1)
    np.testing.assert_array_equal(Setup().run(clip, place), whole)


class CountingLoader(FakeLoader):
    """Counts graphs and launches, and what the host waits for in between."""

    def __init__(self) -> None:
        super().__init__()
        self.captures, self.launches = 0, 0
        self.open_graphs = 0

    def capture(self, body: Callable[[], None]) -> Graph:
        self.captures += 1
        self.open_graphs += 1
        graph, loader = super().capture(body), self

        class Counted(Graph):
            def launch(self, stream: Stream) -> None:
                loader.launches += 1
                graph.launch(stream)

            def close(self) -> None:
                loader.open_graphs -= 1
                graph.close()

        return Counted()


def test_a_step_is_one_graph_captured_once_and_launched_for_all_that_follow() -> None:
    loader = CountingLoader()
    setup = Setup(loader=loader)
    setup.run(Clip(7))
    tiles = len(plan_tiles(7, SIZES.tile, 2))
    assert tiles > 1
    assert (loader.captures, loader.launches, loader.open_graphs) == (1, STEPS - 1, 0)
    assert setup.ticks[-1] == (STEPS * tiles, STEPS * tiles)
    assert [done for done, _ in setup.ticks] == sorted({done for done, _ in setup.ticks})


def test_many_tiles_and_streamed_conditions_launch_the_networks_as_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    tiles = len(plan_tiles(7, SIZES.tile, 2))
    for place in ("device", "host", "recompute"):
        monkeypatch.setattr(denoise, "TILES_PER_GRAPH", 1 if place == "device" else 16)
        loader = CountingLoader()
        Setup(loader=loader).run(Clip(7), place)
        assert (loader.captures, loader.launches) == (2, 2 * (STEPS - 1) * tiles)


def test_long_tiles_keep_a_graph_per_network_for_the_next_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    short, others = Setup().run(Clip(7)), Setup().run(Clip(11))
    monkeypatch.setattr(denoise, "SHORT_TILE_S", 0)
    loader = CountingLoader()
    setup, tiles = Setup(loader=loader), len(plan_tiles(7, SIZES.tile, 2))
    np.testing.assert_array_equal(setup.run(Clip(7)), short)
    assert (loader.captures, loader.launches, loader.open_graphs) == (2, 2 * (STEPS - 1) * tiles, 2)
    np.testing.assert_array_equal(setup.run(Clip(7)), short)
    assert (loader.captures, loader.launches, loader.open_graphs) == (2, 2 * (2 * STEPS - 1) * tiles, 2)

    moved = setup.unet.device.empty(setup.unet.tensor("pose_latents").shape, "float32")
    setup.unet.bind("pose_latents", moved)
    np.testing.assert_array_equal(setup.run(Clip(11)), others)  # the old graph would read where nothing is written
    assert (loader.captures, loader.open_graphs) == (3, 2)
    loader.drop_graphs()
    assert loader.open_graphs == 0

    loader.keeps_graphs = False
    setup.run(Clip(7))
    assert (loader.captures, loader.open_graphs) == (5, 0)


@each(controls=[True, False], cancel_at=[1, 4, 9])
def test_a_cancelled_run_waits_for_one_long_tile_at_most(controls: bool, cancel_at: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        install(patch)
        patch.setattr(denoise, "SHORT_TILE_S", 0)
        setup = Setup(controls, FakeLoader(open_device("cuda")))
        cancel, calls = threading.Event(), []
        for engine in setup.denoiser._engines:

            def compute(inputs: Tensors, compute: Compute = engine.compute) -> Mapping[str, Any]:
                calls.append(cancel.is_set())
                if len(calls) == cancel_at:
                    cancel.set()
                return compute(inputs)

            engine.compute = compute
        with pytest.raises(Cancelled):
            setup.run(Clip(7, CONTROLS if controls else ()), cancel=cancel)
        assert sum(calls) <= (1 if controls else 0)  # of the two networks of a tile
        setup.loader.close()


def test_a_lack_of_memory_during_a_capture_is_not_remembered() -> None:
    class Short(CountingLoader):
        failures = 0

        def capture(self, body: Callable[[], None]) -> Graph:
            if self.failures:
                self.failures -= 1
                raise OutOfMemoryError("no room for the graph")
            return super().capture(body)

    loader, expected = Short(), Setup().run(Clip(5))
    setup = Setup(loader=loader)
    loader.failures = 2  # also after giving back what is kept for later
    with pytest.warns(PerformanceWarning, match="no room for the graph"):
        np.testing.assert_array_equal(setup.run(Clip(5)), expected)
    assert loader.captures == 0
    loader.failures = 1
    np.testing.assert_array_equal(setup.run(Clip(5)), expected)
    assert loader.captures == 1


def test_one_step_needs_no_graph() -> None:
    loader = CountingLoader()
    Setup(loader=loader).run(Clip(3), schedule=karras_schedule(1, SchedulerConstants()))
    assert loader.captures == 0


def test_the_host_waits_for_no_stream_inside_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    loader = FakeLoader()
    setup = Setup(loader=loader)
    waits: list[int] = []
    monkeypatch.setattr(type(loader.stream), "_synchronize", lambda stream: waits.append(len(setup.ticks)))
    setup.run(Clip(7))
    assert set(waits) <= {0, len(setup.ticks)}  # before the first step and after the last


def test_what_cannot_be_captured_is_said_once_and_runs_all_the_same() -> None:
    class Refusing(FakeLoader):
        def capture(self, body: Callable[[], None]) -> Graph:
            body_ran.append(True)
            raise DeviceError("cudaStreamEndCapture failed")

    body_ran: list[bool] = []
    clip = Clip(5)
    expected = Setup().run(clip)
    setup = Setup(loader=Refusing())
    with pytest.warns(PerformanceWarning, match="cudaStreamEndCapture failed"):
        np.testing.assert_array_equal(setup.run(clip), expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(setup.run(clip), expected)
    assert body_ran == [True]


def test_an_engine_that_says_it_cannot_be_captured_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    loader = CountingLoader()
    setup = Setup(loader=loader)
    monkeypatch.setattr(setup.unet, "capture_problem", lambda stream: "it allocates")
    with pytest.warns(PerformanceWarning, match="it allocates"):
        setup.run(Clip(5))
    assert loader.captures == 0


def test_the_engines_share_what_both_read_and_the_residuals() -> None:
    setup = Setup()
    setup.run(Clip(5))
    assert setup.controlnet is not None
    shared = ["latents", "image_latents", "timestep", "image_embeds", "added_time_ids"]
    shared += [tensor.name for tensor in NETWORKS["controlnet"].outputs]
    for name in shared:
        assert setup.unet.tensor(name) is setup.controlnet.tensor(name)


def test_runs_with_and_without_controls_take_turns_on_the_same_engines() -> None:
    with_controls, without = Clip(5), Clip(5, controls=())
    setup = Setup()
    alone = Denoiser(None, setup.unet, setup.loader)
    first = setup.run(with_controls)
    both, setup.denoiser = setup.denoiser, alone
    np.testing.assert_array_equal(setup.run(without), Setup(controls=False).run(without))
    setup.denoiser = both
    np.testing.assert_array_equal(setup.run(with_controls), first)


@each(step=[0, 2], network=["controlnet", "unet"])
def test_non_finite_values_name_the_network(network: str, step: int) -> None:
    setup = Setup()
    engine = getattr(setup, network)
    compute, calls = engine.compute, []

    def broken(inputs: Tensors) -> Mapping[str, Any]:
        calls.append(1)
        outputs = dict(compute(inputs))
        if len(calls) > step:
            name = "residual_0" if network == "controlnet" else "noise_pred"
            outputs[name] = outputs[name] * np.float32(np.inf)
        return outputs

    engine.compute = broken
    with pytest.raises(EngineError, match=f"the network {network} returned non-finite values in float32"):
        setup.run(Clip(3))
    assert len(calls) <= step + 3  # found while at most one more step is under way
    engine.compute = compute
    np.testing.assert_array_equal(setup.run(Clip(3)), Setup().run(Clip(3)))


@each(
    name__network=[("pose_latents", "pose_net"), ("motion_features", "motion_encoder")],
    place=["device", "host", "recompute"],
)
def test_conditions_that_are_not_finite_name_the_network_that_made_them(name: str, network: str, place: str) -> None:
    clip = Clip(7)
    clip.host[name][5, 0, 0, 0] = np.nan
    with pytest.raises(EngineError, match=f"the network {network} returned non-finite values"):
        Setup().run(clip, place)


def test_cancelling_ends_the_run_and_frees_everything() -> None:
    setup = Setup(loader=CountingLoader())
    setup.run(Clip(5))
    before = setup.loader.device.pool.used_bytes
    cancel, done = threading.Event(), []
    compute = setup.unet.compute

    def cancel_later(inputs: Tensors) -> Mapping[str, Any]:
        done.append(1)
        if len(done) == 5:
            cancel.set()
        return compute(inputs)

    setup.unet.compute = cancel_later
    with pytest.raises(Cancelled, match="denoise"):
        setup.run(Clip(5), cancel=cancel)
    assert len(done) < STEPS * len(plan_tiles(5, SIZES.tile, 2))
    assert setup.loader.device.pool.used_bytes == before
    assert setup.loader.open_graphs == 0


def test_tiles_must_cover_every_frame_once() -> None:
    ones = np.ones(2, np.float32)
    np.testing.assert_array_equal(sum_weights([Tile(np.array([0, 1], np.int32), ones)] * 2, 2), [2, 2])
    with pytest.raises(InputError, match=r"no tile covers frames \[2\]"):
        sum_weights([Tile(np.array([0, 1], np.int32), ones)], 3)
    with pytest.raises(InputError, match="do not name distinct frames"):
        sum_weights([Tile(np.array([1, 1], np.int32), ones)], 2)
    with pytest.raises(InputError, match="do not name distinct frames"):
        sum_weights([Tile(np.array([0, 2], np.int32), ones)], 2)


def draw_numbers(name: str, shape: tuple[int, ...]) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


@each(frames__drawn=[(3, 3), (4, 4), (6, 4)])
def test_initial_latents_are_one_tile_of_noise_at_most(frames: int, drawn: int) -> None:
    start = initial_latents(draw_numbers, SCHEDULE, frames, SIZES)
    expected = draw_numbers("latents", (SIZES.tile, 4, HEIGHT, WIDTH))[:drawn] * SCHEDULE.init_noise_sigma
    np.testing.assert_array_equal(start, expected)


def test_every_tile_of_frames_starts_with_the_same_noise() -> None:
    """As the reference does it: frame k and frame k + tile start equal."""
    clip, repeated = Clip(11), Clip(11)
    clip.start = initial_latents(draw_numbers, SCHEDULE, 11, SIZES)
    repeated.start = clip.start[np.arange(11) % SIZES.tile]
    np.testing.assert_array_equal(Setup().run(clip), Setup().run(repeated))


def test_an_observer_that_wants_other_things_makes_nobody_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    class Picky(Observer):
        def latents(self, latents: F32) -> None:
            raise AssertionError("they are the caller's to show")

    def download(step: DenoisingStep) -> None:
        raise AssertionError("a step was copied to the host")

    monkeypatch.setattr(DenoisingStep, "download", download)
    setup, clip = Setup(), Clip(5)
    inputs = clip.inputs(setup.loader.stream)
    tiles = plan_tiles(5, SIZES.tile, 2)
    setup.denoiser.run(clip.start, inputs, SCHEDULE, tiles, GUIDANCE, Progress(False), Picky()).free()
