"""The kernels that prepare network inputs, bit for bit against numpy, OpenCV and the code of the stages."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dispose_rt.kernels.pixels import letterbox_taps
from dispose_rt.stages import motion
from dispose_rt.stages.pose import estimate
from tests.every import every_item
from tests.kernels import input_references as references
from tests.kernels.targets import TARGETS, open_target

Launch = Callable[..., None]
SEEDS = st.integers(0, 2**32 - 1)
SIDES = st.one_of(st.integers(1, 12), st.integers(1, 700), st.integers(600, 2000))
BATCHES = (0, 1, 3)


@pytest.fixture(scope="module", params=TARGETS)
def launch(request: pytest.FixtureRequest) -> Iterator[Launch]:
    """Calls a kernel by name on the target: on a GPU, the CPU's bits are demanded as well."""
    for target in open_target(request.param):
        yield target.run


def unset(*shape: int) -> NDArray[np.float32]:
    """Memory in which a pixel that is not written shows."""
    return np.full(shape, np.nan, np.float32)


def random_image(seed: int, height: int, width: int) -> NDArray[np.uint8]:
    """Noise; now and then of nothing but black and white, which reaches the ends of every sum."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return np.where(image > 127, 255, 0).astype(np.uint8) if seed % 5 == 0 else image


def letterbox(launch: Launch, image: NDArray[np.uint8]) -> NDArray[np.float32]:
    pixels = unset(3, 640, 640)
    rows, columns = letterbox_taps(*image.shape[:2])
    launch("letterbox", image, rows, columns, pixels, image.shape[1], len(rows), len(columns), 640)
    return pixels


def crop(launch: Launch, image: NDArray[np.uint8], rows: Any, columns: Any, table: Any) -> NDArray[np.float32]:
    pixels = unset(3, len(rows), len(columns))
    launch("crop_person", image, rows, columns, table, pixels, image.shape[1], len(rows), len(columns))
    return pixels


def normalize(launch: Launch, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
    pixels = unset(*frames.shape)
    launch("normalize_frames", frames, pixels, len(frames), *frames.shape[2:])
    return pixels


def resample(launch: Launch, source: NDArray[np.float32], rows: Any, columns: Any, *scales: float) -> Any:
    flow = unset(len(source), 2, len(rows), len(columns))
    sizes = (len(source), *source.shape[2:], len(rows), len(columns))
    launch("resample_flow", source, rows, columns, flow, *sizes, *scales)
    return flow


def nearest(launch: Launch, image: NDArray[np.uint8], rows: Any, columns: Any) -> NDArray[np.float32]:
    pixels = unset(3, len(rows), len(columns))
    launch("nearest_image", image, rows, columns, pixels, image.shape[1], len(rows), len(columns))
    return pixels


@settings(max_examples=400, deadline=None)
@given(seed=SEEDS, height=SIDES, width=SIDES)
def test_letterbox_is_opencv_s_resize(launch: Launch, seed: int, height: int, width: int) -> None:
    image = random_image(seed, height, width)
    np.testing.assert_array_equal(letterbox(launch, image), references.letterbox(image))


SPECIAL_SIZES = [
    *((720, 1280), (1280, 720), (1280, 1280), (2, 1280), (1280, 2), (1280, 100)),  # exactly halved
    *((640, 640), (640, 333), (1, 640), (640, 1)),  # copied
    *((320, 320), (160, 90), (1024, 576), (1080, 1920), (2160, 3840), (1920, 2560), (2560, 2560)),
    *((1, 1), (1, 2), (2, 1), (1, 4000), (4000, 1), (641, 639), (639, 641), (1279, 1281), (1281, 640)),
]


def test_letterbox_of_sizes_for_which_opencv_may_take_another_path(launch: Launch) -> None:
    with every_item() as every:
        for size in SPECIAL_SIZES:
            for seed in (5, 6):
                image = random_image(seed, *size)
                with every(size, seed):
                    np.testing.assert_array_equal(letterbox(launch, image), references.letterbox(image))


def test_letterbox_of_pairs_of_levels(launch: Launch) -> None:
    """Every level beside every other, enlarged: all sums that two pixels of a line can make, at many weights."""
    first, second = np.divmod(np.arange(2**16, dtype=np.int64), 256)
    pairs = np.stack([first, second], 1).astype(np.uint8).reshape(128, 512, 2)[..., :1].repeat(3, 2)
    for image in (pairs, np.ascontiguousarray(pairs.transpose(1, 0, 2))):
        np.testing.assert_array_equal(letterbox(launch, image), references.letterbox(image))


BOXES = {
    "inside": (100.3, 40.7, 233.9, 251.2),
    "partly outside": (-20.5, -7.25, 119.125, 180.5),
    "beyond the lower right corner": (300.1, 100.9, 600.2, 400.3),
    "the whole image": (0, 0, 480, 270),
    "wholly outside, left": (-900, 20, -700, 200),
    "wholly outside, above": (20, -5000, 200, -4000),
    "wholly outside, far right": (1e6, 0, 1e6 + 10, 20),
    "wholly outside, below": (20, 3000, 200, 3100),
    "tiny": (200.25, 100.5, 200.75, 101.25),
    "less than a bit of a pixel": (200, 100, 200.001, 100.001),
    "huge": (-1e5, -1e5, 1e5, 1e5),
    "wide": (-100, 130, 800, 131),
    "tall": (200, -100, 201, 800),
}


def test_crop_of_a_person_is_the_pose_stage_s(launch: Launch) -> None:
    with every_item() as every:
        for name, box_px in BOXES.items():
            with every(name):
                check_crop(launch, random_image(7, 270, 480), np.array(box_px, np.float64))


@settings(max_examples=150, deadline=None)
@given(
    seed=SEEDS,
    height=st.integers(1, 300),
    width=st.integers(1, 300),
    spread=st.sampled_from([0.1, 0.5, 1, 5, 1000]),
)
def test_crop_of_any_box_is_the_pose_stage_s(launch: Launch, seed: int, height: int, width: int, spread: float) -> None:
    corners = np.random.default_rng(seed).normal(0.5, spread, (2, 2)) * (width, height)
    box_px = np.concatenate([corners.min(axis=0), corners.max(axis=0) + 1e-3])
    check_crop(launch, random_image(seed, height, width), box_px)


def check_crop(launch: Launch, image: NDArray[np.uint8], box_px: NDArray[np.float64]) -> None:
    rows, columns = references.crop_taps(image.shape, box_px)
    pixels = crop(launch, image, rows, columns, estimate._NORMALISED)
    expected = references.crop_person(image, rows, columns, estimate._NORMALISED)
    np.testing.assert_array_equal(pixels, expected)


def test_crop_outside_the_image_is_black(launch: Launch) -> None:
    image = np.full((50, 60, 3), 200, np.uint8)
    rows, columns = references.crop_taps(image.shape, np.array([1000.0, 1000, 1100, 1200]))
    pixels = crop(launch, image, rows, columns, estimate._NORMALISED)
    for channel in range(3):
        np.testing.assert_array_equal(pixels[channel], estimate._NORMALISED[channel, 0])


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS, height=st.integers(1, 40), width=st.integers(1, 40))
def test_crop_follows_its_tables(launch: Launch, seed: int, height: int, width: int) -> None:
    """Any taps and any table of levels, at widths that leave lanes over."""
    rng = np.random.default_rng(seed)
    image = random_image(seed, *rng.integers(1, 30, 2))
    taps = []
    for count, extent in ((height, image.shape[0]), (width, image.shape[1])):
        second = rng.integers(0, 33, count)
        weights = np.stack([32 - second, second], 1) * (rng.random((count, 2)) < 0.8)
        taps.append(np.concatenate([rng.integers(0, extent, (count, 2)), weights], 1).astype(np.int32))
    table = rng.standard_normal((3, 256), np.float32)
    np.testing.assert_array_equal(crop(launch, image, *taps, table), references.crop_person(image, *taps, table))


def test_empty_tables_leave_grey_or_nothing(launch: Launch) -> None:
    image, none = random_image(1, 3, 4), np.empty((0, 4), np.int32)
    some = letterbox_taps(3, 4)[0][:8]
    for rows, columns in ((none, none), (some, none), (none, some)):
        pixels = unset(3, 9, 9)
        launch("letterbox", image, rows, columns, pixels, 4, len(rows), len(columns), 9)
        np.testing.assert_array_equal(pixels, references.PADDING_LEVEL)
        assert crop(launch, image, rows, columns, estimate._NORMALISED).size == 0
    none, some = none[:, 0].copy(), some[:, 0].copy()
    for rows, columns in ((none, none), (some, none), (none, some)):
        assert nearest(launch, image, rows, columns).size == 0
        assert resample(launch, unset(2, 2, 3, 4), rows, columns, 1.0, 1.0).size == 0


def test_normalized_frames_are_divided(launch: Launch) -> None:
    with every_item() as every:
        for count, size in product(BATCHES, [(1, 1), (1, 7), (5, 130), (64, 64), (33, 1)]):
            frames = np.random.default_rng(3).integers(0, 256, (count, 3, *size), dtype=np.uint8)
            with every(count, size):
                np.testing.assert_array_equal(normalize(launch, frames), references.normalize_frames(frames))


def test_every_level_is_normalized(launch: Launch) -> None:
    frames = np.stack([np.roll(np.arange(3 * 256).reshape(3, 16, 16), shift, 2) for shift in (0, 1)]).astype(np.uint8)
    np.testing.assert_array_equal(normalize(launch, frames), references.normalize_frames(frames))
    assert normalize(launch, frames).min() == -1
    assert normalize(launch, frames).max() == 1


def test_flow_is_resampled_as_the_motion_stage_does(launch: Launch) -> None:
    sizes = [(1024, 576), (448, 448), (384, 384), (17, 1), (1, 19), (5, 2000)]
    with every_item() as every:
        for count, (height, width) in product(BATCHES, sizes):
            source = np.random.default_rng(height).normal(0, 50, (count, 2, 384, 384)).astype(np.float32)
            tables = motion.nearest_table(384, height), motion.nearest_table(384, width)
            scales = width / 384, height / 384
            with every(count, height, width):
                flow = resample(launch, source, *tables, *scales)
                np.testing.assert_array_equal(flow, references.resample_flow(source, *tables, *scales))


@settings(max_examples=60, deadline=None)
@given(
    seed=SEEDS,
    count=st.integers(0, 3),
    sizes=st.tuples(*[st.integers(1, 30)] * 4),
    scales=st.tuples(*[st.floats(width=32, allow_nan=False)] * 2),
)
def test_flow_follows_its_tables(
    launch: Launch, seed: int, count: int, sizes: tuple[int, ...], scales: tuple[float, float]
) -> None:
    """Any table and any scale; values that are not finite stay where they are."""
    rng = np.random.default_rng(seed)
    source_height, source_width, height, width = sizes
    source = rng.standard_normal((count, 2, source_height, source_width), np.float32)
    source[rng.random(source.shape) < 0.1] = rng.choice([np.inf, -np.inf, np.nan, -0.0, 1e-40])
    rows = rng.integers(0, source_height, height, np.int32)
    columns = rng.integers(0, source_width, width, np.int32)
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        expected = references.resample_flow(source, rows, columns, *scales)
    np.testing.assert_array_equal(resample(launch, source, rows, columns, *scales), expected)


def test_the_nearest_image_is_the_motion_stage_s(launch: Launch) -> None:
    with every_item() as every:
        for height, width in ((1024, 576), (576, 1024), (448, 448), (384, 384), (1, 1), (3, 2000)):
            image = random_image(2, height, width)
            tables = motion.nearest_table(height, 384), motion.nearest_table(width, 384)
            with every(height, width):
                pixels = nearest(launch, image, *tables)
                np.testing.assert_array_equal(pixels, references.nearest_image(image, *tables))


def test_every_level_of_the_nearest_image(launch: Launch) -> None:
    """At a width that leaves lanes over, from columns in any order."""
    image = np.arange(256, dtype=np.uint8).reshape(1, 256, 1) ^ np.array([0, 85, 170], np.uint8)
    columns = np.random.default_rng(0).permutation(256).astype(np.int32)
    columns = np.append(columns, columns[:3])
    rows = np.zeros(3, np.int32)
    pixels = nearest(launch, image, rows, columns)
    np.testing.assert_array_equal(pixels, references.nearest_image(image, rows, columns))
    assert len(np.unique(pixels)) == 256


def test_inputs_large_enough_for_several_threads(launch: Launch) -> None:
    """Rows that are shared among threads, and not evenly."""
    rng = np.random.default_rng(5)
    frames = rng.integers(0, 256, (2, 3, 1021, 577), dtype=np.uint8)
    np.testing.assert_array_equal(normalize(launch, frames), references.normalize_frames(frames))
    source = rng.standard_normal((2, 2, 384, 384), np.float32)
    rows, columns = references.nearest_table(384, 1021), references.nearest_table(384, 577)
    expected = references.resample_flow(source, rows, columns, 1.5, 2.75)
    np.testing.assert_array_equal(resample(launch, source, rows, columns, 1.5, 2.75), expected)
