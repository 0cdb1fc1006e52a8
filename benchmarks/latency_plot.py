"""Draws what benchmarks/latency.py measured: a stacked bar per run, and below it a bar per network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from dispose_rt.pictures import save_png
from dispose_rt.types import U8

WIDTH, MARGIN, LABEL_WIDTH, VALUE_WIDTH = 1400, 30, 210, 190
BAR, GAP, TITLE, AXIS = 34, 12, 56, 44
INK, FAINT, PAPER, NETWORK_COLOR = (40, 40, 44), (214, 214, 218), (255, 255, 255), (70, 110, 170)
STAGE_COLORS = (
    *((90, 130, 190), (170, 170, 176), (110, 180, 150), (230, 180, 80), (150, 120, 190)),
    *((205, 90, 80), (120, 190, 215), (190, 140, 110)),
)
_FONT = cv2.FONT_HERSHEY_SIMPLEX


def draw_plot(record: Mapping[str, Any]) -> U8:
    """Draw a record of benchmarks/latency.py.

    Args:
        record: as the JSON file has it.

    Returns:
        uint8 [height, 1400, 3], RGB.
    """
    networks = record["networks"]
    height = _panel_height(len(record["runs"])) + _legend_height(_stages(record)) + 2 * MARGIN
    if networks:
        height += _panel_height(len(networks)) + MARGIN
    picture: U8 = np.empty((height, WIDTH, 3), np.uint8)
    picture[:] = PAPER
    top = _draw_runs(picture, record, MARGIN)
    if networks:
        _draw_networks(picture, networks, top + MARGIN)
    return picture


def save_plot(path: Path, record: Mapping[str, Any]) -> Path:
    """Write `draw_plot` as a PNG."""
    return save_png(path, draw_plot(record))


def _stages(record: Mapping[str, Any]) -> list[str]:
    return list(record["runs"][0]["stages_s"])


def _panel_height(bars: int) -> int:
    return TITLE + bars * (BAR + GAP) + AXIS


def _legend_height(stages: Sequence[str]) -> int:
    return 30 * len(_legend_rows(stages))


def _draw_runs(picture: U8, record: Mapping[str, Any], top: int) -> int:
    engines, settings = record["engines"], record["settings"]
    sizes = engines["sizes"]
    title = (
        f"{settings['frames']} frames of {sizes['width']}x{sizes['height']}, {settings['steps']} steps, "
        f"{engines['backend']} {engines['precision']}, {record['device']['name']}"
    )
    _write(picture, title, MARGIN, top + 26, 0.75, 2)
    runs, colors = record["runs"], dict(zip(_stages(record), _repeated_colors(), strict=False))
    scale = _Scale(max(run["total_s"] for run in runs), "s")
    y = top + TITLE
    scale.draw(picture, y, len(runs))
    for number, run in enumerate(runs, 1):
        left = float(LABEL_WIDTH + MARGIN)
        _write(picture, f"run {number}", MARGIN, y + 23)
        for stage, seconds in run["stages_s"].items():
            right = left + scale.length(seconds)
            _fill(picture, left, right, y, colors[stage])
            left = right
        _write(
            picture, f"{run['total_s']:.3g} s, {run['s_per_frame']:.3g} s/frame", scale.x(run["total_s"]) + 10, y + 23
        )
        y += BAR + GAP
    y += AXIS
    for row in _legend_rows(_stages(record)):
        for x, stage in row:
            _fill(picture, x, x + 18, y - 14, colors[stage], 18)
            _write(picture, stage, x + 26, y + 1)
        y += 30
    return y


def _short(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def _repeated_colors() -> list[tuple[int, int, int]]:
    return [*STAGE_COLORS] * 4


def _legend_rows(stages: Sequence[str]) -> list[list[tuple[int, str]]]:
    """Where the names of the stages stand, line by line."""
    rows: list[list[tuple[int, str]]] = [[]]
    x = MARGIN + LABEL_WIDTH
    for stage in stages:
        width = 26 + _text_width(stage) + 34
        if rows[-1] and x + width > WIDTH - MARGIN:
            rows.append([])
            x = MARGIN + LABEL_WIDTH
        rows[-1].append((x, stage))
        x += width
    return rows


def _draw_networks(picture: U8, networks: Sequence[Mapping[str, Any]], top: int) -> None:
    _write(picture, "networks at their largest batch, each by itself, median", MARGIN, top + 26, 0.75, 2)
    scale = _Scale(max(one["seconds"] for one in networks) * 1e3, "ms")
    y = top + TITLE
    scale.draw(picture, y, len(networks))
    for one in networks:
        milliseconds = one["seconds"] * 1e3
        _write(picture, one["network"], MARGIN, y + 23)
        _fill(picture, LABEL_WIDTH + MARGIN, scale.x(milliseconds), y, NETWORK_COLOR)
        batch = ", ".join(f"{value} {symbol}" for symbol, value in one["batch"].items())
        text = f"{_short(milliseconds)} ms" + (f" ({batch})" if batch else "")
        _write(picture, text, scale.x(milliseconds) + 10, y + 23)
        y += BAR + GAP


class _Scale:
    """Values to columns, with lines at round numbers."""

    def __init__(self, largest: float, unit: str) -> None:
        self._room = WIDTH - 2 * MARGIN - LABEL_WIDTH - VALUE_WIDTH
        self._largest = largest or 1.0
        self._unit = unit

    def length(self, value: float) -> float:
        return value / self._largest * self._room

    def x(self, value: float) -> float:
        return LABEL_WIDTH + MARGIN + self.length(value)

    def draw(self, picture: U8, top: int, bars: int) -> None:
        bottom = top + bars * (BAR + GAP)
        step = _round_step(self._largest / 5)
        for number in range(int(self._largest / step) + 1):
            x = round(self.x(number * step))
            cv2.line(picture, (x, top - 6), (x, bottom), FAINT, 1)
            text = f"{number * step:.6g} {self._unit}" if number else "0"
            _write(picture, text, x - _text_width(text) / 2, bottom + 20)


def _round_step(least: float) -> float:
    """The smallest of 1, 2, 5, 10, 20, ... times a power of ten that is not below `least`."""
    power = 10.0 ** np.floor(np.log10(least))
    return float(next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least))


def _fill(picture: U8, left: float, right: float, top: int, color: Sequence[int], height: int = BAR) -> None:
    if round(right) > round(left):
        picture[top : top + height, round(left) : round(right)] = color


def _text_width(text: str, size: float = 0.55) -> int:
    (width, _), _ = cv2.getTextSize(text, _FONT, size, 1)
    return int(width)


def _write(picture: U8, text: str, x: float, baseline: int, size: float = 0.55, thickness: int = 1) -> None:
    cv2.putText(picture, text, (round(x), baseline), _FONT, size, INK, thickness, cv2.LINE_AA)
