"""The page itself. Importing this imports Gradio."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import gradio as gr

from .. import __version__
from ..engines.manifest import Manifest
from ..errors import Cancelled, DisposeError, InputError
from ..media import open_video, read_image
from ..settings import SETTINGS
from .bounds import KEPT_S
from .browser_copy import is_playable
from .fields import Field, list_fields, read_form
from .fragments import CONSENT, HEADER, IDLE, UNSEEN, show_footer, show_job, show_problem
from .jobs import POLL_S, Job, Jobs, JobState
from .problems import explain, hide_paths
from .style import PLAY_BOTH
from .uploads import Uploads

_SWEPT_S = 600
_HEIGHT_PX = 300
_BOXES = ("integer", "number", "person")
_QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
_LARGEST_SEED = int(min(SETTINGS["seed"].high, 2**31 - 1))  # of those that are drawn: easy to note down


def make_blocks(jobs: Jobs, engines: Path, manifests: Sequence[Manifest]) -> gr.Blocks:
    """Lay out the page and connect it with the visitors' jobs."""
    fields = list_fields([manifest.sizes for manifest in manifests])
    with gr.Blocks(title="dispose_rt", analytics_enabled=False, delete_cache=(_SWEPT_S, KEPT_S)) as page:
        gr.HTML(HEADER, padding=False)
        with gr.Row(equal_height=False):
            with gr.Column(scale=1, min_width=320):
                with gr.Row():
                    reference = _upload(
                        gr.Image,
                        "Reference picture",
                        "reference",
                        jobs.uploads,
                        sources=["upload", "clipboard"],
                        buttons=[],
                    )
                    video = _upload(gr.Video, "Driving video", "video", jobs.uploads, sources=["upload"])
                form = _make_form(fields)
            with gr.Column(scale=1, min_width=320):
                animate, cancel, *shown = _make_results()
        gr.HTML(show_footer(engines, manifests, __version__), padding=False)
        _connect_uploads(jobs, reference, video, shown[0])
        _connect_runs(jobs, animate, cancel, [reference, video, *form], shown, fields)

        async def leave(request: gr.Request) -> None:
            jobs.forget(str(request.session_hash))

        page.unload(leave)
    return page


def _make_results() -> list[Any]:
    """The buttons Animate and Cancel, then the components that `_updates` fills."""
    with gr.Row():
        animate = gr.Button("Animate", variant="primary", size="lg", elem_id="animate", scale=3)
        cancel = gr.Button("Cancel", size="lg", elem_id="cancel", interactive=False, scale=1)
    gr.HTML(f'<p class="dr-consent">{CONSENT}</p>', padding=False)
    status = gr.HTML(IDLE, elem_id="status", container=True)
    with gr.Column(visible=False, elem_id="comparison") as comparison:
        with gr.Row():
            driving = _titled(gr.Video, "Driving video", "driving", interactive=False, buttons=[])
            result = _titled(gr.Video, "Result", "result", interactive=False, buttons=[])
        with gr.Row():
            both = gr.Button("Play both", elem_id="play-both", min_width=120)
            download = gr.DownloadButton("Download the mp4", variant="primary", elem_id="download", min_width=120)
    both.click(None, js=PLAY_BOTH, **_QUIET)
    return [animate, cancel, status, comparison, driving, result, download, animate, cancel]


def _connect_uploads(jobs: Jobs, reference: Any, video: Any, status: Any) -> None:
    """Check uploads as soon as they arrive, one at a time: decoding takes memory."""
    lane: dict[str, Any] = {"concurrency_id": "checks", "concurrency_limit": 1}

    def check_picture(path: str | None) -> Any:
        return _check_upload(path, read_image)

    def check_video(request: gr.Request, path: str | None) -> Any:
        with jobs.checking(str(request.session_hash)) as cancel:
            return _check_upload(
                path, lambda path: open_video(path, cancel=cancel), lambda path: is_playable(path, cancel)
            )

    reference.upload(check_picture, reference, status, **lane, **_QUIET)
    video.upload(check_video, video, status, **lane, **_QUIET)


def _connect_runs(
    jobs: Jobs, animate: Any, cancel: Any, inputs: list[Any], shown: list[Any], fields: Sequence[Field]
) -> None:
    """Animate checks what was entered and gives the visitor a ticket, which queues for the run; Cancel ends both."""

    async def begin(request: gr.Request, picture: str | None, film: str | None, *values: Any) -> Any:
        missing = [name for name, value in (("picture", picture), ("video", film)) if not value]
        try:
            if picture is None or film is None or missing:
                raise InputError(
                    f"There is no {' and no '.join(missing)} yet. Upload it above, then press Animate again."
                )
            job = jobs.add(str(request.session_hash), Path(picture), Path(film), read_form(fields, values))
        except DisposeError as error:
            return gr.skip(), *_updates(show_problem(str(error), "Not started."))
        return job.output.name, *_updates(show_job(job), busy=True)

    async def run(request: gr.Request) -> AsyncIterator[Any]:
        before, job = "", None
        async with aclosing(jobs.animate(str(request.session_hash))) as looks:
            async for job in looks:
                html = show_job(job)
                if html != before:
                    yield _updates(html, busy=True)
                before = html
        if job is not None:
            yield _updates(show_job(job), job=job if job.state is JobState.DONE else None)

    async def stop(request: gr.Request) -> Any:
        job = jobs.cancel(str(request.session_hash))
        return _updates(IDLE if job is None else show_job(job))

    async def refuse(request: gr.Request) -> Any:
        jobs.forget(str(request.session_hash))  # the queue is full; Gradio says so
        return _updates(IDLE)

    ticket = gr.State()
    # queued, as a state's change starts nothing otherwise, and without a limit: it does not wait for runs
    animate.click(begin, inputs, [ticket, *shown], concurrency_limit=None, **_QUIET)
    running = ticket.change(
        run,
        None,
        shown,
        show_progress="minimal",  # the place in the queue
        show_progress_on=shown[0],
        stream_every=POLL_S,
        api_visibility="private",
    )
    running.failure(refuse, None, shown, queue=False, **_QUIET)
    cancel.click(stop, None, shown, cancels=[running], queue=False, **_QUIET)


def _titled(kind: Any, title: str, name: str, **named: Any) -> Any:
    """A picture or video under its title; Gradio's own label would cover a corner of it."""
    with gr.Column(min_width=150):
        gr.HTML(f'<h2 class="dr-title" id="{name}-title">{title}</h2>', padding=False)
        return kind(label=title, show_label=False, height=_HEIGHT_PX, elem_id=name, **named)


def _upload(kind: Any, title: str, name: str, uploads: Uploads, **named: Any) -> Any:
    """An upload that is passed on as it came: `media` reads more kinds than Gradio, and says what is wrong."""

    def take_path(payload: Any) -> str | None:
        try:
            return None if payload is None else str(uploads.find(payload.path))
        except InputError as error:
            raise gr.Error(str(error), print_exception=False) from error

    component = _titled(kind, title, name, **named)
    component.preprocess = take_path  # on the object: of a subclass, Gradio would write a stub file beside this one
    return component


def _make_form(fields: Sequence[Field]) -> list[Any]:
    """One component per field, in their order."""
    components: dict[str, Any] = {}
    common = [field for field in fields if field.is_common]
    with gr.Row(elem_classes="dr-form"):
        for field in common:
            if field.kind != "many":
                components[field.name] = _make_component(field)
    for field in common:
        if field.kind == "many":
            components[field.name] = _make_component(field)
    new_seed = gr.Button("New seed", size="sm", elem_id="new-seed")
    with gr.Accordion("More settings", open=False, elem_id="more"):
        for kinds, look in ((_BOXES, "dr-form"), (("one", "switch"), "dr-choices")):
            with gr.Row(elem_classes=look):
                for field in fields:
                    if not field.is_common and field.kind in kinds:
                        components[field.name] = _make_component(field)
    new_seed.click(
        lambda: secrets.randbelow(_LARGEST_SEED),
        None,
        components["seed"],
        queue=False,
        **_QUIET,
    )
    return [components[field.name] for field in fields]


def _make_component(field: Field) -> Any:
    named: dict[str, Any] = {"label": field.label, "info": field.hint, "value": field.default}
    named |= {"elem_id": field.name.replace("_", "-"), "interactive": True}
    named["min_width"] = 130 if field.is_common else 170
    if field.kind == "many":
        return gr.CheckboxGroup(choices=list(field.choices), **named)
    if field.kind == "one":
        return gr.Dropdown(choices=list(field.choices), **named)
    if field.kind == "switch":
        return gr.Checkbox(**named)
    if field.is_optional:  # a number box of Gradio's shows an empty one as 0
        return gr.Textbox(placeholder="automatic", max_lines=1, **named)
    if field.kind == "person":
        return gr.Textbox(max_lines=1, **named)
    return gr.Number(step=1 if field.kind == "integer" else 0.1, **named)


def _check_upload(
    path: str | None, read: Callable[[str], object], can_be_seen: Callable[[Path], bool] = lambda path: True
) -> Any:
    """Say what is wrong with an upload; where nothing is, the page stays as it is."""
    if path is None:
        return gr.skip()
    try:
        read(path)
        return gr.skip() if can_be_seen(Path(path)) else UNSEEN
    except Cancelled:  # the visitor has left, or gone on
        return gr.skip()
    except Exception as error:
        return show_problem(hide_paths(explain(error), (Path(path),)), "This file cannot be used.")


def _updates(html: str, *, busy: bool = False, job: Job | None = None) -> tuple[Any, ...]:
    """One update for each component that changes: see `_make_results`."""
    film, driving = (None, None) if job is None else (str(job.output), str(job.driving))
    return (
        html,
        gr.update(visible=job is not None),
        driving,
        film,
        film,
        gr.update(interactive=not busy),
        gr.update(interactive=busy),
    )
