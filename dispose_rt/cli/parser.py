"""The argument parser: no abbreviations, a suggestion for a mistyped name, and errors that the caller prints."""

from __future__ import annotations

import argparse
import difflib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from .console import DEBUG_OPTION, JSON_OPTION

Arguments = argparse.ArgumentParser | argparse._ArgumentGroup
"""A parser or a group of its arguments."""

ENGINES_VARIABLE = "DISPOSE_RT_ENGINES"


class UsageError(Exception):
    """Arguments are unknown, malformed or missing."""

    def __init__(self, usage: str, program: str, message: str) -> None:
        super().__init__(message)
        self.usage = usage
        self.program = program


class CommandParser(argparse.ArgumentParser):
    """An argument parser that raises UsageError, and accepts no abbreviated options.

    `--st` would become ambiguous with the next option that begins so.
    """

    def __init__(self, **named: Any) -> None:
        named.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(**named, allow_abbrev=False)

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """Parse, and suggest the nearest option for an unknown one."""
        options, unknown = self.parse_known_args(args, namespace)
        if unknown:
            nearest = next((find_nearest(word, self._option_string_actions) for word in unknown if word[:1] == "-"), "")
            self.error(f"unrecognized arguments: {' '.join(unknown)}{nearest}")
        return options

    def error(self, message: str) -> NoReturn:
        """Raise UsageError instead of ending the process."""
        raise UsageError(self.format_usage(), self.prog, message)


def find_nearest(word: str, known: Iterable[str]) -> str:
    """Return, for example, "; did you mean --steps?", or "" where no known name is near."""
    near = difflib.get_close_matches(word.partition("=")[0], list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def add_engines(parser: Arguments) -> None:
    """Add `--engines`, which is optional where the environment names the directory."""
    _add_directory(parser, "--engines", required=engines_from_environment() is None)


def add_directory(parser: Arguments, alternative: str = "") -> None:
    """Add an engine directory as a positional argument, optional where the environment names one.

    Args:
        parser: gets the argument.
        alternative: what else may be given, for the help.
    """
    nargs = None if engines_from_environment() is None else "?"
    _add_directory(parser, "directory", alternative, nargs=nargs)


def _add_directory(parser: Arguments, name: str, alternative: str = "", **options: Any) -> None:
    help_text = f"engine directory, or a folder of several{alternative} (default: ${ENGINES_VARIABLE})"
    parser.add_argument(name, type=Path, default=engines_from_environment(), metavar="DIR", help=help_text, **options)


def engines_from_environment() -> Path | None:
    """The engine directory that the environment names, if any."""
    text = os.environ.get(ENGINES_VARIABLE)
    return Path(text) if text else None


def add_trust(parser: Arguments) -> None:
    """Add `--trust`."""
    help_text = "run native code of engines that no trusted key signed (see `dispose-rt trust --help`)"
    parser.add_argument("--trust", action="store_true", help=help_text)


def add_json(parser: Arguments, what: str) -> None:
    """Add `--json`; `what` says what the document holds."""
    parser.add_argument(JSON_OPTION, action="store_true", help=f"print one JSON document: {what}, or the error")


def add_debug(parser: Arguments) -> None:
    """Add `--debug`."""
    parser.add_argument(DEBUG_OPTION, action="store_true", help="print log messages, and the traceback of an error")
