"""Texts of the page as HTML. Everything that comes from outside is escaped."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from ..engines.manifest import Manifest
from .jobs import Job, JobState
from .stage_times import StageProgress

STAGE_LABELS = {
    "pose": "Finding the poses",
    "load": "Loading the engines",
    "motion": "Motion fields",
    "appearance": "Keypoint features",
    "conditions": "Conditions",
    "denoise": "Denoising",
    "decode": "Decoding",
}
HEADER = (
    '<header class="dr-header"><h1>dispose_rt</h1>'
    "<p>Animate the person of a picture with the movement of the person of a video.</p></header>"
)
CONSENT = "Animate nobody's likeness without that person's consent."
IDLE = '<p class="dr-idle">Choose a picture and a video, then press Animate.</p>'
UNSEEN = '<p class="dr-idle">Your browser may not show this video. It can be animated all the same: press Animate.</p>'
_SHORT_S = 1.5


def show_job(job: Job) -> str:
    """Describe a job as it is now."""
    parts = [f'<p class="dr-headline" role="status">{escape(_headline(job))}</p>']
    if job.state is JobState.FAILED:
        parts.append(f'<p class="dr-message">{escape(job.problem)}</p>')
    stages = job.stages.read()
    if any(stage.elapsed_s is not None for stage in stages):
        is_done = job.state is JobState.DONE
        parts.append(f'<ol class="dr-stages">{"".join(_show_stage(stage, is_done) for stage in stages)}</ol>')
    if job.notices:
        notices = "".join(f"<li>{escape(notice)}</li>" for notice in job.notices)
        parts.append(f'<ul class="dr-notices">{notices}</ul>')
    return f'<div class="dr-job dr-{job.state.value}">{"".join(parts)}</div>'


def show_problem(message: str, headline: str) -> str:
    """Say why something was not begun, or cannot be."""
    headline = f'<p class="dr-headline" role="status">{escape(headline)}</p>'
    return f'<div class="dr-job dr-failed">{headline}<p class="dr-message">{escape(message)}</p></div>'


def show_footer(engines: Path, manifests: Sequence[Manifest], version: str) -> str:
    """Name the version and the engines of this page."""
    kinds = ", ".join(
        f"{one.sizes.width} x {one.sizes.height} ({one.precision}, {one.backend})"
        for one in sorted(manifests, key=lambda one: (one.sizes.width / one.sizes.height, one.sizes.width))
    )
    return (
        f'<div class="dr-footer"><span>dispose_rt {escape(version)}</span>'
        f"<span>Engines: <code>{escape(engines.resolve().name)}</code></span><span>{escape(kinds)}</span></div>"
    )


def format_duration(seconds: float) -> str:
    """For example "0.4 s", "12 s", "3 min 20 s" or "2 h 5 min"."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _headline(job: Job) -> str:
    return {
        JobState.WAITING: "Waiting for its turn: one animation is made at a time.",
        JobState.RUNNING: "Animating.",
        JobState.DONE: f"Done: {job.summary}.",
        JobState.FAILED: "This did not work.",
        JobState.CANCELLED: "Cancelled. You can start another one.",
    }[job.state]


def _show_stage(stage: StageProgress, run_is_done: bool) -> str:
    label = STAGE_LABELS.get(stage.name, stage.name.capitalize())
    if stage.elapsed_s is None:
        return _stage_row("dr-todo", label, 0.0, "")
    finished = stage.is_over and (run_is_done or stage.total is None or stage.done >= stage.total)
    if finished:
        return _stage_row("dr-over", label, 1.0, format_duration(stage.elapsed_s))
    if stage.total is None:
        return _stage_row("dr-now", label, None, f"{stage.done} so far, {format_duration(stage.elapsed_s)}")
    text = f"{stage.done} of {stage.total}"
    if stage.left_s is not None and stage.left_s >= _SHORT_S:
        text += f", {format_duration(stage.left_s)} left"
    return _stage_row("dr-now", label, stage.done / max(stage.total, 1), text)


def _stage_row(kind: str, label: str, part: float | None, text: str) -> str:
    percent = None if part is None else round(100 * min(max(part, 0.0), 1.0))
    value = "" if percent is None else f' aria-valuenow="{percent}"'
    width = 100 if percent is None else percent
    unknown = " dr-unknown" if percent is None else ""
    return (
        f'<li class="{kind}"><span class="dr-stage">{escape(label)}</span>'
        f'<span class="dr-bar{unknown}" role="progressbar" aria-label="{escape(label)}" aria-valuemin="0" '
        f'aria-valuemax="100"{value}><span style="width: {width}%"></span></span>'
        f'<span class="dr-numbers">{escape(text)}</span></li>'
    )
