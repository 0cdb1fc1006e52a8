"""`dispose-rt animate`: a photo and a video become another video."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DisposeError, InputError
from ..settings import CONTROLS, LARGEST, SETTINGS, PersonChoice, Setting, Settings, parse_person
from ..system.files import cache_folder
from .console import Console
from .exit_codes import ExitCode
from .parser import add_debug, add_engines, add_json, add_trust
from .stop_signals import StopSignals

if TYPE_CHECKING:
    from .. import Animation, ProgressCallback
    from ..debug import DebugPictures

POSES = "poses"
"""Name of the pose cache's folder, see `cache_folder`."""

DESCRIPTION = "Animate the person of a photo with the movement of the person of a video."
EPILOG = """\
examples:
  dispose-rt animate --engines engines --reference photo.jpg --video dance.mp4 --output out.mp4
  dispose-rt animate --engines engines --reference photo.jpg --video dance.mp4 --output draft.gif --steps 10 --stride 4
  dispose-rt animate --engines engines --reference photo.jpg --video frames/ --fps 24 --output out.webm
  dispose-rt animate --engines engines --reference photo.jpg --video dance.mp4 --output plain.mp4 --controls none
  dispose-rt animate --engines engines --reference photo.jpg --video dance.mp4 --output out.mp4 --debug-dir looked-at
  dispose-rt animate --engines engines --reference photo.jpg --video dance.mp4 --output out.mp4 --quiet --json

The output appears under its name when it is complete, and replaces what had that name; an interrupted run leaves
nothing behind, and what was there stays. The photo and the video are never overwritten.

--json prints {"output", "frames", "fps", "size": [width, height], "seconds", "stages_s", "peak_bytes", "warnings"}.
--progress json prints one JSON object per line on standard error: {"stage", "done", "total", "elapsed_s"}, where total
is null while it is not known, {"warning"} or {"error"}.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    media = parser.add_argument_group("what to make")
    add_engines(media)
    add_trust(media)
    add = media.add_argument
    add("--reference", required=True, metavar="IMAGE", help="photo of one person (PNG, JPEG, WebP, BMP, TIFF)")
    add(
        "--video",
        required=True,
        metavar="VIDEO",
        help="video whose movement is used (mp4, mov, mkv, webm, avi, gif), or a folder of pictures",
    )
    add(
        "--output",
        required=True,
        type=Path,
        metavar="OUT.mp4",
        help="video to write; a file of that name is replaced. mp4, m4v, mov, mkv (H.264), webm (VP9) or gif",
    )
    add("--no-audio", action="store_true", help="leave out the sound of the video")
    add(
        "--no-provenance",
        action="store_true",
        help="leave out of the output's metadata that it is generated, and how (see `dispose-rt inspect`)",
    )
    _add_settings(media, "output")
    _add_settings(parser.add_argument_group("settings of the method"), "method")
    run = parser.add_argument_group("how to run")
    run.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: %(default)s)")
    _add_settings(run, "run")
    kept = run.add_mutually_exclusive_group()
    kept.add_argument(
        "--pose-cache",
        type=Path,
        metavar="DIR",
        help="folder that keeps the poses found in a video for its next run (default: poses in the user's cache, "
        "~/.cache/dispose-rt)",
    )
    kept.add_argument("--no-pose-cache", action="store_true", help="keep no poses, and read none")
    run.add_argument(
        "--debug-dir", type=Path, metavar="DIR", help="write pictures of every stage there, and a page of them"
    )
    output = parser.add_argument_group("what to print")
    output.add_argument(
        "--quiet", action="store_true", help="print nothing but warnings, errors and the document of --json"
    )
    output.add_argument(
        "--progress",
        choices=("auto", "json", "none"),
        default="auto",
        help="bars with the time left, on a terminal (auto); JSON lines on standard error; or nothing",
    )
    add_json(output, "what was written and how long it took")
    add_debug(output)


def _add_settings(group: argparse._ArgumentGroup, name: str) -> None:
    """Add the options of one group of the table of settings."""
    for field, setting in SETTINGS.items():
        if setting.group != name:
            continue
        parse: dict[str, dict[str, Any]] = {
            "integer": {"type": int, "metavar": "N"},
            "number": {"type": float, "metavar": "X"},
            "many": {"type": _parse_controls, "metavar": "LIST"},
            "one": {"choices": setting.values},
            "person": {"type": _parse_person, "metavar": f"{LARGEST}|N|X,Y"},
        }
        group.add_argument(
            f"--{field.replace('_', '-')}", default=setting.default, help=_describe(setting), **parse[setting.kind]
        )


def _describe(setting: Setting) -> str:
    """A line of the help."""
    span, default = setting.describe_range(), setting.none_means or setting.default
    if setting.kind == "many":
        span, default = f"{','.join(setting.values)}, some of them, or none", ",".join(setting.default)
    notes = [*([span] if span else []), f"default: {default}"]
    return f"{setting.sentence[0].lower()}{setting.sentence[1:]} ({'; '.join(notes)})"


def _parse_controls(text: str) -> tuple[str, ...]:
    if text.strip() == "none":
        return ()
    names = tuple(name.strip() for name in text.split(","))
    unknown = [name for name in names if name not in CONTROLS]
    if unknown:
        raise argparse.ArgumentTypeError(f"unknown control {unknown[0]!r}; choose from {', '.join(CONTROLS)}, or none")
    return names


def _parse_person(text: str) -> PersonChoice:
    try:
        return parse_person("the person", text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def run(options: argparse.Namespace, console: Console, stop: StopSignals) -> int:
    """Check what can be checked in a moment, then load the engines and animate."""
    from .. import Animator
    from ..media import check_output_path, open_video, protect_inputs, read_image

    settings = {name: getattr(options, name) for name in SETTINGS}
    chosen = Settings(**settings)  # checks them
    output = check_output_path(options.output)
    reference = read_image(options.reference)
    open_video(options.video).part(chosen.start_s, chosen.duration_s)
    protect_inputs(output, reference=options.reference, video=options.video)
    pictures = _open_pictures(options.debug_dir)
    poses = _choose_pose_cache(options, console)
    timings: Mapping[str, float] = {}
    failure: BaseException | None = None
    try:
        with (
            Animator(options.engines, device=options.device, pose_cache=poses, trust=options.trust) as animator,
            stop.gently() as cancel,
        ):
            animation = animator.run(
                reference,
                options.video,
                output=output,
                audio=not options.no_audio,
                provenance=not options.no_provenance,
                keep_frames=False,
                progress=_choose_progress(options, console),
                cancel=cancel,
                observer=pictures,
                **settings,
            )
        timings = animation.timings
    except BaseException as error:
        failure = error
        raise
    finally:
        if pictures is not None:  # the page is written after a failure as well
            named = {"engines": options.engines, "reference": options.reference, "video": options.video}
            _finish_pictures(pictures, named | settings, timings, failure, console)
    _print_result(output, animation, options, console)
    return ExitCode.DONE


def _choose_pose_cache(options: argparse.Namespace, console: Console) -> Path | None:
    if options.no_pose_cache:
        return None
    if options.pose_cache is not None:
        return Path(options.pose_cache)
    try:
        return cache_folder(POSES)
    except InputError as error:
        console.warn(f"no poses are kept for the next run: {error}")
        return None


def _choose_progress(options: argparse.Namespace, console: Console) -> bool | ProgressCallback:
    if options.progress == "json":
        return console.report_ticks()
    return options.progress == "auto" and not options.quiet


def _open_pictures(folder: Path | None) -> DebugPictures | None:
    if folder is None:
        return None
    from ..debug import DebugPictures

    return DebugPictures(folder)


def _finish_pictures(
    pictures: DebugPictures,
    summary: Mapping[str, object],
    timings: Mapping[str, float],
    failure: BaseException | None,
    console: Console,
) -> None:
    """Write the page of pictures, also of a failed run, whose own error counts more than one of the page."""
    try:
        page = pictures.finish(summary, timings, failure)
    except DisposeError as error:
        if failure is None:
            raise
        console.warn(str(error))
    else:
        console.note(f"pictures of every stage: {page}")


def _print_result(output: Path, animation: Animation, options: argparse.Namespace, console: Console) -> None:
    height, width = animation.frames.shape[1:3]
    count, total_s = animation.frame_count, sum(animation.timings.values())
    if console.is_json:
        console.print_document(
            {
                "output": os.fspath(output),
                "frames": count,
                "fps": animation.fps,
                "size": [width, height],
                "seconds": round(total_s, 3),
                "stages_s": {name: round(seconds, 3) for name, seconds in animation.timings.items()},
                "peak_bytes": animation.peak_bytes,
                "warnings": console.warnings,
            }
        )
    elif not options.quiet:
        stages = ", ".join(f"{name} {seconds:.1f}" for name, seconds in animation.timings.items())
        frames = "1 frame" if count == 1 else f"{count} frames"
        console.print_lines(
            [f"{output}: {frames} of {width}x{height}, {animation.fps:g} fps, in {total_s:.1f} s ({stages})"]
        )
