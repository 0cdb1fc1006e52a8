"""Where a video goes: checks before the work starts, and a file that appears under its name only when it is whole."""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from ..errors import OutputError

try:
    import fcntl
except ImportError:  # Windows: nothing tells there which part files are still being written
    fcntl = None  # type: ignore[assignment]

SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".gif")
STALE_AFTER_S = 60
"""A part file that changed within this time is never taken for one that was left behind."""
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def check_output_path(path: str | os.PathLike[str]) -> Path:
    """Find out before a long run whether a video could be written.

    Args:
        path: where the video shall go; an existing file will be replaced.

    Raises:
        OutputError: unknown suffix, no such folder, no right to write there, or the path leads to something that is no
            regular file.
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
    if "\0" in os.fspath(target):  # Python's own checks answer that no such file exists
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


class PartFile:
    """A file in the making: hidden, beside its target, locked while its maker lives.

    A process that is killed cannot remove its part file. The next one that writes to the same target does so: a part
    file that nobody holds the lock of, and that did not change for a minute, is left over.

    Args:
        target: path of the finished file.
    """

    def __init__(self, target: Path) -> None:
        self._target = target
        self._stem = target.stem[:100]  # a name has at most 255 bytes
        self.path = target.with_name(f".{self._stem}.{secrets.token_hex(4)}.part{target.suffix}")
        self._lock: int | None = None

    def create(self) -> None:
        """Make the empty file.

        Raises:
            OSError: it cannot be made.
        """
        self._remove_stale()
        self._lock = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
        _try_lock(self._lock)

    def commit(self) -> None:
        """Give the file its own name; what had it before is replaced.

        Raises:
            OSError: it cannot be renamed.
        """
        if self._lock is not None:
            os.fsync(self._lock)  # its name must not reach the disk before its bytes
        self._release()
        self.path.replace(self._target)

    def discard(self) -> None:
        """Remove the file, if it is there."""
        self._release()
        self.path.unlink(missing_ok=True)

    def _release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _remove_stale(self) -> None:
        pattern = re.compile(rf"\.{re.escape(self._stem)}\.[0-9a-f]{{8}}\.part{re.escape(self._target.suffix)}")
        for entry in os.scandir(self._target.parent):
            if pattern.fullmatch(entry.name):
                try:
                    if time.time() - entry.stat().st_mtime > STALE_AFTER_S and _is_unlocked(entry.path):
                        Path(entry.path).unlink()
                except OSError:  # somebody else's: it may stay
                    continue


def _try_lock(descriptor: int) -> bool:
    if fcntl is None:
        return False
    locks: Any = fcntl
    try:
        locks.flock(descriptor, locks.LOCK_EX | locks.LOCK_NB)
    except OSError:  # held by another process, or a file system without locks
        return False
    return True


def _is_unlocked(path: str) -> bool:
    descriptor = os.open(path, os.O_RDWR)
    try:
        return _try_lock(descriptor)
    finally:
        os.close(descriptor)
