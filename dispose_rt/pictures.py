"""Pictures of intermediate results for people to look at: colour-coded flow, contact sheets, PNG and JPEG files."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from .errors import InputError
from .system.files import save_bytes
from .types import F64, U8

_WHEEL_SEGMENTS = (15, 6, 4, 11, 13, 6)
"""Hues between red, yellow, green, cyan, blue, magenta and red again: as many as the eye tells apart."""
_WHEEL_CORNERS = ((1, 0, 0), (1, 1, 0), (0, 1, 0), (0, 1, 1), (0, 0, 1), (1, 0, 1), (1, 0, 0))

_PAPER, _INK = 250, 40
_GAP_PX = 4
_LABEL_WIDTH_PX = 120
_FONT, _FONT_SCALE = cv2.FONT_HERSHEY_SIMPLEX, 0.42
JPEG_QUALITY = 90


def flow_to_color(flow: NDArray[np.floating], max_magnitude: float | None = None) -> U8:
    """Draw a motion field with the colour wheel of the Middlebury benchmark: hue = direction, saturation = length.

    Args:
        flow: float [2, H, W], pixels, channel 0 = x to the right, 1 = y downwards; finite.
        max_magnitude: length in pixels that is drawn fully saturated, above 0; longer vectors are drawn darker. None
            takes the longest vector of the field. Pass one number for all frames of a clip to make them comparable.

    Returns:
        uint8 [H, W, 3], RGB; white = no motion.

    Raises:
        InputError: the field has another shape or holds non-finite values, or max_magnitude is not above 0.

    Source: Baker et al., "A Database and Evaluation Methodology for Optical Flow" (2011), figure 9.
    """
    field = np.asarray(flow, np.float64)
    if field.ndim != 3 or field.shape[0] != 2:
        raise InputError(f"a flow of shape {list(field.shape)} cannot be drawn; expected [2, height, width]")
    if not np.isfinite(field).all():
        raise InputError("the flow holds non-finite values; mask them before drawing it")
    if max_magnitude is not None and not max_magnitude > 0:
        raise InputError(f"max_magnitude is {max_magnitude}; it must be above 0")
    length = np.hypot(field[0], field[1])
    longest = float(length.max(initial=0.0)) if max_magnitude is None else max_magnitude
    relative = (length / longest if longest else length)[..., None]
    turns = np.arctan2(-field[1], -field[0]) / (2 * np.pi) + 0.5  # 0 = to the right, clockwise on the screen
    hue = _wheel_color(turns)
    color = np.where(relative <= 1, 1 - relative * (1 - hue), hue * 0.75)
    picture: U8 = np.floor(255 * color).astype(np.uint8)
    return picture


def _wheel_color(turns: F64) -> F64:
    """Fully saturated colour of every direction, [..., 3] in 0..1; `turns` counts from 0 to 1."""
    wheel = _color_wheel()
    position = turns % 1.0 * len(wheel)
    first = np.floor(position).astype(np.int64) % len(wheel)
    share = (position - np.floor(position))[..., None]
    mixed: F64 = (1 - share) * wheel[first] + share * wheel[(first + 1) % len(wheel)]
    return mixed


def _color_wheel() -> F64:
    corners = np.array(_WHEEL_CORNERS, np.float64)
    segments = []
    for count, start, stop in zip(_WHEEL_SEGMENTS, corners[:-1], corners[1:], strict=True):
        share = np.arange(count)[:, None] / count
        segments.append((1 - share) * start + share * stop)
    return np.concatenate(segments)


def draw_flow_wheel(max_magnitude: float, diameter_px: int = 200) -> U8:
    """Draw the legend of `flow_to_color`: every direction and length up to the scale, as arrows from the centre.

    Args:
        max_magnitude: length in pixels that is drawn fully saturated, above 0; written below the wheel.
        diameter_px: of the wheel, at least 64.

    Returns:
        uint8 [diameter + 80, diameter + 120, 3], RGB.

    Raises:
        InputError: a number is out of range.
    """
    if diameter_px < 64:
        raise InputError(f"diameter_px is {diameter_px}; it must be at least 64")
    side_px, top_px = 60, 30
    places = np.linspace(-1, 1, diameter_px)
    arrows = max_magnitude * np.stack(np.meshgrid(places, places))
    inside = np.hypot(*arrows) <= max_magnitude
    picture = np.full((diameter_px + 80, diameter_px + 2 * side_px, 3), _PAPER, np.uint8)
    disc = picture[top_px : top_px + diameter_px, side_px : side_px + diameter_px]
    disc[inside] = flow_to_color(arrows, max_magnitude)[inside]
    middle_x, middle_y = side_px + diameter_px // 2, top_px + diameter_px // 2
    cv2.circle(picture, (middle_x, middle_y), diameter_px // 2, (_INK, _INK, _INK), 1, cv2.LINE_AA)
    right_px = side_px + diameter_px
    _write_centred(picture, "up", middle_x, top_px - 12)
    _write_centred(picture, "down", middle_x, top_px + diameter_px + 18)
    _write_centred(picture, "left", side_px // 2, middle_y)
    _write_centred(picture, "right", right_px + side_px // 2, middle_y)
    _write_centred(picture, f"rim = {max_magnitude:.3g} px", middle_x, top_px + diameter_px + 39)
    return picture


def _write_centred(picture: U8, text: str, x: int, y: int) -> None:
    (width, height), _ = cv2.getTextSize(text, _FONT, _FONT_SCALE, 1)
    place = (x - width // 2, y + height // 2)
    cv2.putText(picture, text, place, _FONT, _FONT_SCALE, (_INK, _INK, _INK), 1, cv2.LINE_AA)


def contact_sheet(rows: Mapping[str, Sequence[U8]], cell_height_px: int = 192) -> U8:
    """Lay out pictures in labelled rows, all scaled to one height.

    Args:
        rows: label -> pictures, each uint8 [H, W, 3], RGB; sizes may differ, rows may have different lengths.
        cell_height_px: height of every picture on the sheet, at least 8.

    Returns:
        uint8 [height, width, 3], RGB.

    Raises:
        InputError: there is no picture, or one is not uint8 [H, W, 3].
    """
    if cell_height_px < 8:
        raise InputError(f"cell_height_px is {cell_height_px}; it must be at least 8")
    cells = {label: [_fit_height(_checked(label, one), cell_height_px) for one in row] for label, row in rows.items()}
    if not any(cells.values()):
        raise InputError("a contact sheet needs at least one picture")
    width = _LABEL_WIDTH_PX + max(sum(one.shape[1] + _GAP_PX for one in row) for row in cells.values())
    sheet = np.full((_GAP_PX + len(cells) * (cell_height_px + _GAP_PX), width, 3), _PAPER, np.uint8)
    for number, (label, row) in enumerate(cells.items()):
        top = _GAP_PX + number * (cell_height_px + _GAP_PX)
        _write_label(sheet[top : top + cell_height_px, :_LABEL_WIDTH_PX], label)
        left = _LABEL_WIDTH_PX
        for picture in row:
            sheet[top : top + cell_height_px, left : left + picture.shape[1]] = picture
            left += picture.shape[1] + _GAP_PX
    return sheet


def _checked(label: str, picture: U8) -> U8:
    array = np.asarray(picture)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        found = f"{array.dtype} {list(array.shape)}"
        raise InputError(f'the picture for "{label}" is {found}; expected uint8 [height, width, 3]')
    return array


def _fit_height(picture: U8, height: int) -> U8:
    width = max(1, round(picture.shape[1] * height / picture.shape[0]))
    shrinks = height < picture.shape[0]
    scaled = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_NEAREST)
    return np.asarray(scaled, np.uint8)


def _write_label(field: NDArray[np.uint8], label: str) -> None:
    """Write one word per line, centred from top to bottom."""
    words = label.split()
    line_height = 18
    first = field.shape[0] // 2 - line_height * (len(words) - 1) // 2 + 5
    for number, word in enumerate(words):
        place = (8, first + number * line_height)
        cv2.putText(field, word, place, _FONT, _FONT_SCALE, (_INK, _INK, _INK), 1, cv2.LINE_AA)


def save_png(path: str | os.PathLike[str], image: U8) -> Path:
    """Write a PNG; the file appears only when it is complete.

    Args:
        path: where to; the folder is created where missing.
        image: uint8 [H, W, 3], RGB.

    Returns:
        The path.

    Raises:
        InputError: the image has another shape or dtype.
        OutputError: the file cannot be written.
    """
    return _save(Path(path), image, ".png", [])


def save_jpeg(path: str | os.PathLike[str], image: U8) -> Path:
    """Write a JPEG of quality 90; otherwise like `save_png`."""
    return _save(Path(path), image, ".jpg", [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])


def _save(target: Path, image: U8, kind: str, options: list[int]) -> Path:
    checked = _checked(target.name, image)
    done, data = cv2.imencode(kind, checked[..., ::-1], options)
    if not done:
        raise InputError(f"OpenCV could not encode an image of shape {list(checked.shape)} as {kind}")
    return save_bytes(target, data.tobytes())
