"""Clips of any length: the same bits wherever conditions wait, and memory that grows by what is stated per frame."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dispose_rt import Animator
from dispose_rt.clip import plan as memory
from dispose_rt.clip.plan import estimate_clip
from dispose_rt.clip.store import Rows
from dispose_rt.device import open_device
from dispose_rt.errors import Cancelled, OutOfMemoryError
from dispose_rt.hooks.progress import Progress
from dispose_rt.media import open_video
from dispose_rt.stages.denoise import loop
from tests.fakes import cuda as fake_cuda
from tests.fakes.networks import FakeNetworks, film, run_networks
from tests.golden_case import GoldenCase
from tests.golden_data import GOLDEN, load_golden
from tests.stages.denoise.test_loop import SIZES

PLACES = ("device", "host", "recompute")
ROW = (SIZES.channels[0], SIZES.height // 8, SIZES.width // 8)
ROWS: dict[str, Rows] = {"pose_latents": (ROW, "float32"), "motion_features": (ROW, "float32")}


class Seen:
    """Keeps what it is shown."""

    def __init__(self, *wants: str) -> None:
        self.values: dict[str, list[Any]] = {}
        if wants:
            self.wants = frozenset(wants)

    def __call__(self, name: str, value: Any) -> None:
        self.values.setdefault(name, []).append(value)


@pytest.mark.parametrize("frames", [2, 7, 12, 22])
@pytest.mark.parametrize("controls", [("motion", "points"), ()], ids=str)
def test_every_place_gives_the_same_bits(frames: int, controls: tuple[str, ...]) -> None:
    """With networks whose answers depend on how many frames share a batch."""
    seen = {place: Seen() for place in PLACES}
    chunks = {}
    for place in PLACES:
        run = run_networks(FakeNetworks(), film(frames), seen[place], conditions_memory=place, controls=controls)
        chunks[place] = np.concatenate(list(run))
    expected = seen["device"].values
    assert np.ptp(expected["latents"][0], axis=0).min() > 0
    for place in PLACES[1:]:
        values = seen[place].values
        assert values.keys() == expected.keys()
        np.testing.assert_array_equal(chunks[place], chunks["device"])
        for name in ("pose_latents", "motion_features")[: 1 + bool(controls)]:
            ours, theirs = (getattr(one["conditions"][0], name) for one in (values, expected))
            np.testing.assert_array_equal(ours, theirs)
        for ours, theirs in zip(values["denoise_step"], expected["denoise_step"], strict=True):
            np.testing.assert_array_equal(ours.latents, theirs.latents)


@pytest.mark.parametrize("place", PLACES)
def test_every_place_gives_the_same_bits_on_a_fake_gpu(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose streams do nothing before somebody waits for them, with more tiles than the device is queued ahead."""
    expected = np.concatenate(list(run_networks(FakeNetworks(), film(30), conditions_memory="device")))
    monkeypatch.setattr(loop, "SHORT_TILE_S", math.inf)
    cuda = fake_cuda.install(monkeypatch, memory_bytes=1 << 30)
    device = open_device("cuda")
    networks = FakeNetworks(device)
    frames = np.concatenate(list(run_networks(networks, film(30), conditions_memory=place)))
    np.testing.assert_array_equal(frames, expected)
    assert cuda.calls.count("cudaStreamBeginCapture") == (1 if place == "device" else 2)
    networks.close()
    device.close()
    for left in (cuda.blocks, cuda.host_blocks, cuda.streams, cuda.events, cuda.graphs, cuda.executables):
        assert left == {}


def test_recomputing_on_real_engines_gives_the_same_bits(golden_engines: Callable[..., Path]) -> None:
    """Tiles of 5 frames over three batches, the last of which is shorter."""
    case = GoldenCase("guidance_one_64")
    video = [*load_golden("e2e")["drive_frames"]][:11]
    latents = []
    with Animator(golden_engines(case)) as animator:
        for place in ("device", "recompute"):
            seen = Seen("latents")
            options: dict[str, Any] = {"steps": 2, "stride": 1, "overlap": 1, "progress": False}
            animator.run(GOLDEN / "ref.png", video, observer=seen, conditions_memory=place, **options)
            latents += seen.values["latents"]
    assert len(latents[0]) == 12
    np.testing.assert_array_equal(*latents)


@pytest.mark.parametrize("place", ["host", "recompute"])
def test_motion_is_shown_range_by_range_and_whole_where_that_is_wanted(place: str) -> None:
    every, parts, whole = Seen(), Seen("motion_part"), Seen("motion")
    for observer in (every, parts, whole):
        for _ in run_networks(FakeNetworks(), film(9), observer, conditions_memory=place):
            pass
    assert list(parts.values) == ["motion_part"]
    assert list(whole.values) == ["motion"]
    [motion] = whole.values["motion"]
    assert motion.trajectory_flow.shape == motion.dense_flow.shape == (9, 2, SIZES.height, SIZES.width)
    assert [start for start, _ in parts.values["motion_part"]] == [1, 4, 8]
    for field in ("trajectory_flow", "dense_flow"):
        joined = np.concatenate([getattr(part, field) for _, part in parts.values["motion_part"]])
        np.testing.assert_array_equal(joined, getattr(motion, field))
        np.testing.assert_array_equal(joined, getattr(every.values["motion"][0], field))
    assert len(every.values["motion_part"]) == 3


def test_progress_is_told_and_cancelling_is_heeded_at_every_tick() -> None:
    told: list[tuple[str, int, int]] = []
    networks = FakeNetworks()
    progress = Progress(lambda *tick: told.append(tick))
    for _ in run_networks(networks, film(9), progress=progress):
        pass
    networks.close()
    used = {tick[0]: tick for tick in told}
    assert used["load"] == ("load", 9 + 2, 9 + 2)
    assert used["motion"] == ("motion", 10, 10)
    assert used["appearance"] == ("appearance", 1, 1)
    assert used["conditions"] == ("conditions", 10, 10)
    assert [done for stage, done, _ in told if stage == "motion"] == [0, 4, 8, 10]
    for stage, done in (("load", 3), ("motion", 4), ("appearance", 1), ("conditions", 8)):

        def stop(at: str, at_done: int, total: int, stage: str = stage, done: int = done) -> None:
            if (at, at_done) == (stage, done):
                raise Cancelled("enough")

        networks = FakeNetworks()
        with pytest.raises(Cancelled):
            list(run_networks(networks, film(9), progress=Progress(stop), conditions_memory="host"))
        networks.close()
        assert networks.loader.device.pool.used_bytes == 0


def measure(frames: int, place: str) -> tuple[int, int, int]:
    """Bytes while denoising, of the device's arrays and of all of Python and numpy, these included; and at any time."""
    networks = FakeNetworks()
    pool, held = networks.loader.device.pool, [(0, 0)]

    def look(stage: str, done: int, total: int) -> None:
        if stage == "denoise":
            held.append((pool.used_bytes, tracemalloc.get_traced_memory()[0]))

    tracemalloc.start()
    for _ in run_networks(networks, film(frames), progress=Progress(look), conditions_memory=place, steps=1, overlap=0):
        pass
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    networks.close()
    return *max(held), most


@pytest.mark.parametrize("place", PLACES)
def test_memory_grows_by_what_the_plan_says(place: str) -> None:
    short, long = 40, 200
    plan = estimate_clip(long, SIZES, ROWS, place)
    before, after = measure(short, place), measure(long, place)
    device, while_denoising, most = ((late - early) / (long - short) for early, late in zip(before, after, strict=True))
    assert 0.85 * plan.device_frame_bytes <= device <= plan.device_frame_bytes
    stated = plan.device_frame_bytes + plan.host_frame_bytes
    assert 0.6 * stated <= while_denoising <= stated
    assert most <= stated


@pytest.mark.slow
def test_ten_minutes_of_video_take_what_the_plan_says() -> None:
    short, long = 500, 9000
    plan = estimate_clip(long, SIZES, ROWS, "recompute")
    grown = (measure(long, "recompute")[2] - measure(short, "recompute")[2]) / (long - short)
    assert grown <= plan.device_frame_bytes + plan.host_frame_bytes


def refuse_above(monkeypatch: pytest.MonkeyPatch, free_bytes: int) -> None:
    monkeypatch.setattr(memory, "free_host_bytes", lambda: free_bytes)


@pytest.mark.parametrize("is_known", [True, False])
def test_a_clip_that_cannot_fit_is_refused_when_its_length_is_known(
    is_known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the first pose where the video tells its length, else before the motion fields."""
    plan, seen = estimate_clip(51, SIZES, ROWS, "recompute"), Seen()
    refuse_above(monkeypatch, plan.host_bytes if is_known else plan.device_bytes + plan.host_bytes - 1)
    video = replace(open_video(film(50)), frame_count=50 if is_known else None)
    with pytest.raises(OutOfMemoryError, match="a clip of 51 frames does not fit"):
        list(run_networks(FakeNetworks(), video, seen))
    assert ("driving" in seen.values) == (not is_known)
    assert "motion_part" not in seen.values


def test_auto_recomputes_when_memory_is_short(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = np.concatenate(list(run_networks(FakeNetworks(), film(30), conditions_memory="device")))
    plan = estimate_clip(31, SIZES, ROWS, "recompute")
    refuse_above(monkeypatch, plan.device_bytes + plan.host_bytes)
    frames = np.concatenate(list(run_networks(FakeNetworks(), film(30))))
    np.testing.assert_array_equal(frames, expected)
    assert any("computed again in every denoising step" in record.message for record in caplog.records)
