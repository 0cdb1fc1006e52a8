"""Published checkpoints, fetched from the Hugging Face hub into the folder that `dispose-rt build --weights` takes.

First a plan, made of the hub's metadata; then the files, one after the other. A file appears under its name when it is
complete and has the hash that the hub states; until then it grows in the folder `.download`, and an interrupted
download goes on there.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator, Mapping, Sequence
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
from .record import FILE_NAME, DownloadedFile, Progress, Record, digest_file, inspect_folder, read_record, write_record

__all__ = ["Plan", "PlannedFile", "PlannedRepository", "download", "inspect_folder", "make_plan"]

_SCRATCH = ".download"
_log = getLogger("dispose_rt")

State = Literal["complete", "partial", "missing", "different"]
"""Of a file in the folder: "partial" was interrupted, "different" has other contents than the hub's and is replaced."""


@dataclass(frozen=True)
class PlannedFile:
    """One file of a plan.

    Attributes:
        remote: path in the repository; local: path in the folder.
        size_bytes: of the whole file; partial_bytes: what an interrupted download left.
        digest: SHA-256 or Git's SHA-1 that the hub states, hex.
        state: what is there.
        sha256: of the file that is there, where it is complete.
    """

    remote: str
    local: str
    size_bytes: int
    digest: str
    state: State
    partial_bytes: int = 0
    sha256: str = ""

    @property
    def needed_bytes(self) -> int:
        """What is still to be fetched of it."""
        return 0 if self.state == "complete" else self.size_bytes - self.partial_bytes


@dataclass(frozen=True)
class PlannedRepository:
    """One repository of a plan: its commit, its licence by name, its page, and the files that are needed."""

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
        free_bytes: room on the folder's disk.
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
        """What is still to be fetched."""
        return sum(file.needed_bytes for file in self.files)


def make_plan(
    folder: str | Path,
    *,
    only: Sequence[str] = (),
    revisions: Mapping[str, str] | None = None,
    hub: Hub | None = None,
    progress: Progress | None = None,
) -> Plan:
    """Ask the hub what there is to fetch, and look what the folder has. Fetches and writes nothing.

    Args:
        folder: checkpoint folder; need not exist.
        only: names of repositories (see files.REPOSITORIES); empty for all.
        revisions: commit, branch or tag by repository name; the main branch where none is given.
        hub: where to ask; None takes the public one, or HF_ENDPOINT.
        progress: told of the bytes of existing files that were hashed.

    Raises:
        InputError: a name is unknown.
        GateClosedError: a gated repository cannot be read; asked first, before any other is.
        OfflineError: the hub cannot be reached; the message lists what to fetch elsewhere.
        DownloadError: anything else that the hub answers, or a file that it no longer has.
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
    return Plan(folder, tuple(planned), free_disk_bytes(folder))


def _plan_repository(
    hub: Hub, repository: Repository, folder: Path, revision: str | None, progress: Progress | None
) -> PlannedRepository:
    contents = hub.list_files(repository, revision)
    files = tuple(_plan_file(wanted, contents, repository, folder, progress) for wanted in repository.wanted)
    lacking = [file for file in files if file.state != "complete"]
    if lacking and (repository.gated or contents.gated):
        hub.check_access(repository, lacking[0].remote, contents.revision)
    return PlannedRepository(repository, contents.revision, contents.licence, hub.page(repository), files)


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
    try:
        partial_bytes = _part_path(folder, remote.digest).stat().st_size
    except OSError:
        partial_bytes = 0
    if partial_bytes > remote.size_bytes:  # no beginning of it
        partial_bytes = 0
    state: State = "partial" if partial_bytes else "missing"
    if not partial_bytes and os.path.lexists(folder / choice.local):
        state = "different"
    return PlannedFile(choice.remote, choice.local, remote.size_bytes, remote.digest, state, partial_bytes)


def _hash_if_alike(folder: Path, choice: Choice, remote: RemoteFile, progress: Progress | None) -> str:
    """SHA-256 of a file in the folder if it is the hub's; empty otherwise."""
    path = folder / choice.local
    try:
        if not path.is_file() or path.stat().st_size != remote.size_bytes:
            return ""
        tell = progress or (lambda *_: None)
        found = digest_file(path, lambda done: tell("hash", choice.local, done, remote.size_bytes))
    except OSError as error:
        raise DownloadError(f"{path} cannot be read: {error}") from error
    return found.sha256 if found.matches(remote.digest) else ""


def download(plan: Plan, *, hub: Hub | None = None, progress: Progress | None = None) -> Record:
    """Fetch what a plan says, and write the record (`download.json`) of everything that the plan holds.

    After an interruption of any kind make a plan again and fetch it: complete files stay, half of a file is half done.

    Args:
        plan: from `make_plan`.
        hub: as for `make_plan`.
        progress: told of the bytes that have arrived, of all that were missing.

    Returns:
        The folder's record.

    Raises:
        DownloadError: there is no room for it, the folder cannot be written, another process is at it, the network
            failed, or a file has another hash than the hub states.
    """
    if plan.needed_bytes > plan.free_bytes:
        raise DownloadError(
            f"{plan.folder} has {format_bytes(plan.free_bytes)} of room, and {format_bytes(plan.needed_bytes)} are "
            "still to be fetched. Free some room, or choose another --output."
        )
    hub = hub or Hub()
    with _explain_disk(plan.folder), _sole_writer(plan.folder):
        record = _read_or_begin(plan.folder)
        done, needed = 0, plan.needed_bytes
        for one in plan.repositories:
            for file in one.files:
                finished = file
                if file.state != "complete":
                    finished = _fetch(plan.folder, one, file, hub, _Counter(progress, file, done, needed))
                    done += file.needed_bytes
                _enter(record, one, finished)
                if file.state != "complete":
                    write_record(plan.folder, record)  # file by file: an interruption shall lose nothing
        write_record(plan.folder, record)
        for left in (plan.folder / _SCRATCH).glob("*.part"):  # of older revisions
            left.unlink()
    return record


def _enter(record: Record, planned: PlannedRepository, file: PlannedFile) -> None:
    """Record a file, in place of others that served its purpose."""
    owner = owner_of(file.local)
    for choice in owner[1].choices if owner else ():
        record.pop(choice.local, None)
    repo = planned.repository.repo
    record[file.local] = DownloadedFile(repo, file.remote, planned.revision, file.size_bytes, file.sha256)


@dataclass
class _Counter:
    """Turns bytes of one file into bytes of the whole download."""

    progress: Progress | None
    file: PlannedFile
    done: int
    needed: int

    def __call__(self, there_bytes: int) -> None:
        if self.progress is not None:
            arrived = min(max(there_bytes - self.file.partial_bytes, 0), self.file.needed_bytes)
            self.progress("download", self.file.local, self.done + arrived, self.needed)


def _fetch(folder: Path, planned: PlannedRepository, file: PlannedFile, hub: Hub, count: _Counter) -> PlannedFile:
    """Fetch one file, compare its hash, and give it its name."""
    target, part = folder / file.local, _part_path(folder, file.digest)
    if target.is_dir():
        raise DownloadError(f"{target} is a directory where a file belongs; remove it")
    if part.exists() and part.stat().st_size > file.size_bytes:
        part.unlink()
    while True:
        resumed = part.exists() and part.stat().st_size > 0
        hub.fetch(planned.repository, file.remote, planned.revision, part, file.size_bytes, count)
        found = digest_file(part)
        if found.matches(file.digest):
            break
        part.unlink()
        if not resumed:  # what was left from before may have been damaged; fresh bytes are the hub's
            raise DownloadError(
                f"{file.remote} of {planned.repository.repo} arrived with other contents than the hub states: hash "
                f"{found.sha256 if len(file.digest) == 64 else found.git}, expected {file.digest}. It was dropped. "
                "Run the same command again; if it happens again, something between here and the hub changes files."
            )
        _log.warning("%s was damaged in an interrupted download and is fetched anew", file.local)
    target.parent.mkdir(parents=True, exist_ok=True)
    with part.open("rb+") as written:
        os.fsync(written.fileno())  # the name must not outlive a power cut without the contents
    part.replace(target)
    return replace(file, state="complete", sha256=found.sha256)


def _part_path(folder: Path, digest: str) -> Path:
    """Where a file grows; named by its contents, so that nothing else is ever continued."""
    return folder / _SCRATCH / f"{digest}.part"


@contextmanager
def _sole_writer(folder: Path) -> Iterator[None]:
    """Make the folder and keep other processes from filling it at the same time."""
    from filelock import FileLock, Timeout  # huggingface_hub needs it, too

    scratch = folder / _SCRATCH
    scratch.mkdir(parents=True, exist_ok=True)
    lock_path = scratch / "lock"
    lock = FileLock(lock_path)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise DownloadError(f"another process is downloading into {folder}; wait for it or stop it") from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # Windows removes no file that is open
            lock_path.unlink()
        lock.release()
        with contextlib.suppress(OSError):  # it stays where something is left to go on with
            scratch.rmdir()


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
