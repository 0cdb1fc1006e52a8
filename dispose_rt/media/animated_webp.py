"""Decodes animated WebP files with OpenCV: FFmpeg does not read them."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2

from ..errors import InputError
from ..types import U8
from .containers import Probe
from .images import check_size, to_rgb
from .time_stamps import Stamps

FRAMES_AT_ONCE = 32
"""OpenCV decodes a range of frames into memory at once, and starts from the first frame for each range."""
_TICK_S = Fraction(1, 1000)


def is_animated_webp(path: Path) -> bool:
    """Whether a file is a WebP with more than one picture (RFC 9649, 2.7: the flag in its VP8X chunk)."""
    with path.open("rb") as file:
        head = file.read(21)
    return head[:4] == b"RIFF" and head[8:16] == b"WEBPVP8X" and len(head) == 21 and bool(head[20] & 2)


def probe_webp(path: Path, measure_rate: bool) -> Probe:
    """Find size, number and average rate of a file's frames from its chunks; see `containers.probe_file`."""
    del measure_rate
    with path.open("rb") as file:
        head = file.read(30)
    width, height = (int.from_bytes(head[at : at + 3], "little") + 1 for at in (24, 27))
    check_size(width, height, f"the video {path}")
    durations = _read_durations(path)
    total_s = sum(durations) * _TICK_S
    fps = float(len(durations) / total_s) if total_s else None
    next(read_webp_frames(path, len(durations)))  # whether it can be decoded at all
    return Probe(fps, width, height, len(durations))


def read_webp_stamps(path: Path) -> Stamps:
    """Add up the durations of the frames."""
    ticks = [0]
    for duration in _read_durations(path)[:-1]:
        ticks.append(ticks[-1] + duration)
    return Stamps(ticks, _TICK_S, 0)


def read_webp_frames(path: Path, step: int) -> Iterator[tuple[int, Fraction | None, U8]]:
    """Decode every `step`-th frame, with its number and time stamp; see `containers.read_frames`."""
    ticks = read_webp_stamps(path).ticks
    opencv: Any = cv2
    if not hasattr(opencv, "imreadanimation"):
        raise InputError(
            f"the video {path} is an animated WebP, which OpenCV {cv2.__version__} does not read; 4.11 does"
        )
    for start in range(0, len(ticks), FRAMES_AT_ONCE):
        if not any(number % step == 0 for number in range(start, min(start + FRAMES_AT_ONCE, len(ticks)))):
            continue
        try:
            done, animation = opencv.imreadanimation(str(path), start, min(FRAMES_AT_ONCE, len(ticks) - start))
        except cv2.error:
            done, animation = False, None
        if not done or animation is None or not len(animation.frames):
            raise InputError(f"the video {path} cannot be decoded from frame {start} on; it is damaged: get it again")
        for number, pixels in enumerate(animation.frames, start):
            if number % step == 0:
                order = [2, 1, 0, 3][: pixels.shape[2]]
                yield number, ticks[number] * _TICK_S, to_rgb(pixels[:, :, order])


def _read_durations(path: Path) -> list[int]:
    """Duration of every frame in milliseconds, from the headers of the ANMF chunks (RFC 9649, 2.7.1.1)."""
    durations = []
    with path.open("rb") as file:
        file.seek(12)
        while len(header := file.read(8)) == 8:
            size = int.from_bytes(header[4:], "little")
            body = file.read(16) if header[:4] == b"ANMF" else b""
            if len(body) == 16:
                durations.append(int.from_bytes(body[12:15], "little"))
            file.seek(size + size % 2 - len(body), 1)
    if not durations:
        raise InputError(f"the video {path} is an animated WebP without frames; it is truncated: get it again")
    return durations
