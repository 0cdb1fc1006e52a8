"""Which frames of a video are used, how fast the result shows them, and whether the sound still fits."""

from __future__ import annotations

import threading
import warnings
from dataclasses import dataclass
from pathlib import Path

from .. import media
from ..errors import InputError, InputWarning
from ..media.sound import has_sound
from ..settings import MIN_FPS, Settings

SAME_SPEED = 1e-4
"""Relative difference below which two frame rates count as one: the sound is a frame off after minutes only."""


@dataclass(frozen=True)
class Pace:
    """The frames of a run in time.

    Attributes:
        step: distance between the source frames that are used.
        source_fps: frames per second of these, at the speed of the source; an average where they are uneven.
        fps: frames per second of the result.
        is_chosen: whether the caller chose `fps`; else the time stamps of the source are kept as well.
    """

    step: int
    source_fps: float
    fps: float
    is_chosen: bool

    @classmethod
    def of(cls, video: media.Video, settings: Settings) -> Pace:
        """Work it out for a video and the settings `stride` and `fps`.

        Raises:
            InputError: the result would have fewer frames per second than can be written.
        """
        step = media.frame_step(settings.stride, video.fps)
        source_fps = video.fps / step
        if settings.fps is None and source_fps < MIN_FPS:
            raise InputError(
                f"with every {step}th frame of {video.fps:g} per second, the result would have {source_fps:g} frames "
                f"per second, less than {MIN_FPS:g}; pass a smaller stride, or fps for another speed"
            )
        return cls(step, source_fps, settings.fps or source_fps, settings.fps is not None)


def find_audio(video: media.Video, pace: Pace, warn: bool, cancel: threading.Event | None = None) -> Path | None:
    """Find the file whose sound belongs to the result: none, if the result has another speed.

    Args:
        video: the driving video.
        pace: pace of the run.
        warn: whether an InputWarning is issued for sound that is left out.
        cancel: ends the reading of the video once it is set.
    """
    if video.path is None or not pace.is_chosen:
        return video.path
    if not video.is_variable and abs(pace.fps / pace.source_fps - 1) < SAME_SPEED:
        return video.path
    if warn and has_sound(video.path, cancel):
        warnings.warn(
            f"the sound of {video.name} is left out: at fps={pace.fps:g} the result has another speed than the source, "
            f"of which {pace.source_fps:.6g} frames per second are used. Leave fps out to keep speed and sound",
            InputWarning,
            stacklevel=3,
        )
    return None
