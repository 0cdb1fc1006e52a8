"""Loss curves of a training: CSV in, one PNG out."""

from __future__ import annotations

import csv
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]

_PANEL_WIDTH_PX, _PANEL_HEIGHT_PX, _MARGIN_PX = 640, 240, 48
_INK, _PALE, _PAPER = (40, 40, 40), (190, 190, 190), (255, 255, 255)
_LINES = ((150, 90, 30), (60, 110, 200), (70, 150, 60), (140, 60, 140), (60, 60, 60))
_SMOOTHED_STEPS = 100
_HIDDEN = ("step", "seconds", "norm")


def plot_curves(folder: Path) -> Path | None:
    """Plot every stage's losses, smoothed, on a logarithmic axis.

    Args:
        folder: of the training; `<stage>.csv` are its curves.

    Returns:
        The picture `curves.png`; None where no stage has a curve.
    """
    panels = [_plot(path.stem, read_curve(path)) for path in sorted(folder.glob("*.csv")) if "-" not in path.stem]
    if not panels:
        return None
    target = folder / "curves.png"
    cv2.imwrite(str(target), np.concatenate(panels))
    return target


def read_curve(path: Path) -> dict[str, F64]:
    """Columns of a curve file by name; NaN where a step has no such value."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    names = list(rows[0]) if rows else []
    return {name: np.array([float(row[name]) if row[name] else np.nan for row in rows]) for name in names}


def smooth(values: F64, steps: int = _SMOOTHED_STEPS) -> F64:
    """Running mean over the last steps, missing values left out."""
    known = np.isfinite(values)
    sums, counts = np.cumsum(np.where(known, values, 0.0)), np.cumsum(known)
    sums[steps:] -= sums[:-steps].copy()
    counts[steps:] -= counts[:-steps].copy()
    mean: F64 = sums / np.maximum(counts, 1)
    return mean


def _plot(name: str, curve: dict[str, F64]) -> NDArray[np.uint8]:
    panel = np.full((_PANEL_HEIGHT_PX, _PANEL_WIDTH_PX, 3), _PAPER, np.uint8)
    columns = {key: smooth(values) for key, values in curve.items() if key not in _HIDDEN}
    positive = {key: np.log10(np.maximum(values, 1e-5)) for key, values in columns.items()}
    if not positive or not len(positive["loss"]):
        return panel
    low = np.floor(2 * min(values.min() for values in positive.values())) / 2
    high = np.ceil(2 * max(values.max() for values in positive.values())) / 2 + 1e-9
    inner_height, inner_width = _PANEL_HEIGHT_PX - 2 * _MARGIN_PX, _PANEL_WIDTH_PX - 2 * _MARGIN_PX
    for tick in np.arange(low, high + 0.25, 0.5):
        y = round(_MARGIN_PX + inner_height * (high - tick) / (high - low))
        cv2.line(panel, (_MARGIN_PX, y), (_PANEL_WIDTH_PX - _MARGIN_PX, y), _PALE, 1)
        cv2.putText(panel, f"{10**tick:.3g}", (4, y + 4), cv2.FONT_HERSHEY_SIMPLEX, 0.35, _INK, 1, cv2.LINE_AA)
    steps = curve["step"]
    x = _MARGIN_PX + inner_width * (steps - steps[0]) / max(steps[-1] - steps[0], 1)
    for number, (key, values) in enumerate(positive.items()):
        color = _LINES[number % len(_LINES)]
        y_px = _MARGIN_PX + inner_height * (high - values) / (high - low)
        points = np.stack([x, y_px], axis=1).round().astype(np.int32)
        cv2.polylines(panel, [points], False, color, 1, cv2.LINE_AA)
        place = (_MARGIN_PX + 100 * number, _PANEL_HEIGHT_PX - 12)
        cv2.putText(panel, key, place, cv2.FONT_HERSHEY_SIMPLEX, 0.4, color, 1, cv2.LINE_AA)
    title = f"{name}: {int(steps[-1]) + 1} steps"
    cv2.putText(panel, title, (_MARGIN_PX, 24), cv2.FONT_HERSHEY_SIMPLEX, 0.5, _INK, 1, cv2.LINE_AA)
    return panel
