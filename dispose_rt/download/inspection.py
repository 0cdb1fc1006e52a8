"""Whether a checkpoint folder has every published file, whole, and of the shapes that the networks need."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ..errors import DownloadError
from .files import WantedFile, owner_of, select_repositories
from .record import FILE_NAME, DownloadedFile, Progress, Record, digest_file, read_record


class HeaderCheck(Protocol):
    """What the exporter reads in the header of a published file.

    Attributes:
        published: the best path of the file, relative to the folder.
        path: where it was found, or where it belongs.
        networks: networks that are built from it; empty for configurations.
        problems: why no engine can be built from it, phrased to follow its name and a colon.
    """

    @property
    def published(self) -> str: ...
    @property
    def path(self) -> Path: ...
    @property
    def networks(self) -> tuple[str, ...]: ...
    @property
    def problems(self) -> tuple[str, ...]: ...


@dataclass(frozen=True)
class CheckedFile:
    """One published file.

    Attributes:
        path: relative to the folder, with "/" between its parts.
        size_bytes: its size; None where it is missing.
        whole: whether it has the size and hash of the record; None where it is missing or has no record.
        fits: whether its tensors or values are those that the networks need; None where it is missing or its header
            was not read.
        networks: networks that are built from it; empty for configurations, and where no header was read.
        problems: everything that is wrong, one line each, beginning with its path.
    """

    path: str
    size_bytes: int | None
    whole: bool | None
    fits: bool | None
    networks: tuple[str, ...]
    problems: tuple[str, ...]


@dataclass(frozen=True)
class Inspection:
    """Result of `inspect_folder`.

    Attributes:
        intact: files that match the record.
        problems: everything that is wrong, one line each.
        files: every published file.
    """

    intact: tuple[str, ...]
    problems: tuple[str, ...]
    files: tuple[CheckedFile, ...]


def inspect_folder(
    folder: Path, only: Sequence[str] = (), progress: Progress | None = None, headers: Sequence[HeaderCheck] = ()
) -> Inspection:
    """Compare a folder with its record, where it has one; needs no network.

    Args:
        folder: checkpoint folder.
        only: names of repositories (see REPOSITORIES); empty for all.
        progress: called with the bytes that were hashed.
        headers: what the exporter reads in the files' headers; empty where it is not installed.

    Raises:
        DownloadError: there is neither a record nor a published file, or the record is damaged.
        InputError: a name is unknown.
    """
    repositories = select_repositories(only)
    record = _read_record(folder)
    read = {header.published: header for header in headers}
    wanted = [(one, _located(folder, one, record, read)) for repository in repositories for one in repository.wanted]
    if not record and all(_size_of(folder / path) is None for _, path in wanted):
        raise DownloadError(
            f"{folder} has no {FILE_NAME}, which `dispose-rt download` writes and --check compares with, and none of "
            "the published files.\nRun `dispose-rt download` with that folder."
        )
    names = {one.name for one in repositories}
    chosen = {path: file for path, file in record.items() if not only or _name_of(path) in names}
    compared = _compare_with_record(folder, chosen, progress)
    files = [_judge(folder, path, compared, read.get(one.choices[0].local)) for one, path in wanted]
    known = {file.path for file in files}
    others = [f"{path} {problem}" for path, problem in compared.items() if problem and path not in known]
    return Inspection(
        intact=tuple(path for path, problem in compared.items() if not problem),
        problems=tuple([line for file in files for line in file.problems] + others),
        files=tuple(files),
    )


def _read_record(folder: Path) -> Record:
    try:
        return read_record(folder)
    except (OSError, ValueError) as error:
        raise DownloadError(
            f"{folder / FILE_NAME} cannot be used: {error}\n"
            f"Delete it and run `dispose-rt download` again: files that are complete are kept."
        ) from error


def _located(folder: Path, wanted: WantedFile, record: Record, headers: Mapping[str, HeaderCheck]) -> str:
    """Return the path of the file that a build reads, else where it was or belongs."""
    choices = [choice.local for choice in wanted.choices]
    header = headers.get(choices[0])
    if header is not None and _size_of(header.path) is not None:  # the exporter looks in further places
        return Path(os.path.relpath(header.path, folder)).as_posix()
    there = [path for path in choices if _size_of(folder / path) is not None]
    return next(iter(there or (path for path in choices if path in record)), choices[0])


def _size_of(path: Path) -> int | None:
    """Return the size of a file in bytes, None for everything else."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def _name_of(path: str) -> str:
    owner = owner_of(path)
    return owner[0].name if owner else ""


def _judge(folder: Path, path: str, compared: Mapping[str, str], header: HeaderCheck | None) -> CheckedFile:
    problem, size = compared.get(path), _size_of(folder / path)
    if problem is None and size is None:
        owner = owner_of(path)
        problem = f"was not downloaded (--only {owner[0].name} fetches it)" if owner else "is missing"
    lines = [f"{path} {problem}"] if problem else []
    if header is not None and size is not None:
        lines += [f"{path}: {line}" for line in header.problems]
    return CheckedFile(
        path=path,
        size_bytes=size,
        whole=not compared[path] if size is not None and path in compared else None,
        fits=not header.problems if size is not None and header is not None else None,
        networks=header.networks if header is not None else (),
        problems=tuple(lines),
    )


def _compare_with_record(
    folder: Path, record: Mapping[str, DownloadedFile], progress: Progress | None
) -> dict[str, str]:
    """Return what is wrong with each file of a record, "" where nothing is, phrased to follow the file's name."""
    total, done = sum(file.size_bytes for file in record.values()), 0
    found = {}
    for path, file in record.items():

        def report(count: int, path: str = path, before: int = done) -> None:
            if progress is not None:
                progress("hash", path, before + count, total)

        found[path] = _find_problem(folder / path, file, report)
        done += file.size_bytes
    return found


def _find_problem(path: Path, file: DownloadedFile, report: Callable[[int], None]) -> str:
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
