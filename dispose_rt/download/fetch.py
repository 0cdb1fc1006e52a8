"""Published checkpoints, fetched from the Hugging Face hub into the folder that `dispose-rt build` takes as --weights.

First comes a plan, made of the hub's metadata; then the files, one after the other. A file appears under its name once
it is complete and has the hash that the hub states; until then it lies in the folder `.download`.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from logging import getLogger
from pathlib import Path
from typing import Literal

from ..errors import DownloadError, InputError
from ..system.files import format_bytes, free_disk_bytes
from .errors import GateClosedError, OfflineError
from .files import Choice, Repository, WantedFile, owner_of, select_repositories
from .hub import Contents, Hub, RemoteFile
from .record import FILE_NAME, DownloadedFile, Progress, Record, digest_file, read_record, write_record

__all__ = ["Plan", "PlannedFile", "PlannedRepository", "download", "make_plan"]

_SCRATCH = ".download"
_log = getLogger("dispose_rt")

State = Literal["complete", "missing", "different"]
"""What is in the folder; a "different" file has other contents than the hub's and is replaced."""


@dataclass(frozen=True)
class PlannedFile:
    """One file of a plan.

    Attributes:
        remote: path in the repository.
        local: path in the folder.
        size_bytes: its size.
        digest: SHA-256 or Git's SHA-1 that the hub states, hex.
        state: what is in the folder.
        sha256: of a complete file.
    """

    remote: str
    local: str
    size_bytes: int
    digest: str
    state: State
    sha256: str = ""

    @property
    def needed_bytes(self) -> int:
        """Bytes still to be fetched."""
        return 0 if self.state == "complete" else self.size_bytes


@dataclass(frozen=True)
class PlannedRepository:
    """One repository of a plan: its commit, the name of its licence, its page, and the files that are needed."""

    repository: Repository
    revision: str
    licence: str
    page: str
    files: tuple[PlannedFile, ...]


@dataclass(frozen=True)
class Plan:
    """What a download will do.

    Attributes:
        folder: the checkpoint folder.
        repositories: in the order of fetching.
        free_bytes: what may be written to the folder's disk.
    """

    folder: Path
    repositories: tuple[PlannedRepository, ...]
    free_bytes: int

    @property
    def files(self) -> tuple[PlannedFile, ...]:
        return tuple(file for one in self.repositories for file in one.files)

    @property
    def total_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)

    @property
    def needed_bytes(self) -> int:
        """Bytes still to be fetched."""
        return sum(file.needed_bytes for file in self.files)


def make_plan(
    folder: str | Path,
    *,
    only: Sequence[str] = (),
    revisions: Mapping[str, str] | None = None,
    hub: Hub | None = None,
    progress: Progress | None = None,
) -> Plan:
    """Ask the hub what there is to fetch, and find out what the folder has. Fetches and writes nothing.

    Args:
        folder: checkpoint folder; need not exist.
        only: names of repositories (see files.REPOSITORIES); empty for all.
        revisions: commit, branch or tag by repository name; the main branch where none is given.
        hub: where to ask; None takes the public one, or HF_ENDPOINT.
        progress: called with the bytes of existing files that were hashed.

    Raises:
        InputError: a name is unknown.
        GateClosedError: a gated repository cannot be read; asked first, before any other is.
        OfflineError: the hub cannot be reached; the message lists what to fetch elsewhere.
        DownloadError: any other refusal of the hub, or a file that it no longer has.
    """
    folder, revisions = Path(folder), revisions or {}
    repositories = select_repositories(only)
    if unselected := [name for name in revisions if name not in {one.name for one in repositories}]:
        raise InputError(f"there is a revision for {unselected[0]!r}, which is not among what is fetched")
    if folder.exists() and not folder.is_dir():
        raise DownloadError(f"{folder} is no directory; pass a folder, which is made where there is none")
    hub = hub or Hub()
    planned = []
    for one in repositories:
        try:
            planned.append(_plan_repository(hub, one, folder, revisions.get(one.name), progress))
        except GateClosedError as error:
            others = ",".join(other.name for other in repositories if other is not one)
            also = f" Meanwhile, the others: --only {others}" if others else ""
            raise GateClosedError(f"{error}\nThen run the same command.{also}") from error
        except OfflineError as error:
            raise OfflineError(_describe_offline(error, hub, repositories, folder)) from error
    return Plan(folder, tuple(planned), free_disk_bytes(folder) + _count_leftovers(folder))


def _count_leftovers(folder: Path) -> int:
    """Bytes that a killed download left, which make room when the next one begins."""
    return sum(path.stat().st_size for path in (folder / _SCRATCH).rglob("*") if path.is_file())


def _plan_repository(
    hub: Hub, repository: Repository, folder: Path, revision: str | None, progress: Progress | None
) -> PlannedRepository:
    contents = hub.list_files(repository, revision)
    files = tuple(_plan_file(wanted, contents, repository, folder, progress) for wanted in repository.wanted)
    lacking = [file for file in files if file.state != "complete"]
    if lacking and (repository.gated or contents.gated):
        hub.check_access(repository, lacking[0].remote, contents.revision)
    return PlannedRepository(
        repository, contents.revision, contents.licence, f"{hub.endpoint}/{repository.repo}", files
    )


def _plan_file(
    wanted: WantedFile, contents: Contents, repository: Repository, folder: Path, progress: Progress | None
) -> PlannedFile:
    """The first choice of which the folder has the hub's file; else the first that the hub has."""
    offered = [(choice, contents.files[choice.remote]) for choice in wanted.choices if choice.remote in contents.files]
    if not offered:
        raise DownloadError(
            f"{repository.repo} has none of {', '.join(sorted({choice.remote for choice in wanted.choices}))} at "
            f"revision {contents.revision}. Choose an older one with --revision {repository.name}=COMMIT."
        )
    for choice, remote in offered:
        if sha256 := _hash_if_alike(folder, choice, remote, progress):
            return PlannedFile(choice.remote, choice.local, remote.size_bytes, remote.digest, "complete", sha256=sha256)
    choice, remote = offered[0]
    state: State = "different" if os.path.lexists(folder / choice.local) else "missing"
    return PlannedFile(choice.remote, choice.local, remote.size_bytes, remote.digest, state)


def _hash_if_alike(folder: Path, choice: Choice, remote: RemoteFile, progress: Progress | None) -> str:
    """SHA-256 of a file in the folder if it is the hub's; empty otherwise."""
    path = folder / choice.local
    try:
        if not path.is_file() or path.stat().st_size != remote.size_bytes:
            return ""
        report = progress or (lambda *_: None)
        found = digest_file(path, lambda done: report("hash", choice.local, done, remote.size_bytes))
    except OSError as error:
        raise DownloadError(f"{path} cannot be read: {error}") from error
    return found.sha256 if found.matches(remote.digest) else ""


def download(plan: Plan, *, hub: Hub | None = None, progress: Progress | None = None) -> Record:
    """Fetch what a plan says, and write the record (`download.json`) of everything that the plan holds.

    After an interruption of any kind make a plan again and fetch it: complete files are kept.

    Args:
        plan: from `make_plan`.
        hub: as for `make_plan`.
        progress: called with the bytes that have arrived, of all that were missing.

    Returns:
        The folder's record.

    Raises:
        DownloadError: there is too little room, the folder cannot be written, another process is downloading into it,
            the network failed, or a file has another hash than the hub states.
    """
    if plan.needed_bytes > plan.free_bytes:
        raise DownloadError(
            f"{plan.folder} has {format_bytes(plan.free_bytes)} of room, and {format_bytes(plan.needed_bytes)} are "
            "still to be fetched. Free some room, or choose another --output."
        )
    hub = hub or Hub()
    with _explain_disk(plan.folder), _sole_writer(plan.folder) as scratch:
        record, done = _read_or_begin(plan.folder), 0
        for one in plan.repositories:
            for planned in one.files:
                file = planned
                if file.state != "complete":

                    def report(arrived: int, file: PlannedFile = file, done: int = done) -> None:
                        if progress is not None:
                            progress("download", file.local, done + min(arrived, file.size_bytes), plan.needed_bytes)

                    file = _fetch(plan.folder, scratch, one, file, hub, report)
                    done += file.size_bytes
                _enter(record, one, file)
                write_record(plan.folder, record)  # file by file, so that an interruption loses nothing
    return record


def _enter(record: Record, planned: PlannedRepository, file: PlannedFile) -> None:
    """Record a file in place of others that served its purpose."""
    owner = owner_of(file.local)
    for choice in owner[1].choices if owner else ():
        record.pop(choice.local, None)
    repo = planned.repository.repo
    record[file.local] = DownloadedFile(repo, file.remote, planned.revision, file.size_bytes, file.sha256)


def _fetch(
    folder: Path,
    scratch: Path,
    planned: PlannedRepository,
    file: PlannedFile,
    hub: Hub,
    report: Callable[[int], None],
) -> PlannedFile:
    """Fetch one file, compare its hash, and give it its name."""
    target = folder / file.local
    if target.is_dir():
        raise DownloadError(f"{target} is a directory where a file belongs; remove it")
    arrived = hub.fetch(planned.repository, file.remote, planned.revision, scratch / planned.repository.name, report)
    found = digest_file(arrived)
    if not found.matches(file.digest):
        raise DownloadError(
            f"{file.remote} of {planned.repository.repo} arrived with other contents than the hub states: hash "
            f"{found.sha256 if len(file.digest) == 64 else found.git}, expected {file.digest}. It was dropped. "
            "Run the same command again; if it happens again, something between here and the hub changes files."
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    with arrived.open("rb+") as written:
        os.fsync(written.fileno())  # the name must not outlive a power cut without the contents
    arrived.replace(target)
    return replace(file, state="complete", sha256=found.sha256)


@contextmanager
def _sole_writer(folder: Path) -> Iterator[Path]:
    """Make the folder, and one in it where files arrive; keep other processes from filling it at the same time."""
    from filelock import FileLock, Timeout  # a requirement of huggingface_hub

    scratch = folder / _SCRATCH
    scratch.mkdir(parents=True, exist_ok=True)
    lock = FileLock(scratch / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise DownloadError(f"another process is downloading into {folder}; wait for it or stop it") from error
    try:
        for left in scratch.iterdir():  # by a download that was killed
            if left.is_dir():
                shutil.rmtree(left)
            elif left.name != "lock":
                left.unlink()
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)  # Windows keeps the lock, which is open
        lock.release()


@contextmanager
def _explain_disk(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = "Free some room and run the same command again." if full else "Choose an --output that you may write."
        raise DownloadError(f"{folder} cannot be written: {error}\n{remedy}") from error


def _read_or_begin(folder: Path) -> Record:
    try:
        return read_record(folder)
    except ValueError as error:
        _log.warning("%s is damaged (%s) and is written anew", folder / FILE_NAME, error)
        return {}


def _describe_offline(error: Exception, hub: Hub, repositories: Sequence[Repository], folder: Path) -> str:
    urls = [
        f"  {hub.url(one, wanted.choices[0].remote)}\n    to {wanted.choices[0].local}"
        for one in repositories
        for wanted in one.wanted
    ]
    return "\n".join(
        [
            f"{error}",
            f"Run this command on a machine with a network, copy the folder {folder} here, and compare it with "
            f"`dispose-rt download --output {folder} --check`, which needs no network.",
            "Or fetch these files by other means:",
            *urls,
        ]
    )
