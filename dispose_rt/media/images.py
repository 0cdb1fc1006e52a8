"""Reads one picture, whatever it comes as, into uint8 [height, width, 3] RGB."""

from __future__ import annotations

import io
import os
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageFile, ImageOps
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.ExifTags import Base
from PIL.GifImagePlugin import GifImageFile
from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.TiffImagePlugin import (
    BITSPERSAMPLE,
    ICCPROFILE,
    IMAGELENGTH,
    IMAGEWIDTH,
    PLANAR_CONFIGURATION,
    ImageFileDirectory_v2,
)
from PIL.WebPImagePlugin import WebPImageFile

from ..errors import InputError, InputWarning
from ..types import U8
from .inputs import find_file

MAX_PIXELS = 2**28
"""Largest picture that is accepted: 16384 x 16384."""
MAX_FILE_BYTES = 2**30
SRGB_TOLERANCE = 2
"""A profile that moves no colour by more than this many levels counts as sRGB, and the pixels stay as they are."""
_FORMATS = "PNG, JPEG, WebP, BMP or TIFF"
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_DEPTH_AT = 24
"""Offset of the bits per channel (ISO/IEC 15948, 11.2.1)."""
_JPEG = b"\xff\xd8\xff"
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_READERS: tuple[tuple[tuple[bytes, ...], type[ImageFile.ImageFile]], ...] = (
    ((_PNG,), PngImageFile),
    ((_JPEG,), JpegImageFile),
    ((b"WEBP",), WebPImageFile),
    ((b"BM",), BmpImageFile),
    ((b"GIF8",), GifImageFile),
    ((b"avif", b"avis"), AvifImageFile),
    ((b"\0\0\0\x0cjP  ", b"\xffO\xffQ"), Jpeg2KImageFile),
    (tuple(b"P%d" % kind for kind in range(1, 7)), PpmImageFile),
)
"""Pillow's readers by the first bytes of a file, or those of its kind where it begins with a RIFF or ISO header."""
_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"mif1", b"msf1", b"heim", b"heis")
DAMAGE = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error)
"""What Pillow raises for damaged or closed files."""
_PROFILE_MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}
"""Pillow's mode by the colour space of an ICC profile."""
_GREY_MODES = ("1", "L", "LA")

PilImage: TypeAlias = Image.Image
ImageSource: TypeAlias = "str | os.PathLike[str] | NDArray[np.uint8] | PilImage"
"""A path, a uint8 RGB array or a PIL image."""


def read_image(source: ImageSource) -> U8:
    """Read one picture.

    Grey pictures are replicated to three channels. Transparent ones (files but TIFF, PIL images, arrays with four
    channels) are laid on white, which is what a cut-out looks like in a viewer. EXIF orientation and ICC profiles of
    files and PIL images are applied: the result is upright and sRGB. 16-bit values are scaled to 8 bits.

    Args:
        source: path; or uint8 array [height, width], [height, width, 1], [height, width, 3] RGB or [height, width, 4]
            RGBA; or PIL image. At most 2**28 pixels.

    Returns:
        uint8 [height, width, 3], RGB, C-contiguous. It may share memory with an array that was passed in.

    Raises:
        InputError: there is no such file, it is no complete picture, or the array has another dtype or shape.

    Warns:
        InputWarning: the ICC profile is damaged; the colours are taken for sRGB.
    """
    if isinstance(source, (str, os.PathLike)):
        return _read_file(find_file(source, "image"))
    if isinstance(source, np.ndarray):
        return _read_array(source)
    if isinstance(source, Image.Image):
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
    return _to_rgb(array)


def _read_file(path: Path) -> U8:
    name, size_bytes = f"the image {path}", path.stat().st_size
    if size_bytes > MAX_FILE_BYTES:
        raise InputError(
            f"{name} has {size_bytes} bytes, more than any picture that can be used; pass a {_FORMATS} file"
        )
    data = path.read_bytes()
    try:
        with _quiet_decoders():
            return _read_tiff(data, name) if data.startswith(_TIFF) else _read_other(data, name)
    except DAMAGE as error:
        if isinstance(error, InputError):
            raise
        raise InputError(_refusal(data, path)) from error


def _read_other(data: bytes, name: str) -> U8:
    """Decode any file but a TIFF: with Pillow, or with OpenCV where Pillow would spoil more than 8 bits per channel."""
    if data.startswith(_PNG):
        _require_end(b"IEND\xaeB`\x82" in data, name)
        open_picture(data).verify()  # Pillow decodes without a look at the checksums
    elif data.startswith(_JPEG):
        _require_end(b"\xff\xd9" in data, name)
    elif data.startswith(b"RIFF"):
        _require_end(len(data) >= int.from_bytes(data[4:8], "little") + 8, name)
    with open_picture(data) as image:
        check_size(*image.size, name)
        if (
            isinstance(image, JpegImageFile) and image.fp is not None
        ):  # was read up to its first scan; an embedded thumbnail has an end, too
            _require_end(data.find(b"\xff\xd9", image.fp.tell()) >= 0, name)
        if isinstance(image, Jpeg2KImageFile) or (data.startswith(_PNG) and data[_PNG_DEPTH_AT] == 16):
            pixels = _decode_deep(data, cv2.IMREAD_UNCHANGED, name)
            return _finish(pixels, image.info.get("icc_profile"), _orientation(image), name)
        return read_pixels(image, name)


def _require_end(is_there: bool, name: str) -> None:
    """Refuse files that end too early: a decoder may be content with less."""
    if not is_there:
        raise InputError(f"{name} is truncated: its end is missing; copy or download it again")


def open_picture(data: bytes) -> ImageFile.ImageFile:
    """Read the header of a picture file. (`Image.open` has a process-wide limit, which is lower than ours.)

    Raises:
        SyntaxError: it is of no known format. Damage raises this or another error of `DAMAGE`.
    """
    head = data[8:12] if data.startswith(b"RIFF") or data[4:8] == b"ftyp" else data[:12]
    for signatures, reader in _READERS:
        if head.startswith(signatures):
            return reader(io.BytesIO(data))
    raise SyntaxError("no picture")


def read_pixels(image: PilImage, name: str) -> U8:
    """Decode what Pillow opened, as `read_image` describes it."""
    image.load()  # before a look at the orientation: Pillow turns a TIFF while it decodes it
    return _finish(image, image.info.get("icc_profile"), _orientation(image), name)


def _read_pil(image: PilImage) -> U8:
    check_size(*image.size, "the PIL image")
    if image.mode == "F":
        raise InputError("the PIL image has mode 'F' (floating point); pass image.convert('RGB') of scaled values")
    try:
        return read_pixels(image, "the PIL image")
    except DAMAGE as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"the PIL image cannot be decoded: {error}; open it again from a complete file") from error


def _read_tiff(data: bytes, name: str) -> U8:
    """Decode with OpenCV, which turns the pixels upright.

    Pillow keeps the upper 8 of a colour picture's 16 bits, opens no floating-point picture, about which the user gets
    a message of its own, and applies its limit of 179 million pixels here once more.
    """
    tags, file = ImageFileDirectory_v2(data[: 16 if 43 in data[2:4] else 8]), io.BytesIO(data)
    file.seek(tags.next)
    tags.load(file)
    width, height = tags.get(IMAGEWIDTH), tags.get(IMAGELENGTH)
    if tags.get(PLANAR_CONFIGURATION) == 2 and max(tags.get(BITSPERSAMPLE, (1,))) == 16:
        raise InputError(
            f"{name} stores its 16-bit channels one after the other, which OpenCV reads wrongly; save it as a PNG"
        )
    if isinstance(width, int) and isinstance(height, int):
        check_size(width, height, name)
    image = _decode_deep(data, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH, name)
    return _finish(image, tags.get(ICCPROFILE), 1, name)


def _decode_deep(data: bytes, flags: int, name: str) -> PilImage:
    """Decode with OpenCV, which keeps 16 bits per channel until they are rounded here."""
    try:
        pixels: NDArray[Any] | None = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise SyntaxError("OpenCV refuses it") from error
    if pixels is None:
        raise SyntaxError("OpenCV cannot decode it")
    if pixels.dtype not in (np.uint8, np.uint16):
        raise InputError(f"{name} holds {pixels.dtype} values; save it with 8 or 16 bits per channel")
    check_size(pixels.shape[1], pixels.shape[0], name)
    if pixels.ndim == 3:
        pixels = pixels[:, :, [2, 1, 0, 3][: pixels.shape[2]]]  # OpenCV's order is BGR or BGRA
    return Image.fromarray(np.ascontiguousarray(_to_u8(pixels)))


@contextmanager
def _quiet_decoders() -> Iterator[None]:
    """Keep OpenCV's log and Pillow's warnings about a file from the terminal: what matters is raised as an error."""
    level = _set_log_level(0)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\.")
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


def _refusal(data: bytes, path: Path) -> str:
    if data[4:8] == b"ftyp":
        if data[8:12] in _HEIF_BRANDS:
            return f"the image {path} is a HEIC photo, which Pillow does not read; export it as {_FORMATS}"
        return f"the image {path} looks like a video; pass a picture ({_FORMATS}), for example one frame of it"
    return f"the image {path} cannot be decoded: it is damaged, too large, or no picture; pass a {_FORMATS} file"


def _orientation(image: PilImage) -> int:
    """Value of EXIF's Orientation tag; 1 is upright, and what a damaged block stands for."""
    try:
        return int(image.getexif().get(Base.Orientation, 1))
    except Exception:  # whatever Pillow stumbles over, the pixels are none the worse for it
        return 1


def _finish(image: PilImage, profile: bytes | None, orientation: int, name: str) -> U8:
    """Bring decoded pixels to sRGB, lay them on white and turn them upright."""
    if image.mode == "I" or image.mode.startswith("I;16"):
        image = Image.fromarray(_to_u8(_deep_pixels(image, name)))
    transparent = image.mode[-1:] in "Aa" or "transparency" in image.info
    shown = image.convert("RGBA" if transparent else "RGB")
    if profile:
        shown = _to_srgb(image, shown, profile, name)
    if orientation != 1:
        shown.getexif()[Base.Orientation] = orientation
        ImageOps.exif_transpose(shown, in_place=True)
    return _to_rgb(np.array(shown, np.uint8))


def _to_srgb(image: PilImage, shown: PilImage, profile: bytes, name: str) -> PilImage:
    """Apply a profile to a picture, if it is one for pictures of its kind.

    Args:
        image: the picture as it was stored.
        shown: the same in RGB or RGBA, by a conversion that knows of no profile.
        profile: an ICC profile.
        name: of the picture, for a warning.
    """
    try:
        mode, transform = _find_transform(profile)
    except (ImageCms.PyCMSError, OSError) as error:
        message = f"{name} has a damaged colour profile ({error}); its colours are taken for sRGB"
        warnings.warn(message, InputWarning, stacklevel=6)
        return shown
    fits = {"RGB": image.mode != "CMYK", "L": image.mode in _GREY_MODES, "CMYK": image.mode == "CMYK"}
    if transform is None or not fits[mode]:
        return shown
    converted = transform.apply(shown.convert("RGB") if mode == "RGB" else image.convert(mode))
    if shown.mode == "RGBA":
        converted.putalpha(shown.getchannel("A"))
    return converted


@lru_cache(8)  # frames of a folder share their profile
def _find_transform(profile: bytes) -> tuple[str, ImageCms.ImageCmsTransform | None]:
    """Mode of the pictures that a profile is for, and their conversion to sRGB; None where unknown or needless."""
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    mode = _PROFILE_MODES.get(source.profile.xcolor_space.strip(), "")
    if not mode:
        return mode, None
    transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
    if mode == "CMYK":
        return mode, transform
    levels = np.arange(0, 256, 15, dtype=np.uint8)
    colours = levels[None] if mode == "L" else np.stack(np.meshgrid(levels, levels, levels), -1).reshape(1, -1, 3)
    probe = Image.fromarray(colours)
    before, after = (np.asarray(one, np.int16) for one in (probe.convert("RGB"), transform.apply(probe)))
    moved = np.abs(after - before).max()
    return mode, transform if moved > SRGB_TOLERANCE else None


def _deep_pixels(image: PilImage, name: str) -> NDArray[np.uint16]:
    """16-bit grey values of a picture in mode "I" or "I;16"."""
    values = np.asarray(image)
    if values.size and not 0 <= int(values.min()) <= int(values.max()) <= 65535:
        raise InputError(
            f"{name} has mode {image.mode!r} and values {values.min()}..{values.max()}, expected 0..65535; "
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


def _to_rgb(pixels: U8) -> U8:
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
