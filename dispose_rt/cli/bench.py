"""`dispose-rt bench`: how fast the engines are on this machine."""

from __future__ import annotations

import argparse

from ..bench import command
from .console import Console
from .exit_codes import ExitCode
from .parser import add_debug, engines_from_environment
from .stop_signals import StopSignals

DESCRIPTION, EPILOG = command.DESCRIPTION, command.EPILOG


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    command.add_arguments(parser, engines_from_environment())
    add_debug(parser)


def run(options: argparse.Namespace, console: Console, stop: StopSignals) -> int:
    """Measure, then print the table, or the record for machines."""
    command.run(options, command.Terminal(console.print_lines, console.print_document, stop.event))
    return ExitCode.DONE
