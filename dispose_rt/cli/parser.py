"""Parsers of arguments: no abbreviations, the nearest name for a mistyped one, and errors that the caller prints."""

from __future__ import annotations

import argparse
import difflib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from .console import DEBUG_OPTION, JSON_OPTION

Arguments = argparse.ArgumentParser | argparse._ArgumentGroup
"""What arguments can be added to."""

ENGINES_VARIABLE = "DISPOSE_RT_ENGINES"


class UsageError(Exception):
    """Arguments are unknown, malformed or missing."""

    def __init__(self, usage: str, program: str, message: str) -> None:
        super().__init__(message)
        self.usage = usage
        self.program = program


class CommandParser(argparse.ArgumentParser):
    """An argument parser that raises UsageError.

    Abbreviated options are refused: `--st` would mean another option as soon as there are two of them.
    """

    def __init__(self, **named: Any) -> None:
        named.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(**named, allow_abbrev=False)

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """Parse, naming the nearest option for an unknown one."""
        options, unknown = self.parse_known_args(args, namespace)
        if unknown:
            nearest = next((find_nearest(word, self._option_string_actions) for word in unknown if word[:1] == "-"), "")
            self.error(f"unrecognized arguments: {' '.join(unknown)}{nearest}")
        return options

    def error(self, message: str) -> NoReturn:
        """Raise UsageError instead of ending the process."""
        raise UsageError(self.format_usage(), self.prog, message)


def find_nearest(word: str, known: Iterable[str]) -> str:
    """For example "; did you mean --steps?", or nothing where no known name is near."""
    near = difflib.get_close_matches(word.partition("=")[0], list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def add_engines(parser: Arguments) -> None:
    """Add `--engines`, which may be left out where the environment names the directory."""
    default = os.environ.get(ENGINES_VARIABLE) or None
    parser.add_argument(
        "--engines",
        required=default is None,
        default=default and Path(default),
        type=Path,
        metavar="DIR",
        help=f"engine directory, or a folder of several (default: ${ENGINES_VARIABLE})",
    )


def add_directory(parser: Arguments) -> None:
    """Add an engine directory as an argument without a name."""
    default = os.environ.get(ENGINES_VARIABLE) or None
    parser.add_argument(
        "directory",
        nargs=None if default is None else "?",
        default=default and Path(default),
        type=Path,
        metavar="DIR",
        help=f"engine directory, or a folder of several (default: ${ENGINES_VARIABLE})",
    )


def add_json(parser: Arguments, what: str) -> None:
    """Add `--json`, saying what the document holds."""
    parser.add_argument(JSON_OPTION, action="store_true", help=f"print one JSON document: {what}, or the error")


def add_debug(parser: Arguments) -> None:
    """Add `--debug`."""
    parser.add_argument(DEBUG_OPTION, action="store_true", help="print log messages, and the traceback of an error")
