"""The page's private folder, locked while its page lives, so that the next page can remove what a killed one left."""

from __future__ import annotations

import logging
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PREFIX = "dispose-rt-page-"
_LOCK = "lock"
_LOG = logging.getLogger("dispose_rt")


@contextmanager
def private_folder() -> Iterator[Path]:
    """Make a folder that only this user can read, and remove it in the end; remove those of dead pages first."""
    from filelock import FileLock  # a requirement of Gradio's

    clear_dead_folders()
    folder = Path(tempfile.mkdtemp(prefix=PREFIX)).resolve()
    lock = FileLock(folder / _LOCK)
    lock.acquire(blocking=False)
    try:
        yield folder
    finally:
        _remove_contents(folder)
        lock.release()
        _remove_rest(folder)


def clear_dead_folders() -> None:
    """Remove this user's folders whose page has ended without removing them, for example because it was killed."""
    from filelock import FileLock, Timeout

    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        if not _is_private_folder(folder):
            continue
        lock = FileLock(folder / _LOCK)
        try:
            lock.acquire(blocking=False)
        except (Timeout, OSError):
            continue  # its page lives
        _remove_contents(folder)
        lock.release()
        _remove_rest(folder)
        _LOG.info("removed %s, which a page that was killed had left", folder)


def _is_private_folder(folder: Path) -> bool:
    """Whether `private_folder` of this user has made it: a folder without a lock is none, or is just being made."""
    try:
        made, lock = os.lstat(folder), os.lstat(folder / _LOCK)
    except OSError:
        return False
    if not stat.S_ISDIR(made.st_mode) or not stat.S_ISREG(lock.st_mode):
        return False
    return os.name == "nt" or (made.st_uid == os.getuid() and not made.st_mode & 0o077)


def _remove_contents(folder: Path) -> None:
    """Remove everything but the lock, so that a removal that is broken off can be finished by the next page."""
    with suppress(OSError):
        for path in folder.iterdir():
            if path.name == _LOCK:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _remove_rest(folder: Path) -> None:
    with suppress(OSError):
        (folder / _LOCK).unlink(missing_ok=True)
        folder.rmdir()
