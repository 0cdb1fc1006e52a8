"""The record `download.json`: what a checkpoint folder was filled with, and whether the files are still the same."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias

from ..errors import DownloadError
from ..system.files import save_bytes
from ..system.json_reader import RefusedError, checksum_of, entries, integer, read_fields, read_json, record, text
from .files import owner_of, select_repositories

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


@dataclass(frozen=True)
class Inspection:
    """Result of `inspect_folder`.

    Attributes:
        intact: files that match the record.
        problems: everything else, one line each.
    """

    intact: tuple[str, ...]
    problems: tuple[str, ...]


def inspect_folder(folder: Path, only: Sequence[str] = (), progress: Progress | None = None) -> Inspection:
    """Compare a folder with its record; needs no network.

    Args:
        folder: checkpoint folder.
        only: names of repositories (see REPOSITORIES); empty for all.
        progress: called with the bytes that were hashed.

    Raises:
        DownloadError: there is no record, or it is damaged.
        InputError: a name is unknown.
    """
    repositories = select_repositories(only)
    try:
        record = read_record(folder)
    except (OSError, ValueError) as error:
        raise DownloadError(
            f"{folder / FILE_NAME} cannot be used: {error}\n"
            f"Delete it and run `dispose-rt download` again: files that are complete are kept."
        ) from error
    if not record:
        raise DownloadError(
            f"{folder} has no {FILE_NAME}, which `dispose-rt download` writes and --check compares with.\n"
            "Run `dispose-rt download` with that folder: files that are complete are kept."
        )
    names = {one.name for one in repositories}
    chosen = {path: file for path, file in record.items() if not only or _name_of(path) in names}
    total, done = sum(file.size_bytes for file in chosen.values()), 0
    intact, problems = [], []
    for path, file in chosen.items():

        def report(count: int, path: str = path, before: int = done) -> None:
            if progress is not None:
                progress("hash", path, before + count, total)

        if problem := _find_problem(folder / path, file, report):
            problems.append(f"{path} {problem}")
        else:
            intact.append(path)
        done += file.size_bytes
    problems += [
        f"{wanted.choices[0].local} was not downloaded (--only {repository.name} fetches it)"
        for repository in repositories
        for wanted in repository.wanted
        if not any(choice.local in record for choice in wanted.choices)
    ]
    return Inspection(tuple(intact), tuple(problems))


def _name_of(path: str) -> str:
    owner = owner_of(path)
    return owner[0].name if owner else ""


def _find_problem(path: Path, file: DownloadedFile, report: Callable[[int], None]) -> str:
    """What is wrong with a file; empty where nothing is."""
    try:
        if not path.exists():
            return "is missing"
        if not path.is_file():
            return "is no file"
        if (size := path.stat().st_size) != file.size_bytes:
            return f"has {size} bytes, expected {file.size_bytes}"
        return "" if digest_file(path, report).sha256 == file.sha256 else "has other contents than were downloaded"
    except OSError as error:
        return f"cannot be read: {error}"
