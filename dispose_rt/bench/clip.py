"""What is animated while the clock runs: a drawn puppet, or a photo and a video."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .. import media
from ..errors import InputError
from ..puppet import Costume, Stance, dance, draw_backdrop, draw_puppet, place_joints
from ..types import U8

CLIP_FPS = 24
_NARROW = 0.6
"""Width over height below which the puppet is smaller, so that its arms stay inside the frame."""


@dataclass(frozen=True)
class Clip:
    """What is animated.

    Attributes:
        ref: the photo.
        video: the driving video.
        stride: every how many-th frame of it is used.
        description: for the record.
        sha256: of the photo and the video, whatever they are called; empty where nobody asked.
    """

    ref: media.ImageSource
    video: media.VideoSource
    stride: int
    description: str
    sha256: str = ""


def draw_clip(width: int, height: int, frames: int) -> Clip:
    """Draw a puppet's photo and another puppet's dance, both of the engines' size; every frame is used.

    Args:
        width: of the pictures in pixels.
        height: of the pictures in pixels.
        frames: of the dance, at least 1.
    """
    aspect = width / height
    stance = Stance() if aspect > _NARROW else Stance(height_unit=0.64)
    photo = draw_puppet(place_joints(stance, aspect), height, width, costume=Costume(shirt=(122, 96, 88)))
    wall = draw_backdrop(height, width, (150, 152, 160))
    joints = dance(frames, aspect, stance=stance, period=CLIP_FPS)
    video: U8 = np.stack([draw_puppet(one, height, width, background=wall) for one in joints])
    digest = hashlib.sha256(photo.tobytes())
    digest.update(video.data)
    return Clip(photo, video, 1, f"a drawn puppet, {frames} frames of {width}x{height}", digest.hexdigest())


def open_clip(ref: str, video: str, stride: int) -> Clip:
    """Look at a photo and a video before anything takes long.

    Args:
        ref: path of the photo.
        video: path of the driving video.
        stride: every how many-th frame of it is used.

    Raises:
        InputError: one of them cannot be used.
    """
    media.read_image(ref)
    media.open_video(video)
    digest = hashlib.sha256()
    try:
        for part in _parts(Path(ref), Path(video)):
            digest.update(part)
    except OSError as error:
        raise InputError(f"{ref} and {video} cannot be read to the end: {error}") from error
    return Clip(ref, video, stride, f"{ref} and {video}", digest.hexdigest())


def _parts(*sources: Path) -> Iterator[bytes]:
    """The SHA-256 of every file, those of a folder by name."""
    for source in sources:
        for path in sorted(source.iterdir()) if source.is_dir() else [source]:
            if path.is_file():
                with path.open("rb") as file:
                    yield hashlib.file_digest(file, "sha256").digest()
