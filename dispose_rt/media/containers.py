"""Decodes video files with PyAV (FFmpeg)."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, NoReturn

import av
from av.sidedata.sidedata import Type as SideDataType
from av.video.reformatter import VideoReformatter

from ..errors import InputError, InputWarning
from ..types import U8
from .images import MAX_PIXELS
from .orientation import UPRIGHT, Orientation, orientation_of_matrix
from .time_stamps import Stamps

PLAUSIBLE_FPS = 240
"""Above this, a container's average rate is its clock, not its frame rate (browsers record so), and is measured."""
_ATTACHED_PICTURE = 0x0400
_PICTURE_FORMATS = ("image2", "ico", "tty")
_COUNTING_FORMATS = ("avi",)
"""Their time stamps count places for pictures in the order of storage, and say nothing of the order of display."""
_KINDS = "an mp4, mov, mkv, webm, avi or gif file"


@dataclass(frozen=True)
class Probe:
    """What is known about a video file once its first frame was decoded; fps and frame_count are None if unknown."""

    fps: float | None
    width: int
    height: int
    frame_count: int | None


@dataclass
class _Tally:
    """What reading a file came to."""

    announced: int  # pictures that the container lists; 0 where it keeps no list
    read: int = 0  # compressed pictures read
    shown: int = 0  # pictures decoded
    damaged: int = 0


def probe_file(path: Path, measure_rate: bool) -> Probe:
    """Open a video file, decode its first frame and find its frame rate.

    Args:
        path: an existing file.
        measure_rate: whether to read the whole file's time stamps where its stated rate is implausible.

    Raises:
        InputError: it is no video file, or not one frame can be decoded.

    Warns:
        InputWarning: the frame rate could not be found.
    """
    with _open(path) as (container, stream):
        frame = next(_decode(container, stream, _Tally(stream.frames)), None)
        if frame is None:
            raise InputError(
                f"the video {path} holds no frame that can be decoded ({stream.frames} announced); it is truncated or "
                "damaged: copy, download or export it again"
            )
        width, height = frame.width, frame.height
        if _orientation(frame).transpose:
            width, height = height, width
        fps = _stated_rate(stream)
        count, length_s = _announced(container, stream), _length_s(container, stream)
    if measure_rate and fps is None:
        fps = _measured_rate(path)
        if fps is None:
            warnings.warn(f"the video {path} states no frame rate; 24 is assumed", InputWarning, stacklevel=2)
    if not count and fps and length_s:
        count = max(1, round(length_s * fps))
    return Probe(fps, width, height, count or None)


def read_stamps(path: Path) -> Stamps:
    """Read the time stamps of all pictures that are shown, without decoding."""
    with _open(path) as (container, stream):
        counts = container.format.name in _COUNTING_FORMATS
        packets = _packets(container, stream, _Tally(0))
        shown = [(packet.pts, packet.dts) for packet in packets if packet and not packet.is_discard]
        ticks = sorted(stamp[counts] for stamp in shown if stamp[counts] is not None)
        return Stamps(ticks, Fraction(stream.time_base), len(shown) - len(ticks), counts)


def find_start(path: Path) -> Fraction | None:
    """Time stamp of the first frame that can be decoded, in seconds; None if it has none."""
    with _open(path) as (container, stream):
        if container.format.name in _COUNTING_FORMATS:
            packet = next((packet for packet in _packets(container, stream, _Tally(0)) if packet), None)
            return packet.dts * Fraction(stream.time_base) if packet and packet.dts is not None else None
        frame = next(_decode(container, stream, _Tally(0)), None)
        return _stamp(frame, stream) if frame is not None else None


def read_frames(path: Path, step: int) -> Iterator[tuple[int, Fraction | None, U8]]:
    """Decode every `step`-th frame, with its number and its time stamp in seconds; see `Video.frames`."""
    with _open(path) as (container, stream):
        tally = _Tally(_announced(container, stream))
        reformatter = VideoReformatter()  # kept: it caches the conversion
        orientation, size = UPRIGHT, (0, 0)
        for number, frame in enumerate(_decode(container, stream, tally)):
            if number == 0:
                orientation, size = _orientation(frame), (frame.width, frame.height)
            elif (frame.width, frame.height) != size:
                _refuse_new_size(path, number, frame, size)
            if number % step == 0:
                # FFmpeg's default conversion, up to two levels dark: the pixels that other readers built on it deliver
                pixels: Any = reformatter.reformat(frame, format="rgb24").to_ndarray()
                yield number, _stamp(frame, stream), orientation.apply(pixels)
        if tally.damaged or tally.read < tally.announced:
            of_all = f" of {tally.announced} announced" if tally.announced else ""
            message = (
                f"the video {path} is truncated or damaged: {tally.shown}{of_all} frames could be read, the others are "
                "left out; copy, download or export it again to use all of it"
            )
            warnings.warn(message, InputWarning, stacklevel=2)


@contextmanager
def _open(path: Path) -> Iterator[tuple[Any, Any]]:
    """Open a file and find its video stream."""
    try:
        # "file:" keeps FFmpeg from reading a colon or a percent sign in the name as a protocol or a number pattern
        container = av.open(f"file:{path}")
    except (av.FFmpegError, OSError, ValueError) as error:
        raise InputError(f"the video {path} cannot be opened: {_explain(path, error)}") from error
    with container:
        name = container.format.name
        if name.endswith("_pipe") or name in _PICTURE_FORMATS:
            raise InputError(f"the video {path} is a picture or text file ({name}), not a video; pass {_KINDS}")
        yield container, _find_stream(container, path)


def _explain(path: Path, error: Exception) -> str:
    with path.open("rb") as file:
        is_mp4 = file.read(8)[4:] == b"ftyp"
    if is_mp4:
        return (
            "its index (the 'moov' box) is missing or damaged, because a recording, copy or download stopped early. "
            "Get the whole file; without the index no frame can be found"
        )
    return f"{getattr(error, 'strerror', None) or error}; pass {_KINDS} that plays"


def _find_stream(container: Any, path: Path) -> Any:
    """First video stream that is not a cover picture."""
    for stream in container.streams.video:
        if not stream.disposition.value & _ATTACHED_PICTURE and stream.codec_context is not None:
            stream.thread_type = "AUTO"
            _refuse_bomb(path, stream)
            return stream
    kinds = sorted({stream.type for stream in container.streams}) or ["nothing"]
    raise InputError(
        f"the video {path} has no video stream (it holds {', '.join(kinds)}); it is a sound file, or nothing was "
        f"recorded before it was closed. Pass {_KINDS} with pictures in it"
    )


def _refuse_bomb(path: Path, stream: Any) -> None:
    """Look at the size before anything of it is decoded, and let the decoder refuse a later one."""
    width, height = stream.width, stream.height
    if width * height > MAX_PIXELS:
        raise InputError(
            f"the video {path} has frames of {width} x {height} pixels, more than the {MAX_PIXELS} that are accepted; "
            "scale it down first: ffmpeg -i INPUT -vf scale=-2:1080 OUTPUT.mp4"
        )
    stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}


def _decode(container: Any, stream: Any, tally: _Tally) -> Iterator[Any]:
    """Decode all pictures that are whole; count the others instead of showing the decoder's guesses at them."""
    for packet in _packets(container, stream, tally):
        try:
            frames = stream.decode(packet)
        except EOFError:
            continue
        except av.FFmpegError:
            tally.damaged += 1
            continue
        for frame in frames:
            if frame.is_corrupt:
                tally.damaged += 1
            else:
                tally.shown += 1
                yield frame


def _packets(container: Any, stream: Any, tally: _Tally) -> Iterator[Any]:
    """Yield the stream's whole packets, then None, which makes the decoder hand out what it holds back."""
    try:
        for packet in container.demux(stream):
            if packet.size == 0:  # "same picture again", or the demuxer's end mark; as input it would end the decoder
                continue
            if packet.is_corrupt:
                tally.damaged += 1
                continue
            tally.read += 1
            yield packet
    except (av.FFmpegError, OSError):
        tally.damaged += 1
    yield None


def _announced(container: Any, stream: Any) -> int:
    """Pictures that the container lists.

    An mp4's edit list can leave some of the stated number out of the index, and an avi counts places without a picture.
    """
    stated = int(stream.frames)
    has_index = "mp4" in container.format.name or container.format.name in _COUNTING_FORMATS
    index = len(getattr(stream, "index_entries", ())) if has_index else 0  # PyAV 17 and later
    return min(stated, index) if index else stated


def _length_s(container: Any, stream: Any) -> float | None:
    if stream.duration:
        return float(stream.duration * stream.time_base)
    return container.duration / av.time_base if container.duration else None


def _stamp(frame: Any, stream: Any) -> Fraction | None:
    """Time stamp in seconds. (A frame that the decoder held back to the end has no time base of its own.)"""
    return frame.pts * Fraction(stream.time_base) if frame.pts is not None else None


def _orientation(frame: Any) -> Orientation:
    """Orientation noted in the file. (`frame.rotation` would lose mirroring.)"""
    try:
        matrix = frame.side_data.get(SideDataType.DISPLAYMATRIX)
    except (KeyError, ValueError):  # PyAV up to 18 does not know every kind of side data
        return UPRIGHT
    return orientation_of_matrix(bytes(memoryview(matrix))) if matrix is not None else UPRIGHT


def _stated_rate(stream: Any) -> float | None:
    rate = stream.average_rate or stream.guessed_rate
    if not rate:
        return None
    fps = float(Fraction(rate.numerator, rate.denominator))
    return fps if 0 < fps <= PLAUSIBLE_FPS else None


def _measured_rate(path: Path) -> float | None:
    """Average rate by the time stamps, without decoding."""
    with _open(path) as (container, stream):
        times = [packet.pts for packet in _packets(container, stream, _Tally(0)) if packet and packet.pts is not None]
        span = (max(times) - min(times)) * stream.time_base if times else 0
        return float((len(times) - 1) / span) if span else None


def _refuse_new_size(path: Path, number: int, frame: Any, size: tuple[int, int]) -> NoReturn:
    raise InputError(
        f"frame {number} of the video {path} is {frame.width} x {frame.height} pixels, frame 0 is {size[0]} x "
        f"{size[1]}; bring all frames to one size: ffmpeg -i INPUT -vf scale={size[0]}:{size[1]} OUTPUT.mp4"
    )
