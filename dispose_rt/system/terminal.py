"""The guard between what files, paths and foreign errors say and what a terminal shows; output that nobody may read."""

from __future__ import annotations

import io
import os
import re
import sys
from pathlib import Path

_CONTROLS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 but for tab and line feed, DEL, C1
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # direction of writing
    "\u2028\u2029\ufeff]"
)


def escape_controls(text: str) -> str:
    """Replace characters that a terminal obeys instead of showing them by the escapes of Python's strings.

    Line feeds and tabs stay.
    """
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def open_closed_streams() -> None:
    """Connect standard streams that are closed with the null device.

    Otherwise the next file that is opened gets the number of such a stream, and what a C library prints lands in it.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            os.dup2(opened, number)  # child processes inherit it, unlike the one that was opened
            if opened != number:
                os.close(opened)
            os.set_inheritable(number, True)
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115 - open until the end


def has_terminal() -> bool:
    """Whether standard error is a terminal."""
    return sys.stderr is not None and sys.stderr.isatty()


def write_error(text: str) -> None:
    """Write to standard error where that is possible: losing the log is no reason to stop."""
    try:
        if sys.stderr is not None:
            sys.stderr.write(text)
            sys.stderr.flush()
    except (OSError, ValueError):  # the disk is full, its reader has left, or it is closed
        pass


class ErrorStream(io.TextIOBase):
    """Standard error as a stream that accepts everything; see `write_error`."""

    @property
    def encoding(self) -> str:  # type: ignore[override]  # read-only here
        """The encoding of standard error."""
        return getattr(sys.stderr, "encoding", None) or "utf-8"

    def isatty(self) -> bool:
        """Whether standard error is a terminal."""
        return has_terminal()

    def writable(self) -> bool:
        """Whether text can be written; always."""
        return True

    def write(self, text: str) -> int:
        """Write a text, and flush."""
        write_error(text)
        return len(text)
