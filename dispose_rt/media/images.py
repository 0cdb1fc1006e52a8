"""Reads one picture, whatever it comes as, into uint8 [height, width, 3] RGB."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

import cv2
import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..types import U8
from .files import find_file
from .headers import read_size
from .orientation import EXIF_ORIENTATION_TAG, EXIF_ORIENTATIONS, UPRIGHT, exif_orientation

MAX_PIXELS = 2**28
"""Largest picture that is accepted: 16384 x 16384."""
MAX_FILE_BYTES = 2**30
_PNG = b"\x89PNG\r\n\x1a\n"
_FORMATS = "PNG, JPEG, WebP, BMP or TIFF"
_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"mif1", b"msf1", b"heim", b"heis")


@runtime_checkable
class PilImage(Protocol):
    """The part of `PIL.Image.Image` that is used; Pillow itself is never imported."""

    mode: str
    size: tuple[int, int]
    info: dict[Any, Any]

    def convert(self, mode: str) -> Any:
        """Return the image in another mode."""
        ...

    def getexif(self) -> Any:
        """Return the EXIF tags by number."""
        ...


ImageSource: TypeAlias = "str | os.PathLike[str] | NDArray[np.uint8] | PilImage"
"""A path, a uint8 RGB array or a PIL image."""


def read_image(source: ImageSource) -> U8:
    """Read one picture.

    Grey pictures are replicated to three channels. Transparent ones (PNG, WebP, PIL, arrays with four channels) are
    laid on white, which is what a cut-out looks like in a viewer. EXIF orientation is applied to files and PIL images.
    16-bit values are scaled to 8 bits. Colour profiles are ignored.

    Args:
        source: path; or uint8 array [height, width], [height, width, 1], [height, width, 3] RGB or [height, width, 4]
            RGBA; or PIL image. At most 2**28 pixels.

    Returns:
        uint8 [height, width, 3], RGB, C-contiguous. It may share memory with an array that was passed in.

    Raises:
        InputError: there is no such file, it is no complete picture, or the array has another dtype or shape.
    """
    if isinstance(source, (str, os.PathLike)):
        return _read_file(find_file(source, "image"))
    if isinstance(source, np.ndarray):
        return _read_array(source)
    if isinstance(source, PilImage):
        return _read_pil(source)
    raise InputError(
        f"an image of type {type(source).__module__}.{type(source).__qualname__} cannot be read; pass a path, a uint8 "
        "array [height, width, 3] in RGB, or a PIL image (of a tensor, pass tensor.cpu().numpy())"
    )


def _read_array(array: NDArray[Any]) -> U8:
    if array.dtype != np.uint8:
        advice = "convert it with image.astype(numpy.uint8) if its values are 0..255"
        if array.dtype.kind == "f":
            advice = "convert it with (image * 255).round().astype(numpy.uint8) if its values are 0..1"
        elif array.dtype == np.uint16:
            advice = "convert it with (image // 257).astype(numpy.uint8)"
        raise InputError(f"the image array has dtype {array.dtype}, expected uint8; {advice}")
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        advice = "pass a uint8 array [height, width, 3]"
        if array.ndim == 3 and array.shape[0] in (1, 3, 4):
            advice = "its channels come first; pass image.transpose(1, 2, 0)"
        elif array.ndim == 4:
            advice = "it is a stack of images; pass one of them, image[0]"
        raise InputError(
            f"the image array has shape {array.shape}, expected [height, width] or [height, width, 1, 3 or 4]; {advice}"
        )
    check_size(array.shape[1], array.shape[0], "the image array")
    return to_rgb(array)


def _read_file(path: Path) -> U8:
    size_bytes = path.stat().st_size
    if size_bytes > MAX_FILE_BYTES:
        raise InputError(
            f"the image {path} has {size_bytes} bytes, more than any picture that can be used; pass a {_FORMATS} file"
        )
    data = path.read_bytes()
    _check_complete(data, path)
    stated = read_size(data)
    if stated is not None:
        check_size(*stated, f"the image {path}")
    image = _decode_file(data, path)
    check_size(image.shape[1], image.shape[0], f"the image {path}")
    return image


def _decode_file(data: bytes, path: Path) -> U8:
    """Decode with OpenCV, but turn PNG and WebP upright here: OpenCV does so in some versions, and never with alpha."""
    flags, pixels = cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH, None
    if data.startswith(_PNG) or data[8:12] == b"WEBP":
        flags |= cv2.IMREAD_IGNORE_ORIENTATION
        pixels = _decode_transparent(data)
    if pixels is None:
        pixels = _decode(data, flags)
    if pixels is None:
        raise InputError(_refusal(data, path))
    if pixels.dtype not in (np.uint8, np.uint16):
        raise InputError(f"the image {path} holds {pixels.dtype} values; save it with 8 or 16 bits per channel")
    order = [2, 1, 0, 3][: pixels.shape[2]]  # OpenCV answers BGR or BGRA
    return exif_orientation(data).apply(to_rgb(_to_u8(pixels[:, :, order])))


def _decode_transparent(data: bytes) -> NDArray[Any] | None:
    """BGRA pixels of a file with an alpha channel. (Only for formats whose fourth channel cannot be ink.)"""
    pixels = _decode(data, cv2.IMREAD_UNCHANGED)
    return pixels if pixels is not None and pixels.ndim == 3 and pixels.shape[2] == 4 else None


def _decode(data: bytes, flags: int) -> NDArray[Any] | None:
    with _quiet_opencv():
        try:
            pixels: NDArray[Any] | None = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
        except cv2.error:
            return None
    return pixels


@contextmanager
def _quiet_opencv() -> Iterator[None]:
    """Keep OpenCV from logging to the terminal about a file for which we raise an error of our own."""
    level = _set_log_level(0)
    try:
        yield
    finally:
        _set_log_level(level)


def _set_log_level(level: int) -> int:
    """Return the level that was set before; 0 is silence."""
    opencv: Any = cv2
    if hasattr(opencv, "getLogLevel"):  # OpenCV up to 4.12
        before = int(opencv.getLogLevel())
        opencv.setLogLevel(level)
        return before
    return int(opencv.utils.logging.setLogLevel(level))


def _check_complete(data: bytes, path: Path) -> None:
    """Find files that end too early. Some decoders would fill the rest of the picture with grey, without a word."""
    complete = True
    if data.startswith(b"\xff\xd8\xff"):
        complete = data.find(b"\xff\xd9", _jpeg_scan_start(data)) >= 0
    elif data.startswith(_PNG):
        complete = b"IEND\xaeB`\x82" in data
    elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        complete = len(data) >= int.from_bytes(data[4:8], "little") + 8
    if not complete:
        raise InputError(f"the image {path} is truncated: its end is missing; copy or download it again")


def _jpeg_scan_start(data: bytes) -> int:
    """Offset of the first scan, behind all headers: an embedded thumbnail has an end marker of its own."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        if data[at + 1] == 0xDA:
            return at
        at += 1 if data[at + 1] == 0xFF else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return min(at, len(data))


def _refusal(data: bytes, path: Path) -> str:
    if data[4:8] == b"ftyp":
        if data[8:12] in _HEIF_BRANDS:
            return f"the image {path} is a HEIC photo, which OpenCV does not read; export it as {_FORMATS}"
        return f"the image {path} looks like a video; pass a picture ({_FORMATS}), for example one frame of it"
    return f"the image {path} cannot be decoded: it is damaged, too large, or no picture; pass a {_FORMATS} file"


def _read_pil(image: PilImage) -> U8:
    try:
        orientation = EXIF_ORIENTATIONS.get(image.getexif().get(EXIF_ORIENTATION_TAG, 1), UPRIGHT)
        width, height = image.size
        check_size(width, height, "the PIL image")
        if image.mode == "I" or image.mode.startswith("I;16"):
            pixels = _to_u8(_deep_pixels(image))
        elif image.mode == "F":
            raise InputError("the PIL image has mode 'F' (floating point); pass image.convert('RGB') of scaled values")
        else:
            transparent = image.mode[-1:] in "Aa" or "transparency" in image.info
            pixels = np.array(image.convert("RGBA" if transparent else "RGB"), np.uint8)
    except InputError:
        raise
    except (OSError, SyntaxError, ValueError, EOFError) as error:  # what Pillow raises for damaged or closed files
        raise InputError(f"the PIL image cannot be decoded: {error}; open it again from a complete file") from error
    return orientation.apply(to_rgb(pixels))


def _deep_pixels(image: PilImage) -> NDArray[np.uint16]:
    """16-bit grey values of a PIL image in mode "I" or "I;16"."""
    values = np.asarray(image)
    if values.size and not 0 <= int(values.min()) <= int(values.max()) <= 65535:
        raise InputError(
            f"the PIL image has mode {image.mode!r} and values {values.min()}..{values.max()}, expected 0..65535; "
            "scale them and pass image.convert('L')"
        )
    return values.astype(np.uint16)


def check_size(width: int, height: int, name: str) -> None:
    """Refuse pictures without pixels, and those that are too large to be anything but a trap."""
    if not width or not height:
        raise InputError(f"{name} has {width} x {height} pixels; pass one with at least one pixel")
    if width * height > MAX_PIXELS:
        raise InputError(
            f"{name} has {width} x {height} pixels, more than the {MAX_PIXELS} that are accepted; scale it down first, "
            "for example to a long side of 4096 pixels"
        )


def _to_u8(pixels: NDArray[Any]) -> U8:
    """Scale 16-bit values to 8 bits: 65535 becomes 255, rounded to nearest."""
    if pixels.dtype == np.uint16:
        return ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return pixels.astype(np.uint8, copy=False)


def to_rgb(pixels: U8) -> U8:
    """Three channels from one, three or four (the fourth is alpha, not premultiplied; the ground is white)."""
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    channels = pixels.shape[2]
    if channels == 1:
        pixels = np.repeat(pixels, 3, axis=2)
    elif channels == 4:
        alpha = pixels[:, :, 3:].astype(np.uint32)
        pixels = ((pixels[:, :, :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
    return np.ascontiguousarray(pixels)
