"""The result of a run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import numpy as np

from . import media
from .errors import InputError
from .types import F64, U8


@dataclass(frozen=True)
class Animation:
    """A finished animation.

    Attributes:
        frames: uint8 [frames, height, width, 3], RGB; the reference frame is dropped. [0, height, width, 3] where they
            were not kept (`keep_frames=False`).
        fps: frames per second; the average, where the time stamps are uneven.
        timings: seconds per stage, in the order of a run.
        peak_bytes: the most device memory that was in use, see `clip.plan.MemoryWatch`.
        frame_count: number of frames, kept or not.
        time_stamps: times of the frames, in seconds from the first; None where they are evenly spaced.
        audio: the file whose sound belongs to the frames; None where there is none, it was not wanted, or the frames
            are shown at another speed.
        metadata: what a saved file says about itself, see `media.VideoWriter`: that it is generated, and how. Empty
            with `provenance=False`.
        audio_start_s: time of the first frame in that file, in seconds from its first picture.
    """

    frames: U8
    fps: float
    timings: Mapping[str, float] = field(default_factory=dict)
    peak_bytes: int = 0
    frame_count: int = -1
    time_stamps: tuple[Fraction, ...] | None = None
    audio: Path | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    audio_start_s: Fraction = Fraction(0)

    def __post_init__(self) -> None:
        if self.frame_count < 0:
            object.__setattr__(self, "frame_count", len(self.frames))

    @property
    def times_s(self) -> F64:
        """Times of the frames, float64 [frames], in seconds from the first."""
        if self.time_stamps is None:
            return np.arange(self.frame_count) / self.fps
        return np.array([float(time_s) for time_s in self.time_stamps])

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write a video with the frames' time stamps and their sound; the file appears only when it is complete.

        Args:
            path: mp4, m4v, mov, mkv, webm or gif file.

        Returns:
            The path.

        Raises:
            InputError: the frames were not kept, or (OutputError) the file cannot be written there.
        """
        if len(self.frames) != self.frame_count:
            raise InputError(
                f"the {self.frame_count} frames were not kept, they are in the run's output alone; run with "
                "keep_frames=True to save them"
            )
        return media.write_video(
            path,
            self.frames,
            self.fps,
            self.audio,
            self.time_stamps,
            metadata=self.metadata,
            audio_start_s=self.audio_start_s,
        )
