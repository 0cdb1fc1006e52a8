"""The table of exit codes of `dispose-rt`."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit status of a command; a command that a signal ends has 128 plus the signal's number."""

    DONE = 0
    FAILED = 1
    MISUSED = 2
    EXHAUSTED = 3
    BUG = 70
    HUNG_UP = 129
    INTERRUPTED = 130
    TERMINATED = 143


MEANINGS = {
    ExitCode.DONE: "done",
    ExitCode.FAILED: "an input, an engine directory or the output cannot be used; the message says what to do",
    ExitCode.MISUSED: "unknown or malformed arguments",
    ExitCode.EXHAUSTED: "out of memory, or the GPU was lost; the same command may work later, or on another machine",
    ExitCode.BUG: "a bug of dispose-rt; --debug shows where",
    ExitCode.HUNG_UP: "the terminal was closed (SIGHUP)",
    ExitCode.INTERRUPTED: "Ctrl-C (SIGINT)",
    ExitCode.TERMINATED: "SIGTERM",
}


def format_table() -> str:
    """The table as text, one line per code."""
    return "\n".join(f"  {code:3d}  {meaning}" for code, meaning in MEANINGS.items())
