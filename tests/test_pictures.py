"""Colour-coded flow, contact sheets and PNG files."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from dispose_rt.errors import InputError, OutputError
from dispose_rt.pictures import contact_sheet, draw_flow_wheel, flow_to_color, save_jpeg, save_png
from tests.every import each


def uniform_flow(x: float, y: float, height: int = 2, width: int = 3) -> np.ndarray:
    return np.broadcast_to(np.array([x, y], np.float32)[:, None, None], (2, height, width))


def plain(height: int, width: int, level: int = 100) -> np.ndarray:
    return np.full((height, width, 3), level, np.uint8)


@each(
    x__y__color=[
        (1, 0, (255, 0, 0)),  # right is red
        (-1, 0, (0, 209, 255)),  # left: half way around the 55 hues, one and a half of 11 after cyan
        (0, 0, (255, 255, 255)),
    ]
)
def test_directions_have_the_colors_of_the_wheel(x, y, color):
    picture = flow_to_color(uniform_flow(x, y), max_magnitude=1.0)
    assert picture.shape == (2, 3, 3)
    assert picture.dtype == np.uint8
    np.testing.assert_allclose(picture[0, 0], color, atol=13)


def test_down_is_yellowish_and_up_is_bluish():
    down, up = (flow_to_color(uniform_flow(0, y), 1.0)[0, 0].astype(int) for y in (1, -1))
    assert down[0] > 200
    assert down[1] > 200
    assert down[2] < 10
    assert up[2] > 200
    assert up[1] < 60


def test_length_is_saturation_and_beyond_the_scale_is_darker():
    half, full, beyond = (flow_to_color(uniform_flow(length, 0), 2.0)[0, 0].astype(int) for length in (1, 2, 3))
    np.testing.assert_array_equal(full, (255, 0, 0))
    np.testing.assert_array_equal(half, (255, 127, 127))
    np.testing.assert_array_equal(beyond, (191, 0, 0))


def test_scale_defaults_to_the_longest_vector():
    flow = np.zeros((2, 1, 2))
    flow[0, 0] = (2, 4)
    np.testing.assert_array_equal(flow_to_color(flow), flow_to_color(flow, 4.0))


def test_every_direction_is_continuous():
    angles = np.linspace(-np.pi, np.pi, 2000)
    picture = flow_to_color(np.stack([np.cos(angles), np.sin(angles)])[:, None], 1.0).astype(int)
    assert np.abs(np.diff(picture[0], axis=0)).max() <= 3
    assert np.abs(picture[0, 0] - picture[0, -1]).max() <= 3


def test_no_motion_is_white():
    np.testing.assert_array_equal(flow_to_color(np.zeros((2, 4, 5), np.float32)), 255)


@each(
    flow__limit__message=[
        (np.zeros((3, 4, 4)), None, r"\[2, height, width\]"),
        (np.full((2, 4, 4), np.nan), None, "non-finite"),
        (np.zeros((2, 4, 4)), 0.0, "above 0"),
    ]
)
def test_unusable_flow_is_refused(flow, limit, message):
    with pytest.raises(InputError, match=message):
        flow_to_color(flow, limit)


def test_sheet_shows_every_picture_unscaled_at_its_own_height():
    pictures = [plain(32, 20 + i, 10 * i) for i in range(3)]
    sheet = contact_sheet({"numbers": pictures}, cell_height_px=32)
    assert sheet.dtype == np.uint8
    for i, picture in enumerate(pictures):
        left = 120 + sum(one.shape[1] + 4 for one in pictures[:i])
        np.testing.assert_array_equal(sheet[4:36, left : left + picture.shape[1]], picture)


def test_sheet_scales_rows_to_one_height_and_keeps_aspects():
    sheet = contact_sheet({"large": [plain(200, 100)], "small": [plain(10, 30), plain(10, 10)]}, cell_height_px=50)
    assert sheet.shape == (4 + 2 * 54, 120 + 150 + 4 + 50 + 4, 3)


def test_sheet_labels_its_rows():
    sheet = contact_sheet({"driving frames": [plain(64, 64)], "": [plain(64, 64)]}, cell_height_px=64)
    assert (sheet[4:68, :120] < 128).any()
    assert not (sheet[72:136, :120] < 128).any()


def test_a_row_may_be_empty():
    assert contact_sheet({"nothing": [], "one": [plain(8, 8)]}, 8).shape[0] == 4 + 2 * 12


@each(
    rows__message=[
        ({}, "at least one"),
        ({"a": []}, "at least one"),
        ({"a": [np.zeros((4, 4), np.uint8)]}, r'"a" is uint8 \[4, 4\]'),
        ({"a": [np.zeros((4, 4, 3), np.float32)]}, "float32"),
    ]
)
def test_unusable_rows_are_refused(rows, message):
    with pytest.raises(InputError, match=message):
        contact_sheet(rows)


def test_png_keeps_every_pixel(tmp_path: Path):
    image = np.random.default_rng(0).integers(0, 256, (7, 5, 3), dtype=np.uint8)
    path = save_png(tmp_path / "new" / "image.png", image)
    np.testing.assert_array_equal(cv2.imread(str(path))[..., ::-1], image)
    assert [one.name for one in path.parent.iterdir()] == ["image.png"]


def test_png_replaces_an_older_one_at_once(tmp_path: Path):
    path = tmp_path / "image.png"
    path.write_bytes(b"old")
    save_png(path, plain(4, 4))
    assert cv2.imread(str(path)).shape == (4, 4, 3)


def test_png_into_a_file_is_refused(tmp_path: Path):
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(OutputError, match="cannot be written"):
        save_png(tmp_path / "file" / "image.png", plain(4, 4))


def test_jpeg_keeps_colors_nearly(tmp_path: Path):
    image = np.empty((16, 16, 3), np.uint8)
    image[...] = (200, 100, 30)
    path = save_jpeg(tmp_path / "image.jpg", image)
    assert path.read_bytes()[:2] == b"\xff\xd8"
    np.testing.assert_allclose(cv2.imread(str(path))[..., ::-1].astype(int), image, atol=3)


def test_legend_has_the_colors_of_the_flow():
    legend = draw_flow_wheel(8.0, diameter_px=201)
    centre = np.array([30 + 100, 60 + 100])  # row, column
    np.testing.assert_array_equal(legend[tuple(centre)], 255)
    for x, y in ((80, 0), (0, 80), (-60, 30), (20, -70)):
        expected = flow_to_color(uniform_flow(0.08 * x, 0.08 * y), 8.0)[0, 0]
        np.testing.assert_allclose(legend[centre[0] + y, centre[1] + x].astype(int), expected, atol=2)
    np.testing.assert_array_equal(legend[0], 250)


@each(scale__diameter=[(0.0, 200), (1.0, 10)])
def test_unusable_legends_are_refused(scale: float, diameter: int):
    with pytest.raises(InputError):
        draw_flow_wheel(scale, diameter)


def test_png_of_something_else_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="uint8"):
        save_png(tmp_path / "image.png", np.zeros((4, 4, 3)))
    assert not list(tmp_path.iterdir())
