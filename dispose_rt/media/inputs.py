"""Checks that every file the user names goes through before a decoder sees it."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import InputError


def find_file(source: str | os.PathLike[str], kind: str, allow_folder: bool = False) -> Path:
    """Check that a path leads to a file with something in it.

    Args:
        source: path given by the user.
        kind: what it should hold, for messages: "image" or "video".
        allow_folder: whether a directory, whatever it holds, will do as well.

    Raises:
        InputError: nothing is there, or it is a directory, no regular file, empty, or not readable.
    """
    if "://" in os.fspath(source):
        raise InputError(f"the {kind} {source} is a web address; download it and pass the file's path")
    if "\0" in os.fspath(source):
        raise InputError(f"the {kind} {source!r} has a null byte in its name; check how the path was made")
    if not os.fspath(source):
        raise InputError(f"the {kind} has an empty name, as from a variable that is not set; pass the file's path")
    path = Path(source)
    try:
        if allow_folder and path.is_dir():
            return path
        problem = _find_problem(path, kind)
    except OSError as error:
        raise InputError(f"the {kind} {path} cannot be read: {error}; check its name and permissions") from error
    if problem:
        raise InputError(f"the {kind} {path} {problem}")
    return path


def _find_problem(path: Path, kind: str) -> str | None:
    if path.is_dir():
        return f"is a directory; pass one {kind} file"
    if path.is_symlink() and not path.exists():
        return "is a link that leads nowhere, or to itself; pass the file that it should lead to"
    if not path.exists():
        return f"does not exist (seen from {Path.cwd()}); check the path's spelling"
    if not path.is_file():
        return "is not a regular file; copy what it delivers into one and pass that"
    with path.open("rb") as file:
        if not file.read(1):
            return "is empty (0 bytes); copy or download it again"
    return None
