"""Decodes video files with PyAV (FFmpeg)."""

from __future__ import annotations

import threading
import warnings
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import av
from av.sidedata.sidedata import Type as SideDataType
from av.video.reformatter import Interpolation, VideoReformatter

from ..errors import InputError, InputWarning
from ..settings import MAX_FPS, MIN_FPS
from ..types import U8
from .accepted import ACCEPTED, MAX_DECODING_BYTES, MAX_FRAME_PIXELS, check_frame_size, open_container
from .interruptible import Pulse, call_in_thread, in_thread
from .orientation import UPRIGHT, Orientation, orientation_of_matrix
from .parts import Choice
from .reference_frames import KeptFrames
from .time_stamps import Stamps

PLAUSIBLE_FPS = 240
"""Above this, a container's average rate is its clock, not its frame rate (browsers record so), and is measured."""
MANY_FRAMES = 10_000
"""A longer video whose container lists no frames has its frames counted, as its length may have gaps in it."""
MAX_FRAMES = 5_000_000
"""Most pictures of one video: two days at 24 per second. Their time stamps are kept in memory."""
LARGEST_ASPECT = 8
"""A pixel that is stated to be wider or higher than this many times the other way is taken for a mistake."""
THREADED_BYTES = 25_000_000
"""A larger frame is decoded by one thread: each further one holds frames of its own."""
_MOST_FRAMES = 64
"""More frames than any decoder keeps and holds back."""
_MOTION_BYTES = {"h264": 0.5, "hevc": 1.1}
"""What decoders keep of a picture besides its pixels, per pixel, as measured."""
_ATTACHED_PICTURE = 0x0400
_COUNTING_FORMATS = ("avi",)
"""Their time stamps count places for pictures in the order of storage, and say nothing of the order of display."""


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

    announced: int = 0  # pictures that the container lists; 0 where it keeps no list
    read: int = 0  # compressed pictures read
    shown: int = 0  # pictures decoded
    damaged: int = 0


@dataclass(frozen=True)
class _Pixels:
    """How decoded pictures become frames.

    Attributes:
        stored: width and height of the decoded pictures.
        square: width and height once their pixels are square.
        orientation: how they are turned upright then.
    """

    stored: tuple[int, int]
    square: tuple[int, int]
    orientation: Orientation

    @property
    def upright(self) -> tuple[int, int]:
        """Width and height of the frames."""
        return self.square[::-1] if self.orientation.transpose else self.square

    def convert(self, reformatter: VideoReformatter, frame: Any) -> U8:
        """FFmpeg's default conversion, up to two levels dark: the pixels that other readers built on it deliver."""
        size: dict[str, Any] = {}
        if self.square != self.stored:
            size = {"width": self.square[0], "height": self.square[1], "interpolation": Interpolation.BICUBIC}
        pixels: Any = reformatter.reformat(frame, format="rgb24", **size).to_ndarray()
        return self.orientation.apply(pixels)


def probe_file(path: Path, measure_rate: bool, cancel: threading.Event | None = None) -> Probe:
    """Open a video file, decode its first frame and find its frame rate.

    Args:
        path: an existing file.
        measure_rate: whether to read the whole file's time stamps where its stated rate is implausible.
        cancel: ends the reading once it is set.

    Raises:
        InputError: it is no video file, or not one frame can be decoded.
        Cancelled: `cancel` was set.

    Warns:
        InputWarning: the frame rate could not be found, or the stated shape of the pixels cannot be true.
    """
    announced, count, length_s, starts_late, fps, pixels, problem = _call(_look, path, cancel)
    if not announced:
        raise InputError(
            f"the video {path} holds no frame that can be decoded ({count} announced); it is truncated or "
            "damaged: copy, download or export it again"
        )
    if problem:
        warnings.warn(f"the video {path} {problem}", InputWarning, stacklevel=2)
    if measure_rate and fps is None:
        fps = _call(_measure_rate, path, cancel)
        if fps is None:
            warnings.warn(f"the video {path} states no usable frame rate; 24 is assumed", InputWarning, stacklevel=2)
    if not count and fps and length_s:
        count = max(1, round(length_s * fps))
        if starts_late or count > MANY_FRAMES:
            stamps = read_stamps(path, cancel)
            count = len(stamps.ticks) + stamps.missing
    width, height = pixels.upright
    return Probe(fps, width, height, count or None)


def find_codec(path: Path, cancel: threading.Event | None = None) -> tuple[str, str | None]:
    """Name a video's codec and pixel format, as FFmpeg does.

    Raises:
        InputError: it is no video file.
        Cancelled: `cancel` was set.
    """

    def look(path: Path, beat: Callable[[], None]) -> tuple[str, str | None]:
        with _open(path, beat) as (_, stream):
            return stream.codec_context.codec.canonical_name, stream.codec_context.pix_fmt

    found: tuple[str, str | None] = _call(look, path, cancel)
    return found


def read_stamps(path: Path, cancel: threading.Event | None = None) -> Stamps:
    """Read the time stamps of all pictures that are shown, without decoding."""
    stamps: Stamps = _call(_list_stamps, path, cancel)
    return stamps


def read_start(path: Path, cancel: threading.Event | None = None) -> Fraction | None:
    """Find the time stamp of the first frame; see `find_start`."""
    start: Fraction | None = _call(find_start, path, cancel)
    return start


def find_start(path: Path, beat: Callable[[], None]) -> Fraction | None:
    """Time stamp of the first frame that can be decoded, in seconds; None if it has none.

    Args:
        path: an existing file.
        beat: see `accepted.open_container`.
    """
    with _open(path, beat) as (container, stream):
        if container.format.name in _COUNTING_FORMATS:
            packet = next((packet for packet in _packets(container, stream, _Tally(), beat) if packet), None)
            return packet.dts * Fraction(stream.time_base) if packet and packet.dts is not None else None
        frame = next(_decode(path, container, stream, _Tally(), beat), None)
        return _stamp(frame, stream) if frame is not None else None


def read_frames(
    path: Path, choice: Choice, cancel: threading.Event | None = None
) -> Iterator[tuple[int, Fraction | None, U8]]:
    """Decode the chosen frames, with their numbers and their time stamps in seconds; see `Video.frames`."""
    tally = _Tally()
    yield from in_thread(partial(_read, path, choice, tally), f"the video {path}", cancel)
    if tally.damaged or (tally.read < tally.announced and not choice.is_over):
        of_all = f" of {tally.announced} announced" if tally.announced else ""
        message = (
            f"the video {path} is truncated or damaged: {tally.shown}{of_all} frames could be read, the others are "
            "left out; copy, download or export it again to use all of it"
        )
        warnings.warn(message, InputWarning, stacklevel=2)


def _read(path: Path, choice: Choice, tally: _Tally, pulse: Pulse) -> Iterator[tuple[int, Fraction | None, U8]]:
    with _open(path, pulse.beat) as (container, stream):
        tally.announced = _announced(container, stream)
        reformatter = VideoReformatter()  # kept: it caches the conversion
        pixels = None
        for number, frame in enumerate(_decode(path, container, stream, tally, pulse.beat)):
            if pixels is None:
                pixels, _ = _pixels(frame, stream)
            elif (frame.width, frame.height) != pixels.stored:
                _refuse_new_size(path, number, frame, pixels.stored)
            stamp = _stamp(frame, stream)
            if choice.takes(number, stamp):
                yield number, stamp, _convert(path, number, reformatter, frame, pixels)
            elif choice.is_over:
                return


def _convert(path: Path, number: int, reformatter: VideoReformatter, frame: Any, pixels: _Pixels) -> U8:
    try:
        return pixels.convert(reformatter, frame)
    except av.FFmpegError as error:  # for example of colours that damage has made up
        raise InputError(
            f"frame {number} of the video {path} cannot be converted to RGB ({error.strerror}): it is damaged, or of a "
            "rare kind; convert it first: ffmpeg -i INPUT -pix_fmt yuv420p OUTPUT.mp4"
        ) from error


def _call(look: Callable[[Path, Callable[[], None]], Any], path: Path, cancel: threading.Event | None) -> Any:
    """Call a function that reads a file, in a thread."""
    return call_in_thread(lambda pulse: look(path, pulse.beat), f"the video {path}", cancel)


def _look(path: Path, beat: Callable[[], None]) -> tuple[Any, ...]:
    """Decode the first frame; see `probe_file`."""
    with _open(path, beat) as (container, stream):
        frame = next(_decode(path, container, stream, _Tally(), beat), None)
        if frame is None:
            return False, stream.frames, None, False, None, None, ""
        pixels, problem = _pixels(frame, stream)
        check_frame_size(path, *pixels.square)
        starts_late = bool(container.start_time and container.start_time > av.time_base)
        announced, length_s = _announced(container, stream), _length_s(container, stream)
        return True, announced, length_s, starts_late, _stated_rate(stream), pixels, problem


def _list_stamps(path: Path, beat: Callable[[], None]) -> Stamps:
    with _open(path, beat) as (container, stream):
        counts = container.format.name in _COUNTING_FORMATS
        ticks, missing = array("q"), 0
        for packet in _packets(container, stream, _Tally(), beat):
            stamp = packet and (packet.dts if counts else packet.pts)
            if packet and not packet.is_discard and stamp is not None:
                ticks.append(stamp)
            elif packet and not packet.is_discard:
                missing += 1
            if len(ticks) + missing > MAX_FRAMES:
                raise InputError(f"the video {path} holds more than {MAX_FRAMES} pictures; cut it into shorter ones")
        return Stamps(sorted(ticks), Fraction(stream.time_base), missing, counts)


@contextmanager
def _open(path: Path, beat: Callable[[], None]) -> Iterator[tuple[Any, Any]]:
    """Open a file and find its video stream."""
    with open_container(path, beat) as container:
        yield container, _find_stream(container, path)


def _find_stream(container: Any, path: Path) -> Any:
    """First video stream that is not a cover picture."""
    for stream in container.streams.video:
        if not stream.disposition.value & _ATTACHED_PICTURE and stream.codec_context is not None:
            _bound_decoder(path, stream)
            return stream
    kinds = sorted({stream.type for stream in container.streams}) or ["nothing"]
    raise InputError(
        f"the video {path} has no video stream (it holds {', '.join(kinds)}); it is a sound file, or nothing was "
        f"recorded before it was closed. Pass {ACCEPTED} with pictures in it"
    )


def _bound_decoder(path: Path, stream: Any) -> None:
    """Look at the size before anything of it is decoded, and let the decoder refuse a later one."""
    stream.thread_type = "AUTO"
    context = stream.codec_context
    kind = context.format
    bits = kind.padded_bits_per_pixel if kind is not None else 12
    check_frame_size(path, stream.width, stream.height, bits)
    frame_bytes = stream.width * stream.height * bits // 8
    context.options = {"max_pixels": str(MAX_FRAME_PIXELS)}
    if frame_bytes > THREADED_BYTES:
        context.thread_count = 1


class _DecoderMemory:
    """What a film's decoder keeps, against what it may.

    Raises:
        InputError: it is too much.
    """

    def __init__(self, path: Path, stream: Any) -> None:
        self._path, self._stream = path, stream
        context = stream.codec_context
        self._codec = context.codec.canonical_name
        self._kept = KeptFrames(self._codec, context.extradata)
        self._check(0)

    def feed(self, packet: Any, waiting: int) -> None:
        """Look at a packet before it is decoded; `waiting` pictures went in and have not come out."""
        if self._most_bytes(_MOST_FRAMES) > MAX_DECODING_BYTES:  # else no packet can be too much
            self._kept.feed(bytes(packet))
            self._check(waiting)

    def _check(self, waiting: int) -> None:
        needed = self._most_bytes(self._kept.count + waiting)
        if needed > MAX_DECODING_BYTES:
            raise InputError(
                f"the video {self._path} makes its decoder keep {self._kept.count + waiting} frames of "
                f"{self._stream.width} x {self._stream.height} pixels, which takes {needed // 10**6} MB, more than the "
                f"{MAX_DECODING_BYTES // 10**6} MB that are accepted; scale it down first: "
                "ffmpeg -i INPUT -vf scale=-2:1080 OUTPUT.mp4"
            )

    def _most_bytes(self, kept: int) -> int:
        """Bytes that are taken while `kept` frames wait, two more are on their way, and two are shown as RGB."""
        context = self._stream.codec_context
        pixels = max(context.width * context.height, context.coded_width * context.coded_height)  # before cropping
        bits = context.format.padded_bits_per_pixel if context.format is not None else 12
        return int((kept + 2) * pixels * (bits / 8 + _MOTION_BYTES.get(self._codec, 0.1)) + 2 * 3 * pixels)


def _decode(path: Path, container: Any, stream: Any, tally: _Tally, beat: Callable[[], None]) -> Iterator[Any]:
    """Decode all pictures that are whole; count the others instead of showing the decoder's guesses at them."""
    memory, begun, ended = _DecoderMemory(path, stream), tally.read, tally.shown + tally.damaged
    for packet in _packets(container, stream, tally, beat):
        if packet is not None:
            memory.feed(packet, max(0, tally.read - begun - (tally.shown + tally.damaged - ended) - 1))
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


def _packets(container: Any, stream: Any, tally: _Tally, beat: Callable[[], None]) -> Iterator[Any]:
    """Yield the stream's whole packets, then None, which makes the decoder hand out what it holds back."""
    try:
        for packet in container.demux(stream):
            beat()
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


def _pixels(frame: Any, stream: Any) -> tuple[_Pixels, str]:
    """How to convert the frames, judged by the first one, and what is wrong with the stated shape of their pixels."""
    stored, problem = (frame.width, frame.height), ""
    aspect = Fraction(stream.sample_aspect_ratio or 1)  # width by height of one pixel
    if not 1 <= max(aspect, 1 / aspect if aspect > 0 else 0) <= LARGEST_ASPECT:
        problem = (
            f"states pixels of {aspect.numerator}:{aspect.denominator}, which cannot be true; they are taken for square"
        )
        aspect = Fraction(1)
    square = (round(stored[0] * max(aspect, 1)), round(stored[1] * max(1 / aspect, 1)))  # no pixel is thrown away
    return _Pixels(stored, square, _orientation(frame)), problem


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
    return fps if MIN_FPS <= fps <= PLAUSIBLE_FPS else None


def _measure_rate(path: Path, beat: Callable[[], None]) -> float | None:
    """Average rate by the time stamps, without decoding; None where that is no rate either."""
    with _open(path, beat) as (container, stream):
        count, first, last = 0, 0, 0
        for packet in _packets(container, stream, _Tally(), beat):
            if packet and packet.pts is not None:
                first, last = (min(first, packet.pts), max(last, packet.pts)) if count else (packet.pts, packet.pts)
                count += 1
        span = (last - first) * stream.time_base
        fps = float((count - 1) / span) if span else 0.0
        return fps if MIN_FPS <= fps <= MAX_FPS else None


def _refuse_new_size(path: Path, number: int, frame: Any, size: tuple[int, int]) -> NoReturn:
    raise InputError(
        f"frame {number} of the video {path} is {frame.width} x {frame.height} pixels, frame 0 is {size[0]} x "
        f"{size[1]}; bring all frames to one size: ffmpeg -i INPUT -vf scale={size[0]}:{size[1]} OUTPUT.mp4"
    )
