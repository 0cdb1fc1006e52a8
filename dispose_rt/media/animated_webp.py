"""Decodes animated WebP files with Pillow: FFmpeg does not read them."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from itertools import accumulate
from pathlib import Path

from ..errors import InputError
from ..types import U8
from .containers import Probe
from .images import DAMAGE, check_size, open_picture, read_pixels
from .time_stamps import Stamps

_TICK_S = Fraction(1, 1000)


def is_animated_webp(path: Path) -> bool:
    """Whether a file is a WebP with more than one picture (RFC 9649, 2.7: the flag in its VP8X chunk)."""
    with path.open("rb") as file:
        head = file.read(21)
    return head[:4] == b"RIFF" and head[8:16] == b"WEBPVP8X" and len(head) == 21 and bool(head[20] & 2)


def probe_webp(path: Path, measure_rate: bool) -> Probe:
    """Find size, number and average rate of a file's frames; see `containers.probe_file`."""
    del measure_rate
    durations = _read_durations(path)
    total_s = sum(durations) * _TICK_S
    _, _, first = next(read_webp_frames(path, len(durations)))  # whether it can be decoded at all
    return Probe(float(len(durations) / total_s) if total_s else None, first.shape[1], first.shape[0], len(durations))


def read_webp_stamps(path: Path) -> Stamps:
    """Add up the durations of the frames."""
    return Stamps([0, *accumulate(_read_durations(path)[:-1])], _TICK_S, 0)


def read_webp_frames(path: Path, step: int) -> Iterator[tuple[int, Fraction | None, U8]]:
    """Decode every `step`-th frame, with its number and time stamp; see `containers.read_frames`."""
    name, number = f"the video {path}", 0
    try:
        with open_picture(path.read_bytes()) as image:
            check_size(*image.size, name)
            for number in range(0, len(_read_durations(path)), step):
                image.seek(number)
                pixels = read_pixels(image, name)
                yield number, image.info["timestamp"] * _TICK_S, pixels
    except DAMAGE as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{name} cannot be decoded from frame {number} on; it is damaged: get it again") from error


def _read_durations(path: Path) -> list[int]:
    """Duration of every frame in milliseconds, from the headers of the ANMF chunks (RFC 9649, 2.7.1.1).

    Pillow learns them by decoding; a look at the headers is enough to know the rate of a long file.
    """
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
