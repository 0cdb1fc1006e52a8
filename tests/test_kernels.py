"""Compiled kernels against their numpy references, on random, adversarial and broken inputs."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import Any

import cv2
import kernel_references as references
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_targets import CudaLauncher, missing_for_cuda

from dispose_rt import kernels
from dispose_rt.errors import DeviceError, InputError

SPLAT_TOLERANCE = 1e-6  # absolute, for displacements up to 1000 px; float32 accumulation of at most 18 products
SEEDS = st.integers(0, 2**32 - 1)
WIDTH, HEIGHT, FRAMES = 576, 1024, 16
TARGETS = ["cpu", *(pytest.param(name, marks=pytest.mark.cuda) for name in ("cuda", "cuda, unaligned"))]


@pytest.fixture(scope="module", params=TARGETS)
def target(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the kernels of a test on the target: on a GPU, the CPU's bits are demanded as well."""
    if request.param == "cpu":
        yield "cpu"
        return
    if reason := missing_for_cuda():
        pytest.skip(reason)
    launcher = CudaLauncher(offset=1 if "unaligned" in request.param else 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "_launch", launcher)
        yield "cuda"
    launcher.close()


on_every_target = pytest.mark.usefixtures("target")


def random_impulses(seed: int, frames: int, impulses: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions that repeat themselves and leave the image now and then, and displacements up to 1000 px."""
    rng = np.random.default_rng(seed)
    positions = np.stack([rng.integers(-2, size + 2, (frames, impulses)) for size in (width, height)], -1)
    if impulses > 1:
        positions[:, 1] = positions[:, 0]
    return positions.astype(np.int32), rng.uniform(-1000, 1000, (frames, impulses, 2)).astype(np.float32)


@on_every_target
@settings(max_examples=60, deadline=None)
@given(SEEDS, st.integers(1, 3), st.integers(1, 18), st.integers(1, 260), st.integers(1, 260))
def test_splat_is_the_199_tap_filter(seed: int, frames: int, impulses: int, height: int, width: int) -> None:
    positions, values = random_impulses(seed, frames, impulses, height, width)
    flow = kernels.splat_gaussian_flow(positions, values, height, width)
    expected = references.splat_gaussian_flow(positions, values, height, width)
    # on few pixels the mass of an impulse piles up, so the tolerance follows the array's scale
    np.testing.assert_allclose(flow, expected, rtol=0, atol=SPLAT_TOLERANCE * max(1, np.abs(expected).max()))


@on_every_target
@pytest.mark.parametrize("size", [1, 2, 3, 5, 50, 99, 100, 101, 199, 400])
def test_splat_of_a_constant_is_that_constant_at_any_size(size: int) -> None:
    """However often the border folds the taps, they still sum to 1."""
    everywhere = np.stack(np.meshgrid(np.arange(size), [0]), -1).reshape(1, size, 2).astype(np.int32)
    flow = kernels.splat_gaussian_flow(everywhere, np.ones((1, size, 2), np.float32), 1, size)
    np.testing.assert_allclose(flow, 1, atol=1e-5)


@on_every_target
def test_splat_assigns_and_does_not_add() -> None:
    positions = np.array([[[5, 6], [5, 6], [-1, 2], [30, 6]]], np.int32)
    values = np.array([[[1, 2], [3, 4], [100, 100], [100, 100]]], np.float32)
    alone = kernels.splat_gaussian_flow(positions[:, 1:2], values[:, 1:2], 20, 30)
    np.testing.assert_array_equal(kernels.splat_gaussian_flow(positions, values, 20, 30), alone)
    assert alone.any()


@on_every_target
@pytest.mark.parametrize("shape", [(0, 18), (2, 0)])
def test_splat_of_nothing_is_zero(shape: tuple[int, int]) -> None:
    flow = kernels.splat_gaussian_flow(np.zeros((*shape, 2), np.int32), np.ones((*shape, 2), np.float32), 8, 9)
    assert flow.shape == (shape[0], 2, 8, 9)
    assert not flow.any()


@on_every_target
@settings(max_examples=60, deadline=None)
@given(SEEDS, st.integers(0, 3), st.integers(0, 18), st.integers(1, 12), st.integers(1, 12))
def test_rasterize_is_exact(seed: int, frames: int, hints: int, height: int, width: int) -> None:
    positions, values = random_impulses(seed, max(frames, 1), hints, height, width)
    got = kernels.rasterize_sparse_flow(positions[0], values[:frames], height, width)
    expected = references.rasterize_sparse_flow(positions[0], values[:frames], height, width)
    for ours, theirs in zip(got, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@on_every_target
@settings(max_examples=60, deadline=None)
@given(SEEDS, st.integers(1, 9), st.integers(1, 9), st.integers(1, 20), st.integers(1, 20))
def test_sampling_reads_the_enlarged_map(seed: int, rows: int, columns: int, grow_y: int, grow_x: int) -> None:
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((7, rows, columns), np.float32)
    height, width = rows * grow_y, columns * grow_x
    positions = np.stack([rng.integers(0, width, 11), rng.integers(0, height, 11)], -1).astype(np.int32)
    got = kernels.sample_points(features, positions, height, width)
    np.testing.assert_array_equal(got, references.sample_points(features, positions, height, width))


@on_every_target
@settings(max_examples=60, deadline=None)
@given(SEEDS, st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.floats(0, 1), st.sampled_from(["f4", "f2"]))
def test_scatter_is_exact(seed: int, frames: int, rows: int, columns: int, fill: float, dtype: str) -> None:
    rng = np.random.default_rng(seed)
    cells = rng.integers(0, 9, (frames, 4 * rows, 4 * columns), np.int32)
    cells[rng.random(cells.shape) > fill] = -1
    features = [rng.standard_normal((9, channels), np.float32).astype(dtype) for channels in (3, 1, 4, 2)]
    got = kernels.scatter_point_features(features, cells)
    for ours, theirs in zip(got, references.scatter_point_features(features, cells), strict=True):
        assert ours.dtype == dtype
        np.testing.assert_array_equal(ours, theirs)


@on_every_target
def test_half_precision_storage_is_numpy_s() -> None:
    """Every half goes through unchanged, and means of four of them round as numpy rounds them."""
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16)
    halves = halves[np.isfinite(halves)]
    rng = np.random.default_rng(5)
    # one joint group per channel value: a block of 4 x 4 cells holds groups 0..15
    table = np.stack([halves, *(rng.permutation(halves) for _ in range(15))])
    cells = np.arange(16, dtype=np.int32).reshape(1, 4, 4)
    finest, half, quarter, _ = kernels.scatter_point_features([table] * 4, cells)
    np.testing.assert_array_equal(finest[0].reshape(-1, 16).T.view(np.uint16), table.view(np.uint16))
    wide = table.astype(np.float32)
    with np.errstate(over="ignore"):
        top_left = (((wide[0] + wide[1]) + (wide[4] + wide[5])) * np.float32(0.25)).astype(np.float16)
        centre = (((wide[5] + wide[6]) + (wide[9] + wide[10])) * np.float32(0.25)).astype(np.float16)
    np.testing.assert_array_equal(half[0, :, 0, 0], top_left)
    np.testing.assert_array_equal(quarter[0, :, 0, 0], centre)


@on_every_target
def test_half_precision_storage_keeps_infinity_and_nan() -> None:
    table = np.array([[np.inf, -np.inf, np.nan]], np.float16)
    finest, *_ = kernels.scatter_point_features([table] * 4, np.zeros((1, 4, 4), np.int32))
    np.testing.assert_array_equal(finest[0, :, 0, 0], table[0])


def sampler_arrays(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "sums": rng.standard_normal((2, 6, 4, 3, 5), np.float32),
        "frame_weights": rng.uniform(0.1, 2, 6).astype(np.float32),
        "noise_pred": rng.standard_normal((2, 4, 4, 3, 5), np.float32),
        "slot_frames": rng.permutation(6)[:4].astype(np.int32),
        "slot_weights": rng.uniform(0, 1, 4).astype(np.float32),
        "latents": 700 * rng.standard_normal((6, 4, 3, 5), np.float32),
    }


@on_every_target
@settings(max_examples=30, deadline=None)
@given(SEEDS, st.integers(0, 4))
def test_accumulation_is_exact(seed: int, spare: int) -> None:
    arrays = sampler_arrays(seed)
    del arrays["latents"]
    arrays["slot_weights"][4 - spare :] = 0
    arrays["noise_pred"][:, 4 - spare :] = np.nan  # a dropped slot must not spread
    arrays["slot_frames"][4 - spare :] = arrays["slot_frames"][0]
    sums, weights = references.accumulate_tile(**arrays)
    assert kernels.accumulate_tile(**arrays) is None
    np.testing.assert_array_equal(arrays["sums"], sums)
    np.testing.assert_array_equal(arrays["frame_weights"], weights)
    assert np.isfinite(sums).all()


@on_every_target
@settings(max_examples=30, deadline=None)
@given(SEEDS, st.floats(1, 20, width=32), st.sampled_from([(700.0, 15.6), (15.6, 0.002), (0.002, 0.0)]))
def test_euler_step_is_exact(seed: int, guidance: float, sigmas: tuple[float, float]) -> None:
    arrays = sampler_arrays(seed)
    step = (arrays["latents"], arrays["sums"], arrays["frame_weights"], guidance, *sigmas)
    latents, scaled = references.guided_euler_step(*step)
    next_input = np.empty_like(latents)
    np.testing.assert_array_equal(kernels.guided_euler_step(*step, next_input), latents)
    np.testing.assert_array_equal(next_input, scaled)
    np.testing.assert_array_equal(kernels.guided_euler_step(*step), latents)


@on_every_target
def test_guidance_of_one_never_reads_the_unconditional_half() -> None:
    arrays = sampler_arrays(1)
    step = (arrays["frame_weights"], 1.0, 3.0, 1.0)
    expected = kernels.guided_euler_step(arrays["latents"], arrays["sums"], *step)
    arrays["sums"][0] = np.nan
    np.testing.assert_array_equal(kernels.guided_euler_step(arrays["latents"], arrays["sums"], *step), expected)


@on_every_target
def test_frames_to_u8_truncates_every_level_as_numpy_does() -> None:
    edges = np.arange(256, dtype=np.float32) / np.float32(127.5) - 1
    special = np.array([-np.inf, np.inf, np.nan, -3, 3, 0, -0.0, 1, -1], np.float32)
    around = np.concatenate([np.nextafter(edges, np.float32(-9)), edges, np.nextafter(edges, np.float32(9)), special])
    frames = np.resize(around, (2, 3, 7, 130)).astype(np.float32)
    np.testing.assert_array_equal(kernels.frames_to_u8(frames), references.frames_to_u8(frames))


def arguments_of(kernel: str) -> dict[str, Any]:
    """Arguments that the kernel accepts."""
    arrays = sampler_arrays(3)
    position, value = np.zeros((2, 3, 2), np.int32), np.zeros((2, 3, 2), np.float32)
    if kernel == "accumulate_tile":
        return {name: array for name, array in arrays.items() if name != "latents"}
    if kernel == "guided_euler_step":
        kept = {name: arrays[name] for name in ("latents", "sums", "frame_weights")}
        return kept | {"guidance_scale": 2.0, "sigma": 3.0, "sigma_next": 1.0, "next_input": arrays["latents"].copy()}
    return {
        "splat_gaussian_flow": {"positions_px": position, "values_px": value, "height": 6, "width": 7},
        "rasterize_sparse_flow": {"positions_px": position[0], "values_px": value, "height": 6, "width": 7},
        "sample_points": {
            "features": np.zeros((5, 3, 2), np.float32),
            "positions_px": position[0],
            "height": 6,
            "width": 4,
        },
        "scatter_point_features": {
            "features": [np.zeros((3, 2), np.float32)] * 4,
            "cells": np.zeros((2, 4, 8), np.int32),
        },
        "frames_to_u8": {"frames": np.zeros((2, 3, 4, 5), np.float32)},
    }[kernel]


KERNELS = (
    "splat_gaussian_flow",
    "rasterize_sparse_flow",
    "sample_points",
    "scatter_point_features",
    "accumulate_tile",
    "guided_euler_step",
    "frames_to_u8",
)
ARRAYS = [
    (kernel, name)
    for kernel in KERNELS
    for name, value in arguments_of(kernel).items()
    if isinstance(value, np.ndarray)
]
BREAKERS: dict[str, Callable[[np.ndarray], Any]] = {
    "another dtype": lambda array: array.astype(np.float64),
    "another rank": lambda array: array[None],
    "a list": lambda array: array.tolist(),
}


@pytest.mark.parametrize("breaker", BREAKERS)
@pytest.mark.parametrize(("kernel", "name"), ARRAYS)
def test_wrong_arrays_are_refused_by_name(kernel: str, name: str, breaker: str) -> None:
    arguments = arguments_of(kernel)
    getattr(kernels, kernel)(**arguments)
    broken = BREAKERS[breaker](arguments[name])
    with pytest.raises(InputError, match=f"^{name} is .*expected"):
        getattr(kernels, kernel)(**arguments | {name: broken})


REFUSALS: list[tuple[str, dict[str, Any], str]] = [
    ("splat_gaussian_flow", {"values_px": np.full((2, 3, 2), np.nan, np.float32)}, "not finite"),
    ("splat_gaussian_flow", {"values_px": np.zeros((2, 4, 2), np.float32)}, "values_px"),
    ("splat_gaussian_flow", {"height": 0}, "0 rows"),
    ("rasterize_sparse_flow", {"values_px": np.full((2, 3, 2), np.inf, np.float32)}, "not finite"),
    ("rasterize_sparse_flow", {"width": -1}, "-1 columns"),
    ("sample_points", {"positions_px": np.array([[4, 0]], np.int32)}, "outside the 4 x 6 map"),
    ("sample_points", {"positions_px": np.array([[0, -1]], np.int32)}, "outside the 4 x 6 map"),
    ("sample_points", {"features": np.zeros((5, 0, 2), np.float32)}, "0 rows"),
    ("scatter_point_features", {"cells": np.full((2, 4, 8), 3, np.int32)}, "3 groups"),
    ("scatter_point_features", {"cells": np.full((2, 4, 8), -2, np.int32)}, "-2"),
    ("scatter_point_features", {"cells": np.zeros((2, 4, 6), np.int32)}, "divisible by 4"),
    ("scatter_point_features", {"features": [np.zeros((3, 2), np.float32)] * 3}, "3 levels"),
    ("scatter_point_features", {"features": [np.zeros((3, 2), np.float64)] * 4}, "features of level 0 is float64"),
    (
        "scatter_point_features",
        {"features": [np.zeros((3, 2), np.float32)] * 3 + [np.zeros((2, 2), np.float32)]},
        "features of level 3",
    ),
    ("accumulate_tile", {"slot_frames": np.array([0, 1, 2, 6], np.int32)}, "clip of 6"),
    ("accumulate_tile", {"slot_frames": np.array([0, 1, 2, -1], np.int32)}, "clip of 6"),
    ("accumulate_tile", {"slot_frames": np.array([0, 1, 2, 2], np.int32)}, "distinct"),
    ("accumulate_tile", {"sums": np.zeros((2, 6, 4, 5, 3), np.float32).swapaxes(3, 4)}, "C-contiguous"),
    ("guided_euler_step", {"frame_weights": np.array([1, 1, 0, 1, 1, np.nan], np.float32)}, r"frames \[2, 5\]"),
    ("guided_euler_step", {"sigma": 0.0}, "sigma 0.0"),
    ("guided_euler_step", {"sigma": float("nan")}, "sigma nan"),
    ("guided_euler_step", {"sigma_next": -1.0}, "to -1.0"),
    ("guided_euler_step", {"next_input": np.zeros((6, 4, 5, 3), np.float32).swapaxes(2, 3)}, "C-contiguous"),
    ("frames_to_u8", {"frames": np.zeros((2, 4, 4, 5), np.float32)}, "frames, 3, height, width"),
]


@pytest.mark.parametrize(("kernel", "changes", "message"), REFUSALS)
def test_unusable_values_are_refused(kernel: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        getattr(kernels, kernel)(**arguments_of(kernel) | changes)


def test_read_only_targets_are_refused() -> None:
    arguments = arguments_of("accumulate_tile")
    arguments["sums"].flags.writeable = False
    with pytest.raises(InputError, match="writable"):
        kernels.accumulate_tile(**arguments)


def test_inputs_of_any_layout_give_the_same_bits() -> None:
    rng = np.random.default_rng(0)
    frames = rng.standard_normal((2, 3, 6, 10), np.float32)
    np.testing.assert_array_equal(kernels.frames_to_u8(np.asfortranarray(frames)), kernels.frames_to_u8(frames))
    positions, values = random_impulses(0, 3, 18, 40, 50)
    strided = np.repeat(values, 2, axis=1)[:, ::2]
    assert not strided.flags.c_contiguous
    np.testing.assert_array_equal(
        kernels.splat_gaussian_flow(positions, strided, 40, 50), kernels.splat_gaussian_flow(positions, values, 40, 50)
    )


def test_a_missing_module_says_how_to_install() -> None:
    with pytest.raises(DeviceError, match=r"pip install"):
        kernels.compiled_module("abacus")


def test_the_cuda_module_has_the_same_kernels_and_reports_its_errors() -> None:
    """Without a GPU the driver's refusal comes back as text; with one, an empty launch succeeds."""
    cuda = pytest.importorskip("dispose_rt._kernels_cuda", exc_type=ImportError)
    cpu = importlib.import_module("dispose_rt._kernels_cpu")
    assert (cpu.TARGET, cuda.TARGET) == ("cpu", "cuda")
    assert [name for name in dir(cuda) if name[0] != "_"] == [name for name in dir(cpu) if name[0] != "_"]
    assert cuda.frames_to_u8(0, 0, 0, 8, 8, 0) is None  # nothing to launch
    error = cuda.frames_to_u8(0, 0, 1, 0x7FFFFFFF, 65536 * 256, 0)  # more columns than a grid has room for
    assert "too large" in error


@on_every_target
def test_arrays_that_are_shared_among_threads_are_exact() -> None:
    """Large enough that several threads split the rows, and not evenly."""
    rng = np.random.default_rng(5)
    frames = rng.uniform(-1.2, 1.2, (1, 3, 1021, 577)).astype(np.float32)
    expected = np.clip(frames / np.float32(2) + np.float32(0.5), 0, 1) * np.float32(255)
    np.testing.assert_array_equal(kernels.frames_to_u8(frames), expected.astype(np.uint8).transpose(0, 2, 3, 1))

    height, width = 1021, 577
    positions = rng.integers((0, 0), (width, height), (2, 18, 2)).astype(np.int32)
    values = rng.normal(0, 5, (2, 18, 2)).astype(np.float32)
    impulses = np.zeros((2, height, width, 2))
    for frame in range(2):
        for (x, y), value in zip(positions[frame], values[frame], strict=True):
            impulses[frame, y, x] = value
    column = cv2.getGaussianKernel(199, 20)
    filtered = [cv2.sepFilter2D(one, -1, column, column, borderType=cv2.BORDER_REFLECT_101) for one in impulses]
    flow = kernels.splat_gaussian_flow(positions, values, height, width)
    np.testing.assert_allclose(flow.transpose(0, 2, 3, 1), filtered, rtol=0, atol=1e-7)


def full_size_calls(seed: int) -> dict[str, Callable[[], Any]]:
    """Every kernel at the size of a published run: 16 frames of 576 x 1024."""
    rng = np.random.default_rng(seed)
    positions, values = random_impulses(seed, FRAMES, 18, HEIGHT, WIDTH)
    cells = rng.integers(-300, 18, (FRAMES, HEIGHT // 16, WIDTH // 16), np.int32).clip(-1)
    tables = [rng.standard_normal((18, channels), np.float32) for channels in (320, 640, 1280, 1280)]
    latents = rng.standard_normal((FRAMES, 4, HEIGHT // 8, WIDTH // 8), np.float32)
    sums = rng.standard_normal((2, *latents.shape), np.float32)
    weights = rng.uniform(0.1, 2, FRAMES).astype(np.float32)
    slots = rng.permutation(FRAMES).astype(np.int32)
    features = rng.standard_normal((1280, HEIGHT // 16, WIDTH // 16), np.float32)
    inside = rng.integers((0, 0), (WIDTH, HEIGHT), (18, 2)).astype(np.int32)
    frames = rng.uniform(-1.2, 1.2, (FRAMES, 3, HEIGHT, WIDTH)).astype(np.float32)
    return {
        "splat_gaussian_flow": lambda: kernels.splat_gaussian_flow(positions, values, HEIGHT, WIDTH),
        "rasterize_sparse_flow": lambda: kernels.rasterize_sparse_flow(positions[0], values, 384, 384),
        "sample_points": lambda: kernels.sample_points(features, inside, HEIGHT, WIDTH),
        "scatter_point_features, float32": lambda: kernels.scatter_point_features(tables, cells),
        "scatter_point_features, float16": lambda: kernels.scatter_point_features(
            [table.astype(np.float16) for table in tables], cells
        ),
        "accumulate_tile": lambda: kernels.accumulate_tile(sums, weights.copy(), sums[::-1].copy(), slots, weights),
        "guided_euler_step": lambda: kernels.guided_euler_step(latents, sums, weights, 2.0, 3.0, 1.0),
        "frames_to_u8": lambda: kernels.frames_to_u8(frames),
    }


@pytest.mark.cuda
@pytest.mark.parametrize("kernel", full_size_calls(0))
def test_a_gpu_gives_the_bits_of_the_cpu_at_full_size(kernel: str, target: str) -> None:
    if target == "cpu":
        pytest.skip("compares a GPU with the CPU")
    full_size_calls(0)[kernel]()  # the launcher compares


@on_every_target
def test_impulses_anywhere_and_of_any_value_stay_in_their_own_reach() -> None:
    """Positions at the ends of int32 are ignored; a value that is not finite spoils no pixel that it does not reach.

    The wrappers refuse such values where they see them, so this goes past them.
    """
    ends = np.array([[[-(2**31), 5], [2**31 - 1, 5], [5, -(2**31)], [5, 2**31 - 1], [250, 5]]], np.int32)
    values = np.full((1, 5, 2), np.inf, np.float32)
    flow = np.full((1, 2, 9, 400), np.nan, np.float32)
    profiles = np.empty((1, 5, 2, 199), np.float32)
    kernels._launch("splat_gaussian_flow", ends, values, profiles, flow, 1, 5, 9, 400)
    reach = np.abs(np.arange(400) - 250) <= 99
    assert not np.isfinite(flow[..., reach]).any()
    np.testing.assert_array_equal(flow[..., ~reach], 0)
