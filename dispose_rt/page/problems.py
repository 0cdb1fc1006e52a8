"""What a visitor reads when something goes wrong: no path of this machine, and no traceback."""

from __future__ import annotations

import logging
import re
import secrets
from collections.abc import Iterable
from pathlib import Path

from ..errors import DisposeError
from ..system.memory import is_out_of_memory

_LOG = logging.getLogger("dispose_rt")
_ABSOLUTE = re.compile(r"(?<![\w.:/~-])(?:[A-Za-z]:)?[/\\](?:[^\s/\\'\"<>|:;,]+[/\\])+([^\s/\\'\"<>|:;,]*)")
_QUOTED = re.compile(r"(['\"])(?:[A-Za-z]:)?[/\\](?:[^'\"\n/\\]+[/\\])*([^'\"\n/\\]+)\1")
_BUG = (
    "Something went wrong inside dispose-rt ({kind}, reference {reference}). That is a bug, not your input; the log of "
    "the page has more under this reference. The page goes on: change something and try again."
)


_NO_MEMORY = "The machine has too little memory for this; take a shorter video, or a larger stride."


def explain(error: Exception) -> str:
    """Return what a visitor reads of an error: our own message, lack of memory whoever found it, or a reference.

    Call it while the error is being handled, see `report_bug`. Paths are still in it.
    """
    if isinstance(error, DisposeError):
        return str(error)
    return _NO_MEMORY if is_out_of_memory(error) else report_bug(error)


def hide_paths(message: str, known: Iterable[Path] = ()) -> str:
    """Name files of this machine without the folders in which they lie.

    Args:
        message: for a visitor.
        known: paths that may stand in it; any other absolute path is found by its looks.
    """
    for path in sorted(map(str, known), key=len, reverse=True):
        message = message.replace(path, Path(path).name)
    message = _QUOTED.sub(r"\1\2\1", message)
    return _ABSOLUTE.sub(lambda found: found[1] or "(a folder)", message)


def report_bug(error: BaseException) -> str:
    """Log an error that is no fault of the visitor's, and return a message with a reference to the log.

    Call it while the error is being handled: the log's record carries the traceback, which `--debug` prints.
    """
    reference, kind = secrets.token_hex(4), type(error).__name__
    reason = " ".join(str(error).split())
    _LOG.exception("a run of the page failed, reference %s: %s: %s", reference, kind, reason)
    return _BUG.format(kind=kind, reference=reference)
