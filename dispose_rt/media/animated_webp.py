"""Decodes animated WebP files with Pillow: FFmpeg does not read them."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator
from contextlib import closing
from fractions import Fraction
from functools import partial
from itertools import accumulate
from pathlib import Path

from ..errors import InputError
from ..types import U8
from .containers import Probe
from .images import DAMAGE, open_picture, read_pixels
from .interruptible import Pulse, call_in_thread, in_thread
from .parts import Choice
from .time_stamps import Stamps

MAX_PIXELS = 4096 * 2304
"""Largest frame that is decoded (4K). The decoder holds several frames at once, and takes half a second for each."""
MAX_BYTES = 2**27
"""Largest file: it is held in memory, twice while it is opened."""
MAX_FRAMES = 100_000
_HEAD_BYTES = 30
_ANIMATED = 2
_TICK_S = Fraction(1, 1000)


def is_animated_webp(path: Path) -> bool:
    """Whether a file is a WebP with more than one picture (RFC 9649, 2.7: the flag in its VP8X chunk)."""
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    is_extended = head[:4] == b"RIFF" and head[8:16] == b"WEBPVP8X" and len(head) == _HEAD_BYTES
    return is_extended and bool(head[20] & _ANIMATED)


def probe_webp(path: Path, measure_rate: bool, cancel: threading.Event | None = None) -> Probe:
    """Find size, number and average rate of a file's frames; see `containers.probe_file`."""
    del measure_rate
    durations = _read_durations(path, cancel)
    total_s = sum(durations) * _TICK_S
    with closing(_decode(path, Choice(1), len(durations), cancel)) as frames:
        _, _, first = next(frames)  # whether it can be decoded at all
    return Probe(float(len(durations) / total_s) if total_s else None, first.shape[1], first.shape[0], len(durations))


def read_webp_stamps(path: Path, cancel: threading.Event | None = None) -> Stamps:
    """Add up the durations of the frames."""
    return Stamps([0, *accumulate(_read_durations(path, cancel)[:-1])], _TICK_S, 0)


def read_webp_start(path: Path, cancel: threading.Event | None = None) -> Fraction | None:
    """Time stamp of the first frame: 0; see `containers.read_start`."""
    del path, cancel
    return Fraction(0)


def read_webp_frames(
    path: Path, choice: Choice, cancel: threading.Event | None = None
) -> Generator[tuple[int, Fraction | None, U8]]:
    """Decode the chosen frames, with their numbers and time stamps; see `containers.read_frames`."""
    yield from _decode(path, choice, len(_read_durations(path, cancel)), cancel)


def _decode(
    path: Path, choice: Choice, count: int, cancel: threading.Event | None
) -> Generator[tuple[int, Fraction | None, U8]]:
    return in_thread(partial(_read, path, choice, count), f"the video {path}", cancel)


def _read(path: Path, choice: Choice, count: int, pulse: Pulse) -> Iterator[tuple[int, Fraction | None, U8]]:
    name, number = f"the video {path}", 0
    try:
        with open_picture(path.read_bytes()) as image:
            for number in range(count):  # one at a time: each of them is a chance to stop
                pulse.beat()
                image.seek(number)
                image.load()
                stamp = image.info["timestamp"] * _TICK_S
                if choice.takes(number, stamp):
                    yield number, stamp, read_pixels(image, name)
                elif choice.is_over:
                    return
    except DAMAGE as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{name} cannot be decoded from frame {number} on; it is damaged: get it again") from error


def _read_durations(path: Path, cancel: threading.Event | None) -> list[int]:
    """Duration of every frame in milliseconds, from the headers of the ANMF chunks (RFC 9649, 2.7.1.1).

    Pillow learns them by decoding; a look at the headers is enough to know the rate of a long file, and to refuse one
    that is too large before its decoder allocates anything.
    """
    durations = call_in_thread(partial(_list_durations, path), f"the video {path}", cancel)
    if not durations:
        raise InputError(f"the video {path} is an animated WebP without frames; it is truncated: get it again")
    return durations


def _list_durations(path: Path, pulse: Pulse) -> list[int]:
    durations: list[int] = []
    with path.open("rb") as file:
        _check_head(path, file.read(_HEAD_BYTES))
        file.seek(12)
        while len(header := file.read(8)) == 8:
            pulse.beat()
            size = int.from_bytes(header[4:], "little")
            body = file.read(16) if header[:4] == b"ANMF" else b""
            if len(body) == 16:
                durations.append(int.from_bytes(body[12:15], "little"))
            if len(durations) > MAX_FRAMES:
                raise InputError(f"the video {path} has more than {MAX_FRAMES} frames; save it as an mp4")
            file.seek(size + size % 2 - len(body), 1)
    return durations


def _check_head(path: Path, head: bytes) -> None:
    width, height = (int.from_bytes(head[at : at + 3], "little") + 1 for at in (24, 27))
    if width * height > MAX_PIXELS:
        raise InputError(
            f"the video {path} has frames of {width} x {height} pixels, more than the {MAX_PIXELS} that are accepted "
            "of an animated WebP; scale it down, or save it as an mp4"
        )
    if path.stat().st_size > MAX_BYTES:
        raise InputError(
            f"the video {path} has {path.stat().st_size} bytes, more than the {MAX_BYTES} that are accepted of an "
            "animated WebP; save it as an mp4"
        )
