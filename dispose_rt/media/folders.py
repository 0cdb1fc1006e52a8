"""Reads a folder of numbered pictures as a video."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path

from ..errors import InputError

PICTURE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
CHUNK_BYTES = 2**20


def list_pictures(folder: Path) -> list[Path]:
    """List a folder's pictures in natural order: frame2 before frame10.

    Hidden files, folders and files with other suffixes are ignored.

    Args:
        folder: an existing directory.

    Returns:
        At least one path.

    Raises:
        InputError: the folder cannot be read, or holds no picture.
    """
    try:
        with os.scandir(folder) as entries:
            files = [Path(entry.path) for entry in entries if not entry.name.startswith(".") and entry.is_file()]
    except OSError as error:
        raise InputError(f"the folder {folder} cannot be read: {error}; check its permissions") from error
    pictures = [path for path in files if path.suffix.lower() in PICTURE_SUFFIXES]
    if not pictures:
        others = f"; it holds {min(files, key=_natural_key).name}" if files else " and no other file"
        raise InputError(
            f"the folder {folder} holds no picture ({', '.join(PICTURE_SUFFIXES)}){others}. "
            "Pass one video file, or a folder with one picture per frame"
        )
    return sorted(pictures, key=_natural_key)


def digest_pictures(pictures: Sequence[Path]) -> str:
    """SHA-256 over the names and bytes of files in their order, as hexadecimal digits."""
    total = hashlib.sha256()
    for path in pictures:
        total.update(f"{path.name}\0{digest_file(path)}\n".encode(errors="surrogateescape"))
    return total.hexdigest()


def digest_file(path: Path) -> str:
    """SHA-256 over a file's bytes, as hexadecimal digits."""
    total = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                total.update(chunk)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error}; check that it is still there") from error
    return total.hexdigest()


def _natural_key(path: Path) -> tuple[list[tuple[int, str]], str]:
    """Numbers in a name count as numbers; the name itself decides between a1 and a01."""
    parts = re.split(r"([0-9]+)", path.name.casefold())
    key = [(int(part), "") if number % 2 else (0, part) for number, part in enumerate(parts)]
    return key, path.name
