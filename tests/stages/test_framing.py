"""The reference image's way to the engine's size, against the published preprocessing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dispose_rt.errors import InputError
from dispose_rt.stages.framing import (
    WHOLE_WINDOWS,
    Window,
    fit_reference,
    roundtrip_truncated,
    scale_whole,
    size_for,
    to_signed_unit,
)
from tests.every import each, every_item
from tests.golden_data import load_golden

CROPS = tuple(load_golden("ref_crop")["cases"])
LEVELS = np.arange(256, dtype=np.uint8)


@each(case=CROPS)
def test_size_and_pixels_are_the_published_ones(case):
    arrays = load_golden("ref_crop")
    picture, resolution = case.split(".")
    image, expected = arrays[f"{picture}.image"], arrays[f"{case}.crop"]
    width, height = size_for(image.shape[0], image.shape[1], int(resolution))
    assert (height, width) == expected.shape[:2]
    np.testing.assert_array_equal(fit_reference(image, width, height), expected)


@each(
    height__width__resolution__expected=[
        (1000, 600, 576, (576, 1024)),
        (600, 1000, 576, (1024, 576)),
        (600, 600, 576, (576, 576)),
        (601, 600, 64, (64, 64)),
        (601, 600, 128, (128, 192)),
        (601, 600, 192, (192, 320)),
    ],
)
def test_the_long_side_follows_the_image(height, width, resolution, expected):
    assert size_for(height, width, resolution) == expected


@each(resolution__advice=[(100, "Use 128"), (72, "Use 64"), (0, "Use 64"), (-64, "Use 64")])
def test_a_resolution_that_the_networks_cannot_take_is_refused(resolution, advice):
    with pytest.raises(InputError, match=advice):
        size_for(100, 100, resolution)


def test_an_image_without_pixels_has_no_size():
    with pytest.raises(InputError, match="0 x 5"):
        size_for(5, 0, 64)


@each(
    image__size=[
        (np.zeros((4, 4), np.uint8), (64, 64)),
        (np.zeros((4, 4, 4), np.uint8), (64, 64)),
        (np.zeros((0, 4, 3), np.uint8), (64, 64)),
        (np.zeros((4, 4, 3), np.float32), (64, 64)),
        (np.zeros((4, 4, 3), np.uint8), (0, 64)),
    ],
)
def test_other_arrays_and_sizes_are_refused(image, size):
    with pytest.raises(InputError):
        fit_reference(image, *size)


@settings(max_examples=60, deadline=None)
@given(height=st.integers(1, 90), width=st.integers(1, 90), target=st.sampled_from([(64, 64), (64, 128), (128, 64)]))
def test_any_image_is_covered_without_a_seam(height, width, target):
    image = np.full((height, width, 3), (10, 200, 255), np.uint8)
    fitted = fit_reference(image, *target)
    assert fitted.shape == (target[1], target[0], 3)
    assert (fitted == image[0, 0]).all()


def test_an_image_of_the_right_size_stays_as_it_is():
    image = np.random.default_rng(0).integers(0, 256, (64, 128, 3), dtype=np.uint8)
    np.testing.assert_array_equal(fit_reference(image, 128, 64), image)


def test_the_centre_is_kept_and_half_pixels_go_to_the_even_side():
    stripes = np.repeat(np.arange(67, dtype=np.uint8)[None, :, None], 64, axis=0).repeat(3, axis=2)
    # 67 columns for 64: offset 1.5 becomes 2. 65 columns for 64: offset 0.5 becomes 0. Rows likewise.
    for size, ends in ((67, [2, 65]), (65, [0, 63])):
        wide = stripes[:, :size]
        assert fit_reference(wide, 64, 64)[0, [0, -1], 0].tolist() == ends
        assert fit_reference(wide.transpose(1, 0, 2), 64, 64)[[0, -1], 0, 0].tolist() == ends


def test_a_moved_window_has_the_pixels_of_the_whole_photo() -> None:
    """Its arithmetic is that of the scaled photo at another place; unmoved, it is the published crop."""
    random = np.random.default_rng(3)
    with every_item() as every:
        for size in ((57, 131), (90, 40), (333, 100), (64, 64), (2, 9), (7, 300)):
            with every(size):
                image = random.integers(0, 256, (*size, 3), dtype=np.uint8)
                centre = Window.centred(*size, 64, 64)
                np.testing.assert_array_equal(fit_reference(image, 64, 64, centre), fit_reference(image, 64, 64))
                whole = scale_whole(image, 64, 64)
                assert whole.size <= WHOLE_WINDOWS * 64 * 64 * 3
                if size == (7, 300):  # too long
                    continue
                for share in (0, 0.3, 1):
                    moved = centre.around(np.array([[share, share]]), 0.15)
                    seen = whole[moved.top : moved.top + 64, moved.left : moved.left + 64]
                    np.testing.assert_array_equal(fit_reference(image, 64, 64, moved), seen)


@each(
    low__high__left=[
        (0.4, 0.5, 100),  # 120 and 150 of 300 lie in the centre's 100..200
        (0.4, 0.6, 100),
        (0.1, 0.2, 25),  # 30 - 0.15 * 30 = 25.5
        (0.85, 0.95, 190),  # 285 + 4.5 = 289.5
        (0.0, 0.1, 0),
        (0.99, 1.0, 200),
        (0.1, 0.42, 28),  # 96 wide, but not with room on both sides: in the middle
        (0.1, 0.9, 100),  # larger than the window
        (-0.5, 0.2, 0),
    ],
)
def test_a_window_moves_as_little_as_it_can(low: float, high: float, left: int) -> None:
    centre = Window.centred(100, 300, 100, 100)
    assert (centre.left, centre.top, centre.cut_share) == (100, 0, pytest.approx(2 / 3))
    moved = centre.around(np.array([[low, 0.45], [high, 0.5]]), 0.15)
    assert (moved.left, moved.top) == (left, 0)
    turned = Window.centred(300, 100, 100, 100).around(np.array([[0.45, low], [0.5, high]]), 0.15)
    assert (turned.left, turned.top) == (0, left)
    np.testing.assert_allclose(moved.map_points(np.array([[(left + 50) / 300, 0.25]])), [[0.5, 0.25]])


def test_the_truncated_round_trip_lowers_the_published_levels():
    expected = load_golden("ref_crop")["roundtrip_float32"]
    np.testing.assert_array_equal(roundtrip_truncated(LEVELS), expected)
    assert np.count_nonzero(expected != LEVELS) == 63


def test_the_round_trip_takes_images():
    arrays = load_golden("e2e")
    for case in arrays["cases"]:
        np.testing.assert_array_equal(roundtrip_truncated(arrays[f"{case}.ref_crop"]), arrays[f"{case}.pil_image"])


def test_the_end_to_end_crops_are_the_published_ones():
    arrays = load_golden("e2e")
    for case in arrays["cases"]:
        height, width = arrays[f"{case}.config"][3:5]
        fitted = fit_reference(arrays["ref_image"], int(width), int(height))
        np.testing.assert_array_equal(fitted, arrays[f"{case}.ref_crop"])


def test_signed_unit_is_channels_first_float32():
    image = np.stack([LEVELS, LEVELS[::-1], np.zeros(256, np.uint8)], axis=1)[None]
    signed = to_signed_unit(image)
    assert signed.dtype == np.float32
    assert signed.shape == (1, 3, 1, 256)
    assert signed.flags.c_contiguous
    np.testing.assert_allclose(signed[0, 0, 0], LEVELS / 127.5 - 1, rtol=0, atol=1e-7)
    np.testing.assert_array_equal(signed[0, 1, 0], signed[0, 0, 0, ::-1])
    assert (signed[0, 2] == -1).all()
