"""Reads driving videos lazily: files, folders and iterables of pictures become uint8 [height, width, 3] RGB frames."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..settings import MAX_FPS, MIN_FPS, SETTINGS
from ..types import U8
from .animated_webp import is_animated_webp, probe_webp, read_webp_frames, read_webp_stamps, read_webp_start
from .containers import probe_file, read_frames, read_stamps, read_start
from .folders import digest_file, digest_pictures, list_pictures
from .images import ImageSource, PilImage, read_image
from .inputs import find_file
from .parts import Choice, Clock, Part
from .time_stamps import Stamps, time_frames

DEFAULT_FPS = 24.0
"""Frame rate of an iterable whose caller gave none: the rate at which `frame_step` uses every `stride`-th frame."""

VideoSource: TypeAlias = "str | os.PathLike[str] | NDArray[np.uint8] | Iterable[ImageSource]"
"""The path of a video file or of a folder of pictures, a uint8 array [frames, height, width, 3], or any iterable of
what `read_image` takes."""

NumberedFrames: TypeAlias = Iterator[tuple[int, Fraction | None, U8]]
"""Number, time stamp in seconds if there is one, and pixels of every frame in use."""


@dataclass(frozen=True)
class Video:
    """A video that can be read, not yet decoded.

    Attributes:
        name: what messages call it.
        fps: frames per second of the source.
        width, height: size of every frame in pixels, upright.
        frame_count: how many frames to expect, as far as the source tells; None if it does not.
        path: the video file; None for folders and iterables.
        first_frame: number of the first frame in the source; above 0 for a part of it.
        start_s: time of that frame, in seconds from the first frame of the source.
    """

    name: str
    fps: float
    width: int
    height: int
    _read: Callable[[Choice], NumberedFrames] = field(repr=False)
    frame_count: int | None = None
    path: Path | None = None
    _read_stamps: Callable[[], Stamps] | None = field(default=None, repr=False)
    _digest: Callable[[], str] | None = field(default=None, repr=False)
    _read_zero: Callable[[], Fraction | None] | None = field(default=None, repr=False)
    _part: Part | None = field(default=None, repr=False)
    first_frame: int = 0
    start_s: Fraction = Fraction(0)

    def part(self, start_s: float = 0.0, duration_s: float | None = None) -> Video:
        """Choose a part of the video by time; the file's time stamps count, where it has any.

        Reading it decodes what lies before it as well. Frames are numbered, and their times count, from its first one.

        Args:
            start_s: seconds from the first frame of the video, >= 0; the part begins with the first frame that is shown
                then or later.
            duration_s: frames that are shown so many seconds after `start_s`, or later, do not belong to it, > 0; None
                takes all frames to the end.

        Returns:
            The part; the video itself where that is all of it.

        Raises:
            InputError: a number is out of range; the video ends before `start_s`, or shows no frame in that time. Of a
                generator, that is known when it was read.
            Cancelled: the event that `open_video` was given is set.
        """
        start_s = SETTINGS["start_s"].read("start_s", start_s)
        duration_s = SETTINGS["duration_s"].read("duration_s", duration_s)
        if not start_s and duration_s is None:
            return self
        clock, ends = (self._clock(), []) if self._part is None else (self._part.clock, [self._part.stop_s])
        begin = self.start_s + _as_fraction(start_s)
        ends += [None if duration_s is None else begin + _as_fraction(duration_s)]
        part = Part(clock, begin, min((one for one in ends if one is not None), default=None))
        first, count = part.find()
        return replace(self, frame_count=count, first_frame=first, start_s=clock.time_of(first), _part=part)

    @property
    def part_id(self) -> tuple[str, str]:
        """Where in the source the frames come from: start and end in seconds, "" where that is the source's own."""
        part = self._part
        return ("", "") if part is None else (str(part.start_s), "" if part.stop_s is None else str(part.stop_s))

    def _clock(self) -> Clock:
        """Times of all frames of the source."""
        stamps = self._stamps
        zero = self._read_zero() if stamps is not None and stamps.is_trusted and self._read_zero is not None else None
        return Clock(self.name, self.fps, self.frame_count, stamps, zero or Fraction(0))

    def _choose(self, step: int) -> NumberedFrames:
        """Read the frames in use; a source that cannot be read again is refused at once."""
        choice = Choice(_check_step(step), self._part)
        frames = self._read(choice)
        return frames if self._part is None else choice.check(frames)

    def frames(self, step: int = 1) -> Iterator[U8]:
        """Decode frames 0, step, 2 * step, ... one at a time.

        Frames are counted in the order of display, whatever their time stamps: with a variable frame rate, `fps` is the
        average. Files and sequences can be read again and again, generators once.

        Args:
            step: distance between the frames that are used, >= 1. The first frame is always one of them.

        Yields:
            uint8 [height, width, 3], RGB, upright.

        Raises:
            InputError: a frame has another size than the first one or is no image; a generator was used up before.
            Cancelled: the event that `open_video` was given is set.

        Warns:
            InputWarning: the file ends early or is damaged; what can be decoded is used.
        """
        return (frame for _, _, frame in self._choose(step))

    def timed_frames(self, step: int = 1) -> Iterator[tuple[U8, Fraction]]:
        """Decode the frames of `frames` together with the times at which they are shown.

        Args:
            step: see `frames`.

        Yields:
            A frame, and its time in seconds since the first one, ascending. That is its number divided by `fps` where
            the source has no time stamps (folders, iterables, raw streams), where too many of them are broken, or where
            the caller of `open_video` stated the rate.

        Raises:
            InputError: see `frames`.

        Warns:
            InputWarning: see `frames`; or time stamps are broken.
        """
        return time_frames(self._choose(step), self._stamps, self.fps, self.name)

    @property
    def is_variable(self) -> bool:
        """Whether some frame is shown at another time than an even row of `fps` per second would show it.

        The first look reads the whole file, without decoding it.
        """
        return self._stamps is not None and not self._stamps.is_even(self.fps)

    def content_digest(self) -> str | None:
        """Digest what the frames are made from.

        Returns:
            SHA-256 in hexadecimal digits: over the bytes of the file, or over the names and bytes of a folder's
            pictures in their order. None for iterables.

        Raises:
            InputError: a file cannot be read any more.
        """
        return self._digest() if self._digest else None

    @cached_property
    def _stamps(self) -> Stamps | None:
        """The time stamps of the frames."""
        if self._part is not None:
            return self._part.stamps
        return self._read_stamps() if self._read_stamps else None


def _as_fraction(seconds: float) -> Fraction:
    """What was meant by a decimal number: 0.1 s is a tenth, not the nearest float above it."""
    return Fraction(seconds).limit_denominator(1_000_000)


def _check_step(step: int) -> int:
    if isinstance(step, bool) or not isinstance(step, int) or step < 1:
        raise InputError(f"step is {step!r}; it must be an integer of 1 or more")
    return step


def frame_step(stride: int, source_fps: float) -> int:
    """Distance between the source frames that are used.

    Args:
        stride: every `stride`-th frame of a video of 24 to 47 frames per second is used, >= 1.
        source_fps: frame rate of the source, > 0.

    Returns:
        stride * max(1, int(source_fps / 24)), as in the reference code.
    """
    return stride * max(1, int(source_fps / 24))


def open_video(source: VideoSource, fps: float | None = None, *, cancel: threading.Event | None = None) -> Video:
    """Open a video and look at its first frame.

    Files: mp4, mov, mkv, webm, avi, ts, mpg, flv, wmv, ogg, gif and a few rarer containers, with any codec of FFmpeg's,
    and animated WebP. Their contents decide, not their names; what leads to other files or addresses, as playlists do,
    is refused. The rotation and mirroring that a phone notes in the file are applied, and frames of non-square pixels
    are scaled up, in width or height, to square ones. Folders: their pictures in natural order (frame2
    before frame10), hidden and other files left out. Folders and iterables: frames are read by `read_image`; only those
    in use are converted and compared in size.

    Args:
        source: path of a file or folder; uint8 array [frames, height, width, 3] RGB; or iterable of paths, uint8 arrays
            or PIL images.
        fps: frame rate of the source, 0.01 to 1000; the time stamps of a file are ignored then. None takes the average
            rate that the file states, and 24 for a folder or iterable.
        cancel: set it from another thread to end the reading of a file within a second, now and later.

    Raises:
        InputError: there is no such file, it holds no video, not one frame can be decoded, its frames have more than
            2**25 pixels, the folder holds no picture, or the iterable is empty.
        Cancelled: `cancel` was set.

    Warns:
        InputWarning: the file states no usable frame rate, or pixels of a shape that cannot be true.
    """
    if fps is not None:
        fps = _check_fps(fps)
    if isinstance(source, (str, os.PathLike)):
        return _open_file(source, fps, cancel)
    if isinstance(source, np.ndarray):
        _check_stack(source)
    elif isinstance(source, (bytes, dict, PilImage)) or not isinstance(source, Iterable):
        raise InputError(
            f"a video of type {type(source).__qualname__} cannot be read; pass a path, a uint8 array "
            "[frames, height, width, 3], or a list of frames"
        )
    return _open_iterable(source, fps or DEFAULT_FPS)


def _check_fps(fps: float) -> float:
    try:
        value = float(fps)
    except (TypeError, ValueError):
        value = math.nan
    if not MIN_FPS <= value <= MAX_FPS:
        raise InputError(f"the video's fps is {fps!r}; it must lie in {MIN_FPS:g}..{MAX_FPS:g}")
    return value


def _open_file(source: str | os.PathLike[str], fps: float | None, cancel: threading.Event | None) -> Video:
    path = find_file(source, "video", allow_folder=True)
    if path.is_dir():
        return _open_folder(path, fps or DEFAULT_FPS)
    probe, read, stamps, start = probe_file, read_frames, read_stamps, read_start
    if is_animated_webp(path):
        probe, read, stamps, start = probe_webp, read_webp_frames, read_webp_stamps, read_webp_start
    first = probe(path, fps is None, cancel)
    return Video(
        str(path),
        fps or first.fps or DEFAULT_FPS,
        first.width,
        first.height,
        lambda choice: read(path, choice, cancel),
        first.frame_count,
        path,
        (lambda: stamps(path, cancel)) if fps is None else None,
        lambda: digest_file(path),
        lambda: start(path, cancel),
    )


def _open_folder(folder: Path, fps: float) -> Video:
    pictures = list_pictures(folder)
    height, width = read_image(pictures[0]).shape[:2]
    return Video(
        str(folder),
        fps,
        width,
        height,
        lambda choice: _convert(iter(pictures), choice, (height, width)),
        len(pictures),
        _digest=lambda: digest_pictures(pictures),
    )


def _check_stack(array: NDArray[Any]) -> None:
    """An array of three dimensions could be one picture or a stack of grey ones: refuse rather than guess."""
    if array.ndim != 4:
        raise InputError(
            f"the video array has shape {array.shape}, expected [frames, height, width, 3]; wrap one picture as "
            "image[None], give grey frames a last axis of length 1"
        )


def _open_iterable(source: Iterable[Any], fps: float) -> Video:
    """Look at the first frame. An iterator can do that once only, so its first element is put back in front."""
    name = f"the video ({type(source).__qualname__})"
    iterator = iter(source)
    single_use = iterator is source
    head = list(islice(iterator, 1))
    if not head:
        raise InputError(f"{name} has no frames; pass at least one")
    height, width = _read_numbered(head[0], 0).shape[:2]
    unread: list[Iterator[Any]] = [chain(head, iterator)]

    def read(choice: Choice) -> NumberedFrames:
        if not single_use:
            return _convert(iter(source), choice, (height, width))
        if not unread:
            raise InputError(f"{name} was used up by an earlier run; pass a list, or a new generator")
        return _convert(unread.pop(), choice, (height, width))

    count = len(source) if isinstance(source, Sized) else None
    return Video(name, fps, width, height, read, count)


def _convert(items: Iterator[Any], choice: Choice, size: tuple[int, int]) -> NumberedFrames:
    for number, item in enumerate(items):
        if not choice.takes(number, None):
            if choice.is_over:
                return
            continue
        frame = _read_numbered(item, number)
        if frame.shape[:2] != size:
            which = f" ({item})" if isinstance(item, (str, os.PathLike)) else ""
            raise InputError(
                f"frame {number} of the video{which} is {frame.shape[1]} x {frame.shape[0]} pixels, frame 0 is "
                f"{size[1]} x {size[0]}; bring all frames to one size"
            )
        yield number, None, frame


def _read_numbered(item: Any, number: int) -> U8:
    try:
        return read_image(item)
    except InputError as error:
        raise InputError(f"frame {number} of the video: {error}") from error
