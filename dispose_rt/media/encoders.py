"""The encoders of pictures: H.264 and VP9, in even or uneven time."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter

from ..types import U8

FORMATS = {".mp4": "mp4", ".m4v": "ipod", ".mov": "mov", ".mkv": "matroska", ".webm": "webm", ".gif": "gif"}
"""FFmpeg's names of the containers, by the suffix of the output."""
CRF = "18"
"""x264's constant quality: 18 is usually taken as visually lossless."""
VP9_CRF = "24"
"""libvpx' constant quality (its scale is another one): about what x264's 18 looks like."""
TICKS_PER_S = 90_000
"""Clock of videos with uneven time stamps, MPEG's."""
_X264_OPTIONS = {
    "crf": CRF,
    "preset": "medium",
    # With its macroblock tree, what x264 (core 165) writes depends on what the process encoded before: of some 1500
    # encodings of one clip between other videos, 3 % had other bytes; without it, none of 788. It costs 7 % of size.
    "x264-params": "mbtree=0",
}
_VP9_OPTIONS = {"crf": VP9_CRF, "b": "0", "deadline": "good", "cpu-used": "4", "row-mt": "1"}
_BT709 = 1  # ISO/IEC 23091-2 code point of primaries, transfer and matrix alike


def container_options(suffix: str) -> dict[str, str]:
    """Options of the container: the index in front, so that a browser plays before it has the whole file."""
    return {"movflags": "+faststart"} if suffix in (".mp4", ".m4v", ".mov") else {}


def add_stream(container: Any, suffix: str, rate: Fraction, shape: tuple[int, int, int], uneven: bool) -> Any:
    """Add the stream of pictures to an output container: yuv420p, BT.709, limited range."""
    codec, options = ("libvpx-vp9", _VP9_OPTIONS) if suffix == ".webm" else ("libx264", _X264_OPTIONS)
    if uneven and codec == "libx264":
        # An mp4 counts its length in the order of storage: reordered pictures of uneven lengths would be cut off
        options = {**options, "bf": "0"}
    stream = container.add_stream(codec, rate=rate, options=options)
    height, width, _ = shape
    stream.width, stream.height = width + width % 2, height + height % 2
    stream.pix_fmt = "yuv420p"
    context = stream.codec_context
    context.colorspace = context.color_primaries = context.color_trc = _BT709
    context.color_range = ColorRange.MPEG
    if uneven:
        context.time_base = Fraction(1, TICKS_PER_S)
    return stream


def encode(
    stream: Any, frames: Iterator[tuple[Any, Fraction | None]], rate: Fraction
) -> Iterator[tuple[Any, Fraction]]:
    """Encode frames in the order in which they come.

    Args:
        stream: see `add_stream`.
        frames: RGB frames, with their times in seconds where those are uneven.
        rate: frames per second where times are even; else the length of the last picture.

    Yields:
        A packet, and the time in seconds up to which everything is out.
    """
    reformatter = VideoReformatter()  # kept: it caches the conversion
    for number, (frame, time_s) in enumerate(frames):
        picture = to_yuv(reformatter, frame)
        picture.pts, picture.time_base = number, 1 / rate
        if time_s is not None:
            picture.pts, picture.time_base = round(time_s * TICKS_PER_S), Fraction(1, TICKS_PER_S)
        yield from _stamped(stream.encode(picture), rate)
    yield from _stamped(stream.encode(None), rate)


def _stamped(packets: Any, rate: Fraction) -> Iterator[tuple[Any, Fraction]]:
    for packet in packets:
        if packet.time_base == Fraction(1, TICKS_PER_S):
            packet.duration = round(TICKS_PER_S / rate)  # read for the last picture alone
        stamp = packet.dts if packet.dts is not None else packet.pts
        yield packet, stamp * Fraction(packet.time_base)


def to_yuv(reformatter: Any, frame: Any) -> Any:
    """Convert by the matrix that the file is tagged with; FFmpeg's own choice would be BT.601."""
    return reformatter.reformat(
        frame,
        format="yuv420p",
        src_color_range=ColorRange.JPEG,
        dst_colorspace=Colorspace.ITU709,
        dst_color_range=ColorRange.MPEG,
    )


def pad_to_even(frame: U8) -> U8:
    """Repeat the last row or column of an odd size: yuv420p stores colour for 2 x 2 pixels."""
    height, width, _ = frame.shape
    if height % 2 or width % 2:
        frame = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    return np.ascontiguousarray(frame)
