"""The command `dispose-rt bench`: arguments, progress, table, and the files that it writes."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ManifestError, OutputError
from ..system.files import save_bytes
from ..system.terminal import escape_controls, has_terminal, write_error

if TYPE_CHECKING:
    from ..engines.manifest import Manifest
    from .measurement import Plan

DESCRIPTION = """\
Animate a clip again and again, and print how long every stage took. Without --ref and --video a drawn puppet dances,
whom pose networks of random weights find, so that two machines with the same engines measure the same.
"""
EPILOG = """\
examples:
  dispose-rt bench engines/576x1024
  dispose-rt bench engines/576x1024 --networks --lengths 15,30,150 --json new.json --plot new.png
  dispose-rt bench engines/576x1024 --compare old.json
  dispose-rt bench engines/576x1024 --reference photo.jpg --video dance.mp4 --runs 5

Files appear under their names when they are complete: after the runs, and with --networks once more after those.
"""
STANDARD_OUTPUT = Path("-")
_REFRESH_S = 0.1


@dataclass(frozen=True)
class Terminal:
    """Where results go, and what ends a measurement.

    Attributes:
        show: prints lines for people.
        document: prints a record for machines.
        cancel: set it from another thread to end the measurement with `Cancelled`.
    """

    show: Callable[[Iterable[str]], None]
    document: Callable[[Mapping[str, Any]], None]
    cancel: threading.Event | None = None


def add_arguments(parser: argparse.ArgumentParser, engines: Path | None = None) -> None:
    """Add what `run` reads.

    Args:
        parser: of the command.
        engines: the engine directory where none is given; None insists on one.
    """
    add = parser.add_argument
    nargs = None if engines is None else "?"
    add("engines", nargs=nargs, default=engines, type=Path, metavar="ENGINES", help="engine directory")
    add("--reference", "--ref", dest="ref", metavar="IMAGE", help="photo of one person; needs --video")
    add("--video", metavar="VIDEO", help="driving video; needs --ref")
    add("--frames", type=int, metavar="N", help="driving frames of the drawn clip (default: 75 at full width, else 12)")
    add(
        "--stride", type=int, default=2, metavar="N", help="use every N-th frame of the video, see animate (default: 2)"
    )
    add("--steps", type=int, default=25, metavar="N", help="denoising steps (default: %(default)s)")
    add("--overlap", type=int, metavar="N", help="frames that tiles share (default: 6 at full width, else 2)")
    add("--runs", type=int, default=3, metavar="N", help="measured runs, after one to warm up (default: %(default)s)")
    add(
        "--lengths",
        type=_parse_lengths,
        default=(),
        metavar="N,N,...",
        help="measure drawn clips of these many frames, too, as often",
    )
    add("--networks", action="store_true", help="time every network by itself, too")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: what the engines were built for)")
    add(
        "--json",
        nargs="?",
        type=Path,
        const=STANDARD_OUTPUT,
        metavar="FILE",
        help="write the record there; without FILE, print it in place of the table",
    )
    add("--plot", type=Path, metavar="FILE.png", help="draw the record there")
    add("--trust", action="store_true", help="run native code of engines that no trusted key signed")
    add("--compare", type=Path, metavar="OLD.json", help="print ratios to an earlier record of the same work")


def _parse_lengths(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of lengths; pass for example 15,30,150") from None


def run(options: argparse.Namespace, terminal: Terminal | None = None) -> int:
    """Measure, print, and write what was asked for.

    Args:
        options: parsed by a parser with `add_arguments`.
        terminal: where results go; None takes standard output.

    Returns:
        0.

    Raises:
        DisposeError: an argument does not fit, the engines cannot be used, a run failed, or a file cannot be written.
    """
    manifest = replace(read_engines(options.engines), trusted=options.trust)
    plan = read_plan(options, manifest)
    bench(options, plan, manifest, reproducing_command(options, plan), terminal)
    return 0


def read_engines(folder: Path) -> Manifest:
    """Read the one engine directory that a path names: itself, or the only one in it.

    Raises:
        ManifestError: there is none, or several.
    """
    from ..engines.manifest import read_manifests

    manifests = read_manifests(folder)
    if len(manifests) > 1:
        commands = [f"dispose-rt bench {shlex.quote(str(one.folder))}" for one in manifests]
        raise ManifestError(f"{folder} holds several engine directories; measure one of them:", commands)
    return manifests[0]


def read_plan(options: argparse.Namespace, manifest: Manifest) -> Plan:
    """What the options ask for, completed for the engines.

    Raises:
        InputError: something does not fit (all that is known before the clip is opened is named), or there is no
            matplotlib for the plot.
    """
    from .measurement import Plan, complete_plan
    from .plot import check_matplotlib

    plan = Plan(
        ref=options.ref,
        video=options.video,
        frames=options.frames,
        stride=options.stride,
        device=options.device,
        steps=options.steps,
        overlap=options.overlap,
        runs=options.runs,
        lengths=options.lengths,
    )
    plan = complete_plan(plan, manifest.sizes)
    if options.json not in (None, STANDARD_OUTPUT):
        _check_writable(options.json, options)
    if options.plot is not None:
        if options.plot.suffix.lower() != ".png":
            raise OutputError(f"--plot is {options.plot}; pass a name that ends in .png")
        _check_writable(options.plot, options)
        check_matplotlib()
    return plan


def _check_writable(path: Path, options: argparse.Namespace) -> None:
    """Before the runs, not after them."""
    folder = path.absolute().parent
    if not folder.is_dir():
        raise OutputError(f"{path} cannot be written: there is no folder {folder}; create it")
    if path.is_dir():
        raise OutputError(f"{path} is a folder; pass the name of a file")
    if not os.access(folder, os.W_OK):
        raise OutputError(f"{path} cannot be written: {folder} may not be written to; pass another folder")
    for source in (options.ref, options.video):
        if source is not None and path.exists() and Path(source).exists() and path.samefile(source):
            raise OutputError(f"{path} is what is measured; give the output another name")


def reproducing_command(options: argparse.Namespace, plan: Plan) -> str:
    """The command that measures the same again, with nothing left to defaults that may change."""
    words = ["dispose-rt", "bench", str(options.engines)]
    if plan.video is None:
        words += ["--frames", str(plan.frames)]
    else:
        words += ["--ref", str(plan.ref), "--video", plan.video, "--stride", str(plan.stride)]
    words += ["--steps", str(plan.steps), "--overlap", str(plan.overlap), "--runs", str(plan.runs)]
    if plan.lengths:
        words += ["--lengths", ",".join(map(str, plan.lengths))]
    words += ["--networks"] if options.networks else []
    words += [] if plan.device == "auto" else ["--device", plan.device]
    return shlex.join(words)


def bench(
    options: argparse.Namespace, plan: Plan, manifest: Manifest, command: str, terminal: Terminal | None = None
) -> dict[str, Any]:
    """Measure, print, and write what was asked for; see `run`.

    Args:
        options: parsed by a parser with `add_arguments`.
        plan: see `read_plan`.
        manifest: of the engines.
        command: for the record.
        terminal: where results go; None takes standard output.

    Returns:
        The record, see `dispose_rt.bench`.

    Raises:
        DisposeError: the engines cannot be used, a run failed, or a file cannot be written.
    """
    from . import comparison, measurement, networks, table

    terminal = terminal or standard_output()
    setup = measurement.prepare(plan, manifest)
    engines = setup.describe_engines()
    earlier = None if options.compare is None else comparison.read_record(options.compare)
    if earlier is not None:  # before the runs, as far as it is known
        comparison.refuse_others(options.compare, earlier, engines, setup.describe_settings())
    show = _print_nothing if options.json == STANDARD_OUTPUT else terminal.show
    device = {"opened": setup.device, "name": setup.device_name}
    show(table.head_lines(engines, device, setup.describe_settings()))
    with _ProgressLine() as progress:
        record = {"command": command, **measurement.measure(setup, progress, terminal.cancel)}
    if earlier is not None:
        comparison.refuse_others(options.compare, earlier, engines, record["settings"])
        record["comparison"] = comparison.compare_records(options.compare, earlier, record)
    store(options, record)  # before anything that may fail: a pipe that nobody reads, a network by itself
    show(table.summary_lines(record))
    show(table.length_lines(record["lengths"]))
    if options.networks:
        with _ProgressLine() as progress:
            times = networks.time_networks(manifest, plan.device, progress=progress, cancel=terminal.cancel)
        record["networks"] = [asdict(one) for one in times]
        store(options, record)
        show(table.network_lines(record["networks"]))
    show(table.foot_lines(record))
    if earlier is not None:
        show(comparison.comparison_lines(options.compare, earlier, record))
    if options.json == STANDARD_OUTPUT:
        terminal.document(record)
    for path, what in ((options.json, "the record"), (options.plot, "a picture of it")):
        if path not in (None, STANDARD_OUTPUT):
            show([f"written    {path}: {what}"])
    return record


def store(options: argparse.Namespace, record: Mapping[str, Any]) -> None:
    """Write the record and its plot where they were asked for.

    Raises:
        OutputError: the record or the plot cannot be written there.
    """
    if options.json not in (None, STANDARD_OUTPUT):
        save_bytes(options.json, (json.dumps(record, indent=1) + "\n").encode())
    if options.plot is not None:
        from .plot import save_plot

        save_plot(options.plot, record)


def standard_output() -> Terminal:
    """Results as they come, on standard output."""

    def show(lines: Iterable[str]) -> None:
        sys.stdout.writelines(f"{line}\n" for line in lines)
        sys.stdout.flush()

    return Terminal(show, lambda record: show([json.dumps(record, indent=1)]))


def _print_nothing(lines: Iterable[str]) -> None:
    """Standard output belongs to the record."""
    del lines


class _ProgressLine:
    """One line on a terminal's standard error that is written again and again, seldom enough to cost nothing."""

    def __init__(self) -> None:
        self._live = has_terminal()
        self._next_s = 0.0

    def __enter__(self) -> _ProgressLine:
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            write_error("\r\x1b[K")

    def __call__(self, what: str, done: int, total: int | None) -> None:
        """Show what is being done, and how far it is."""
        now_s = time.perf_counter()
        if self._live and now_s >= self._next_s:
            self._next_s = now_s + _REFRESH_S
            write_error(f"\r\x1b[K{escape_controls(what)} {done}" + ("" if total is None else f"/{total}"))
