"""Files that are whole or absent, room on the disk, and the folder for caches."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import InputError, OutputError

try:
    import fcntl
except ImportError:  # Windows has no such locks; there only the age of a part file says that it was left behind
    fcntl = None  # type: ignore[assignment]

STALE_AFTER_S = 60
"""A part file that changed within this time is never taken for one that was left behind, in seconds."""
_STEM_CHARACTERS = 60
"""How much of a target's name its part file repeats: four bytes each, and a file name has at most 255."""
_PART = re.compile(r"\.(.+)\.[0-9a-f]{8}\.part", re.DOTALL)


@contextmanager
def atomic_write(target: Path, *, durable: bool = False) -> Iterator[BinaryIO]:
    """Replace a file in one step: its name shows the old contents or all of the new ones, never a part of them.

    The data goes to a hidden file in the same folder, which is new (a link that lies in wait under its name is not
    followed) and locked while it is written. It is renamed when the `with` block ends, and removed when the block
    raises, whatever it raises. Only a killed process leaves it behind; see `remove_leftovers`.

    A file that was there before hands on its permissions. A link is replaced itself; see `real_path`.

    Args:
        target: path of the file. Its folder must exist.
        durable: whether the data must reach the disk before the name does. It costs a disk access, and is for files
            that took long to make.

    Yields:
        The open part file. Libraries that write by name take its `name`.

    Raises:
        OSError: the file cannot be written or renamed.
    """
    part = _new_part(target)
    file: BinaryIO | None = None
    try:  # from before the file is there, so that no Ctrl-C falls between
        file = part.open("xb")
        _try_lock(file.fileno())
        yield file
        file.flush()
        _keep_mode(target, file.fileno())
        if durable:
            os.fsync(file.fileno())
        file.close()  # Windows renames no open file
        part.replace(target)
    except BaseException as error:
        if file is not None:
            with suppress(OSError):
                file.close()
        if file is not None or not isinstance(error, FileExistsError):  # then it is someone else's
            with suppress(OSError):
                part.unlink(missing_ok=True)
        raise


def link_or_copy(source: Path, target: Path) -> None:
    """Replace a file in one step by a hard link to another, or by a copy where there are no hard links between them.

    Args:
        source: an existing file.
        target: path of the link. Its folder must exist.

    Raises:
        OSError: the file can neither be linked nor copied.
    """
    source = source.resolve(strict=True)
    with suppress(OSError):
        if os.path.samestat(source.stat(), target.lstat()):
            return  # renaming one link of a file to another does nothing, and would leave the part behind
    part = _new_part(target)
    try:
        part.hardlink_to(source)  # fails where the name is taken, by a link as well
    except OSError:  # another file system, or one without hard links
        with source.open("rb") as content, atomic_write(target) as file:
            shutil.copyfileobj(content, file)
        return
    try:
        part.replace(target)
    except BaseException:
        with suppress(OSError):
            part.unlink()
        raise


def _new_part(target: Path) -> Path:
    """A hidden name beside a file that nobody can foresee, and that `remove_leftovers` recognises."""
    return target.with_name(f".{target.name[:_STEM_CHARACTERS]}.{secrets.token_hex(4)}.part")


def real_path(target: Path) -> Path:
    """The file behind a link, whether or not it is there; any other path as it is.

    For files that a user named: what is written to a link is meant for the file behind it. In folders that others may
    have filled, links are replaced instead, so that they lead nowhere else.
    """
    return Path(os.path.realpath(target)) if target.is_symlink() else target


def _keep_mode(target: Path, descriptor: int) -> None:
    """Give a new file the permissions of the one that it replaces."""
    with suppress(OSError, AttributeError):  # none is there; or Windows, where files have no such permissions
        before = target.lstat()
        if stat.S_ISREG(before.st_mode):
            os.fchmod(descriptor, stat.S_IMODE(before.st_mode))


def save_bytes(target: Path, data: bytes) -> Path:
    """Write a file in one step; the folder is created where missing.

    Args:
        target: path of the file; an existing one is replaced.
        data: all of it.

    Returns:
        The path.

    Raises:
        OutputError: the file cannot be written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(target) as file:
            file.write(data)
    except OSError as error:
        raise OutputError(f"{target} cannot be written: {error}; pass a path in a writable folder") from error
    return target


def remove_leftovers(folder: Path, name: str | None = None) -> None:
    """Remove the part files of killed processes: those that are not locked and did not change for a minute.

    Args:
        folder: an existing directory.
        name: of the file that was to be written; None stands for all.

    Raises:
        OSError: the folder cannot be read.
    """
    for entry in os.scandir(folder):
        found = _PART.fullmatch(entry.name)
        if found and (name is None or found[1] == name[:_STEM_CHARACTERS]) and entry.is_file(follow_symlinks=False):
            with suppress(OSError):  # another user's, or another process was faster
                status = entry.stat(follow_symlinks=False)
                if time.time() - status.st_mtime > STALE_AFTER_S and _is_unlocked(entry.path):
                    Path(entry.path).unlink()


def _try_lock(descriptor: int) -> bool:
    locks: Any = fcntl
    if locks is None:
        return True
    try:
        locks.flock(descriptor, locks.LOCK_EX | locks.LOCK_NB)
    except OSError:  # held by another process, or a file system without locks
        return False
    return True


def _is_unlocked(path: str) -> bool:
    descriptor = os.open(path, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
    try:
        return _try_lock(descriptor)
    finally:
        os.close(descriptor)


def free_disk_bytes(folder: Path) -> int:
    """Free bytes of the file system that holds a folder, or would hold it."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(existing).free


def format_bytes(count: int) -> str:
    """Write a number of bytes for people, for example "3.1 GB" or "512 bytes"."""
    size, units = float(count), iter(("bytes", "KB", "MB", "GB", "TB"))
    unit = next(units)
    while size >= 1000 and unit != "TB":
        size, unit = size / 1000, next(units)
    return f"{count} bytes" if unit == "bytes" else f"{size:.1f} {unit}"


def cache_folder(name: str) -> Path:
    """Find the folder for one kind of data that can be made again; it need not exist.

    Args:
        name: the kind, for example "poses".

    Returns:
        `$XDG_CACHE_HOME/dispose-rt/NAME`, or `~/.cache/dispose-rt/NAME` where the variable is unset, empty, or not
        absolute (its specification says to ignore it then).

    Raises:
        InputError: the variable does not help, and the user has no home.
    """
    return _user_folder("XDG_CACHE_HOME", ".cache", "caches") / name


def config_folder() -> Path:
    """Find the folder for what a user has chosen and what must not be lost; it need not exist.

    Returns:
        `$XDG_CONFIG_HOME/dispose-rt`, or `~/.config/dispose-rt`; see `cache_folder`.

    Raises:
        InputError: the variable does not help, and the user has no home.
    """
    return _user_folder("XDG_CONFIG_HOME", ".config", "settings")


def _user_folder(variable: str, below_home: str, what: str) -> Path:
    base = Path(os.environ.get(variable, ""))
    if not base.is_absolute():
        try:
            base = Path.home() / below_home
        except RuntimeError as error:
            raise InputError(f"there is no home folder; set {variable} to a folder for {what}") from error
    return base / "dispose-rt"
