"""`dispose-rt doctor`: examines this machine, tries out an engine directory, and prints what to type next."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

from ..system.terminal import escape_controls
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

The exit code is 0 where all is well and 1 where something is wrong; the last line says what to type next.

--json prints {"machine", "directories", "healthy", "next_step"}.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add = parser.add_argument
    add("directory", nargs="?", type=Path, metavar="DIR", help="engine directory, or a folder of several")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: %(default)s)")
    add("--load-only", action="store_true", help="do not run the networks, which takes long on a CPU")
    add_trust(parser)
    add_json(parser, "all that was found")
    add_debug(parser)


def run(options: argparse.Namespace, console: Console, stop: StopSignals) -> int:
    """Examine, then print the diagnosis."""
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


def _show_progress(text: str) -> None:
    """Show what is being done in a line that the next one replaces, where standard error is a terminal."""
    if sys.stderr.isatty():
        print(f"\r\033[K{escape_controls(text)}", end="", file=sys.stderr, flush=True)
