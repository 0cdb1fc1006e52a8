"""Compiled kernels against their numpy references, on random, adversarial and broken inputs."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dispose_rt import kernels
from dispose_rt.device import compiled_module, open_device, round_to_bfloat16, widen_bfloat16
from dispose_rt.errors import DeviceError
from tests.every import every_item
from tests.fakes import cuda as fake_cuda
from tests.kernels import input_references, references
from tests.kernels.targets import TARGETS, Target, assert_same_bits, cuda_target, open_target

SPLAT_TOLERANCE = 1e-6  # absolute, for displacements up to 1000 px; float32 accumulation of at most 18 products
SEEDS = st.integers(0, 2**32 - 1)
WIDTH, HEIGHT, FRAMES, JOINTS = 576, 1024, 16, 18
INT32_ENDS = (-(2**31), 2**31 - 1)


@pytest.fixture(scope="module", params=TARGETS)
def target(request: pytest.FixtureRequest) -> Iterator[Target]:
    """Runs the kernels of a test: on a GPU, the CPU's bits are demanded as well."""
    yield from open_target(request.param)


def unset(*shape: int, dtype: str = "float32") -> np.ndarray:
    """Memory in which a cell that is not written shows."""
    return np.full(shape, np.nan if dtype[0] == "f" else 0xA5, dtype)


def flag(value: int = 0) -> np.ndarray:
    return np.array([value], np.int32)


def splat(target: Target, positions: np.ndarray, values: np.ndarray, height: int, width: int) -> np.ndarray:
    flow = unset(len(positions), 2, height, width)
    target.run(kernels.splat_gaussian_flow, positions, values, flow)
    return flow


def rasterize(
    target: Target, positions: np.ndarray, values: np.ndarray, height: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
    flow, mask = unset(len(values), 2, height, width), unset(len(values), 2, height, width)
    target.run(kernels.rasterize_sparse_flow, positions, values, flow, mask)
    return flow, mask


def sample(target: Target, features: np.ndarray, positions: np.ndarray, height: int, width: int) -> np.ndarray:
    samples = unset(len(positions), len(features))
    target.run(kernels.sample_points, features, positions, height, width, samples)
    return samples


def empty_levels(features: list[np.ndarray], cells: np.ndarray) -> list[np.ndarray]:
    frames, rows, columns = cells.shape
    factors = kernels.POINT_LEVEL_FACTORS
    shapes = [(frames, t.shape[1], rows // f, columns // f) for t, f in zip(features, factors, strict=True)]
    return [unset(*shape, dtype=features[0].dtype.name) for shape in shapes]


def scatter(target: Target, features: list[np.ndarray], cells: np.ndarray) -> list[np.ndarray]:
    levels = empty_levels(features, cells)
    target.run(kernels.scatter_point_features, cells, features, levels)
    return levels


def to_u8(target: Target, frames: np.ndarray) -> tuple[np.ndarray, int]:
    pixels, nonfinite = unset(len(frames), *frames.shape[2:], 3, dtype="uint8"), flag()
    target.run(kernels.frames_to_u8, frames, pixels, nonfinite)
    return pixels, int(nonfinite[0])


def random_impulses(seed: int, frames: int, impulses: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions that repeat themselves and leave the image now and then, and displacements up to 1000 px."""
    rng = np.random.default_rng(seed)
    positions = np.stack([rng.integers(-2, size + 2, (frames, impulses)) for size in (width, height)], -1)
    if impulses > 1:
        positions[:, 1] = positions[:, 0]
    return positions.astype(np.int32), rng.uniform(-1000, 1000, (frames, impulses, 2)).astype(np.float32)


@settings(max_examples=60, deadline=None)
@given(
    seed=SEEDS,
    frames=st.integers(1, 3),
    impulses=st.integers(1, 18),
    height=st.integers(1, 260),
    width=st.integers(1, 260),
)
def test_splat_is_the_199_tap_filter(
    target: Target, seed: int, frames: int, impulses: int, height: int, width: int
) -> None:
    positions, values = random_impulses(seed, frames, impulses, height, width)
    flow = splat(target, positions, values, height, width)
    expected = references.splat_gaussian_flow(positions, values, height, width)
    # on few pixels the mass of an impulse piles up, so the tolerance follows the array's scale
    np.testing.assert_allclose(flow, expected, rtol=0, atol=SPLAT_TOLERANCE * max(1, np.abs(expected).max()))


def test_splat_of_any_number_of_impulses(target: Target) -> None:
    """More than one launch takes; the last of those at one pixel counts, in whichever launch it is."""
    with every_item() as every:
        for impulses in (31, 32, 33, 64, 65, 100):
            positions, values = random_impulses(impulses, 2, impulses, 90, 230)
            positions[:, -1] = positions[:, 2]
            expected = references.splat_gaussian_flow(positions, values, 90, 230)
            with every(impulses):
                flow = splat(target, positions, values, 90, 230)
                np.testing.assert_allclose(flow, expected, rtol=0, atol=impulses / JOINTS * SPLAT_TOLERANCE)


def test_splat_of_a_constant_is_that_constant_at_any_size(target: Target) -> None:
    """However often the border folds the taps, they still sum to 1."""
    with every_item() as every:
        for size in (1, 2, 3, 5, 50, 99, 100, 101, 199, 400):
            everywhere = np.stack(np.meshgrid(np.arange(size), [0]), -1).reshape(1, size, 2).astype(np.int32)
            with every(size):
                flow = splat(target, everywhere, np.ones((1, size, 2), np.float32), 1, size)
                np.testing.assert_allclose(flow, 1, atol=1e-5)


def test_splat_assigns_and_does_not_add(target: Target) -> None:
    positions = np.array([[[5, 6], [5, 6], [-1, 2], [30, 6]]], np.int32)
    values = np.array([[[1, 2], [3, 4], [100, 100], [100, 100]]], np.float32)
    alone = splat(target, positions[:, 1:2].copy(), values[:, 1:2].copy(), 20, 30)
    np.testing.assert_array_equal(splat(target, positions, values, 20, 30), alone)
    assert alone.any()


def test_splat_of_nothing_is_zero(target: Target) -> None:
    with every_item() as every:
        for shape in ((0, 18), (2, 0)):
            with every(shape):
                flow = splat(target, np.zeros((*shape, 2), np.int32), np.ones((*shape, 2), np.float32), 8, 9)
                np.testing.assert_array_equal(flow, 0)


def test_impulses_anywhere_and_of_any_value_stay_in_their_own_reach(target: Target) -> None:
    """Positions at the ends of int32 are ignored; a value that is not finite spoils no pixel that it does not reach."""
    low, high = INT32_ENDS
    ends = np.array([[[low, 5], [high, 5], [5, low], [5, high], [250, 5]]], np.int32)
    flow = splat(target, ends, np.full((1, 5, 2), np.inf, np.float32), 9, 400)
    reach = np.abs(np.arange(400) - 250) <= 99
    assert not np.isfinite(flow[..., reach]).any()
    np.testing.assert_array_equal(flow[..., ~reach], 0)


@settings(max_examples=60, deadline=None)
@given(
    seed=SEEDS, frames=st.integers(0, 3), hints=st.integers(0, 18), height=st.integers(1, 12), width=st.integers(1, 12)
)
def test_rasterize_is_exact(target: Target, seed: int, frames: int, hints: int, height: int, width: int) -> None:
    positions, values = random_impulses(seed, max(frames, 1), hints, height, width)
    got = rasterize(target, positions[0].copy(), values[:frames].copy(), height, width)
    expected = references.rasterize_sparse_flow(positions[0], values[:frames], height, width)
    for ours, theirs in zip(got, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_hints_anywhere_and_of_any_value_stay_in_their_pixel(target: Target) -> None:
    low, high = INT32_ENDS
    positions = np.array([[low, 1], [high, 1], [1, low], [1, high], [3, 2], [0, 0]], np.int32)
    values = np.full((1, 6, 2), np.nan, np.float32)
    values[0, 5] = np.inf
    flow, mask = rasterize(target, positions, values, 4, 5)
    expected = np.zeros((1, 2, 4, 5), np.float32)
    expected[..., 2, 3], expected[..., 0, 0] = np.nan, np.inf
    np.testing.assert_array_equal(flow, expected)
    np.testing.assert_array_equal(mask, expected != 0)


@settings(max_examples=60, deadline=None)
@given(
    seed=SEEDS,
    rows=st.integers(1, 9),
    columns=st.integers(1, 9),
    grow_y=st.integers(1, 20),
    grow_x=st.integers(1, 20),
    points=st.integers(0, 11),
)
def test_sampling_reads_the_enlarged_map(
    target: Target, seed: int, rows: int, columns: int, grow_y: int, grow_x: int, points: int
) -> None:
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((7, rows, columns), np.float32)
    features[rng.random(features.shape) < 0.05] = rng.choice([np.inf, -np.inf, np.nan])
    height, width = rows * grow_y, columns * grow_x
    positions = np.stack([rng.integers(0, width, points), rng.integers(0, height, points)], -1).astype(np.int32)
    with np.errstate(invalid="ignore"):
        expected = references.sample_points(features, positions, height, width)
    np.testing.assert_array_equal(sample(target, features, positions, height, width), expected)


def test_positions_anywhere_sample_the_border(target: Target) -> None:
    """Maps that are no larger than their source are among them, and one too large for single precision to count."""
    features = np.random.default_rng(0).standard_normal((5, 6, 4), np.float32)
    low, high = INT32_ENDS
    with every_item() as every:
        for height, width in ((24, 12), (3, 2), (1, 1), (2, 7), (2**24 + 3, 2**31 - 1)):
            outside = np.array([[low, low], [high, high], [-1, 0], [0, height], [min(width, high), -1]], np.int32)
            inside = outside.astype(np.int64).clip(0, (width - 1, height - 1)).astype(np.int32)
            with every(height, width):
                got = sample(target, features, outside, height, width)
                np.testing.assert_array_equal(got, sample(target, features, inside, height, width))
                assert np.abs(got).max() <= np.abs(features).max()


def test_the_last_pixel_of_a_source_that_single_precision_cannot_count(target: Target) -> None:
    """The position is rounded to one behind the last pixel, where the margin is NaN."""
    length = 2**24
    features = np.zeros((1, 1, length), np.float32)
    features[0, 0, -1] = 3
    last = np.array([[length - 1, 0]], np.int32)
    np.testing.assert_array_equal(sample(target, features, last, 1, length), 3)


def stored(values: np.ndarray, dtype: str) -> np.ndarray:
    return round_to_bfloat16(values) if dtype == "bfloat16" else values.astype(dtype)


def widened(values: np.ndarray) -> np.ndarray:
    return widen_bfloat16(values) if values.dtype == np.uint16 else values.astype(np.float32)


STORAGE = ("float32", "float16", "bfloat16")


@settings(max_examples=60, deadline=None)
@given(
    seed=SEEDS,
    frames=st.integers(0, 3),
    rows=st.integers(1, 3),
    columns=st.integers(1, 3),
    fill=st.floats(0, 1),
    dtype=st.sampled_from(STORAGE),
)
def test_scatter_is_exact(
    target: Target, seed: int, frames: int, rows: int, columns: int, fill: float, dtype: str
) -> None:
    rng = np.random.default_rng(seed)
    cells = rng.integers(0, 9, (frames, 4 * rows, 4 * columns), np.int32)
    cells[rng.random(cells.shape) > fill] = rng.choice([-1, INT32_ENDS[0]])
    features = [stored(rng.standard_normal((9, channels), np.float32), dtype) for channels in (3, 1, 4, 2)]
    got = scatter(target, features, cells)
    wide = references.scatter_point_features([widened(level) for level in features], cells) if frames else []
    for ours, theirs in zip(got, wide, strict=False):
        np.testing.assert_array_equal(widened(ours), widened(stored(theirs, dtype)))  # a masked -1 is -0 there


def test_scatter_of_nothing_is_zero(target: Target) -> None:
    """No frames, or no groups."""
    features = [np.ones((0, channels), np.float32) for channels in (3, 1, 4, 2)]
    with every_item() as every:
        for shape in ((0, 4, 8), (2, 4, 8)):
            for number, level in enumerate(scatter(target, features, np.full(shape, -1, np.int32))):
                with every(shape, number):
                    np.testing.assert_array_equal(level, 0)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_narrow_storage_is_numpy_s(target: Target, dtype: str) -> None:
    """All 2^16 numbers go through unchanged, and means of four of them round as numpy rounds them."""
    numbers = np.arange(2**16, dtype=np.uint16)
    rng = np.random.default_rng(5)
    # one joint group per channel value: a block of 4 x 4 cells holds groups 0..15
    table = np.stack([numbers, *(rng.permutation(numbers) for _ in range(15))])
    table = table.view(np.float16) if dtype == "float16" else table
    cells = np.arange(16, dtype=np.int32).reshape(1, 4, 4)
    finest, half, quarter, _ = scatter(target, [table] * 4, cells)
    np.testing.assert_array_equal(finest[0].reshape(-1, 16).T.copy().view(np.uint16), table.view(np.uint16))
    wide = widened(table)
    with np.errstate(over="ignore", invalid="ignore"):
        top_left = stored(((wide[0] + wide[1]) + (wide[4] + wide[5])) * np.float32(0.25), dtype)
        centre = stored(((wide[5] + wide[6]) + (wide[9] + wide[10])) * np.float32(0.25), dtype)
    assert_same_bits(half[0, :, 0, 0].copy(), top_left, "level 1")
    assert_same_bits(quarter[0, :, 0, 0].copy(), centre, "level 2")


GATHERED = ("float32", "float16", "uint16", "int32", "uint8")  # uint16 stands for bfloat16


@settings(max_examples=100, deadline=None)
@given(
    seed=SEEDS,
    frames=st.integers(0, 5),
    slots=st.integers(0, 6),
    shape=st.lists(st.integers(0, 9), max_size=3),
    dtype=st.sampled_from(GATHERED),
)
def test_gather_moves_bytes_as_they_are(
    target: Target, seed: int, frames: int, slots: int, shape: list[int], dtype: str
) -> None:
    """Any length of a frame; frames that do not exist leave their slots alone."""
    rng = np.random.default_rng(seed)
    size = np.dtype(dtype).itemsize
    source = rng.integers(0, 256, (frames, *shape, size), np.uint8).view(dtype)[..., 0].copy()
    gathered = rng.integers(0, 256, (slots, *shape, size), np.uint8).view(dtype)[..., 0].copy()
    slot_frames = rng.integers(-1, frames + 1, slots).astype(np.int32)
    slot_frames[: slots // 3] = rng.choice(INT32_ENDS)
    expected = references.gather_frames(source, slot_frames, gathered)
    target.run(kernels.gather_frames, source, slot_frames, gathered)
    np.testing.assert_array_equal(gathered.view(np.uint8), expected.view(np.uint8))


SCHEDULES = [[700.0, 15.6, 0.002, 0.0], [1.0, 0.0], [3.0, 1.0], [1e-20, 1e20, 0.5]]


def test_the_step_table_is_exact() -> None:
    with every_item() as every:
        for sigmas in SCHEDULES:
            levels = np.array(sigmas, np.float32)
            timesteps = np.linspace(1.6, -1.5, len(sigmas) - 1).astype(np.float32)
            with every(sigmas), np.errstate(over="ignore"):
                table = kernels.step_table(levels, timesteps, 2.1)
                assert table.dtype == np.float32
                assert_same_bits(table, references.step_table(levels, timesteps, 2.1), "rows")


def test_a_step_begins_with_the_row_of_its_number(target: Target) -> None:
    table = np.random.default_rng(1).standard_normal((3, kernels.STEP_COLUMNS), np.float32)
    with every_item() as every:
        for counter in (0, 1, 2, 3, 1000, -1, *INT32_ENDS):
            number, timestep, constants = np.array([counter], np.int32), unset(1), unset(kernels.STEP_COLUMNS)
            with every(counter):
                target.run(kernels.begin_step, table, number, timestep, constants)
                row = table[min(max(counter, 0), 2)]
                np.testing.assert_array_equal(constants, row)
                assert timestep[0] == row[0]
                assert number[0] == min(counter + 1, INT32_ENDS[1])


def sampler_arrays(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "noise_pred": rng.standard_normal((2, 4, 4, 3, 5), np.float32),
        "slot_frames": rng.permutation(6)[:4].astype(np.int32),
        "slot_weights": rng.uniform(0, 1, 4).astype(np.float32),
        "sums": rng.standard_normal((2, 6, 4, 3, 5), np.float32),
        "frame_weights": rng.uniform(0.1, 2, 6).astype(np.float32),
        "latents": 700 * rng.standard_normal((6, 4, 3, 5), np.float32),
    }


def tile_arrays(seed: int) -> dict[str, np.ndarray]:
    arrays = sampler_arrays(seed)
    return {name: arrays[name] for name in ("noise_pred", "slot_frames", "slot_weights", "sums")}


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS, spare=st.integers(0, 4))
def test_accumulation_is_exact(target: Target, seed: int, spare: int) -> None:
    arrays = tile_arrays(seed)
    arrays["slot_weights"][4 - spare :] = 0
    arrays["noise_pred"][:, 4 - spare :] = np.nan  # a dropped slot must not spread
    arrays["slot_frames"][4 - spare :] = arrays["slot_frames"][0]
    expected, _ = references.accumulate_tile(**arrays)
    nonfinite = flag()
    target.run(kernels.accumulate_tile, *arrays.values(), nonfinite)
    np.testing.assert_array_equal(arrays["sums"], expected)
    assert np.isfinite(expected).all()
    assert nonfinite[0] == 0


@settings(max_examples=60, deadline=None)
@given(
    seed=SEEDS,
    bad=st.sampled_from([np.nan, np.inf, -np.inf, np.finfo(np.float32).max]),
    weight=st.sampled_from([0.5, 1e-45, 0.0, -0.0]),
    frame=st.sampled_from([0, 5, -1, 6, *INT32_ENDS]),
    before=st.integers(0, 1),
)
def test_accumulation_tells_where_what_counts_is_not_finite(
    target: Target, seed: int, bad: float, weight: float, frame: int, before: int
) -> None:
    """One value anywhere; a slot without weight or without a frame does not count; the flag is never lowered."""
    arrays = tile_arrays(seed)
    arrays["slot_frames"][:] = (1, 2, frame, 3)
    arrays["slot_weights"][2] = weight
    rng = np.random.default_rng(seed)
    arrays["noise_pred"][(rng.integers(2), 2, *(rng.integers(size) for size in (4, 3, 5)))] = bad
    expected, finite = references.accumulate_tile(**arrays)
    assert finite == (not weight or frame not in (0, 5) or bool(np.isfinite(bad)))
    nonfinite = flag(before)
    target.run(kernels.accumulate_tile, *arrays.values(), nonfinite)
    np.testing.assert_array_equal(arrays["sums"], expected)
    assert nonfinite[0] == max(before, not finite)


def step(
    target: Target, arrays: dict[str, np.ndarray], row: np.ndarray, nonfinite: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    latents, next_input = arrays["latents"].copy(), unset(*arrays["latents"].shape)
    weights = arrays["frame_weights"]
    target.run(kernels.guided_euler_step, latents, arrays["sums"], weights, row, flag(nonfinite), next_input)
    return latents, next_input


@settings(max_examples=30, deadline=None)
@given(
    seed=SEEDS,
    guidance=st.floats(1, 20, width=32),
    sigmas=st.sampled_from([(700.0, 15.6), (15.6, 0.002), (0.002, 0.0)]),
)
def test_euler_step_is_exact(target: Target, seed: int, guidance: float, sigmas: tuple[float, float]) -> None:
    arrays = sampler_arrays(seed)
    [row] = kernels.step_table(np.array(sigmas, np.float32), np.zeros(1, np.float32), guidance)
    expected, scaled = references.guided_euler_step(
        arrays["latents"], arrays["sums"], arrays["frame_weights"], guidance, *sigmas
    )
    latents, next_input = step(target, arrays, row)
    np.testing.assert_array_equal(latents, expected)
    np.testing.assert_array_equal(next_input, scaled)


def test_guidance_of_one_is_the_conditional_half_alone(target: Target) -> None:
    arrays = sampler_arrays(1)
    [row] = kernels.step_table(np.array([3, 1], np.float32), np.zeros(1, np.float32), 1.0)
    expected, _ = step(target, arrays, row)
    arrays["sums"][0] = np.nan
    np.testing.assert_array_equal(step(target, arrays, row)[0], expected)


def test_a_prediction_that_is_not_finite_leaves_the_latents_alone(target: Target) -> None:
    arrays = sampler_arrays(1)
    [row] = kernels.step_table(np.array([3, 1], np.float32), np.zeros(1, np.float32), 2.0)
    arrays["sums"][1] = np.inf
    latents, next_input = step(target, arrays, row, nonfinite=1)
    np.testing.assert_array_equal(latents, arrays["latents"])
    assert np.isnan(next_input).all()  # as it was
    taken, _ = step(target, arrays, row)
    assert not np.isfinite(taken).all()


def test_a_graph_of_one_step_serves_every_step(target: Target) -> None:
    """Captured once, launched as often as there are steps: the bits of the steps computed one by one."""
    arrays, guidance = sampler_arrays(4), 2.5
    sigmas, timesteps = np.array([700, 15.6, 0.3, 0], np.float32), np.array([1.6, 0.7, -0.3], np.float32)
    every = np.arange(6, dtype=np.int32)
    stream = target.stream
    table, slots, weights = (
        target.device.array(values, stream)
        for values in (kernels.step_table(sigmas, timesteps, guidance), every, arrays["frame_weights"])
    )
    latents = target.device.array(arrays["latents"], stream)
    tile, scaled, prediction, sums = (
        target.device.zeros(shape, "float32", stream)
        for shape in (latents.shape, latents.shape, (2, *latents.shape), (2, *latents.shape))
    )
    counter, nonfinite = (target.device.zeros((1,), "int32", stream) for _ in range(2))
    timestep, constants = (target.device.zeros((n,), "float32", stream) for n in (1, kernels.STEP_COLUMNS))
    scaled.upload(arrays["latents"], stream)

    def queue() -> None:
        kernels.begin_step(table, counter, timestep, constants, stream)
        sums.clear(stream)
        kernels.gather_frames(scaled, slots, tile, stream)
        for half in (0, 1):  # stands for the networks
            prediction.rows(half, half + 1).reshape(*tile.shape).copy_from(tile, stream)
        kernels.accumulate_tile(prediction, slots, weights, sums, nonfinite, stream)
        kernels.guided_euler_step(latents, sums, weights, constants, nonfinite, scaled, stream)

    queue()
    stream.synchronize()
    counter.clear(stream)
    latents.upload(arrays["latents"], stream)
    scaled.upload(arrays["latents"], stream)
    graph = stream.capture(queue)
    expected = read = arrays["latents"]
    for number in range(3):
        graph.launch(stream)
        summed, _ = references.accumulate_tile(
            np.stack([read, read]), every, arrays["frame_weights"], np.zeros(sums.shape, np.float32)
        )
        expected, read = references.guided_euler_step(
            expected, summed, arrays["frame_weights"], guidance, *sigmas[number : number + 2]
        )
        np.testing.assert_array_equal(latents.download(stream), expected)
        np.testing.assert_array_equal(scaled.download(stream), read)
        assert timestep.download(stream)[0] == timesteps[number]
    assert counter.download(stream)[0] == 3
    assert nonfinite.download(stream)[0] == 0
    graph.close()
    for array in (table, slots, weights, latents, tile, scaled, prediction, sums):
        array.free()
    for array in (counter, nonfinite, timestep, constants):
        array.free()


def test_frames_to_u8_truncates_every_level_as_numpy_does(target: Target) -> None:
    edges = np.arange(256, dtype=np.float32) / np.float32(127.5) - 1
    special = np.array([-np.inf, np.inf, np.nan, -3, 3, 0, -0.0, 1, -1], np.float32)
    around = np.concatenate([np.nextafter(edges, np.float32(-9)), edges, np.nextafter(edges, np.float32(9)), special])
    frames = np.resize(around, (2, 3, 7, 130)).astype(np.float32)
    pixels, nonfinite = to_u8(target, frames)
    np.testing.assert_array_equal(pixels, references.frames_to_u8(frames))
    assert nonfinite == 1


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS, count=st.integers(0, 2), bad=st.sampled_from([None, np.nan, np.inf, -np.inf]))
def test_frames_to_u8_tells_where_a_value_is_not_finite(
    target: Target, seed: int, count: int, bad: float | None
) -> None:
    rng = np.random.default_rng(seed)
    frames = rng.uniform(-1e38, 1e38, (count, 3, 5, 11)).astype(np.float32)
    if count and bad is not None:
        frames.reshape(-1)[rng.integers(frames.size)] = bad
    pixels, nonfinite = to_u8(target, frames)
    np.testing.assert_array_equal(pixels, references.frames_to_u8(frames))
    assert nonfinite == (not np.isfinite(frames).all())


def test_arrays_that_are_shared_among_threads_are_exact(target: Target) -> None:
    """Large enough that several threads split the rows, and not evenly."""
    rng = np.random.default_rng(5)
    frames = rng.uniform(-1.2, 1.2, (1, 3, 1021, 577)).astype(np.float32)
    expected = np.clip(frames / np.float32(2) + np.float32(0.5), 0, 1) * np.float32(255)
    np.testing.assert_array_equal(to_u8(target, frames)[0], expected.astype(np.uint8).transpose(0, 2, 3, 1))

    height, width = 1021, 577
    positions = rng.integers((0, 0), (width, height), (2, 18, 2)).astype(np.int32)
    values = rng.normal(0, 5, (2, 18, 2)).astype(np.float32)
    impulses = np.zeros((2, height, width, 2))
    for frame in range(2):
        for (x, y), value in zip(positions[frame], values[frame], strict=True):
            impulses[frame, y, x] = value
    column = cv2.getGaussianKernel(199, 20)
    filtered = [cv2.sepFilter2D(one, -1, column, column, borderType=cv2.BORDER_REFLECT_101) for one in impulses]
    flow = splat(target, positions, values, height, width)
    np.testing.assert_allclose(flow.transpose(0, 2, 3, 1), filtered, rtol=0, atol=1e-7)


Call = tuple[Callable[..., None], tuple[Any, ...]]


def calls(seed: int, frames: int, height: int, width: int, channels: tuple[int, ...]) -> dict[str, Call]:
    """Every kernel that can be captured, with arguments for images of this size."""
    rng = np.random.default_rng(seed)
    positions, values = random_impulses(seed, frames, JOINTS, height, width)
    rows, columns = height // 16, width // 16
    cells = rng.integers(-300, JOINTS, (frames, rows, columns), np.int32).clip(-1)
    tables = [rng.standard_normal((JOINTS, count), np.float32) for count in channels]
    latents = rng.standard_normal((frames, 4, height // 8, width // 8), np.float32)
    sums = rng.standard_normal((2, *latents.shape), np.float32)
    weights = rng.uniform(0.1, 2, frames).astype(np.float32)
    slots = rng.permutation(frames).astype(np.int32)
    features = rng.standard_normal((channels[-1], rows, columns), np.float32)
    inside = rng.integers((0, 0), (width, height), (JOINTS, 2)).astype(np.int32)
    pictures = rng.uniform(-1.2, 1.2, (frames, 3, height, width)).astype(np.float32)
    table = kernels.step_table(np.array([3, 1, 0], np.float32), np.array([0.3, 0], np.float32), 2.0)
    image = rng.integers(0, 256, (height, width, 3), np.uint8)
    small = tuple(input_references.nearest_table(length, 384) for length in (height, width))
    large = tuple(input_references.nearest_table(384, length) for length in (height, width))
    taps = tuple(
        np.array([[i % length, (i + 1) % length, 20, 12] for i in range(size)], np.int32)
        for length, size in ((height, 384), (width, 288))
    )
    every: dict[str, Call] = {
        "splat_gaussian_flow": (kernels.splat_gaussian_flow, (positions, values, unset(frames, 2, height, width))),
        "rasterize_sparse_flow": (
            kernels.rasterize_sparse_flow,
            (positions[0].copy(), values, unset(frames, 2, 384, 384), unset(frames, 2, 384, 384)),
        ),
        "sample_points": (kernels.sample_points, (features, inside, height, width, unset(JOINTS, channels[-1]))),
        "gather_frames": (kernels.gather_frames, (latents, slots, unset(*latents.shape))),
        "begin_step": (kernels.begin_step, (table, flag(1), unset(1), unset(kernels.STEP_COLUMNS))),
        "accumulate_tile": (kernels.accumulate_tile, (sums[::-1].copy(), slots, weights, sums, flag())),
        "guided_euler_step": (
            kernels.guided_euler_step,
            (latents, sums, weights, table[0].copy(), np.zeros(1, np.int32), unset(*latents.shape)),
        ),
        "frames_to_u8": (
            kernels.frames_to_u8,
            (pictures, unset(frames, height, width, 3, dtype="uint8"), flag()),
        ),
        "crop_person": (
            kernels.crop_person,
            (image, *taps, rng.standard_normal((3, 256), np.float32), unset(1, 3, 384, 288)),
        ),
        "normalize_frames": (
            kernels.normalize_frames,
            (rng.integers(0, 256, (frames, 3, height, width), np.uint8), unset(frames, 3, height, width)),
        ),
        "resample_flow": (
            kernels.resample_flow,
            (
                *(rng.standard_normal((frames, 2, 384, 384), np.float32), *large),
                *(width / 384, height / 384, unset(frames, 2, height, width)),
            ),
        ),
        "nearest_image": (kernels.nearest_image, (image, *small, unset(1, 3, 384, 384))),
    }
    for dtype in STORAGE:
        narrow = [stored(one, dtype) for one in tables]
        every[f"scatter_point_features, {dtype}"] = (
            kernels.scatter_point_features,
            (cells, narrow, empty_levels(narrow, cells)),
        )
    return every


FULL_SIZE, SMALL = (FRAMES, HEIGHT, WIDTH, (320, 640, 1280, 1280)), (3, 128, 192, (5, 6, 7, 9))
KERNELS = tuple(calls(0, *SMALL))


@pytest.mark.cuda
def test_a_gpu_gives_the_bits_of_the_cpu_at_full_size() -> None:
    with every_item() as every, contextmanager(open_target)("cuda") as target:
        for kernel, (function, arguments) in calls(0, *FULL_SIZE).items():
            with every(kernel):
                target.run(function, *arguments)  # compares


def test_every_run_gives_the_same_bits_and_so_does_a_graph(target: Target) -> None:
    with every_item() as every:
        for kernel in KERNELS:
            results = []
            with every(kernel):
                for run in (target.run, target.run, target.run_captured):
                    function, arguments = calls(1, *SMALL)[kernel]
                    run(function, *arguments)
                    results.append(arguments)
                for others in results[1:]:
                    for one, other in zip(results[0], others, strict=True):
                        for got, wanted in zip(*(x if isinstance(x, list) else [x] for x in (one, other)), strict=True):
                            assert_same_bits(np.asarray(got), np.asarray(wanted), kernel)


def test_work_that_is_done_late_gives_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a fake GPU, which does nothing before it is waited for: the host neither reads nor writes meanwhile."""
    fake_cuda.install(monkeypatch)
    with every_item() as every, closing(cuda_target()) as opened:
        for kernel in KERNELS:
            for run in (opened.run, opened.run_captured):
                function, arguments = calls(1, *SMALL)[kernel]
                with every(kernel, run.__name__):
                    run(function, *arguments)  # compares with the CPU


def test_the_letterbox_of_pictures_of_many_sizes_in_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its tables are given back before the kernel has run; whoever gets their memory comes later on the stream."""
    fake_cuda.install(monkeypatch)
    device = open_device("cuda")
    stream = device.stream()
    rng = np.random.default_rng(4)
    images = [rng.integers(0, 256, (size, 97 - size, 3), np.uint8) for size in (20, 70, 33, 50)]
    uploaded = [device.array(image, stream) for image in images]
    targets = [device.empty((1, 3, 640, 640), "float32") for _ in images]
    for image, target in zip(uploaded, targets, strict=True):
        kernels.letterbox(image, target, stream)
    for image, target in zip(images, targets, strict=True):
        np.testing.assert_array_equal(target.download(stream)[0], input_references.letterbox(image))
    device.close()


def test_what_can_be_captured_is_every_kernel_but_the_letterbox() -> None:
    compiled = {name for name in dir(compiled_module("cpu")) if name[0] != "_" and name != "TARGET"}
    named = {name for name in compiled if not name.startswith("scatter_point_features")}
    assert named - {name.partition(",")[0] for name in KERNELS} == {"letterbox"}
    assert len(compiled - named) == len(STORAGE)


def test_the_letterbox_is_opencv_s(target: Target) -> None:
    with every_item() as every:
        for size in ((270, 480), (1, 1), (1280, 720), (1, 4000), (639, 641)):
            image = np.random.default_rng(3).integers(0, 256, (*size, 3), np.uint8)
            pixels = unset(1, 3, 640, 640)
            with every(size):
                target.run(kernels.letterbox, image, pixels)
                np.testing.assert_array_equal(pixels[0], input_references.letterbox(image))


def test_the_wrappers_of_input_kernels_hand_over_the_right_sizes(target: Target) -> None:
    """Against the references, with every length another one."""
    rng = np.random.default_rng(6)
    image = rng.integers(0, 256, (11, 13, 3), np.uint8)
    rows, columns = (rng.integers(0, length, size).astype(np.int32) for length, size in ((11, 5), (13, 7)))
    pixels = unset(1, 3, 5, 7)
    target.run(kernels.nearest_image, image, rows, columns, pixels)
    np.testing.assert_array_equal(pixels[0], input_references.nearest_image(image, rows, columns))

    taps = [
        np.stack([index, index[::-1], np.full_like(index, 20), np.full_like(index, 12)], 1) for index in (rows, columns)
    ]
    normalised = rng.standard_normal((3, 256), np.float32)
    target.run(kernels.crop_person, image, *taps, normalised, pixels)
    np.testing.assert_array_equal(pixels[0], input_references.crop_person(image, *taps, normalised))

    flow, resampled = rng.standard_normal((2, 2, 11, 13), np.float32), unset(2, 2, 5, 7)
    target.run(kernels.resample_flow, flow, rows, columns, 1.5, 2.25, resampled)
    np.testing.assert_array_equal(resampled, input_references.resample_flow(flow, rows, columns, 1.5, 2.25))

    levels, frames = rng.integers(0, 256, (2, 3, 5, 7), np.uint8), unset(2, 3, 5, 7)
    target.run(kernels.normalize_frames, levels, frames)
    np.testing.assert_array_equal(frames, input_references.normalize_frames(levels))


def test_a_missing_module_says_how_to_install() -> None:
    with pytest.raises(DeviceError, match=r"pip install"):
        compiled_module("abacus")


def test_the_cuda_module_has_the_same_kernels_and_reports_its_errors() -> None:
    """Without a GPU the driver's refusal comes back as text; with one, an empty launch succeeds."""
    cuda = pytest.importorskip("dispose_rt._kernels_cuda", exc_type=ImportError)
    cpu = importlib.import_module("dispose_rt._kernels_cpu")
    assert (cpu.TARGET, cuda.TARGET) == ("cpu", "cuda")
    assert [name for name in dir(cuda) if name[0] != "_"] == [name for name in dir(cpu) if name[0] != "_"]
    assert cuda.frames_to_u8(0, 0, 0, 0, 8, 8, 0) is None  # nothing to launch
    error = cuda.frames_to_u8(0, 0, 0, 1, 0x7FFFFFFF, 65536 * 256, 0)  # more columns than a grid has room for
    assert "too large" in error
