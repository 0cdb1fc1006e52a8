"""Reads one picture, whatever it comes as, into uint8 [height, width, 3] RGB.

`_KINDS` is the list of the picture formats that are accepted. A file of another kind reaches no decoder; of an accepted
one, the size and the memory that decoding takes are known from its header before a pixel is decoded.
"""

from __future__ import annotations

import io
import os
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import av
import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, ImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.ExifTags import Base
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from ..errors import InputError
from ..types import U8
from .colours import finish_pixels
from .inputs import find_file
from .picture_headers import MAX_EXIF_BYTES, TruncatedError, check_png, read_jpeg_frame, read_tiff_layout

MAX_PIXELS = 110_000_000
"""Largest picture that is accepted: as many pixels as the largest common cameras take (108 million)."""
MAX_SIDE = 2**16 - 1
MAX_FILE_BYTES = 450_000_000
MAX_DECODING_BYTES = 1_350_000_000
"""Memory that decoding one picture may take, its file included, as estimated from its header."""
DAMAGE = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error)
"""What Pillow raises for damaged or closed files."""
_FORMATS = "PNG, JPEG, WebP, BMP or TIFF"
_BMP_RUN_LENGTHS = (1, 2)
_ALPHA, _PREMULTIPLIED = 2, 1
"""Values of TIFF's ExtraSamples (TIFF 6.0, section 18)."""
_ODD_SUBSAMPLING = "Could not determine subsampling"
_FFMPEG_FORMATS = {
    "ya8": ("u1", 2),
    "ya16le": ("<u2", 2),
    "ya16be": (">u2", 2),
    "gray16be": (">u2", 1),
    "rgb48be": (">u2", 3),
    "rgba64be": (">u2", 4),
}
"""Type and number of channels by FFmpeg's name of a pixel format."""

PilImage: TypeAlias = Image.Image
ImageSource: TypeAlias = "str | os.PathLike[str] | NDArray[np.uint8] | PilImage"
"""A path, a uint8 RGB array or a PIL image."""


@dataclass(frozen=True)
class _Decoded:
    """Arguments of `finish_pixels`."""

    pixels: PilImage | NDArray[Any]
    profile: bytes | None = None
    orientation: int = 1
    premultiplied: bool = False


def read_image(source: ImageSource) -> U8:
    """Read one picture.

    Files are PNG, JPEG, WebP, BMP or TIFF. Grey pictures are replicated to three channels. Transparent ones (files, PIL
    images, arrays with four channels) are laid on white, which is what a cut-out looks like in a viewer. EXIF
    orientation and ICC profiles of files and PIL images are applied: the result is upright and sRGB. 16-bit values are
    scaled to 8 bits.

    Args:
        source: path; or uint8 array [height, width], [height, width, 1], [height, width, 3] RGB or [height, width, 4]
            RGBA; or PIL image. At most 110 million pixels, 65535 along a side; files of at most 450 MB.

    Returns:
        uint8 [height, width, 3], RGB, C-contiguous. It may share memory with an array that was passed in.

    Raises:
        InputError: there is no such file, it is of another kind, damaged or too large, or the array has another dtype
            or shape.

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
    return finish_pixels(array[:, :, 0] if array.shape[2:] == (1,) else array, None, 1, "the image array")


def _read_file(path: Path) -> U8:
    name, size_bytes = f"the image {path}", path.stat().st_size
    if size_bytes > MAX_FILE_BYTES:
        raise InputError(
            f"{name} has {size_bytes} bytes, more than the {MAX_FILE_BYTES} that are accepted; scale it down first, or "
            "save it as a JPEG"
        )
    with path.open("rb", buffering=0) as file:  # a buffer would double what is read at once
        decode = _find_decoder(file.read(16), name)
        try:
            with _quiet_decoders():
                file.seek(0)
                decoded = decode(file, name)
        except TruncatedError as error:
            raise InputError(f"{name} is truncated: its end is missing; copy or download it again") from error
        except DAMAGE as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"{name} cannot be decoded: it is damaged; copy or download it again, or save it anew as {_FORMATS}"
            ) from error
    return finish_pixels(decoded.pixels, decoded.profile, decoded.orientation, name, decoded.premultiplied)


def _find_decoder(head: bytes, name: str) -> Callable[[Any, str], _Decoded]:
    kind = head[8:12] if head.startswith(b"RIFF") or head[4:8] == b"ftyp" else head
    for decode, signatures in _KINDS:
        if kind.startswith(signatures):
            return decode
    for other, signatures in _OTHER_KINDS.items():
        if kind.startswith(signatures):
            raise InputError(f"{name} is {other}, which is not read; export it as {_FORMATS}")
    if head[4:8] == b"ftyp":
        raise InputError(f"{name} looks like a video; pass a picture ({_FORMATS}), for example one frame of it")
    raise InputError(f"{name} cannot be decoded: it is damaged, or no picture; pass a {_FORMATS} file")


def _decode_png(file: Any, name: str) -> _Decoded:
    exif, depth = check_png(file)  # before Pillow, which unpacks every profile
    file.seek(0)
    with PngImageFile(file) as image:
        check_size(*image.size, name)
        if exif:  # may stand behind the pixels
            image.info["exif"] = b"Exif\0\0" + exif
        profile, orientation = image.info.get("icc_profile"), _orientation(image)
        if depth <= 8:
            return _Decoded(_load(image), profile, orientation)
        file.seek(0)
        data = file.read()
        _check_memory(2 * len(data) + 8 * image.width * image.height, name)
        return _Decoded(_decode_with_ffmpeg("png", data), profile, orientation)


def _decode_with_ffmpeg(codec: str, data: bytes) -> NDArray[Any]:
    """Decode what Pillow cuts to 8 bits, or OpenCV leaves without its alpha, to a grey, RGB or RGBA array."""
    decoder: Any = av.CodecContext.create(codec, "r")
    decoder.thread_count = 1
    if codec == "png":  # for TIFF, a tag that is unknown would be an error
        decoder.options = {"err_detect": "explode"}
    try:
        (frame,) = decoder.decode(av.Packet(data))
        dtype, channels = _FFMPEG_FORMATS[frame.format.name]
    except (av.error.FFmpegError, KeyError) as error:
        raise SyntaxError(f"FFmpeg cannot decode it: {error}") from error
    rows = np.frombuffer(frame.planes[0], dtype).reshape(frame.height, -1)
    pixels = rows[:, : frame.width * channels].reshape(frame.height, frame.width, channels)
    return pixels[:, :, [0, 0, 0, 1]] if channels == 2 else pixels.squeeze(2) if channels == 1 else pixels


def _decode_jpeg(file: Any, name: str) -> _Decoded:
    """Decode with libjpeg-turbo, which reports what Pillow passes over: data that end early or do not fit.

    Its interface knows all subsamplings that cameras and common encoders write; Pillow decodes the others.

    Raises:
        InputError: libjpeg-turbo found damage.
    """
    data = file.read()
    frame = read_jpeg_frame(data)
    check_size(frame.width, frame.height, name)
    coefficients = 2 * frame.components if frame.scans > 1 else 0
    _check_memory(len(data) + (coefficients + frame.components) * frame.width * frame.height, name)
    with JpegImageFile(io.BytesIO(data)) as image:
        profile, orientation, is_cmyk = image.info.get("icc_profile"), _orientation(image), image.mode == "CMYK"
    colours = {1: "GRAY", 3: "RGB", 4: "CMYK"}[frame.components]
    try:
        pixels = simplejpeg.decode_jpeg(data, colours)
    except ValueError as error:
        if _ODD_SUBSAMPLING in str(error):
            return _Decoded(_load(JpegImageFile(io.BytesIO(data))), profile, orientation)
        raise InputError(
            f"{name} is damaged ({error}); copy or download it again, or open it in an image editor and save it anew"
        ) from error
    if is_cmyk:  # stored inverted, as Adobe does
        return _Decoded(Image.fromarray(np.invert(pixels, out=pixels), "CMYK"), profile, orientation)
    return _Decoded(pixels.squeeze(2) if frame.components == 1 else pixels, profile, orientation)


def _decode_webp(file: Any, name: str) -> _Decoded:
    data = file.read()
    if len(data) < int.from_bytes(data[4:8], "little") + 8:
        raise TruncatedError
    with open_picture(data) as image:
        check_size(*image.size, name)
        profile, orientation = image.info.get("icc_profile"), _orientation(image)
        if image.n_frames > 1:  # type: ignore[attr-defined]
            _check_memory(len(data) + 20 * image.width * image.height, name)
            return _Decoded(_load(image), profile, orientation)
    return _Decoded(_decode_with_opencv(data, cv2.IMREAD_UNCHANGED), profile, orientation)


def _decode_bmp(file: Any, name: str) -> _Decoded:
    image = BmpImageFile(file)
    check_size(*image.size, name)
    if image.info.get("compression") in _BMP_RUN_LENGTHS:
        raise InputError(f"{name} is a BMP with run-length compression, which is not read; save it as PNG")
    return _Decoded(_load(image))


def _decode_tiff(file: Any, name: str) -> _Decoded:
    """Decode with OpenCV, which turns the pixels upright.

    Pillow keeps the upper 8 of a colour picture's 16 bits, opens no floating-point picture, about which the user gets
    a message of its own, and reads directories of any size into memory.
    """
    data = file.read()
    layout = read_tiff_layout(data)
    check_size(layout.width, layout.height, name)
    if layout.bits == 16 and layout.in_planes:
        raise InputError(
            f"{name} stores its 16-bit channels one after the other, which OpenCV reads wrongly; save it as a PNG"
        )
    if layout.bits == 16 and layout.is_cmyk:
        raise InputError(f"{name} is a CMYK picture of 16 bits, which OpenCV reads wrongly; save it as an RGB picture")
    pixel_bytes = layout.samples * max(1, layout.bits // 8)
    part_bytes = pixel_bytes if layout.bits > 8 else pixel_bytes + 4  # pixels of 8 bits go through RGBA
    needed_bytes = layout.part_pixels * part_bytes + layout.width * layout.height * max(4, pixel_bytes)
    _check_memory(len(data) + needed_bytes, name)
    has_alpha = bool(layout.extra & {_ALPHA, _PREMULTIPLIED})
    if has_alpha and layout.samples == 2:
        grey = _decode_with_ffmpeg("tiff", data)
        return _Decoded(grey, layout.profile, layout.orientation, _PREMULTIPLIED in layout.extra)
    flags = cv2.IMREAD_UNCHANGED if has_alpha and layout.samples == 4 else cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH
    pixels = _decode_with_opencv(data, flags)
    if pixels.dtype not in (np.uint8, np.uint16):
        raise InputError(f"{name} holds {pixels.dtype} values; save it with 8 or 16 bits per channel")
    # libtiff multiplies colours of 8 bits by their alpha
    return _Decoded(pixels, layout.profile, 1, layout.bits <= 8 or _PREMULTIPLIED in layout.extra)


def _decode_with_opencv(data: bytes, flags: int) -> NDArray[Any]:
    """Decode to a grey, RGB or RGBA array of any depth."""
    try:
        pixels: NDArray[Any] | None = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise SyntaxError("OpenCV refuses it") from error
    if pixels is None:
        raise SyntaxError("OpenCV cannot decode it")
    if pixels.ndim == 3:  # in place: OpenCV's order is BGR or BGRA
        cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB if pixels.shape[2] == 3 else cv2.COLOR_BGRA2RGBA, pixels)
    return pixels


def _load(image: PilImage) -> PilImage:
    image.load()
    return image


_KINDS: tuple[tuple[Callable[[Any, str], _Decoded], tuple[bytes, ...]], ...] = (
    (_decode_png, (b"\x89PNG\r\n\x1a\n",)),
    (_decode_jpeg, (b"\xff\xd8\xff",)),
    (_decode_webp, (b"WEBP",)),
    (_decode_bmp, (b"BM",)),
    (_decode_tiff, (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")),
)
"""The formats that are accepted, by the first bytes of a file, or those of its kind after a RIFF or ISO header."""
_OTHER_KINDS = {
    "a GIF picture": (b"GIF8",),
    "an animated AVIF picture": (b"avis",),
    "an AVIF picture": (b"avif",),
    "a HEIC photo": (b"heic", b"heix", b"hevc", b"mif1", b"msf1", b"heim", b"heis"),
    "a JPEG 2000 picture": (b"\0\0\0\x0cjP  ", b"\xffO\xffQ"),
    "a JPEG XL picture": (b"\0\0\0\x0cJXL ", b"\xff\n"),
    "a Photoshop file": (b"8BPS",),
    "a PDF document": (b"%PDF",),
    "an SVG drawing": (b"<svg", b"<?xml"),
    "a PNM picture": tuple(b"P%d" % kind for kind in range(1, 8)),
}
"""Formats that are refused by name. A decoder for them cannot be kept within bounds, or is missing."""


def open_picture(data: bytes) -> ImageFile.ImageFile:
    """Read the header of a WebP file. (`Image.open` has a process-wide limit, which is not ours.)

    Raises:
        SyntaxError: it is none. Damage raises this or another error of `DAMAGE`.
    """
    return WebPImageFile(io.BytesIO(data))


def read_pixels(image: PilImage, name: str) -> U8:
    """Decode what Pillow opened, as `read_image` describes it."""
    image.load()  # before a look at the orientation: Pillow turns a TIFF while it decodes it
    return finish_pixels(image, image.info.get("icc_profile"), _orientation(image), name)


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


def _orientation(image: PilImage) -> int:
    """Value of EXIF's Orientation tag; 1 is upright, and what a damaged block stands for."""
    if len(image.info.get("Raw profile type exif", "")) > 2 * MAX_EXIF_BYTES:
        return 1
    if len(image.info.get("exif", b"")) > MAX_EXIF_BYTES:
        image.info["exif"] = image.info["exif"][:MAX_EXIF_BYTES]  # the tag is among the first ones
    try:
        exif = Image.Image.getexif(image)  # that of a PNG would decode it
        return int(exif.get(Base.Orientation, 1))
    except Exception:  # whatever Pillow stumbles over, the pixels are none the worse for it
        return 1


def check_size(width: int, height: int, name: str) -> None:
    """Refuse pictures without pixels, and those that are too large to be anything but a trap."""
    if not width or not height:
        raise InputError(f"{name} has {width} x {height} pixels; pass one with at least one pixel")
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise InputError(
            f"{name} has {width} x {height} pixels, more than the {MAX_PIXELS} ({MAX_SIDE} along a side) that are "
            "accepted; scale it down first, for example to a long side of 4096 pixels"
        )


def _check_memory(needed_bytes: int, name: str) -> None:
    if needed_bytes > MAX_DECODING_BYTES:
        raise InputError(
            f"{name} takes {needed_bytes // 10**6} MB to decode, more than the {MAX_DECODING_BYTES // 10**6} MB that "
            "are accepted; scale it down first, or save it as a JPEG or as a PNG of 8 bits"
        )
