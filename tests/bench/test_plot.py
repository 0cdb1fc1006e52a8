"""The picture of a record: what it shows is what was measured, and all of it fits on the sheet."""

from __future__ import annotations

import sys
import warnings
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.container import BarContainer

from dispose_rt.bench.plot import MOST_BARS, STAGE_COLORS, check_matplotlib, draw_plot, save_plot
from dispose_rt.bench.runs import RunTimes
from dispose_rt.contract import NETWORKS, Sizes
from dispose_rt.errors import InputError, OutputError

STAGES = ("pose", "load", "motion", "appearance", "conditions", "denoise", "decode")
LONG = "dispose-rt bench '/data/$x$/" + "very_long_folder_" * 40 + "' --ref '/家/" + "x" * 300 + ".png'"


def run(total_s: float) -> dict[str, Any]:
    shares = dict(zip(STAGES, (0.1, 0.0, 0.2, 0.05, 0.05, 0.5, 0.1), strict=True))
    stages = {stage: share * total_s for stage, share in shares.items()}
    return RunTimes(8, total_s, stages, 0.9 * total_s, 1, 1, None).record()


def record(totals: list[float], **changes: Any) -> dict[str, Any]:
    return {
        "runs": [run(total) for total in totals],
        **{"lengths": [], "networks": []},
        "engines": {"sizes": asdict(Sizes(64, 64)), "backend": "onnxruntime", "precision": "fp32"},
        "settings": {"frames": 8, "tiles": 2, "steps": 2},
        **{"device": {"name": "CPU"}, "versions": {"dispose-rt": "0.1.0"}},
        **{"date": "2026-11-21T15:21:11+00:00", "command": "dispose-rt bench engines"},
        **changes,
    }


def length(frames: int, seconds: float) -> dict[str, Any]:
    return {"frames": frames, "tiles": frames // 4, "stages_s": {"denoise": {"median": seconds}}}


def network(name: str, seconds: float, **batch: int) -> dict[str, Any]:
    return {"network": name, "seconds": seconds, "batch": batch}


def bars(axes: Axes) -> list[list[float]]:
    """Widths of every group of bars."""
    groups = [group for group in axes.containers if isinstance(group, BarContainer)]
    return [[bar.get_width() for bar in group] for group in groups]


def texts(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def test_bars_are_as_long_as_what_they_show() -> None:
    networks = [network("unet", 0.4), network("pose_net", 0.1, frames=16)]
    runs, stages, timed = draw_plot(record([10.0, 5.0], networks=networks)).axes
    np.testing.assert_allclose(np.sum(bars(runs), axis=0), [10, 5])
    np.testing.assert_allclose(bars(runs)[0], [1, 0.5])
    assert [group[0].get_facecolor() for group in runs.containers] == [group[0].get_facecolor() for group in
        [one for one in stages.containers if isinstance(one, BarContainer)]]  # fmt: skip
    np.testing.assert_allclose(np.concatenate(bars(stages)), [0.75, 0, 1.5, 0.375, 0.375, 3.75, 0.75])
    assert runs.get_xlim() == stages.get_xlim() == (0, 10)
    assert bars(timed) == [[400, 100]]
    assert texts(runs) == ["10 s", "5 s"]
    assert texts(stages)[5] == "3.75 s, 50.0 %"
    assert texts(timed) == ["400 ms", "100 ms (16 frames)"]
    assert [label.get_text() for label in timed.get_yticklabels()] == ["unet", "pose_net"]


def test_spreads_are_drawn_where_there_are_several_runs() -> None:
    """From the fastest to the slowest run, around the median."""
    stages = draw_plot(record([10.0, 5.0, 6.0])).axes[1]
    [line] = [one for one in stages.collections if np.ptp(one.get_paths()[0].vertices[:, 0]) > 2]
    np.testing.assert_allclose(line.get_paths()[0].vertices[:, 0], [2.5, 5])
    assert not draw_plot(record([10.0])).axes[1].collections


def test_points_stand_where_their_values_are() -> None:
    """The runs denoise 8 frames in 1 s; of two lengths that lie close together one is named."""
    lengths = [length(16, 2.0), length(4, 0.5), length(17, 2.1), length(8, 7.0)]
    curve = draw_plot(record([2.0], lengths=lengths)).axes[2]
    np.testing.assert_allclose(np.asarray(curve.lines[0].get_xydata()), [[4, 0.5], [8, 1], [16, 2], [17, 2.1]])
    assert [label.get_text() for label in curve.get_xticklabels()] == ["4 (1)", "8 (2)", "16 (4)"]
    assert texts(curve) == ["0.5 s", "1 s", "2 s"]


def test_there_is_a_panel_for_what_was_measured_alone() -> None:
    for changes, panels in (
        ({}, 2),
        ({"lengths": [length(8, 3.0)]}, 2),  # the one of the runs
        ({"lengths": [length(4, 3.0)]}, 3),
        ({"lengths": [length(4, 3.0)], "networks": [network("unet", 1)]}, 4),
    ):
        assert len(draw_plot(record([2.0], **changes)).axes) == panels


def test_nothing_is_cut_off_or_lies_on_something_else() -> None:
    networks = [network(name, 0.01 * number, frames=16) for number, name in enumerate(NETWORKS, 1)]
    lengths = [length(frames, frames / 8) for frames in range(2, 400, 3)]
    faults = []
    for name, one in {
        "one run": record([1e-5]),
        "much": record([4003.0] * MOST_BARS, networks=networks, lengths=lengths, command=LONG),
        "too many runs to name": record([2.0] * 500, device={"name": "a GPU with a name " * 30}),
    }.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            figure = draw_plot(one)
            figure.canvas.draw()
            sheet = figure.bbox
            groups = [figure.texts, *([*axes.texts, axes.title, *axes.get_yticklabels()] for axes in figure.axes)]
            boxes = [text.get_window_extent() for group in groups for text in group if text.get_text()]
        faults += [f"{name}: a text at {box}" for box in boxes if box.x0 < 0 or box.x1 > sheet.x1 or box.y1 > sheet.y1]
        rows = sorted((box for box in boxes if box.x0 < 60), key=lambda box: -box.y0)
        faults += [f"{name}: {b} on {a}" for a, b in pairwise(rows) if b.y1 > a.y0 + 1]
        assert len(boxes) > 10
        assert figure.bbox.height < 4000
    assert faults == []


def test_the_file_is_a_wide_picture_and_appears_whole(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the font has no Chinese characters
        save_plot(tmp_path / "a.png", record([2.0], command=LONG))
    picture = cv2.imread(str(tmp_path / "a.png"))
    assert picture.shape[1] == 1400
    for color in (STAGE_COLORS[0], STAGE_COLORS[5]):
        blue_green_red = [int(color[at : at + 2], 16) for at in (5, 3, 1)]
        assert (picture == blue_green_red).all(axis=-1).sum() > 1000
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match="cannot be written"):
        save_plot(tmp_path / "file" / "a.png", record([2.0]))


def test_without_matplotlib_there_is_one_error_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    check_matplotlib()
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match=r"--plot needs .*'matplotlib'.*pip install 'dispose-rt\[bench\]'"):
        check_matplotlib()


def test_colors_are_enough_for_all_stages() -> None:
    assert len(set(STAGE_COLORS)) == len(STAGE_COLORS) >= len(STAGES)
    many = {f"stage {number}": 1.0 for number in range(9)} | {"denoise": 1.0}
    runs = [RunTimes(8, 10.0, many, 9.0, 1, 1, None).record()]
    assert len(draw_plot(record([1.0], runs=runs)).axes[1].patches) == 10
