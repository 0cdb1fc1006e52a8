"""The training set on disk: shards of puppet clips, drawn once, mapped into memory by every stage."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from .project import InputError
from .puppets import FRAMES, HEIGHT_PX, TRAINING_SEEDS, WIDTH_PX, draw_clip, draw_default_puppet

U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]

SHARD_PUPPETS = 40
GUIDE_STRIDE_PX = 4
"""Side of the pixels of a guide, in pixels of the picture."""

_ARRAYS = ("images", "poses", "joints", "guides")


@dataclass(frozen=True, eq=False)
class Shard:
    """Clips of SHARD_PUPPETS puppets with consecutive seeds.

    Attributes:
        folder: holds one `.npy` file per array.
    """

    folder: Path

    def _load(self, name: str) -> NDArray[np.generic]:
        array: NDArray[np.generic] = np.load(self.folder / f"{name}.npy", mmap_mode="r")
        return array

    @cached_property
    def images(self) -> U8:
        """uint8 [puppets, 1 + frames, height, width, 3], RGB; frame 0 is the reference."""
        return self._load("images")  # type: ignore[return-value]

    @cached_property
    def poses(self) -> U8:
        """uint8 [puppets, 1 + frames, 3, height, width], RGB, as the product draws them."""
        return self._load("poses")  # type: ignore[return-value]

    @cached_property
    def joints(self) -> F32:
        """float32 [puppets, 1 + frames, 18, 2], fractions of the frame."""
        return self._load("joints")  # type: ignore[return-value]

    @cached_property
    def guides(self) -> U8:
        """uint8 [puppets, 1 + frames, height / 4, width / 4, 3]: the same stances in the default costume."""
        return self._load("guides")  # type: ignore[return-value]


class PuppetSet:
    """Clips of the training puppets 0 .. puppets - 1, in shards.

    Args:
        folder: where the shards lie.
        puppets: how many to use, a multiple of SHARD_PUPPETS.

    Raises:
        InputError: shards are missing; the stage "data" draws them.
    """

    def __init__(self, folder: Path, puppets: int) -> None:
        check_count(puppets)
        folders = [shard_folder(folder, number) for number in range(puppets // SHARD_PUPPETS)]
        missing = [one.name for one in folders if not one.is_dir()]
        if missing:
            raise InputError(f"{folder} lacks {len(missing)} shards, {missing[0]} among them: draw the data first")
        self.puppets = puppets
        self.shard_size = SHARD_PUPPETS
        self.rows = frames_per_clip()
        self._shards = [Shard(one) for one in folders]

    def shard(self, puppet: int) -> tuple[Shard, int]:
        """The shard of a puppet, and the puppet's row in it."""
        number, row = divmod(puppet, SHARD_PUPPETS)
        return self._shards[number], row

    def gather(self, name: str, puppets: Sequence[int], frames: Sequence[int]) -> NDArray[np.generic]:
        """Stack rows of an array of `Shard`: one frame of one puppet each."""
        rows = []
        for puppet, frame in zip(puppets, frames, strict=True):
            shard, row = self.shard(puppet)
            rows.append(getattr(shard, name)[row, frame])
        return np.stack(rows)

    def __iter__(self) -> Iterator[Shard]:
        """All shards in order."""
        return iter(self._shards)


def check_count(puppets: int) -> None:
    """Raise an InputError unless that many puppets fill whole shards and have training seeds."""
    if puppets < 1 or puppets % SHARD_PUPPETS or puppets > len(TRAINING_SEEDS):
        raise InputError(f"{puppets} puppets do not fill shards of {SHARD_PUPPETS}; use a positive multiple of that")


def shard_folder(folder: Path, number: int) -> Path:
    """Where a shard lies."""
    return folder / f"puppets-{number:04d}"


def draw_shards(folder: Path, puppets: int) -> None:
    """Draw the shards that are missing. A shard appears when it is complete: drawing may be interrupted, or shared by
    several processes.

    Args:
        folder: created where missing.
        puppets: how many are wanted in all, a multiple of SHARD_PUPPETS.

    Raises:
        InputError: the count does not fill shards.
    """
    check_count(puppets)
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(puppets // SHARD_PUPPETS):
        if not shard_folder(folder, number).is_dir():
            _draw_shard(folder, number)


def _draw_shard(folder: Path, number: int) -> None:
    cv2.setNumThreads(1)
    first = number * SHARD_PUPPETS
    clips = [draw_clip(seed) for seed in range(first, first + SHARD_PUPPETS)]
    guides = np.stack([np.stack([draw_guide(joints) for joints in clip.joints]) for clip in clips])
    arrays = {name: np.stack([getattr(clip, name) for clip in clips]) for name in ("images", "poses", "joints")}
    arrays["guides"] = guides
    target = shard_folder(folder, number)
    part = target.with_name(f".{target.name}.{os.getpid()}")
    part.mkdir(exist_ok=True)
    for name in _ARRAYS:
        np.save(part / f"{name}.npy", arrays[name])
    try:
        part.rename(target)
    except OSError:  # another process was faster, with the same contents
        for name in _ARRAYS:
            (part / f"{name}.npy").unlink()
        part.rmdir()


def draw_guide(joints: F32) -> U8:
    """A stance in the default costume, averaged over pixels of 4 x 4: uint8 [height / 4, width / 4, 3]."""
    size = (WIDTH_PX // GUIDE_STRIDE_PX, HEIGHT_PX // GUIDE_STRIDE_PX)
    small: U8 = cv2.resize(draw_default_puppet(joints), size, interpolation=cv2.INTER_AREA).astype(np.uint8)
    return small


def frames_per_clip() -> int:
    """Rows of a clip: the reference and the driven frames."""
    return 1 + FRAMES
