"""Records the finished networks of an engine directory, so that an interrupted build resumes.

`.build/` in the directory holds one JSON record per finished network, and the scratch folder and lock of a running
build.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from dispose_rt.engines.manifest import FileRecord, NetworkRecord, parse_network_record, record_file, stamp_of
from dispose_rt.errors import ManifestError
from dispose_rt.system.files import atomic_write, link_or_copy

from .plan import NetworkPlan

FOLDER = ".build"
SCRATCH, WORKER, FAILED = "scratch", "worker", "failed"
"""Folders in it: files of the network being built, temporary files of compilers, graphs that a compiler refused."""
SHARED_ABOVE_BYTES = 1 << 20
"""Smallest file worth a hard link, in bytes."""


@contextmanager
def exclusive(output: Path) -> Iterator[None]:
    """Keep other builds out of an engine directory.

    Raises:
        ManifestError: another build is writing to it.
    """
    folder = output / FOLDER
    folder.mkdir(exist_ok=True)
    lock = FileLock(folder / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ManifestError(
            f"another build is writing to {output}", remedy="Wait until it ends, or pass another --output."
        ) from None
    try:
        yield
    finally:
        lock.release()


def finished_record(output: Path, plan: NetworkPlan) -> NetworkRecord | None:
    """Return the record of a network that was built from the same ingredients and whose files are unchanged."""
    try:
        body = json.loads(_record_path(output, plan.spec.name).read_text(encoding="utf-8"))
        record = parse_network_record(body["record"])
        stamps = body["stamps"]
        if record.build_key != plan.build_key:
            return None
        # files that were touched, copied or linked since are hashed again
        intact = all(
            stamps[file.path] == _stamp(output / file.path) or record_file(output, file.path) == file
            for file in record.files
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return record if intact else None


def expected_seconds(output: Path, network: str) -> float | None:
    """Return the build time of the network when it was last built here."""
    try:
        return float(json.loads(_record_path(output, network).read_text(encoding="utf-8"))["seconds"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_record(output: Path, network: str, record: NetworkRecord, seconds: float) -> None:
    """Record a network as finished; its files are in place."""
    path = _record_path(output, network)
    path.parent.mkdir(exist_ok=True)
    body = {
        "record": record.to_json(),
        "stamps": {file.path: _stamp(output / file.path) for file in record.files},
        "seconds": round(seconds, 3),
    }
    with atomic_write(path) as file:
        file.write(json.dumps(body, indent=1).encode())


def forget_record(output: Path, network: str) -> None:
    """Mark a network as unfinished."""
    _record_path(output, network).unlink(missing_ok=True)


def reuse_sibling(plan: NetworkPlan, output: Path) -> NetworkRecord | None:
    """Reuse a network of a directory beside this one built from the same ingredients, by hard link if possible.

    Directories share networks that do not depend on their size or precision: CLIP, CMP, the pose networks and more.
    """
    for sibling in _siblings(output):
        record = finished_record(sibling, plan)
        if record is None:
            continue
        for file in record.files:
            link_or_copy(sibling / file.path, output / file.path)
        write_record(output, plan.spec.name, record, 0.0)
        return record
    return None


def share_files(output: Path, files: tuple[FileRecord, ...]) -> int:
    """Replace files by hard links to the same bytes in a directory beside this one, e.g. weights of another size.

    Returns:
        Bytes saved.
    """
    saved = 0
    for file in files:
        if file.size_bytes < SHARED_ABOVE_BYTES:
            continue
        for sibling in _siblings(output):
            same = next((one for one in _recorded_files(sibling) if _same_contents(one, file)), None)
            if same is not None and record_file(sibling, same.path) == same:
                link_or_copy(sibling / same.path, output / file.path)
                saved += file.size_bytes
                break
    return saved


def prune_files(output: Path, kept: set[str], suffixes: tuple[str, ...]) -> None:
    """Remove engine files of no network, left by a build for another backend."""
    for path in output.iterdir():
        if path.suffix in suffixes and path.name not in kept:
            path.unlink()


def clear_leftovers(output: Path) -> None:
    """Remove leftovers of a build that was killed."""
    for path in (*output.glob("*.part"), *(output / FOLDER).glob("*.part")):
        path.unlink()
    for name in (SCRATCH, WORKER, FAILED):
        shutil.rmtree(output / FOLDER / name, ignore_errors=True)


@contextmanager
def scratch_folder(output: Path) -> Iterator[Path]:
    """Make an empty folder on the same file system, and remove it afterwards."""
    folder = output / FOLDER / SCRATCH
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _siblings(output: Path) -> Iterator[Path]:
    own = output.absolute()
    for sibling in sorted(own.parent.iterdir()):
        if sibling.name != own.name and (sibling / FOLDER).is_dir():
            yield sibling


def _recorded_files(folder: Path) -> Iterator[FileRecord]:
    for path in sorted((folder / FOLDER).glob("*.json")):
        try:
            yield from parse_network_record(json.loads(path.read_text(encoding="utf-8"))["record"]).files
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue


def _same_contents(one: FileRecord, other: FileRecord) -> bool:
    return one.sha256 == other.sha256 and one.size_bytes == other.size_bytes


def _record_path(output: Path, network: str) -> Path:
    return output / FOLDER / f"{network}.json"


def _stamp(path: Path) -> list[int]:
    """Return a file's stamp as JSON stores it."""
    return list(stamp_of(path.stat()))
