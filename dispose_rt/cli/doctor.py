"""`dispose-rt doctor`: examines this machine, tries out an engine directory, and prints what to type next."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from ..errors import InputError
from ..system.terminal import escape_controls, has_terminal, write_error
from .console import Console
from .exit_codes import ExitCode
from .parser import add_debug, add_json, add_trust
from .stop_signals import StopSignals

DESCRIPTION = "Print what this machine has. With a directory: hash its files, load every network, run it once."
EPILOG = """\
examples:
  dispose-rt doctor
  dispose-rt doctor engines/576x1024
  dispose-rt doctor engines/576x1024 --load-only --json
  dispose-rt doctor engines/576x1024 --plan --memory 12GB

The exit code is 0 where all is well and 1 where something is wrong; the last line says what to type next.

--plan prints what a run would load when, the peak of every stage, and which settings fit; nothing is loaded, and no GPU
is needed. The exit code is 1 where a run does not fit on the card of --memory, or on the GPU at hand.

--json prints {"machine", "directories", "healthy", "next_step"}, with --plan {"plans"}.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add = parser.add_argument
    add("directory", nargs="?", type=Path, metavar="DIR", help="engine directory, or a folder of several")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: %(default)s)")
    add("--load-only", action="store_true", help="do not run the networks, which takes long on a CPU")
    add("--plan", action="store_true", help="print how a run of DIR would use the memory of graphics cards")
    add("--memory", metavar="12GB", help="size of the card for --plan (default: the GPU at hand, or all common sizes)")
    add_trust(parser)
    add_json(parser, "all that was found")
    add_debug(parser)


def run(options: argparse.Namespace, console: Console, stop: StopSignals) -> int:
    """Examine, then print the diagnosis."""
    if options.plan or options.memory is not None:
        return _print_plan(options, console)
    from ..doctor.diagnosis import examine
    from ..doctor.report import to_lines

    try:
        diagnosis = examine(
            options.directory,
            options.device,
            load_only=options.load_only,
            trust=options.trust,
            progress=_show_progress,
        )
    finally:
        _show_progress("")
    if options.json:
        console.print_document(asdict(diagnosis))
    else:
        console.print_lines(to_lines(diagnosis))
    return ExitCode.DONE if diagnosis.healthy else ExitCode.FAILED


def _print_plan(options: argparse.Namespace, console: Console) -> int:
    from ..device import find_gpus
    from ..doctor.memory import plan_directories, to_lines

    if options.directory is None or not options.plan:
        raise InputError("--plan needs an engine directory, and --memory needs --plan: dispose-rt doctor DIR --plan")
    gpus = find_gpus() if options.memory is None else ()
    plans = plan_directories(options.directory, options.memory, gpus)
    if options.json:
        console.print_document({"plans": [asdict(plan) for plan in plans]})
    else:
        console.print_lines(line for plan in plans for line in (*to_lines(plan), ""))
    is_asked = options.memory is not None or bool(gpus)
    fits = all(card.fits for plan in plans for card in plan.cards)
    return ExitCode.DONE if fits or not is_asked else ExitCode.FAILED


def _show_progress(text: str) -> None:
    """Show what is being done in a line that the next one replaces, where standard error is a terminal."""
    if has_terminal():
        write_error(f"\r\033[K{escape_controls(text)}")
