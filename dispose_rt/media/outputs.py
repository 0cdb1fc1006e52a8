"""Checks an output path before the work starts, and explains why writing failed."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from ..errors import InputError, OutputError
from ..system.files import real_path

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


def protect_inputs(output: str | os.PathLike[str], **inputs: Any) -> None:
    """Refuse to replace what is being read.

    Args:
        output: path of the file to write.
        inputs: sources of pictures by what messages call them: paths of files or folders, lists of such, or anything
            else, which is left alone.

    Raises:
        InputError: the output is an input, or lies in a folder of pictures that is one.
    """
    target = Path(output)
    for name, source in inputs.items():
        for path in _find_paths(source):
            if is_same_file(target, path):
                raise InputError(f"the output {target} is the {name} itself; give it another name")
            # unlike Path.is_dir, false for impossible names
            if os.path.isdir(path) and real_path(target).parent.resolve() == path.resolve():  # noqa: PTH112
                raise InputError(
                    f"the output {target} lies among the pictures of the {name}; write it to another folder"
                )


def is_same_file(target: Path, source: Path) -> bool:
    """Whether writing one path would replace what is read from the other."""
    try:
        return target.samefile(source)
    except (OSError, ValueError):  # one of them is not there, or its name is impossible
        return False


def _find_paths(source: Any) -> list[Path]:
    found = source if isinstance(source, (list, tuple)) else [source]
    named = [getattr(one, "filename", one) for one in found]  # of a PIL image, which reads its file late
    return [Path(one) for one in named if isinstance(one, (str, os.PathLike)) and os.fspath(one)]


def _find_output_problem(target: Path) -> str | None:
    if "\0" in os.fspath(target):  # Python's own checks report that no such file exists
        return "its name holds a null byte; choose another name"
    if target.suffix.lower() not in SUFFIXES:
        return f"its suffix is {target.suffix!r}; name it with one of {', '.join(SUFFIXES)}"
    if target.is_dir():
        return f"it is a directory; name a file in it, such as {target / 'out.mp4'}"
    if target.exists() and not target.is_file():
        return "it is a device or pipe; name a regular file"
    folder = real_path(target).parent  # of the file that is replaced where the target is a link
    if not folder.is_dir():
        return f"the folder {folder} does not exist; create it: mkdir -p {folder}"
    return _find_folder_problem(folder)


def _find_folder_problem(folder: Path) -> str | None:
    try:
        with tempfile.TemporaryFile(dir=folder):  # the only test that sees read-only file systems and quotas
            return None
    except OSError as error:
        return f"{error}; choose a folder that you may write to"
