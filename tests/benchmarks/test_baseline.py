"""The baseline is the published method: against the reference's arrays, our own stages, and in how often it works."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from tests.golden_data import load_golden
from tests.kernels.targets import Target, cpu_target

torch = pytest.importorskip("torch")

from dispose_rt_export.builds.plan import RECIPES  # noqa: E402
from dispose_rt_export.checkpoints import Checkpoint  # noqa: E402
from dispose_rt_export.synthetic.configs import configs_of  # noqa: E402
from dispose_rt_export.synthetic.random_weights import RandomWeights  # noqa: E402
from dispose_rt_export.synthetic.shapes import tensor_shapes  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from benchmarks.reference import baseline, stages  # noqa: E402
from benchmarks.reference import networks as baseline_networks  # noqa: E402
from benchmarks.reference.denoising import (  # noqa: E402
    BaselineConditions,
    BaselineDenoiser,
    PartTimer,
    accumulate,
    build_point_pyramid,
    guided_step,
)
from benchmarks.reference.networks import load_baseline  # noqa: E402
from benchmarks.reference.results import TOY, Baseline, BaselineSetting, StepTimes  # noqa: E402
from benchmarks.reference.sample_clip import sample_clip  # noqa: E402
from dispose_rt import kernels  # noqa: E402
from dispose_rt.contract import SchedulerConstants  # noqa: E402
from dispose_rt.errors import InputError  # noqa: E402
from dispose_rt.stages.appearance import group_points  # noqa: E402
from dispose_rt.stages.denoise.scheduler import karras_schedule  # noqa: E402
from dispose_rt.stages.denoise.tiles import plan_tiles  # noqa: E402
from dispose_rt.stages.motion import nearest_table, sparse_hints, trajectory_impulses  # noqa: E402
from dispose_rt.types import JOINTS, Track  # noqa: E402

SCRIPT = str(Path(baseline.__file__))

NETWORK_TOLERANCE = 1e-5  # of the largest magnitude; measured: at most 4.3e-6, latents after the first step
STAGES = ("pose_drawing", "dift", "trajectories", "cmp", "image_encoder", "vae_encoder", "pose_net", "decode")


@pytest.fixture(autouse=True)
def _without_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


def crowded_track(frames: int = 5) -> Track:
    """Joints that share cells, lie outside the image on every side, and are missing: in the reference, or later."""
    rng = np.random.default_rng(3)
    joints = rng.uniform(0.05, 0.95, (frames, JOINTS, 2))
    joints[:, 1] = joints[:, 0]
    joints[:, 2] = joints[:, 0] + 1e-4
    joints[1, 3] = (-0.2, 0.5)
    joints[2, 4] = (1.3, 1.2)
    joints[0, 5] = (1.1, -0.1)
    visible = rng.random((frames, JOINTS)) > 0.2
    visible[:, :3] = True
    visible[0, 1] = False
    return Track(joints, visible)


@pytest.fixture
def target() -> Iterator[Target]:
    target = cpu_target()
    yield target
    target.close()


def largest_difference(ours: Any, expected: Any) -> float:
    ours, expected = np.asarray(ours, np.float64), np.asarray(expected, np.float64)
    assert ours.shape == expected.shape
    return float(np.abs(ours - expected).max() / np.abs(expected).max())


# the maps


@pytest.mark.parametrize(("height", "width"), [(128, 64), (192, 256)])
def test_the_filtered_trajectories_are_those_of_the_kernel(target: Target, height: int, width: int) -> None:
    track = crowded_track()
    filtered = stages.filter_trajectories(track, height, width)
    assert filtered.any(axis=(1, 2, 3)).all()
    impulses, flow = trajectory_impulses(track, height, width), np.empty_like(filtered)
    target.run(kernels.splat_gaussian_flow, impulses.positions_px, impulses.flow_px, flow)
    assert largest_difference(flow, filtered) < 1e-5


@pytest.mark.parametrize("case", ["p192x128", "s64_edge", "two_frames_96x128"])
def test_the_filtered_trajectories_are_those_of_the_reference(case: str) -> None:
    arrays = {name.removeprefix(f"{case}."): array for name, array in load_golden("trajectory").items()}
    track = Track(arrays["candidate"][:, :18], arrays["subset"][:, 0] >= 0)
    filtered = stages.filter_trajectories(track, *map(int, arrays["hw"]))
    assert largest_difference(filtered, arrays["traj_flow"][0]) < 1e-6
    flow, mask = stages.draw_hints(track, *map(int, arrays["hw"]))
    np.testing.assert_allclose(flow, arrays["sparse_flow_384"][0], rtol=0, atol=5e-5)
    np.testing.assert_array_equal(mask, arrays["mask_384"][0])


def test_the_filter_runs_over_whole_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    plain = cv2.filter2D

    def counted(maps: Any, depth: int, kernel: Any, **more: Any) -> Any:
        calls.append((maps.shape, maps.dtype, kernel.shape))
        return plain(maps, depth, kernel, **more)

    monkeypatch.setattr(cv2, "filter2D", counted)
    stages.filter_trajectories(crowded_track(), 128, 64)
    assert calls == [((128, 64, 2), np.float64, (199, 199))] * 4


def test_the_hints_are_those_of_the_kernel(target: Target) -> None:
    track = crowded_track()
    hints, expected = sparse_hints(track, 128, 64), stages.draw_hints(track, 128, 64)
    ours = [np.empty_like(maps) for maps in expected]
    target.run(kernels.rasterize_sparse_flow, hints.positions_px, hints.flow_px, *ours)
    for maps, others in zip(ours, expected, strict=True):
        assert others.any()
        np.testing.assert_allclose(maps, others, rtol=0, atol=5e-5)


# the points


def toy_adapter() -> Any:
    return RECIPES["point_encoder"].build(RandomWeights("toy"))


def test_the_point_pyramid_is_that_of_the_kernels(target: Target) -> None:
    track, height, width = crowded_track(), 256, 128
    # nine cells at the corner of a block of 4 x 4, or the coarser levels would be empty
    track.joints[:, 6:15] = [((column + 0.5) / 8, (row + 0.5) / 16) for row in (4, 5, 6) for column in (4, 5, 6)]
    track.visible[1:, 6:15] = True
    rows, columns = height // 16, width // 16
    features = np.random.default_rng(4).standard_normal((96, rows, columns), dtype=np.float32)
    embeddings = stages.read_joints(torch.from_numpy(features[None]), track, height, width)
    seen = track.visible[0]
    positions = np.clip(track.joints[0, seen] * (height, width), 0, (height - 1, width - 1)).astype(np.int32)
    samples = np.empty((len(positions), 96), np.float32)
    target.run(kernels.sample_points, features, positions, width, height, samples)
    assert largest_difference(embeddings[seen], samples) < 1e-5
    assert not embeddings[~seen].any()

    adapter = toy_adapter()
    groups = group_points(track, embeddings.numpy(), height, width)
    assert len(groups.embeddings) > JOINTS
    tables = [table.numpy() for table in adapter(torch.from_numpy(groups.embeddings))]
    levels = build_point_pyramid(adapter, track.joints, track.visible, embeddings, rows, columns)
    expected = [np.empty(tuple(level.shape), np.float32) for level in levels]
    target.run(kernels.scatter_point_features, groups.cells, tables, expected)
    assert all(level.any() for level in expected)
    for level, other in zip(levels, expected, strict=True):
        assert largest_difference(level, other) < 1e-5


def test_the_adapter_sees_every_cell_of_the_grid() -> None:
    adapter, track, rows = toy_adapter(), crowded_track(), []
    adapter.register_forward_pre_hook(lambda _, inputs: rows.append(inputs[0].shape))
    build_point_pyramid(adapter, track.joints, track.visible, torch.ones(JOINTS, 96), 8, 4)
    assert rows == [(5 * 8 * 4, 96)]


# the step


def test_accumulation_guidance_and_euler_step_are_those_of_the_kernels(target: Target) -> None:
    rng = np.random.default_rng(5)
    frames, shape, steps, guidance = 7, (4, 16, 8), 5, 2.0
    schedule = karras_schedule(steps, SchedulerConstants())
    scheduler = toy_scheduler(steps)
    np.testing.assert_allclose(scheduler.sigmas.numpy(), schedule.sigmas, rtol=1e-6)
    np.testing.assert_allclose(scheduler.timesteps.numpy(), schedule.timesteps, rtol=1e-6)
    table = kernels.step_table(schedule.sigmas, schedule.timesteps, guidance)
    latents = rng.standard_normal((frames, *shape), dtype=np.float32) * schedule.init_noise_sigma
    theirs = torch.from_numpy(latents)[None].clone()
    scaled, finite = latents / schedule.input_divisor(0), np.zeros(1, np.int32)
    for step in range(steps):
        assert largest_difference(scheduler.scale_model_input(theirs, scheduler.timesteps[step])[0], scaled) < 1e-6
        sums, weights = np.zeros((2, frames, *shape), np.float32), np.zeros(frames, np.float32)
        total, counts = torch.zeros(2, frames, *shape), torch.zeros(frames)
        for tile in plan_tiles(frames, 4, 2):
            prediction = rng.standard_normal((2, 4, *shape), dtype=np.float32)
            target.run(kernels.accumulate_tile, prediction, tile.frames, tile.weights, sums, finite)
            weights[tile.frames] += tile.weights
            accumulate(total, counts, torch.from_numpy(prediction), tile)
        assert largest_difference(total, sums) < 1e-6
        assert largest_difference(counts, weights) < 1e-6
        target.run(kernels.guided_euler_step, latents, sums, weights, table[step], np.zeros(1, np.int32), scaled)
        _, theirs = guided_step(scheduler, total, counts, guidance, scheduler.timesteps[step], theirs)
        assert largest_difference(theirs[0], latents) < 1e-6


def toy_scheduler(steps: int) -> Any:
    from diffusers import EulerDiscreteScheduler

    scheduler = EulerDiscreteScheduler.from_config(dict(configs_of("toy")["svd_scheduler"]))
    scheduler.set_timesteps(steps)
    return scheduler


# the networks, against the reference


@pytest.mark.parametrize("case", ["p192x128", "s64", "l128x192", "dense"])
def test_the_point_pyramid_is_the_reference_s(checkpoint: Checkpoint, case: str) -> None:
    arrays = {name.removeprefix(f"{case}."): array for name, array in load_golden("points").items()}
    height, width = map(int, arrays["hw"])
    track = Track(arrays["candidate"][:, :18], arrays["subset"][:, 0] >= 0)
    embeddings = stages.read_joints(torch.from_numpy(arrays["dift"]), track, height, width)
    assert largest_difference(embeddings, arrays["ref_point_emb"][0]) < 1e-6
    adapter = RECIPES["point_encoder"].build(checkpoint)
    levels = build_point_pyramid(adapter, track.joints, track.visible, embeddings, height // 16, width // 16)
    for number, level in enumerate(levels):
        np.testing.assert_allclose(level, arrays[f"level{number}"][0], rtol=0, atol=1e-6)


@pytest.fixture(scope="module")
def checkpoint(golden_checkpoint: Path) -> Checkpoint:
    return Checkpoint(golden_checkpoint)


@pytest.mark.parametrize("case", ["one_tile_64", "tiles_128x192"])
def test_the_loop_is_the_reference_s(checkpoint: Checkpoint, case: str) -> None:
    """With cross-attention and multiplicities as published, and nothing computed before the loop."""
    arrays = {name.removeprefix(f"{case}."): array for name, array in load_golden("e2e").items()}
    given = {name: torch.from_numpy(arrays[name]) for name in ("controlnet_flow", "traj_flow", "pose_latents")}
    conditions = BaselineConditions(
        track=Track(arrays["aligned_candidate"][:, :18], arrays["aligned_subset"][:, 0] >= 0),
        embeddings=torch.from_numpy(arrays["ref_point_emb"][0]),
        dense_flow=given["controlnet_flow"][0],
        trajectory_flow=given["traj_flow"][0],
        pose_latents=given["pose_latents"],
        image_latents=torch.from_numpy(arrays["image_latents"]),
        image_embeds=torch.from_numpy(arrays["image_embeddings"][1:]),
        added_time_ids=torch.from_numpy(arrays["added_time_ids"][:1]),
    )
    frames, tile, overlap = map(int, arrays["config"][:3])
    tiles = plan_tiles(frames, tile, overlap)
    unet, controlnet = (load_baseline(name, checkpoint, "cpu", torch.float32) for name in ("unet", "controlnet"))
    scheduler = checkpoint.configs["svd_scheduler"]
    denoiser = BaselineDenoiser(unet, controlnet, scheduler, conditions, tiles, float(arrays["guidance"]))
    seen = []
    denoiser.run(
        torch.from_numpy(arrays["noise_latents"]),
        len(arrays["timesteps"]),
        PartTimer("cpu"),
        lambda guided, latents: seen.append((guided, latents)) is None,
    )
    assert len(seen) == len(arrays["latents"])
    for (guided, latents), noise_pred, expected in zip(seen, arrays["noise_pred"], arrays["latents"], strict=True):
        assert largest_difference(guided, noise_pred) < NETWORK_TOLERANCE
        assert largest_difference(latents, expected) < NETWORK_TOLERANCE


def test_dift_is_the_reference_s_and_its_unused_pass_too(checkpoint: Checkpoint) -> None:
    arrays = load_golden("nets")
    names = ("vae_noise", "unet_noise", "unused_vae_noise_t0", "unused_unet_noise_t0")
    noises = [torch.from_numpy(arrays[f"dift.{name}"]) for name in names]
    image = torch.from_numpy(arrays["dift.image_u8"]).float() / 127.5 - 1
    features, unused = load_baseline("dift", checkpoint, "cpu", torch.float32)(image, noises)
    assert largest_difference(features, arrays["dift.feature"]) < NETWORK_TOLERANCE
    assert largest_difference(unused, arrays["dift.unused_feature_t0_up2"]) < NETWORK_TOLERANCE


def test_cmp_is_the_reference_s_and_encodes_the_image_for_every_frame(checkpoint: Checkpoint) -> None:
    arrays = load_golden("e2e")
    case = "guidance_one_64"
    track = Track(arrays[f"{case}.aligned_candidate"][:, :18], arrays[f"{case}.aligned_subset"][:, 0] >= 0)
    encoder, decoder = (
        load_baseline(name, checkpoint, "cpu", torch.float32) for name in ("cmp_image_encoder", "cmp_flow_decoder")
    )
    seen = []
    encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    image = arrays[f"{case}.ref_crop"]
    flow = stages.propagate_motion(encoder, decoder, image, track, "cpu")
    assert [len(images) for images in seen] == [len(track.joints) - 1]
    nearest = nearest_table(len(image), 384)
    pixels = image[nearest[:, None], nearest].transpose(2, 0, 1).astype(np.float32)
    np.testing.assert_allclose(seen[0][-1], pixels / 255 * 2 - 1, rtol=0, atol=2e-7)
    assert largest_difference(flow, arrays[f"{case}.controlnet_flow"][0]) < 1e-4


@pytest.mark.parametrize("case", ["small", "large"])
def test_the_pixels_for_clip_are_the_reference_s(case: str) -> None:
    arrays = load_golden("nets")
    image = arrays[f"clip.{case}.image"]
    pixels = stages.clip_pixels(stages.signed_pixels(image, "cpu"))
    assert largest_difference(pixels, arrays[f"clip.{case}.pixel_values"]) < 1e-5


class Shapes(RandomWeights):
    """Tensors without memory."""

    def _draw(self, name: str, shape: tuple[int, ...], dtype: Any) -> Any:
        return torch.empty(shape, dtype=dtype, device="meta")


@pytest.mark.parametrize("scale", ["toy", "full"])
def test_the_networks_hold_every_published_tensor(scale: str) -> None:
    """No cross-attention is collapsed: the names and shapes of the files, without exception."""

    weights = Shapes(scale)
    configs = weights.configs
    cases = (
        (baseline_networks.build_baseline_unet, "mimicmotion", "unet."),
        (baseline_networks.build_baseline_controlnet, "dispose", ""),
    )
    for build, file, prefix in cases:
        network = build(weights)
        shapes = {key.removeprefix("model."): tuple(value.shape) for key, value in network.state_dict().items()}
        published = tensor_shapes(file, configs)
        expected = {key.removeprefix(prefix): shape for key, shape in published.items() if key.startswith(prefix)}
        assert shapes == expected
        assert any(key.endswith("attn2.to_q.weight") for key in shapes)


def test_a_tile_step_at_the_published_size_takes_the_published_work() -> None:
    """102.4 TFLOP in the UNet, of which collapsing the cross-attention would save 3.9, and 37.5 in the ControlNet."""
    unet, controlnet = (load_baseline(name, Shapes("full"), "meta", torch.float16) for name in ("unet", "controlnet"))

    def half(*shape: int) -> Any:
        return torch.empty(shape, dtype=torch.float16, device="meta")

    frames, height, width = 16, 128, 72
    shared = (half(2, frames, 8, height, width), torch.empty((), device="meta"), half(2, 1, 1024))
    ids = torch.empty(2, 3, device="meta")
    latents = half(2 * frames, 320, height, width)
    levels = ((320, 2), (640, 4), (1280, 8), (1280, 8))
    points = [half(2 * frames, channels, height // factor, width // factor) for channels, factor in levels]
    with FlopCounterMode(display=False) as counter:
        residuals = controlnet(*shared, ids, latents, points)
    assert counter.get_total_flops() / 1e12 == pytest.approx(37.5, abs=0.05)
    with FlopCounterMode(display=False) as counter:
        unet(*shared, ids, latents, residuals)
    assert counter.get_total_flops() / 1e12 == pytest.approx(102.4, abs=0.05)


# the measurement


def test_the_stopwatch_of_a_gpu_reads_events(monkeypatch: pytest.MonkeyPatch) -> None:
    now_ms = iter([0.0, 1.0, 4.0, 9.0, 20.0, 22.0])
    waits = []

    class Event:
        def __init__(self, *, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.time_ms = next(now_ms)

        def elapsed_time(self, end: Event) -> float:
            assert waits
            return end.time_ms - self.time_ms

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waits.append(None))
    watch = PartTimer("cuda")
    with watch.part("tile"), watch.part("unet"):
        pass
    with watch.part("tile"):
        pass
    assert not waits
    assert watch.take() == {"unet": [pytest.approx(3e-3)], "tile": [pytest.approx(9e-3), pytest.approx(2e-3)]}
    assert watch.take() == {}


@pytest.fixture(scope="module")
def toy_run() -> tuple[Baseline, Counter[str]]:
    """A toy run on the CPU, and how often every network was called."""
    calls: Counter[str] = Counter()
    plain = baseline.load_baseline

    def load_counted(name: str, *arguments: Any) -> Any:
        network = plain(name, *arguments)
        parts = {name: network}
        if name == "controlnet":
            parts |= {"motion encoder": network.controlnet_cond_embedding, "point adapter": network.point_adapter}
        if name == "dift":
            parts |= {"dift unet": network.unet, "dift posterior": network.posterior}
        for label, part in parts.items():
            part.register_forward_hook(lambda *_, label=label: calls.update([label]))
        return network

    setting = BaselineSetting("cpu", "toy", TOY, "fp32", frames=6, overlap=2, steps=4, steps_measured=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(baseline, "load_baseline", load_counted)
        return baseline.measure_baseline(setting), calls


def test_every_stage_is_timed(toy_run: tuple[Baseline, Counter[str]]) -> None:
    result, _ = toy_run
    assert tuple(result.stages_s) == STAGES
    assert all(seconds > 0 for seconds in result.stages_s.values())
    assert result.step is not None
    assert result.plain_step is not None
    assert set(result.step.parts_s) == {"motion", "points", "controlnet", "unet", "accumulate"}
    assert set(result.plain_step.parts_s) == {"unet", "accumulate"}
    for step in (result.step, result.plain_step):
        assert all(seconds > 0 for seconds in step.parts_s.values())
        assert step.tiles_measured == 2  # one step of two tiles; the warm-up does not count
        assert step.tile_s >= max(step.parts_s.values())
        assert step.per_step_s > 0
    assert result.finite
    assert result.autocast_step is None


def test_the_order_of_work_is_the_published_one(toy_run: tuple[Baseline, Counter[str]]) -> None:
    _, calls = toy_run
    steps, tiles = 2, 2  # one to warm up, one measured
    assert calls == {
        "motion encoder": steps * tiles,
        "point adapter": steps * tiles,
        "controlnet": steps * tiles,
        "unet": 2 * steps * tiles,  # again for plain MimicMotion
        "dift": 1,
        "dift unet": 2,
        "dift posterior": 2,
        "cmp_image_encoder": 1,
        "cmp_flow_decoder": 1,
        "image_encoder": 1,
        "vae_encoder": 1,
        "pose_net": 2,  # six frames, four at a time
        "vae_decoder": 1,
    }


def test_the_report_says_what_is_extrapolated(toy_run: tuple[Baseline, Counter[str]]) -> None:
    result, _ = toy_run
    record = json.loads(json.dumps(result.record()))
    assert record["s_per_frame_extrapolated"]["DisPose"] == result.s_per_frame(result.step)
    assert "extrapolated to 4 steps and 2 new frames per tile" in str(result)
    assert "paper" not in str(result)  # its sizes are others


def test_seconds_per_frame_are_extrapolated_from_tiles_and_clip() -> None:
    setting = BaselineSetting("cpu", frames=16)
    step = StepTimes(tile_s=0.4, spread_s=0.0, tiles_measured=1, parts_s={}, per_step_s=0.03)
    plain = replace(step, tile_s=0.3)
    result = Baseline(setting, "CPU", {"dift": 3.0, "vae_encoder": 1.5, "decode": 6.0}, step, plain)
    assert result.s_per_frame(result.step) == pytest.approx(25 * 0.4 / 10 + 25 * 0.03 / 15 + 10.5 / 15)
    assert result.s_per_frame(result.plain_step, plain=True) == pytest.approx(25 * 0.3 / 10 + 25 * 0.03 / 15 + 7.5 / 15)
    assert result.s_per_frame(None) is None
    assert "(paper: 2.36)" in str(result)


def test_settings_that_the_method_cannot_run_are_refused() -> None:
    with pytest.raises(InputError) as caught:
        BaselineSetting("cpu", frames=10, overlap=15, steps_measured=0)
    for part in ("10 frames", "overlap is 15", "0 steps"):
        assert part in str(caught.value)


def test_a_clip_of_another_size_is_refused() -> None:
    setting = BaselineSetting("cpu", "toy", TOY, "fp32", frames=6, overlap=2)
    with pytest.raises(InputError, match="expected"):
        baseline.measure_baseline(setting, sample_clip(128, 64, 6))


def test_the_command_refuses_in_a_sentence() -> None:
    """In a process of its own: there, its folder is where modules are looked for first."""
    command = [sys.executable, SCRIPT, "--scale", "toy", "--device", "cpu", "--frames", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stderr.strip() == (
        "error: this baseline cannot run: the clip has 2 frames; the published method needs a tile, 4"
    )
