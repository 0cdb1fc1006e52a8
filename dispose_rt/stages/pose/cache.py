"""Poses of driving videos on disk, so that people are detected only once in a video that is used repeatedly.

One file per video, frame step, and software that found the poses. Files are written under a temporary name and renamed,
so that several processes may share a folder; whatever is wrong with one, it costs a warning and a detection.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import os
import re
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...engines.manifest import Manifest
from ...errors import PerformanceWarning
from ...media import Video
from ...system.files import atomic_write, remove_leftovers
from ...types import JOINTS, Pose

LIMIT_BYTES = 512 << 20
"""About three hours of one person's poses; beyond that the least recently used files are removed."""
REVISION = 2
"""Revision of the file's layout."""

_LOG = logging.getLogger("dispose_rt")
_NETWORKS = ("person_detector", "pose_estimator")
_SOFTWARE = ("dispose-rt", "av", "numpy", "onnxruntime", "opencv-python-headless")
_SUFFIX = ".poses.npz"
_NAME = re.compile(rf"[0-9a-f]{{64}}{re.escape(_SUFFIX)}")
_FACE, _HAND = 68, 21
_PERSONS = -1
_LAYOUT: Mapping[str, tuple[type[np.generic], tuple[int, ...]]] = {
    "joints": (np.float64, (_PERSONS, JOINTS, 2)),
    "joint_scores": (np.float32, (_PERSONS, JOINTS)),
    "visible": (np.bool_, (_PERSONS, JOINTS)),
    "faces": (np.float64, (_PERSONS, _FACE, 2)),
    "face_scores": (np.float32, (_PERSONS, _FACE)),
    "hands": (np.float64, (2, _PERSONS, _HAND, 2)),
    "hand_scores": (np.float32, (2, _PERSONS, _HAND)),
    "boxes_px": (np.float64, (_PERSONS, 4)),
}
"""Dtype and shape of every array of a pose; the persons of all frames are concatenated."""


@dataclass(frozen=True)
class FilmedPoses:
    """Everyone in every used frame of a video.

    Attributes:
        poses: one per frame.
        time_stamps: when each frame is shown, in seconds from the first; None where they are evenly spaced.
    """

    poses: Sequence[Pose]
    time_stamps: tuple[Fraction, ...] | None = None


class _TooLargeError(Exception):
    """The poses of one video exceed the limit of the whole cache."""


class PoseCache:
    """A folder that remembers the poses of driving videos.

    Args:
        folder: is made when the first poses are stored.
        limit_bytes: largest size of all its files together.
    """

    def __init__(self, folder: str | os.PathLike[str], limit_bytes: int = LIMIT_BYTES) -> None:
        self.folder = Path(folder)
        self.limit_bytes = limit_bytes

    def of(self, video: Video, step: int, manifest: Manifest, device: str) -> CachedVideo | None:
        """Return the place of a video's poses; None for videos that cannot be identified.

        Args:
            video: its contents count, not its name. Hashing it takes a moment.
            step: distance between the frames that are used.
            manifest: manifest of the engine directory whose networks detect people.
            device: where they run.
        """
        digest = video.content_digest()
        if digest is None:
            return None
        return CachedVideo(self, key_of(digest, step, manifest, device, video.part_id), video, digest)

    def load(self, key: str) -> FilmedPoses | None:
        """Return what is remembered under a key; None, with a warning, where the file is not what was stored."""
        path = self._path(key)
        try:
            with path.open("rb") as file:
                poses = _parse(np.load(file, allow_pickle=False), key)
        except FileNotFoundError:
            return None
        except Exception as error:  # whatever the file holds, reading it must not end a run
            _warn(f"the remembered poses in {path} cannot be used: {error}. They are detected again")
            return None
        with suppress(OSError):  # nothing is removed from a read-only folder either
            os.utime(path)
        return poses

    def store(self, key: str, filmed: FilmedPoses) -> None:
        """Store poses, and remove the least recently used ones beyond the limit. A failure is a warning only."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            remove_leftovers(self.folder)
            with suppress(_TooLargeError), atomic_write(self._path(key)) as file:
                np.savez(file, **_pack(filmed, key))
                if file.tell() > self.limit_bytes:
                    raise _TooLargeError
            self._evict(key)
        except (OSError, OverflowError) as error:
            _warn(f"poses cannot be remembered in {self.folder}: {error}. Later runs detect them again")

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}{_SUFFIX}"

    def _evict(self, newest: str) -> None:
        """Remove files, the least recently used ones first, but for the newest."""
        found: list[tuple[float, int, Path]] = []
        for path in self.folder.iterdir():
            with suppress(FileNotFoundError):  # another process does the same
                status = path.stat()
                if _NAME.fullmatch(path.name):
                    found.append((status.st_mtime, status.st_size, path))
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total <= self.limit_bytes:
                break
            if path != self._path(newest):
                path.unlink(missing_ok=True)
                total -= size
                _LOG.debug("the remembered poses in %s made room", path)


@dataclass(frozen=True)
class CachedVideo:
    """The place of one video's poses in a cache."""

    cache: PoseCache
    key: str
    video: Video
    digest: str

    def load(self) -> FilmedPoses | None:
        """See `PoseCache.load`."""
        return self.cache.load(self.key)

    def store(self, filmed: FilmedPoses) -> None:
        """See `PoseCache.store`. A video that was written to while it was read is not remembered."""
        if self.video.content_digest() == self.digest:
            self.cache.store(self.key, filmed)


def key_of(digest: str, step: int, manifest: Manifest, device: str, part: tuple[str, str] = ("", "")) -> str:
    """SHA-256, in hexadecimal digits, of everything that determines the poses of a video, or of a part of it."""
    networks = {
        name: [manifest.networks[name].backend, *(file.sha256 for file in manifest.networks[name].files)]
        for name in _NETWORKS
    }
    kind = device.partition(":")[0]
    ingredients = [REVISION, digest, step, part, networks, kind, _own_code(), _versions()]
    return hashlib.sha256(json.dumps(ingredients, sort_keys=True).encode()).hexdigest()


@cache
def _own_code() -> str:
    """Digest of the modules that find poses: another version may find others."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


@cache
def _versions() -> dict[str, str]:
    """Versions of the packages that decode and scale frames and run the networks."""
    found = {}
    for name in _SOFTWARE:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _pack(filmed: FilmedPoses, key: str) -> dict[str, Any]:
    times = filmed.time_stamps or ()
    arrays: dict[str, Any] = {
        "key": np.array(key),
        "persons": np.array([one.persons for one in filmed.poses], np.int64),
        "times": np.array([(time.numerator, time.denominator) for time in times], np.int64).reshape(-1, 2),
    }
    for name, (dtype, shape) in _LAYOUT.items():
        parts = [getattr(one, name) for one in filmed.poses]
        arrays[name] = np.concatenate(parts, axis=shape.index(_PERSONS)).astype(dtype, copy=False)
    return arrays


def _parse(archive: Any, key: str) -> FilmedPoses:
    """Read a file; ValueError where it is not what `_pack` made under this key."""
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise ValueError("it is no archive of arrays")
    with archive:
        if set(archive.files) != {"key", "persons", "times", *_LAYOUT}:
            raise ValueError("it holds other arrays")
        members = archive.zip.infolist() if archive.zip is not None else []
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise ValueError("it is compressed")  # a few bytes could become more than fits into memory
        if str(archive["key"]) != key:
            raise ValueError("it belongs to another video, or to other software")
        persons = _expect(archive["persons"], "persons", np.int64, (-1,))
        if not len(persons) or persons.min() < 0:
            raise ValueError("it has no frames, or impossible ones")
        times = _expect(archive["times"], "times", np.int64, (-1, 2))
        total = int(persons.sum())
        arrays = {
            name: _expect(archive[name], name, dtype, tuple(total if size == _PERSONS else size for size in shape))
            for name, (dtype, shape) in _LAYOUT.items()
        }
    return FilmedPoses(_split(arrays, persons), _parse_times(times, len(persons)))


def _expect(array: NDArray[Any], name: str, dtype: type[np.generic], shape: tuple[int, ...]) -> NDArray[Any]:
    fits = array.ndim == len(shape) and all(want in (-1, size) for want, size in zip(shape, array.shape, strict=True))
    if array.dtype != dtype or not fits:
        raise ValueError(f"{name} is {array.dtype} {list(array.shape)}, expected {np.dtype(dtype)} {list(shape)}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} is not finite")
    return array


def _parse_times(times: NDArray[np.int64], frames: int) -> tuple[Fraction, ...] | None:
    if not len(times):
        return None
    if len(times) != frames or times[:, 1].min() < 1:
        raise ValueError("its time stamps are not those of its frames")
    stamps = tuple(Fraction(int(above), int(below)) for above, below in times)
    if stamps[0] != 0 or any(later <= earlier for earlier, later in pairwise(stamps)):
        raise ValueError("its time stamps do not ascend from 0")
    return stamps


def _split(arrays: Mapping[str, NDArray[Any]], persons: NDArray[np.int64]) -> list[Pose]:
    """One pose per frame."""
    stops = np.cumsum(persons)[:-1]
    axes = {name: shape.index(_PERSONS) for name, (_, shape) in _LAYOUT.items()}
    pieces = {name: np.split(arrays[name], stops, axis=axis) for name, axis in axes.items()}
    return [Pose(**{name: piece[frame].copy() for name, piece in pieces.items()}) for frame in range(len(persons))]


def _warn(message: str) -> None:
    warnings.warn(message, PerformanceWarning, stacklevel=4)
