"""The page of `debug_pictures`: one HTML file without scripts or outside resources, for phones and dark rooms too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

MARK = '<meta name="generator" content="dispose-rt debug pictures">'
"""How a page of ours is told from somebody else's index.html."""

_STYLE = """
:root { color-scheme: light dark; --paper: #f7f7f5; --card: #ffffff; --ink: #1d2127; --soft: #5d6670; --line: #dcdfe3;
  --accent: #2563c9; --look: #fff6df; --look-line: #e0a92e; --bad: #b3261e; --bad-paper: #fdecea; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171b; --card: #1d2126; --ink: #e7eaee; --soft: #9aa4af;
  --line: #333a42; --accent: #7fb0ff; --look: #2a2517; --look-line: #b98d2c; --bad: #ff9a92; --bad-paper: #361b1a; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); overflow-wrap: anywhere;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1240px; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.55rem; margin: .5rem 0; }
h2 { font-size: 1.2rem; margin: 0 0 .4rem; }
p { margin: .4rem 0; max-width: 50rem; }
a { color: var(--accent); }
nav { display: flex; flex-wrap: wrap; gap: .35rem; margin: 1rem 0; }
nav a { padding: .3rem .7rem; border: 1px solid var(--line); border-radius: 1rem; background: var(--card);
  text-decoration: none; font-size: .9rem; }
section { background: var(--card); border: 1px solid var(--line); border-radius: .7rem; padding: 1rem; margin: 1rem 0; }
.look { background: var(--look); border-left: 4px solid var(--look-line); padding: .5rem .8rem;
  border-radius: 0 .4rem .4rem 0; }
.error { background: var(--bad-paper); border-left: 4px solid var(--bad); color: var(--bad); padding: .6rem .9rem;
  border-radius: 0 .4rem .4rem 0; white-space: pre-wrap; max-width: none; }
.none { color: var(--soft); font-style: italic; }
.grid { display: grid; gap: .8rem; margin-top: .8rem; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); }
.grid.few { grid-template-columns: repeat(auto-fill, minmax(14rem, 1fr)); }
.grid.pairs { grid-template-columns: repeat(auto-fill, minmax(min(100%, 18rem), 1fr)); }
.grid.wide { grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); }
figure { margin: 0; min-width: 0; }
figure .pictures { display: flex; gap: 3px; align-items: center; }
figure a { flex: 1 1 0; min-width: 0; display: block; }
img { display: block; width: 100%; height: auto; border: 1px solid var(--line); }
.wide img, .legend img { width: auto; max-width: 100%; }
.legend figure { max-width: 50rem; }
figcaption { color: var(--soft); font-size: .83rem; padding-top: .2rem; }
.scroll { overflow-x: auto; margin-top: .8rem; }
table { border-collapse: collapse; font-size: .88rem; }
th, td { text-align: left; padding: .22rem .7rem .22rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--soft); font-weight: 600; white-space: nowrap; overflow-wrap: normal; }
svg { display: block; width: 100%; max-width: 46rem; height: auto; margin-top: .6rem; }
svg text { fill: var(--ink); font-size: 14px; }
svg .bar { fill: var(--accent); }
svg .rail { fill: var(--line); }
"""


@dataclass(frozen=True)
class Figure:
    """One picture, or several side by side, with a caption. Files are paths relative to the page."""

    files: tuple[str, ...]
    caption: str


@dataclass(frozen=True)
class Section:
    """One stage on the page.

    Attributes:
        anchor: of links to it.
        title: its heading.
        what: what the pictures show.
        look: what to look for when the result is bad.
        figures: may be none, which the page says.
        layout: "" for many small pictures, "few" for less, "pairs" for two side by side, "wide" for large ones.
        legend: a picture before all others.
        table: rows of cells, the first is the heading.
    """

    anchor: str
    title: str
    what: str
    look: str
    figures: Sequence[Figure] = ()
    layout: str = ""
    legend: Figure | None = None
    table: Sequence[Sequence[str]] = field(default=())


def render_page(
    sections: Sequence[Section], summary: Mapping[str, object], timings: Mapping[str, float], error: str | None
) -> str:
    """Make the page.

    Args:
        sections: stages in the order of the run.
        summary: names and values, such as settings and what is known of the engines.
        timings: seconds per stage.
        error: why the run ended early, or None.

    Returns:
        HTML.
    """
    links = [(section.anchor, section.title) for section in sections] + [("timings", "Timings")]
    navigation = "".join(f'<a href="#{anchor}">{escape(title)}</a>' for anchor, title in links)
    failure = f'<p class="error"><b>The run did not finish.</b>\n{escape(error)}</p>' if error else ""
    body = "\n".join(_render_section(section) for section in sections)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
{MARK}
<title>Pictures of a run</title>
<style>{_STYLE}</style>
</head>
<body>
<main>
<h1>Pictures of a run</h1>
<p>From the photo to the finished frames, stage by stage. A bad result has its cause in the first stage whose pictures
look wrong: go from top to bottom. A picture opens in full size when it is tapped. Frames are counted from 0, as in the
finished video.</p>
{failure}
<nav>{navigation}</nav>
{_render_summary(summary)}
{body}
{_render_timings(timings)}
</main>
</body>
</html>
"""


def _render_section(section: Section) -> str:
    parts = [f'<section id="{section.anchor}">', f"<h2>{escape(section.title)}</h2>", f"<p>{escape(section.what)}</p>"]
    parts.append(f'<p class="look"><b>When the result is bad:</b> {escape(section.look)}</p>')
    if section.legend is not None:
        parts.append(f'<div class="legend">{_render_figure(section.legend)}</div>')
    if section.figures:
        figures = "\n".join(_render_figure(figure) for figure in section.figures)
        parts.append(f'<div class="grid {section.layout}">\n{figures}\n</div>')
    else:
        parts.append('<p class="none">There are no pictures: the stage was off, or the run ended before it.</p>')
    if section.table:
        parts.append(_render_table(section.table))
    return "\n".join([*parts, "</section>"])


def _render_figure(figure: Figure) -> str:
    caption = escape(figure.caption)
    links = "".join(
        f'<a href="{escape(file)}"><img src="{escape(file)}" alt="{caption}" loading="lazy"></a>'
        for file in figure.files
    )
    return f'<figure><div class="pictures">{links}</div><figcaption>{caption}</figcaption></figure>'


def _render_table(rows: Sequence[Sequence[str]]) -> str:
    lines = []
    for number, row in enumerate(rows):
        tag = "td" if number else "th"
        lines.append("<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in row) + "</tr>")
    return '<div class="scroll"><table>' + "\n".join(lines) + "</table></div>"


def _render_summary(summary: Mapping[str, object]) -> str:
    if not summary:
        return ""
    rows = "\n".join(
        f"<tr><th>{escape(str(name))}</th><td>{escape(_to_text(value))}</td></tr>" for name, value in summary.items()
    )
    return (
        f'<section id="summary"><h2>Settings and engines</h2><div class="scroll"><table>{rows}</table></div></section>'
    )


def _to_text(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "none"
    return "automatic" if value is None else str(value)


def _render_timings(timings: Mapping[str, float]) -> str:
    """Bars in a drawing of our own: a page with a chart library would not be self-contained."""
    head = '<section id="timings"><h2>Timings</h2>'
    if not timings:
        return f'{head}<p class="none">None were told.</p></section>'
    total = sum(timings.values())
    longest = max(timings.values()) or 1.0
    line_px, rail_px = 30, 360
    bars = []
    for number, (name, seconds) in enumerate(timings.items()):
        top = number * line_px
        length = max(2.0, rail_px * seconds / longest)
        share = f"{seconds:.2f} s, {100 * seconds / (total or 1.0):.0f} %"
        bars.append(
            f'<text x="0" y="{top + 19}">{escape(name)}</text>'
            f'<rect class="rail" x="110" y="{top + 6}" width="{rail_px}" height="18" rx="4"/>'
            f'<rect class="bar" x="110" y="{top + 6}" width="{length:.1f}" height="18" rx="4"/>'
            f'<text x="{110 + rail_px + 12}" y="{top + 19}">{share}</text>'
        )
    height = line_px * len(timings)
    what = (
        f"{total:.2f} s altogether. Making these pictures costs time: the device waits for the host after every "
        "denoising step. For measurements, run without them."
    )
    return (
        f'{head}<p>{what}</p><svg viewBox="0 0 610 {height}" role="img" aria-label="Seconds per stage">'
        f"{''.join(bars)}</svg></section>"
    )
