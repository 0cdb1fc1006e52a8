"""Bars, lines and words on a sheet of paper: as much of a plotting library as a benchmark needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from ..types import U8

Color = tuple[int, int, int]

WIDTH, MARGIN, LABEL_WIDTH, VALUE_WIDTH = 1400, 40, 200, 230
INK, QUIET, FAINT, PAPER = (36, 38, 44), (112, 116, 126), (226, 228, 232), (255, 255, 255)
TEXT, HEADING, TITLE = 0.6, 0.68, 0.95
"""Sizes of text."""
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_FINER = 4
"""Letters are drawn that many times as large and then shrunk: OpenCV's own are coarse."""
_HAS_WEIGHTS = int(cv2.__version__.partition(".")[0]) >= 5
"""From OpenCV 5 on, letters are outlines of two weights; before, they are lines of any thickness."""


def text_width(text: str, size: float = TEXT, bold: bool = False) -> int:
    """Columns that a text takes."""
    (width, _), _ = cv2.getTextSize(_printable(text), _FONT, size * _FINER, _thickness(size, bold))
    return -(-int(width) // _FINER)


def write(
    picture: U8,
    text: str,
    x: float,
    baseline: int,
    size: float = TEXT,
    *,
    bold: bool = False,
    color: Color = INK,
    align: str = "left",
) -> None:
    """Write a line of text into a picture; what lies outside is cut off.

    Args:
        picture: uint8 [height, width, 3], RGB; changed.
        text: what is not ASCII becomes a question mark.
        x: column of its left end, its middle or its right end.
        baseline: row on which letters stand.
        size: in units of OpenCV's fonts.
        bold: whether strokes are thick.
        color: of the ink.
        align: "left", "middle" or "right".
    """
    text = _printable(text)
    (wide, tall), below = cv2.getTextSize(text, _FONT, size * _FINER, _thickness(size, bold))
    pad = 2 * _FINER
    rows, columns = (-(-(count + 2 * pad) // _FINER) for count in (tall + below, wide))
    mask = np.zeros((rows * _FINER, columns * _FINER), np.uint8)
    cv2.putText(mask, text, (pad, pad + tall), _FONT, size * _FINER, 255, _thickness(size, bold), cv2.LINE_AA)
    cover = cv2.resize(mask, (columns, rows), interpolation=cv2.INTER_AREA).astype(np.float32)[..., None] / 255
    shift = {"left": 0.0, "middle": 0.5, "right": 1.0}[align]
    left = round(x - shift * wide / _FINER) - pad // _FINER
    top = baseline - round((pad + tall) / _FINER)
    first, last = max(0, -left), min(columns, picture.shape[1] - left)
    if last > first:
        field = picture[top : top + rows, left + first : left + last]
        mixed = field + cover[: len(field), first:last] * (np.array(color, np.float32) - field)
        field[:] = np.round(mixed).astype(np.uint8)


def _printable(text: str) -> str:
    return text.encode("ascii", "replace").decode()


def _thickness(size: float, bold: bool) -> int:
    if _HAS_WEIGHTS:
        return 2 if bold else 1
    return max(1, round(size * _FINER * (2.6 if bold else 1.5)))


def fit_size(text: str, size: float, room: int, bold: bool = False) -> float:
    """The size, or a smaller one at which the text takes no more than `room` columns."""
    width = text_width(text, size, bold)
    return size if width <= room else size * room / width * 0.99


def fill(picture: U8, left: float, right: float, top: int, color: Sequence[int], height: int) -> None:
    """Fill a rectangle; less than half a column is nothing."""
    if round(right) > round(left):
        picture[top : top + height, round(left) : round(right)] = color


def draw_spread(picture: U8, left: float, right: float, y: int, reach: int) -> None:
    """A line from the smallest to the largest value, with a foot at each end."""
    start, stop = round(left), round(right)
    cv2.line(picture, (start, y), (stop, y), INK, 1)
    for x in (start, stop):
        cv2.line(picture, (x, y - reach), (x, y + reach), INK, 1)


@dataclass(frozen=True)
class Axis:
    """Values to places on the sheet.

    Attributes:
        start_px: where 0 lies; end_px: where the largest value lies.
        largest: above 0.
        unit: of the values.
    """

    start_px: float
    end_px: float
    largest: float
    unit: str

    def place(self, value: float) -> float:
        """Column or row of a value."""
        return self.start_px + self.length(value)

    def length(self, value: float) -> float:
        """Columns or rows that a value takes; negative where the axis points up."""
        return value / self.largest * (self.end_px - self.start_px)

    def ticks(self) -> list[tuple[float, str]]:
        """Round values from 0 to the largest, as columns or rows, with their names."""
        step = round_step(self.largest / 5)
        values = [number * step for number in range(int(self.largest / step) + 1)]
        return [(self.place(value), f"{value:.6g} {self.unit}" if value else "0") for value in values]


def bar_axis(largest: float, unit: str) -> Axis:
    """The axis of horizontal bars beside their names."""
    return Axis(MARGIN + LABEL_WIDTH, WIDTH - MARGIN - VALUE_WIDTH, largest, unit)


def draw_columns(picture: U8, axis: Axis, top: int, bottom: int) -> None:
    """Lines from top to bottom at round values, with their names below."""
    for x, name in axis.ticks():
        cv2.line(picture, (round(x), top), (round(x), bottom), FAINT, 1)
        write(picture, name, x, bottom + 20, 0.5, color=QUIET, align="middle")


def round_step(least: float) -> float:
    """The smallest of 1, 2, 5, 10, 20, ... times a power of ten that is not below `least`."""
    power = 10.0 ** np.floor(np.log10(least))
    return float(next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least))


def short(value: float) -> str:
    """A number for people: three digits, or all of those before the point."""
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"
