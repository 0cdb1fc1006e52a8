"""Writes a checkpoint folder with files of the published names, sizes, dtypes and layouts, and seeded values.

It is for a rehearsal of `dispose-rt build` by those who do not have the published files. The weights are
those of `random_weights`; they are drawn and written tensor by tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch

from dispose_rt.errors import OutputError
from dispose_rt.system.files import atomic_write, format_bytes, free_disk_bytes

from ..checkpoints import COMPONENTS, FILES
from .configs import configs_of, small_files
from .full_pose_networks import POSE_NETWORKS, PUBLISHED_CHANNELS
from .random_weights import draw_tensor
from .shapes import STORED_DTYPES, tensor_shapes
from .toy_weights import fixed_tensor
from .weight_writers import StoredTensor, write_archive, write_safetensors

Progress = Callable[[str, int, int], None]
"""Called with the path of a file in the folder, the bytes of values written so far, and all bytes of values."""

_CMP_STEP = 42000
_ROOM_FOR_HEADERS = 64 << 20
_TOY_CHANNELS = 8
"""Of the pose networks."""


def write_full_checkpoint(
    folder: Path, *, scale: str = "full", seed: int = 0, progress: Progress | None = None
) -> Path:
    """Write the whole checkpoint folder; the same seed gives the same files.

    Args:
        folder: created where missing; files in it are replaced, each when it is complete.
        scale: widths of the networks, see `configs.SCALES`.
        seed: of the values, 0 or more.
        progress: called for every tensor.

    Returns:
        The folder.

    Raises:
        OutputError: the disk has too little room, which is found out first, or a file cannot be written.
    """
    files: list[_WeightFile | _PoseFile] = [*_weight_files(scale), *_pose_files(scale)]
    total = sum(file.size_bytes for file in files)
    folder = Path(folder)
    _check_room(folder, total + _ROOM_FOR_HEADERS, [folder / file.path for file in files])
    done = 0

    def report(path: str, size_bytes: int) -> None:
        nonlocal done
        done += size_bytes
        if progress is not None:
            progress(path, done, total)

    try:
        for path, text in small_files(scale).items():
            with _replaced(folder / path) as file:
                file.write(text.encode())
        for one in files:
            with _replaced(folder / one.path) as file:
                one.write(file, seed, report)
    except OSError as error:
        raise OutputError(f"{folder} cannot be written: {error}; pass a folder with room for the files") from error
    return folder


@contextmanager
def _replaced(path: Path) -> Iterator[BinaryIO]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        yield file


def _check_room(folder: Path, needed: int, replaced: list[Path]) -> None:
    """Refuse a disk without room for all files; the largest of them lies beside the one that it replaces."""
    there = [path.stat().st_size for path in replaced if path.is_file()]
    missing = needed - sum(there) + max(there, default=0)
    free = free_disk_bytes(folder)
    if missing > free:
        raise OutputError(
            f"the checkpoint takes {format_bytes(missing)} of disk, and {folder} has {format_bytes(free)} free; "
            "free some, or pass a folder on another disk"
        )


@dataclass(frozen=True)
class _WeightFile:
    """A file of named tensors to be written."""

    name: str
    tensors: dict[str, StoredTensor]

    @property
    def path(self) -> str:
        return FILES[self.name].paths[0]

    @property
    def size_bytes(self) -> int:
        return sum(tensor.size_bytes for tensor in self.tensors.values())

    def write(self, file: BinaryIO, seed: int, report: Callable[[str, int], None]) -> None:
        def draw(name: str) -> torch.Tensor:
            report(self.path, self.tensors[name].size_bytes)
            return draw_tensor(name, self.tensors[name].shape, STORED_DTYPES[self.name], seed)

        if self.path.endswith(".safetensors"):
            write_safetensors(file, self.tensors, draw)
        elif nested := next(part.nested for part in COMPONENTS.values() if part.file == self.name):
            write_archive(file, self.tensors, draw, nested=nested, step=_CMP_STEP)
        else:
            write_archive(file, self.tensors, draw)


def _weight_files(scale: str) -> Iterator[_WeightFile]:
    configs = configs_of(scale)
    for name, dtype in STORED_DTYPES.items():
        tensors = {}
        for tensor, shape in tensor_shapes(name, configs).items():
            fixed = fixed_tensor(tensor, shape)
            counts = fixed is not None and not fixed.is_floating_point()
            tensors[tensor] = StoredTensor(shape, torch.int64 if counts else dtype)
        yield _WeightFile(name, tensors)


@dataclass(frozen=True)
class _PoseFile:
    """A network of DWPose to be written."""

    name: str
    channels: int

    @property
    def path(self) -> str:
        return FILES[self.name].paths[0]

    @property
    def size_bytes(self) -> int:
        """Bytes of its values; about that where it is narrower than published."""
        return POSE_NETWORKS[self.name][1] * self.channels**2 // PUBLISHED_CHANNELS**2

    def write(self, file: BinaryIO, seed: int, report: Callable[[str, int], None]) -> None:
        file.write(POSE_NETWORKS[self.name][0](seed, self.channels).SerializeToString())
        report(self.path, self.size_bytes)


def _pose_files(scale: str) -> Iterator[_PoseFile]:
    for name in POSE_NETWORKS:
        yield _PoseFile(name, PUBLISHED_CHANNELS if scale == "full" else _TOY_CHANNELS)
