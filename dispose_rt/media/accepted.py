"""The one place that decides which files FFmpeg opens, and that opens them."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import av

from ..errors import InputError

ACCEPTED = "an mp4, mov, mkv, webm, avi, ts, mpg, flv, wmv, ogg or gif file"
"""The kinds as messages name them."""
MAX_FRAME_PIXELS = 2**25
"""Largest frame that is decoded: 8K."""
MAX_FRAME_BYTES = 6 * MAX_FRAME_PIXELS
"""Most that one decoded frame may take: three channels of 16 bits. Only codecs without references have as many."""
MAX_DECODING_BYTES = 1_300_000_000
"""Memory that decoding one film may take: the pictures that its decoder keeps, and those that are being shown."""
_DEMUXERS = (
    *("mov", "matroska", "avi", "mpegts", "mpeg", "mpegvideo", "flv", "asf", "ogg", "mxf", "nut", "dv", "ivf"),
    *("gif", "apng", "h264", "hevc", "m4v", "obu", "yuv4mpegpipe"),
    *("wav", "mp3", "flac", "aac", "aiff"),
)
"""FFmpeg's readers of files that hold their own pictures and sound. Every other one is refused before it sees the file:
playlists (hls, dash, concat), descriptions of streams (sdp, rtsp), numbered pictures (image2) and devices make FFmpeg
open further files or addresses, and others decode text or a single picture."""
_OPTIONS = {
    "format_whitelist": ",".join(_DEMUXERS),
    "protocol_whitelist": "none",  # no address is opened, whatever a file names
    "max_pixels": str(MAX_FRAME_PIXELS),  # for the decoders that look for a stream's parameters
}
_PICTURE_BRANDS = (b"avif", b"heic", b"heix", b"mif1")
_LISTS = ((b"#EXTM3U", "HLS"), (b"ffconcat", "concat"), (b"v=0", "SDP"), (b"<", "XML"), (b"[playlist]", "PLS"))


class _OneFile:
    """A file that FFmpeg reads through Python: it learns no name, and every piece it reads is a chance to stop.

    `beat` may raise. PyAV hands on the first error of such an object; FFmpeg may ask again before, and finds the end.
    """

    name = "video"  # FFmpeg would guess a format by the file's own name

    def __init__(self, path: Path, beat: Callable[[], None]) -> None:
        self._file = path.open("rb", buffering=0)
        self._beat = beat
        self._has_failed = False

    def read(self, size: int) -> bytes:
        if self._has_failed:
            return b""
        try:
            self._beat()
            return self._file.read(size)
        except BaseException:
            self._has_failed = True
            raise

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Return the new place, or FFmpeg's own kind of error where there is none: of ours PyAV prints a traceback."""
        try:
            return self._file.seek(offset, whence)
        except (OSError, ValueError, OverflowError) as error:
            return -(getattr(error, "errno", None) or errno.EINVAL)

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        self._file.close()


@contextmanager
def open_container(path: Path, beat: Callable[[], None]) -> Iterator[Any]:
    """Open a file with FFmpeg if its contents are of an accepted kind; its name does not count.

    Args:
        path: an existing file.
        beat: is called whenever a piece of the file is read; what it raises ends the call into FFmpeg.

    Yields:
        A `av.container.InputContainer`. FFmpeg opens nothing but this one file for it.

    Raises:
        InputError: FFmpeg does not recognise the file, or it is of another kind.
    """
    try:
        _check_head(path)
        file = _OneFile(path, beat)
    except OSError as error:
        raise InputError(f"the video {path} cannot be opened: {error}; check its name and permissions") from error
    try:
        try:
            container = av.open(file, options=_OPTIONS, metadata_errors="replace", io_open=_refuse)
        except (av.FFmpegError, OSError, ValueError) as error:
            raise InputError(_explain(path, error)) from error
        with container:
            yield container
    finally:
        file.close()


def check_frame_size(path: Path, width: int, height: int, bits: int = 24) -> None:
    """Refuse frames that are too large.

    Args:
        path: of the video, for the message.
        width: of a frame in pixels.
        height: of a frame in pixels.
        bits: that a pixel takes once it is decoded.
    """
    if width * height > MAX_FRAME_PIXELS or width * height * bits > 8 * MAX_FRAME_BYTES:
        raise InputError(
            f"the video {path} has frames of {width} x {height} pixels, more than the {MAX_FRAME_PIXELS} (or "
            f"{MAX_FRAME_BYTES} bytes once decoded) that are accepted; scale it down first: "
            "ffmpeg -i INPUT -vf scale=-2:1080 OUTPUT.mp4"
        )


def _check_head(path: Path) -> None:
    """Refuse what FFmpeg would take for a video.

    It shows a still picture in the container of mp4 as one frame, and finds the size of a GIF by decoding it.
    """
    with path.open("rb") as file:
        head = file.read(12)
    if head[:4] == b"GIF8" and len(head) > 9:
        check_frame_size(path, int.from_bytes(head[6:8], "little"), int.from_bytes(head[8:10], "little"))
    if head[4:8] == b"ftyp" and head[8:] in _PICTURE_BRANDS:
        raise InputError(refusal(path, "a picture or text file (AVIF or HEIC)"))


def _refuse(url: str, flags: int, options: dict[str, str]) -> NoReturn:
    del flags, options
    raise PermissionError(f"it names another file ({url!r}), which is not opened")


def _explain(path: Path, error: Exception) -> str:
    with path.open("rb") as file:
        head = file.read(64)
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    kind = next(
        (f"a list of other files or addresses ({name})" for start, name in _LISTS if text.startswith(start)), ""
    )
    if kind or isinstance(error, av.error.ArgumentError):  # FFmpeg's error for what is not on the list
        return refusal(path, kind or "a picture or text file, or of another kind that is not accepted")
    if head[4:8] == b"ftyp":
        return (
            f"the video {path} cannot be opened: its index (the 'moov' box) is missing or damaged, because a "
            "recording, copy or download stopped early. Get the whole file; without the index no frame can be found"
        )
    reason = getattr(error, "strerror", None) or error
    return f"the video {path} cannot be opened: {reason}; pass {ACCEPTED} that plays"


def refusal(path: Path, kind: str) -> str:
    """Say that a file is no video."""
    return f"the video {path} cannot be opened: it is {kind}; pass {ACCEPTED}. Its contents decide, not its name"
