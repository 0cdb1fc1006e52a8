"""The record `download.json`: what a checkpoint folder was filled with; and the hashes of files."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias

from ..system.files import save_bytes
from ..system.json_reader import RefusedError, checksum_of, entries, integer, read_fields, read_json, record, text

FILE_NAME = "download.json"
_FORMAT = 1
_PIECE_BYTES = 1 << 22

Progress: TypeAlias = Callable[[str, str, int, int], None]
"""`progress(stage, file, done_bytes, total_bytes)`; the stages are "hash" and "download", bytes count all files."""


@dataclass(frozen=True)
class DownloadedFile:
    """Where a file came from, and what it is.

    Attributes:
        repo: owner and name of the repository.
        path: in the repository.
        revision: commit of the repository.
        size_bytes: its size.
        sha256: its hex digest.
    """

    repo: str
    path: str
    revision: str
    size_bytes: int
    sha256: str


Record: TypeAlias = dict[str, DownloadedFile]
"""Downloaded files by their paths in the folder."""


def read_record(folder: Path) -> Record:
    """Read a folder's record.

    Returns:
        Its entries; empty where there is no record.

    Raises:
        ValueError: it is damaged.
        OSError: it cannot be read.
    """
    try:
        value = read_json(folder / FILE_NAME)
    except FileNotFoundError:
        return {}
    body, problems = read_fields(value, "", _TABLE)
    if not problems and body["checksum"] != checksum_of(value["files"]):
        problems.append("it was changed since it was written")
    if problems:
        raise RefusedError(problems)
    files: Record = body["files"]
    return files


def _read_path(path: Any, what: str) -> str:
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or "\\" in path or ":" in path:
        raise ValueError(f"{path!r} leads out of the folder")
    return str(path)


_TEXT = text(".*", "text")
_HASH = text("[0-9a-f]{64}", "64 hexadecimal digits")
_TABLE = {
    "format": integer(_FORMAT, _FORMAT),
    "files": entries(
        _read_path,
        record(DownloadedFile, repo=_TEXT, path=_TEXT, revision=_TEXT, size_bytes=integer(0, 1 << 50), sha256=_HASH),
    ),
    "checksum": _HASH,
}


def write_record(folder: Path, record: Mapping[str, DownloadedFile]) -> None:
    """Replace a folder's record in one step.

    Raises:
        OutputError: it cannot be written.
    """
    files: dict[str, Any] = {path: asdict(file) for path, file in sorted(record.items())}
    body = {"format": _FORMAT, "files": files, "checksum": checksum_of(files)}
    save_bytes(folder / FILE_NAME, (json.dumps(body, indent=1) + "\n").encode())


@dataclass(frozen=True)
class Digests:
    """Hex digests of a file: `sha256`, and `git`, the SHA-1 by which Git names its contents."""

    sha256: str
    git: str

    def matches(self, digest: str) -> bool:
        """Whether a digest of either kind belongs to this file."""
        return digest in (self.sha256, self.git)


def digest_file(path: Path, report: Callable[[int], None] | None = None) -> Digests:
    """Hash a file once, for both digests.

    Args:
        path: an existing file.
        report: called with the number of bytes read so far.

    Raises:
        OSError: it cannot be read.
    """
    sha256, done = hashlib.sha256(), 0
    with path.open("rb") as file:
        git = hashlib.sha1(b"blob %d\0" % os.fstat(file.fileno()).st_size, usedforsecurity=False)
        while piece := file.read(_PIECE_BYTES):
            sha256.update(piece)
            git.update(piece)
            done += len(piece)
            if report is not None:
                report(done)
    return Digests(sha256.hexdigest(), git.hexdigest())
