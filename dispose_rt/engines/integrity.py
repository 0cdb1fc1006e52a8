"""Whether an engine directory's files are still the ones that were built, without hashing gigabytes at every start.

A directory that was found intact is remembered in `.checked.json` inside it, as one digest of all files' sizes, times
and inodes; when any of these changes, all files are hashed again. This guards against accidents: whoever can write into
the directory could just as well write a manifest that fits. Where the files carry native code, the digest is keyed with
a secret of this user, so that the memory cannot be forged by those who can write there (see `trust`).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shlex
import stat
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import DisposeError, ManifestError
from ..system.files import save_bytes
from ..system.json_reader import read_json
from .manifest import CHECKED_FILE_NAME, FileRecord, Manifest, sha256_of, stamp_of
from .onnx_file import find_foreign_parts
from .trust import carries_code, memory_secret

SETTLED_NS = 2_000_000_000
"""A directory with a file that changed less than this before hashing is not remembered: file systems count time in
steps, and a second change within the same step would go unseen."""

_HASHING_THREADS = 4
"""Hashing releases the interpreter's lock; more threads than this wait for the disk."""


@dataclass(frozen=True)
class Damage:
    """One file that differs from what was built.

    Attributes:
        network: the network that it belongs to.
        file: what the manifest says.
        reason: what is wrong, phrased to follow the file's name.
        in_the_way: something other than a regular file has the name, and must go before a build can write it.
    """

    network: str
    file: FileRecord
    reason: str
    in_the_way: bool = False

    def __str__(self) -> str:
        return f"{self.network}: {self.file.path} {self.reason}"


def find_damage(manifest: Manifest, *, rehash: bool = False) -> list[Damage]:
    """Compare every file's presence, size and hash with the manifest.

    Args:
        manifest: the directory.
        rehash: hash every file, whatever is remembered.

    Returns:
        Every damaged file, in the order of the networks; empty where all is well.
    """
    memory = manifest.folder / CHECKED_FILE_NAME
    before = _Snapshot.take(manifest)
    if not rehash and before is not None and before.digest == _recall(memory):
        return []
    started_ns = time.time_ns()
    owners: dict[FileRecord, str] = {}
    for name, record in manifest.networks.items():
        for file in record.files:
            owners.setdefault(file, name)
    with ThreadPoolExecutor(_HASHING_THREADS) as pool:
        checked = list(pool.map(lambda owner: _check_file(manifest.folder, *owner), owners.items()))
    damages = [damage for damage in checked if damage is not None]
    damages += _find_foreign_parts(manifest, {damage.file for damage in damages})
    # the memory only saves time: no failure to write or remove it is an error
    with contextlib.suppress(DisposeError, OSError):
        if damages:
            memory.unlink(missing_ok=True)
        elif before is not None and before == _Snapshot.take(manifest) and before.is_settled(started_ns):
            save_bytes(memory, json.dumps(before.digest).encode())
    return damages


def find_foreign_parts_of(manifest: Manifest, network: str) -> list[str]:
    """What the ONNX file of a network refers to and the manifest does not list; see `onnx_file.find_foreign_parts`."""
    listed = [file.path for file in manifest.networks[network].files[1:]]
    return find_foreign_parts(manifest.engine_path(network), listed)


def _find_foreign_parts(manifest: Manifest, damaged: set[FileRecord]) -> Iterator[Damage]:
    for name, record in manifest.networks.items():
        if record.backend == "onnxruntime" and not damaged.intersection(record.files):
            with contextlib.suppress(OSError, ValueError):  # what is no ONNX file is refused when it is opened
                for reason in find_foreign_parts_of(manifest, name):
                    yield Damage(name, record.files[0], reason)


def check_files(manifest: Manifest) -> None:
    """Hash every file of an engine directory.

    Raises:
        ManifestError: lists every file that is missing, has another size, or other bytes.
    """
    if damages := find_damage(manifest, rehash=True):
        headline = f"the engine directory {manifest.folder} is damaged:"
        raise ManifestError(headline, [str(damage) for damage in damages], repair_advice(manifest, damages))


def with_stamps(manifest: Manifest) -> Manifest:
    """Return a manifest that remembers the present state of its files, for `check_unchanged`."""
    stamps = {}
    for file in (file for record in manifest.networks.values() for file in record.files):
        with contextlib.suppress(OSError):  # it has just vanished; opening it will say so
            stamps[file.path] = stamp_of((manifest.folder / file.path).stat())
    return replace(manifest, stamps=stamps)


def check_unchanged(manifest: Manifest, network: str) -> None:
    """Compare one network's files again, where they were touched since `Manifest.stamps` was taken.

    Raises:
        ManifestError: they differ from what the manifest says.
    """
    files = manifest.networks[network].files
    touched = [file for file in files if file.path in manifest.stamps and _is_touched(manifest, file)]
    if damages := [damage for file in touched if (damage := _check_file(manifest.folder, file, network))]:
        headline = f"the engine directory {manifest.folder} has changed since it was opened:"
        command = shlex.join(["dispose-rt", "doctor", str(manifest.folder)])
        remedy = f"Make a new Animator when it is complete; `{command}` tells whether it is"
        raise ManifestError(headline, [str(damage) for damage in damages], remedy)


def _is_touched(manifest: Manifest, file: FileRecord) -> bool:
    try:
        return stamp_of((manifest.folder / file.path).stat()) != manifest.stamps[file.path]
    except OSError:
        return True


def repair_advice(manifest: Manifest, damages: list[Damage]) -> str:
    """The command that replaces damaged files."""
    commands = [manifest.rebuild_command()]
    if blocked := [manifest.folder / damage.file.path for damage in damages if damage.in_the_way]:
        commands.insert(0, shlex.join(["rm", "-r", *map(str, blocked)]))
    return f"Build the directory again; what is intact is kept: {' && '.join(commands)}"


def _check_file(folder: Path, file: FileRecord, network: str) -> Damage | None:
    path = folder / file.path
    try:
        reason = _compare(path, file)
    except FileNotFoundError:
        reason = "is a link that leads nowhere" if path.is_symlink() else "is missing"
    except OSError as error:
        reason = f"cannot be read: {error}"
    in_the_way = bool(reason) and not path.is_file() and (path.is_symlink() or path.exists())
    return Damage(network, file, reason, in_the_way) if reason else None


def _compare(path: Path, file: FileRecord) -> str:
    """Return what is wrong with a file, or nothing."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
        return "is no regular file"
    if status.st_size != file.size_bytes:
        return f"has {status.st_size} bytes, the manifest says {file.size_bytes}"
    return "" if sha256_of(path) == file.sha256 else "has other contents than the manifest says"


@dataclass(frozen=True)
class _Snapshot:
    """State of a directory's files: a digest that changes with any of them, and the time of the latest change."""

    digest: str
    changed_ns: int

    @classmethod
    def take(cls, manifest: Manifest) -> _Snapshot | None:
        """Look at all files. None where one is missing, or where what is remembered could be forged."""
        names = sorted({file.path for record in manifest.networks.values() for file in record.files})
        try:
            statuses = [(manifest.folder / name).stat() for name in names]
        except OSError:
            return None
        state = [manifest.to_json()["checksum"], names, list(map(stamp_of, statuses))]
        secret = memory_secret() if carries_code(manifest) else b""
        if secret is None:
            return None  # nothing that others could not forge: hash the files every time
        digest = hashlib.blake2b(json.dumps(state).encode(), key=secret, digest_size=32).hexdigest()
        return cls(digest, max((status.st_ctime_ns for status in statuses), default=0))

    def is_settled(self, now_ns: int) -> bool:
        """Whether the last change is old enough that a further one would show."""
        return self.changed_ns < now_ns - SETTLED_NS


def _recall(memory: Path) -> object:
    """Return what was remembered, or None where that cannot be read."""
    try:
        return read_json(memory)
    except (OSError, ValueError):
        return None
