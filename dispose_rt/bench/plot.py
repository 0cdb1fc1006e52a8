"""A picture of a record: every run, every stage, and clips of several lengths and single networks where measured."""

from __future__ import annotations

import io
import textwrap
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..system.files import save_bytes
from .networks import describe_batch
from .runs import spread_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    Panel = tuple[float, Callable[[Axes], None]]
    """Height of the axes in inches, without heading and labels, and what fills them."""

WIDTH_IN, DPI = 14.0, 100
LEFT_IN, RIGHT_IN, MARGIN_IN = 2.3, 2.4, 0.4
HEAD_IN, FOOT_IN, BAR_IN, LINE_IN, CURVE_IN = 0.55, 0.4, 0.34, 0.22, 2.8
"""Heights: of a panel's heading, of its axis, of a bar with its gap, of a line of text, of a curve."""
MOST_BARS = 30
"""Further bars get thinner instead of making the picture higher, and lose their labels."""
NAME_CHARACTERS, LINE_CHARACTERS, MOST_LINES = 24, 165, 5

INK, QUIET, FAINT = "#24262c", "#70747e", "#e2e4e8"
NETWORK_COLOR, LENGTH_COLOR = "#466eaa", "#c44e44"
STAGE_COLORS = ("#5a82be", "#aaaab0", "#6eb496", "#e6b450", "#9678be", "#cd5a50", "#78bed7", "#be8c6e")
STYLE = {
    "font.size": 11,
    "text.color": INK,
    "text.parse_math": False,  # a path may hold dollar signs
    "axes.labelcolor": INK,
    "axes.titlesize": 13,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": FAINT,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": FAINT,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
}


def check_matplotlib() -> None:
    """Refuse to plot without matplotlib, before anything is measured.

    Raises:
        InputError: it is not installed, or cannot be imported; names the command that installs it.
    """
    try:
        import matplotlib  # noqa: F401 - and no more: its fonts are listed, and the list is cached, when it draws
    except ImportError as error:
        raise InputError(
            f"--plot needs the Python package 'matplotlib', which cannot be imported ({error}); install it: "
            "pip install 'dispose-rt[bench]', or leave --plot out"
        ) from error


def save_plot(path: Path, record: Mapping[str, Any]) -> Path:
    """Write `draw_plot` as a PNG that is 1400 pixels wide.

    Raises:
        OutputError: the file cannot be written.
    """
    data = io.BytesIO()
    with _our_style():
        draw_plot(record).savefig(data, format="png", dpi=DPI)
    return save_bytes(path, data.getvalue())


@contextmanager
def _our_style() -> Iterator[None]:
    """Our style inside; characters that the font lacks are drawn as boxes, without a warning."""
    import matplotlib as mpl

    with mpl.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")
        yield


def draw_plot(record: Mapping[str, Any]) -> Figure:
    """Draw a record, see `dispose_rt.bench`, without a display.

    Args:
        record: as in the JSON file.

    Returns:
        A figure with one axes per panel: runs, stages, lengths and networks, the last two where they were measured.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = [_runs(record), _stages(record)]
    if len(points := _length_points(record)) > 1:
        panels.append(_lengths(points))
    if record["networks"]:
        panels.append(_networks(record["networks"]))
    title, below = _head_lines(record)
    head_in = MARGIN_IN + 0.45 + LINE_IN * len(below)
    height_in = head_in + sum(HEAD_IN + panel_in + FOOT_IN for panel_in, _ in panels) + MARGIN_IN
    with _our_style():
        figure = Figure(figsize=(WIDTH_IN, height_in), dpi=DPI)
        FigureCanvasAgg(figure)
        left, top_in = MARGIN_IN / WIDTH_IN, MARGIN_IN
        figure.text(left, 1 - top_in / height_in, title, size=17, weight="bold", va="top")
        for number, line in enumerate(below):
            y = 1 - (top_in + 0.45 + LINE_IN * number) / height_in
            figure.text(left, y, line, size=11 if number == 0 else 9, color=QUIET, va="top")
        top_in = head_in
        for panel_in, draw in panels:
            top_in += HEAD_IN + panel_in
            width = (WIDTH_IN - LEFT_IN - RIGHT_IN) / WIDTH_IN
            axes = figure.add_axes((LEFT_IN / WIDTH_IN, 1 - top_in / height_in, width, panel_in / height_in))
            axes.tick_params(length=0)
            draw(axes)
            top_in += FOOT_IN
    return figure


def _head_lines(record: Mapping[str, Any]) -> tuple[str, list[str]]:
    """The title, and the lines below it: settings, then the command, broken where it is long."""
    engines, settings, runs = record["engines"], record["settings"], record["runs"]
    sizes = engines["sizes"]
    total_s, s_per_frame = (spread_of([run[name] for run in runs]).median for name in ("total_s", "s_per_frame"))
    title = (
        f"{settings['frames']} frames of {sizes['width']}x{sizes['height']} in {_short(total_s)} s, "
        f"{_short(s_per_frame)} s per frame"
    )
    what = (
        f"{settings['steps']} steps, {engines['backend']} {engines['precision']}, {record['device']['name']}, "
        f"dispose-rt {record['versions']['dispose-rt']}, {record['date'][:10]}"
    )
    what = textwrap.shorten(what, LINE_CHARACTERS * 3 // 4, placeholder=" ...")
    command = textwrap.wrap(record["command"], LINE_CHARACTERS, max_lines=MOST_LINES, placeholder=" ...")
    return title, [what, *command]


def _short(value: float) -> str:
    """A number for people: three digits, or all of those before the point; 0 where it is below a thousandth."""
    return f"{value:.3g}" if 1e-3 <= value < 1000 else f"{value:.0f}"


def _colors(record: Mapping[str, Any]) -> dict[str, str]:
    names = record["runs"][0]["stages_s"]
    return {name: STAGE_COLORS[number % len(STAGE_COLORS)] for number, name in enumerate(names)}


def _set_title(axes: Axes, title: str) -> None:
    """A panel's heading, above the axes at the left margin of the picture."""
    axes.set_title(title, x=(MARGIN_IN - LEFT_IN) / (WIDTH_IN - LEFT_IN - RIGHT_IN), pad=9)


def _prepare_bars(axes: Axes, title: str, names: Sequence[str], longest: float, unit: str) -> bool:
    """Set up axes for horizontal bars, the first one on top.

    Returns:
        Whether the bars are high enough for a label each.
    """
    _set_title(axes, title)
    axes.set_xlim(0, longest)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.6g} {unit}" if value else "0")
    labelled = len(names) <= MOST_BARS
    shown = range(len(names)) if labelled else (0, len(names) - 1)
    axes.set_yticks(shown, [names[number][:NAME_CHARACTERS] for number in shown], color=INK)
    return labelled


def _height_in(count: int) -> float:
    return BAR_IN * min(count, MOST_BARS)


def _label(axes: Axes, text: str, x: float, y: float) -> None:
    axes.annotate(text, (x, y), (7, 0), textcoords="offset points", va="center", annotation_clip=False)


def _runs(record: Mapping[str, Any]) -> Panel:
    """A stacked bar per run."""
    runs, colors = record["runs"], _colors(record)

    def draw(axes: Axes) -> None:
        names = [f"run {number}" for number in range(1, len(runs) + 1)]
        longest = max(run["total_s"] for run in runs)
        labelled = _prepare_bars(axes, "runs, from the call to the finished mp4", names, longest, "s")
        lefts = [0.0] * len(runs)
        for stage, color in colors.items():
            seconds = [run["stages_s"][stage] for run in runs]
            axes.barh(range(len(runs)), seconds, 0.72, lefts, color=color, label=stage)
            lefts = [left + one for left, one in zip(lefts, seconds, strict=True)]
        for number, run in enumerate(runs if labelled else ()):
            _label(axes, f"{_short(run['total_s'])} s", run["total_s"], number)

    return (_height_in(len(runs)), draw)


def _stages(record: Mapping[str, Any]) -> Panel:
    """A bar per stage, on the scale of the runs above it."""
    runs, colors = record["runs"], _colors(record)

    def draw(axes: Axes) -> None:
        median_of = f", median of {len(runs)}; lines reach from the fastest to the slowest" if len(runs) > 1 else ""
        longest, total_s = max(run["total_s"] for run in runs), spread_of([run["total_s"] for run in runs]).median
        _prepare_bars(axes, f"stages{median_of}", list(colors), longest, "s")
        for number, (stage, color) in enumerate(colors.items()):
            seconds = [run["stages_s"][stage] for run in runs]
            median = spread_of(seconds).median
            axes.barh(number, median, 0.72, color=color)
            if max(seconds) - min(seconds) > 0.003 * longest:  # wider than the line that shows it
                axes.errorbar(
                    median, number, xerr=[[median - min(seconds)], [max(seconds) - median]], color=INK, capsize=3, lw=1
                )
            _label(axes, f"{_short(median)} s, {100 * median / total_s:.1f} %", max(seconds), number)

    return (_height_in(len(colors)), draw)


def _networks(networks: Sequence[Mapping[str, Any]]) -> Panel:
    """A bar per network."""

    def draw(axes: Axes) -> None:
        milliseconds = [one["seconds"] * 1e3 for one in networks]
        names = [one["network"] for one in networks]
        labelled = _prepare_bars(
            axes, "networks, each by itself at its largest batch, median", names, max(milliseconds), "ms"
        )
        axes.barh(range(len(networks)), milliseconds, 0.72, color=NETWORK_COLOR)
        for number, one in enumerate(networks if labelled else ()):
            batch = describe_batch(one["batch"])
            text = f"{_short(milliseconds[number])} ms" + (f" ({batch})" if batch else "")
            _label(axes, text, milliseconds[number], number)

    return (_height_in(len(networks)), draw)


@dataclass(frozen=True)
class _Point:
    """The denoise stage of a clip, median."""

    frames: int
    tiles: int
    seconds: float


def _length_points(record: Mapping[str, Any]) -> list[_Point]:
    """From the shortest clip to the longest, that of the runs among them."""
    settings = record["settings"]
    seconds = spread_of([run["stages_s"]["denoise"] for run in record["runs"]]).median
    points = {settings["frames"]: _Point(settings["frames"], settings["tiles"], seconds)}
    for one in record["lengths"]:
        points.setdefault(one["frames"], _Point(one["frames"], one["tiles"], one["stages_s"]["denoise"]["median"]))
    return [points[frames] for frames in sorted(points)]


def _lengths(points: Sequence[_Point]) -> Panel:
    """How the time to denoise grows with the clip."""

    def draw(axes: Axes) -> None:
        frames, seconds = [point.frames for point in points], [point.seconds for point in points]
        _set_title(axes, "denoising, by new frames (and tiles)")
        axes.plot(frames, seconds, "o-", color=LENGTH_COLOR, linewidth=2, markersize=7, clip_on=False)
        axes.set_xlim(0, frames[-1] * 1.02)
        axes.set_ylim(0, max(seconds) * 1.18)
        axes.grid(visible=False, axis="x")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.6g} s" if value else "0")
        named_until, ticks, names = -1.0, [], []
        for point in points:
            half = 0.005 * frames[-1] * (len(f"{point.frames} ({point.tiles})") + 2)
            if point.frames - half < named_until:  # its name would lie on the one before it
                continue
            named_until = point.frames + half
            ticks.append(point.frames)
            names.append(f"{point.frames} ({point.tiles})")
            text, place = f"{_short(point.seconds)} s", (point.frames, point.seconds)
            axes.annotate(text, place, (0, 9), textcoords="offset points", ha="center")
        axes.set_xticks(ticks, names)

    return (CURVE_IN, draw)
