"""Videos that browsers do not play, as videos that they do."""

from __future__ import annotations

import threading
from pathlib import Path

from .. import media
from ..errors import Cancelled, InputError
from ..media.containers import find_codec
from ..pipeline.provenance import keep_record

_PLAYABLE = {
    ".mp4": {"h264", "av1", "vp9"},
    ".m4v": {"h264"},
    ".mov": {"h264"},
    ".webm": {"vp8", "vp9", "av1"},
}
"""Codecs by suffix that current browsers play on every system; HEVC, which phones record, is none of them."""
_PLAYABLE_FORMATS = ("yuv420p", "yuvj420p")


def make_browser_copy(
    source: Path, target: Path, cancel: threading.Event, start_s: float = 0.0, duration_s: float | None = None
) -> Path:
    """Return the video itself if browsers play it, else write a copy that they play, without sound.

    The copy shows every frame at its time, as the animation does, and begins and ends with it. The mark of a generated
    video stays.

    Args:
        source: a video file that `media.open_video` reads.
        target: where a copy goes.
        cancel: ends the copying.
        start_s: see `media.Video.part`; a part is always copied.
        duration_s: see there.

    Raises:
        InputError: the copy cannot be written.
        Cancelled: `cancel` was set.
    """
    is_whole = not start_s and duration_s is None
    if is_whole and is_playable(source, cancel):
        return source
    video = media.open_video(source, cancel=cancel).part(start_s, duration_s)
    metadata = keep_record(media.read_metadata(source, cancel))
    with media.VideoWriter(target, video.fps, video.width, video.height, metadata=metadata) as writer:
        for frame, time_s in video.timed_frames():
            if cancel.is_set():
                raise Cancelled("cancelled while the driving video was converted for the page")
            writer.write(frame, time_s if video.is_variable else None)
    return target


def is_playable(source: Path, cancel: threading.Event | None = None) -> bool:
    """Whether current browsers play a video file.

    Raises:
        Cancelled: `cancel` was set.
    """
    codecs = _PLAYABLE.get(source.suffix.lower())
    if codecs is None:
        return False
    try:
        codec, pixel_format = find_codec(source, cancel)
    except InputError:
        return False
    return codec in codecs and pixel_format in _PLAYABLE_FORMATS
