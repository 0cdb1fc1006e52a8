"""Checks an output path before the work starts, and explains why writing failed."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from pathlib import Path

from ..errors import OutputError

SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".gif")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def check_output_path(path: str | os.PathLike[str]) -> Path:
    """Check, before a long run, that a video can be written.

    Args:
        path: of the video; an existing file will be replaced.

    Raises:
        OutputError: the suffix is unknown, the folder does not exist or cannot be written to, or something other than a
            regular file has that name.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise OutputError(f"the output is {path!r}; pass the path of a file to write")
    target = Path(path)
    try:
        problem = _find_output_problem(target)
    except (OSError, ValueError) as error:  # a name that is too long, or holds a null byte
        problem = f"{error}; choose another name"
    if problem:
        raise OutputError(f"the output {str(target)!r} cannot be written: {problem}".replace("\n", " "))
    return target


def explain_failure(target: Path, error: BaseException) -> str:
    """Say why writing failed and what to do about it."""
    head = f"the output {target} cannot be written: {error}"
    if not target.parent.is_dir():
        return f"{head}; the folder {target.parent} is gone: create it again, or choose another one"
    if getattr(error, "errno", None) in _FULL:
        free_bytes = shutil.disk_usage(target.parent).free
        return f"{head}; {free_bytes} bytes are free in {target.parent}: make room there or choose another folder"
    return f"{head}; make room there or choose another folder"


def _find_output_problem(target: Path) -> str | None:
    if "\0" in os.fspath(target):  # Python's own checks report that no such file exists
        return "its name holds a null byte; choose another name"
    if target.suffix.lower() not in SUFFIXES:
        return f"its suffix is {target.suffix!r}; name it with one of {', '.join(SUFFIXES)}"
    if target.is_dir():
        return f"it is a directory; name a file in it, such as {target / 'out.mp4'}"
    if target.exists() and not target.is_file():
        return "it is a device or pipe; name a regular file"
    if not target.parent.is_dir():
        return f"the folder {target.parent} does not exist; create it: mkdir -p {target.parent}"
    return _find_folder_problem(target.parent)


def _find_folder_problem(folder: Path) -> str | None:
    try:
        with tempfile.TemporaryFile(dir=folder):  # the only test that sees read-only file systems and quotas
            return None
    except OSError as error:
        return f"{error}; choose a folder that you may write to"
