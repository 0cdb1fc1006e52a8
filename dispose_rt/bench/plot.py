"""Draws a record: every run, every stage, clips of several lengths, and every network, as far as they were measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ..pictures import save_png
from ..types import U8
from .chart import (
    FAINT,
    HEADING,
    LABEL_WIDTH,
    MARGIN,
    PAPER,
    QUIET,
    TITLE,
    WIDTH,
    Axis,
    Color,
    bar_axis,
    draw_columns,
    draw_spread,
    fill,
    fit_size,
    short,
    text_width,
    write,
)
from .networks import describe_batch
from .runs import spread_of

BAR, GAP, HEAD, FOOT = 26, 10, 54, 30
"""Heights: of a bar, between bars, of a panel's heading, of its axis."""
PLOT_HEIGHT = 260
NETWORK_COLOR: Color = (70, 110, 170)
LENGTH_COLOR: Color = (196, 78, 68)
STAGE_COLORS: tuple[Color, ...] = (
    *((90, 130, 190), (170, 170, 176), (110, 180, 150), (230, 180, 80), (150, 120, 190)),
    *((205, 90, 80), (120, 190, 215), (190, 140, 110)),
)
Panel = tuple[int, Callable[[U8, int], None]]
"""How high it is, and what draws it from a row on."""


def draw_plot(record: Mapping[str, Any]) -> U8:
    """Draw a record, see `dispose_rt.bench`.

    Args:
        record: as the JSON file has it.

    Returns:
        uint8 [height, 1400, 3], RGB.
    """
    panels = [_title(record), _runs(record), _stages(record)]
    if len(points := _length_points(record)) > 1:
        panels.append(_lengths(points))
    if record["networks"]:
        panels.append(_networks(record["networks"]))
    picture: U8 = np.empty((2 * MARGIN + sum(height for height, _ in panels), WIDTH, 3), np.uint8)
    picture[:] = PAPER
    top = MARGIN
    for height, draw in panels:
        draw(picture, top)
        top += height
    return picture


def save_plot(path: Path, record: Mapping[str, Any]) -> Path:
    """Write `draw_plot` as a PNG.

    Raises:
        InputError: it cannot be written there.
    """
    return save_png(path, draw_plot(record))


def _title(record: Mapping[str, Any]) -> Panel:
    engines, settings, runs = record["engines"], record["settings"], record["runs"]
    sizes = engines["sizes"]
    total_s, s_per_frame = (spread_of([run[name] for run in runs]).median for name in ("total_s", "s_per_frame"))
    title = (
        f"{settings['frames']} frames of {sizes['width']}x{sizes['height']} in {short(total_s)} s, "
        f"{short(s_per_frame)} s per frame"
    )
    below = (
        f"{settings['steps']} steps, {engines['backend']} {engines['precision']}, {record['device']['name']}, "
        f"dispose-rt {record['versions']['dispose-rt']}, {record['date'][:10]}"
    )

    def draw(picture: U8, top: int) -> None:
        room = WIDTH - 2 * MARGIN
        write(picture, title, MARGIN, top + 26, fit_size(title, TITLE, room, bold=True), bold=True)
        write(picture, below, MARGIN, top + 58, fit_size(below, HEADING, room), color=QUIET)
        write(picture, record["command"], MARGIN, top + 86, fit_size(record["command"], 0.5, room), color=QUIET)

    return 112, draw


def _heading(picture: U8, text: str, top: int) -> int:
    """Write a panel's heading. Returns the row where its contents begin."""
    write(picture, text, MARGIN, top + 32, HEADING, bold=True)
    return top + HEAD


def _panel_height(bars: int) -> int:
    return HEAD + bars * (BAR + GAP) + FOOT


def _colors(record: Mapping[str, Any]) -> dict[str, Color]:
    names = record["runs"][0]["stages_s"]
    return {name: STAGE_COLORS[number % len(STAGE_COLORS)] for number, name in enumerate(names)}


def _runs(record: Mapping[str, Any]) -> Panel:
    """A stacked bar per run."""
    runs, colors = record["runs"], _colors(record)
    axis = bar_axis(max(run["total_s"] for run in runs), "s")

    def draw(picture: U8, top: int) -> None:
        y = _heading(picture, "runs, from the call to the finished mp4", top)
        draw_columns(picture, axis, y - 6, y + len(runs) * (BAR + GAP))
        for number, run in enumerate(runs, 1):
            left = axis.start_px
            _label(picture, f"run {number}", y)
            for stage, seconds in run["stages_s"].items():
                right = left + axis.length(seconds)
                fill(picture, left, right, y, colors[stage], BAR)
                left = right
            _value(picture, f"{short(run['total_s'])} s", axis.place(run["total_s"]), y)
            y += BAR + GAP

    return _panel_height(len(runs)), draw


def _stages(record: Mapping[str, Any]) -> Panel:
    """A bar per stage, to the scale of the runs above it."""
    runs, colors = record["runs"], _colors(record)
    axis = bar_axis(max(run["total_s"] for run in runs), "s")
    total_s = spread_of([run["total_s"] for run in runs]).median

    def draw(picture: U8, top: int) -> None:
        median_of = f", median of {len(runs)}; lines reach from the fastest to the slowest" if len(runs) > 1 else ""
        y = _heading(picture, f"stages{median_of}", top)
        draw_columns(picture, axis, y - 6, y + len(colors) * (BAR + GAP))
        for stage, color in colors.items():
            seconds = [run["stages_s"][stage] for run in runs]
            median = spread_of(seconds).median
            _label(picture, stage, y)
            fill(picture, axis.start_px, axis.place(median), y, color, BAR)
            if axis.length(max(seconds) - min(seconds)) > 2:
                draw_spread(picture, axis.place(min(seconds)), axis.place(max(seconds)), y + BAR // 2, 4)
            _value(picture, f"{short(median)} s, {100 * median / total_s:.1f} %", axis.place(max(seconds)), y)
            y += BAR + GAP

    return _panel_height(len(colors)), draw


def _networks(networks: Sequence[Mapping[str, Any]]) -> Panel:
    axis = bar_axis(max(one["seconds"] for one in networks) * 1e3, "ms")

    def draw(picture: U8, top: int) -> None:
        y = _heading(picture, "networks, each by itself at its largest batch, median", top)
        draw_columns(picture, axis, y - 6, y + len(networks) * (BAR + GAP))
        for one in networks:
            milliseconds = one["seconds"] * 1e3
            _label(picture, one["network"], y)
            fill(picture, axis.start_px, axis.place(milliseconds), y, NETWORK_COLOR, BAR)
            batch = describe_batch(one["batch"])
            _value(picture, f"{short(milliseconds)} ms" + (f" ({batch})" if batch else ""), axis.place(milliseconds), y)
            y += BAR + GAP

    return _panel_height(len(networks)), draw


def _label(picture: U8, text: str, y: int) -> None:
    write(picture, text, MARGIN, y + BAR - 8, fit_size(text, 0.6, LABEL_WIDTH - 10))


def _value(picture: U8, text: str, x: float, y: int) -> None:
    write(picture, text, x + 10, y + BAR - 8)


@dataclass(frozen=True)
class _Point:
    """The denoise stage of a clip, median."""

    frames: int
    tiles: int
    seconds: float


def _length_points(record: Mapping[str, Any]) -> list[_Point]:
    """From the shortest clip to the longest, the one of the runs among them."""
    settings = record["settings"]
    seconds = spread_of([run["stages_s"]["denoise"] for run in record["runs"]]).median
    points = {settings["frames"]: _Point(settings["frames"], settings["tiles"], seconds)}
    for one in record["lengths"]:
        points.setdefault(one["frames"], _Point(one["frames"], one["tiles"], one["stages_s"]["denoise"]["median"]))
    return [points[frames] for frames in sorted(points)]


def _lengths(points: Sequence[_Point]) -> Panel:
    """How the time to denoise grows with the clip."""
    left, right = MARGIN + LABEL_WIDTH, WIDTH - MARGIN - 60

    def draw(picture: U8, top: int) -> None:
        y = _heading(picture, "denoising, by new frames (and tiles)", top)
        floor = y + PLOT_HEIGHT
        across = Axis(left, right, points[-1].frames, "")
        up = Axis(floor, y + 24, max(point.seconds for point in points), "s")
        for row, name in up.ticks():
            cv2.line(picture, (left, round(row)), (right, round(row)), FAINT, 1)
            write(picture, name, left - 12, round(row) + 5, 0.5, color=QUIET, align="right")
        places = [(round(across.place(point.frames)), round(up.place(point.seconds))) for point in points]
        cv2.polylines(picture, [np.array(places, np.int32)], False, LENGTH_COLOR, 2, cv2.LINE_AA)
        named_until = 0.0
        for point, (x, row) in zip(points, places, strict=True):
            cv2.line(picture, (x, floor), (x, floor + 5), QUIET, 1)
            cv2.circle(picture, (x, row), 5, LENGTH_COLOR, -1, cv2.LINE_AA)
            name = f"{point.frames} ({point.tiles})"
            half = text_width(name, 0.5) / 2 + 8
            if x - half < named_until:  # it would lie on the one before it
                continue
            named_until = x + half
            write(picture, name, x, floor + 24, 0.5, color=QUIET, align="middle")
            write(picture, f"{short(point.seconds)} s", x + 8, row - 12, align="right")  # left of a line that rises

    return HEAD + PLOT_HEIGHT + FOOT + 6, draw
