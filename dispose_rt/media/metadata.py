"""What a video file says about itself: the tags of its container, and an XMP packet."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import InputError
from .accepted import open_container
from .inputs import find_file
from .interruptible import Pulse, call_in_thread

COMMENT, XMP = "comment", "xmp"
_XMP_UUID = bytes.fromhex("be7acfcb97a942e89c71999491e3afac")  # XMP Specification Part 3, 1.2.7: MPEG-4
_XMP_IN_GIF = b"\x21\xff\x0bXMP DataXMP"  # the same, 1.2.2: GIF 89a
_GIF_TRAILER = b"\x01" + bytes(range(255, -1, -1)) + b"\x00"  # ends the packet, wherever a reader of blocks enters it
_GIF_LOOP = b"\x21\xff\x0bNETSCAPE2.0"
_GIF_LOOP_BYTES = 19
_CHUNK_BYTES = 1 << 20


def read_metadata(path: str | os.PathLike[str], cancel: threading.Event | None = None) -> dict[str, str]:
    """Read the tags of a video file, by their names in lower case.

    They are whatever the file says: of any length and with any characters, control characters among them.

    Args:
        path: a file that FFmpeg opens for `open_video`.
        cancel: ends the reading once it is set.

    Raises:
        InputError: there is no such file, or it is no video.
        Cancelled: `cancel` was set.
    """
    file = find_file(path, "video")

    def look(pulse: Pulse) -> dict[str, str]:
        with open_container(file, pulse.beat) as container:
            return {name.lower(): text for name, text in container.metadata.items()}

    return call_in_thread(look, f"the video {file}", cancel)


def check_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    """Refuse what a container cannot hold.

    Raises:
        InputError: a name or a text is no string, is empty, or has characters that cannot be stored.
    """
    for name, text in metadata.items():
        for value in (name, text):
            if not isinstance(value, str) or not value or "\0" in value or not _is_storable(value):
                raise InputError(
                    f"the metadata {name!r} is {text!r}; pass strings that are not empty and hold no null character"
                )
    return dict(metadata)


def _is_storable(text: str) -> bool:
    try:
        return bool(text.encode())
    except UnicodeEncodeError:  # half of a surrogate pair
        return False


def set_tags(container: Any, suffix: str, metadata: Mapping[str, str]) -> None:
    """Hand the tags to FFmpeg before anything is written; a mov gets its XMP packet as well.

    Args:
        container: `av.container.OutputContainer`.
        suffix: of the output, which is no gif.
        metadata: tags by name.
    """
    tags = {name: text for name, text in metadata.items() if name != XMP or suffix == ".mov"}
    container.metadata.update(tags)


def finish_metadata(path: Path, suffix: str, metadata: Mapping[str, str]) -> None:
    """Add to a finished file what FFmpeg does not write: XMP of mp4 and m4v, and all of a gif.

    Raises:
        OSError: the disk is full, for example.
    """
    packet = metadata.get(XMP, "").encode()
    if suffix in (".mp4", ".m4v") and packet:
        with path.open("ab") as file:
            file.write((24 + len(packet)).to_bytes(4, "big") + b"uuid" + _XMP_UUID + packet)
    elif suffix == ".gif":
        comment = metadata.get(COMMENT, "").encode()
        blocks = b"".join(_comment_block(comment)) if comment else b""
        blocks += _XMP_IN_GIF + packet + _GIF_TRAILER if packet else b""
        if blocks:
            with path.open("r+b") as file:
                _insert(file, _end_of_gif_header(file), blocks)


def _comment_block(comment: bytes) -> Iterator[bytes]:
    """The comment extension of GIF 89a, section 24: sub-blocks of at most 255 bytes."""
    yield b"\x21\xfe"
    for start in range(0, len(comment), 255):
        piece = comment[start : start + 255]
        yield bytes([len(piece)]) + piece
    yield b"\0"


def _end_of_gif_header(file: BinaryIO) -> int:
    """Where the first picture begins: readers look no further for a comment."""
    head = file.read(13)
    end = 13 + (3 << (head[10] & 7) + 1 if head[10] & 0x80 else 0)  # the global table of colours
    file.seek(end)
    return end + (_GIF_LOOP_BYTES if file.read(len(_GIF_LOOP)) == _GIF_LOOP else 0)


def _insert(file: BinaryIO, place: int, data: bytes) -> None:
    """Move the end of a file back, its last piece first, and write into the gap."""
    end = file.seek(0, os.SEEK_END)
    for start in reversed(range(place, end, _CHUNK_BYTES)):
        file.seek(start)
        piece = file.read(_CHUNK_BYTES)
        file.seek(start + len(data))
        file.write(piece)
    file.seek(place)
    file.write(data)
