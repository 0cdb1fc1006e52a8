"""Whether an engine directory's files are still the ones that were built, hashing each of them only once.

What was found intact is remembered in `.checked.json` in the directory, by size, times and inode; a file that was
touched since is hashed again. This guards against accidents: whoever may write into the directory could as well write a
manifest that fits.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shlex
import stat
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ..errors import ManifestError
from ..system.files import atomic_write
from ..system.json_reader import (
    checksum_of,
    expect_integer,
    expect_keys,
    expect_list,
    expect_object,
    expect_text,
    read_json,
)
from .manifest import CHECKED_FILE_NAME, FileRecord, Manifest, stamp_of

FILE_NAME = CHECKED_FILE_NAME
SETTLED_NS = 2_000_000_000
"""A file that changed less than this before it was hashed is not remembered: file systems count time in steps, and
another change within the same step would go unseen."""

_HASHING_THREADS = 4
"""Hashing frees the interpreter's lock; more threads than this wait for the disk."""

_Stamp = tuple[int, int, int, int]


@dataclass(frozen=True)
class Damage:
    """One file that is not what was built.

    Attributes:
        network: the network that it belongs to.
        file: what the manifest says.
        reason: what is wrong, to be read after the file's name.
        in_the_way: something that is no regular file has the name, and has to go before a build can write it.
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
        Every damaged file, in the order of the networks; none where all is well.
    """
    remembered = _Memory(manifest)
    known = {} if rehash else remembered.load()
    owners = {file: name for name, record in reversed(list(manifest.networks.items())) for file in record.files}

    def check(file: FileRecord) -> tuple[Damage | None, _Stamp | None]:
        return _check_file(manifest.folder / file.path, owners[file], file, known.get(file))

    files = sorted(owners, key=lambda file: list(manifest.networks).index(owners[file]))
    with ThreadPoolExecutor(_HASHING_THREADS) as pool:
        results = dict(zip(files, pool.map(check, files), strict=True))
    intact = {file: stamp for file, (damage, stamp) in results.items() if damage is None and stamp is not None}
    if intact != known:
        remembered.save(intact)
    return [damage for damage, _ in results.values() if damage is not None]


def check_files(manifest: Manifest) -> None:
    """Hash every file of an engine directory.

    Raises:
        ManifestError: lists every file that is missing, has another size, or other bytes.
    """
    if damages := find_damage(manifest, rehash=True):
        headline = f"the engine directory {manifest.folder} is damaged:"
        raise ManifestError(headline, [str(damage) for damage in damages], repair_advice(manifest, damages))


def repair_advice(manifest: Manifest, damages: list[Damage]) -> str:
    """The command that replaces damaged files."""
    commands = [manifest.rebuild_command()]
    if blocked := [manifest.folder / damage.file.path for damage in damages if damage.in_the_way]:
        commands.insert(0, shlex.join(["rm", "-r", *map(str, blocked)]))
    return f"Build the directory again; what is intact is kept: {' && '.join(commands)}"


def _check_file(
    path: Path, network: str, file: FileRecord, known: _Stamp | None
) -> tuple[Damage | None, _Stamp | None]:
    """Answer what is wrong with a file, or the stamp to remember it by."""
    try:
        return None, _verify_file(path, file, known)
    except FileNotFoundError:
        reason = "is a link that leads nowhere" if path.is_symlink() else "is missing"
    except OSError as error:
        reason = f"cannot be read: {error}"
    except ValueError as error:
        reason = str(error)
    in_the_way = not path.is_file() and (path.is_symlink() or path.exists())
    return Damage(network, file, reason, in_the_way), None


def _verify_file(path: Path, file: FileRecord, known: _Stamp | None) -> _Stamp | None:
    """Return the stamp to remember a file by, or None where it has not settled yet; ValueError where it is damaged."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
        raise ValueError("is no regular file")
    if status.st_size != file.size_bytes:
        raise ValueError(f"has {status.st_size} bytes, the manifest says {file.size_bytes}")
    if known == stamp_of(status):
        return known
    started_ns = time.time_ns()
    with path.open("rb") as opened:
        before = os.fstat(opened.fileno())
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
        after = os.fstat(opened.fileno())
    if digest != file.sha256:
        raise ValueError("has other contents than the manifest says")
    settled = stamp_of(before) == stamp_of(after) and after.st_ctime_ns < started_ns - SETTLED_NS
    return stamp_of(after) if settled else None


class _Memory:
    """The file that remembers which files were found intact. It only saves time: no failure of it is an error."""

    def __init__(self, manifest: Manifest) -> None:
        self._path = manifest.folder / FILE_NAME
        self._checksum = manifest.to_json()["checksum"]

    def load(self) -> dict[FileRecord, _Stamp]:
        """Files that were intact, with their stamps of then. Nothing where the manifest is another one by now."""
        try:
            return dict(self._parse(read_json(self._path)))
        except (OSError, ValueError):
            return {}

    def _parse(self, value: object) -> Iterator[tuple[FileRecord, _Stamp]]:
        body = expect_keys(value, FILE_NAME, ("manifest", "files", "checksum"))
        entries = expect_object(body["files"], "files")
        if body["manifest"] != self._checksum or body["checksum"] != checksum_of(entries):
            return
        for path, entry in entries.items():
            digest, *numbers = expect_list(entry, path)
            size, mtime, ctime, inode = (expect_integer(number, path, 0, 1 << 64) for number in numbers)
            yield FileRecord(path, size, expect_text(digest, path)), (size, mtime, ctime, inode)

    def save(self, intact: dict[FileRecord, _Stamp]) -> None:
        """Write the file in one step; a read-only directory stays as it is."""
        entries = {file.path: [file.sha256, *stamp] for file, stamp in intact.items()}
        body = {"manifest": self._checksum, "files": entries, "checksum": checksum_of(entries)}
        with contextlib.suppress(OSError), atomic_write(self._path) as file:
            file.write(json.dumps(body, indent=1).encode())
