"""Brings decoded pixels into one form: sRGB, laid on white, upright, uint8 [height, width, 3]."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from ..errors import InputError, InputWarning
from ..types import U8

SRGB_TOLERANCE = 2
"""A profile that moves no colour by more than this many levels counts as sRGB, and the pixels stay as they are."""
BAND_PIXELS = 2**17
"""Pixels that are converted at a time, so that a large picture does not lie in memory in every form that it takes."""
_TABLE_PIXELS = 2**25
"""An RGB picture of more pixels is converted by a table of all colours, which makes a photo of 110 million pixels four
times as fast."""
_PROFILE_MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}
"""Pillow's mode by the colour space of an ICC profile."""
_GREY_MODES = ("1", "L", "LA")

_Transform: TypeAlias = "tuple[str, ImageCms.ImageCmsTransform | _ColourTable | None]"


def finish_pixels(
    pixels: Image.Image | NDArray[Any], profile: bytes | None, orientation: int, name: str, premultiplied: bool = False
) -> U8:
    """Bring decoded pixels to sRGB, lay them on white and turn them upright.

    Args:
        pixels: loaded PIL image; or uint8 or uint16 array [height, width] or [height, width, 3 or 4], RGB or RGBA.
            A uint8 array of three channels is overwritten.
        profile: ICC profile.
        orientation: value of EXIF's Orientation tag.
        name: of the picture, for messages.
        premultiplied: whether the colours of an array of four channels are multiplied by their alpha.
    """
    width, height = pixels.size if isinstance(pixels, Image.Image) else pixels.shape[1::-1]
    transform = _find_transform_or_warn(profile, name) if profile else ("", None)
    in_place = isinstance(pixels, np.ndarray) and pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3
    if in_place and transform[1] is None:
        return _turn(np.ascontiguousarray(pixels), orientation)
    if transform[0] == "RGB" and transform[1] is not None and width * height > _TABLE_PIXELS:
        transform = "RGB", _ColourTable(transform[1])
    done: U8 = np.ascontiguousarray(pixels) if in_place else np.empty((height, width, 3), np.uint8)
    rows = max(1, BAND_PIXELS // width)
    for top in range(0, height, rows):
        band = _cut_band(pixels, top, min(top + rows, height), name, premultiplied)
        done[top : top + rows] = _convert_band(band, transform)
    return _turn(done, orientation)


def _lay_on_white(pixels: U8) -> U8:
    """Three channels from three or four (the fourth is alpha, not premultiplied), rounded to nearest."""
    if pixels.shape[2] == 3:
        return pixels
    *colours, alpha = cv2.split(pixels)
    if not (alpha == 255).all():
        deep_alpha = alpha.astype(np.uint16)
        ground = 255 * (255 - deep_alpha) + 127
        for channel, values in enumerate(colours):
            mixed = values * deep_alpha
            mixed += ground
            mixed += (mixed >> 8) + 1
            mixed >>= 8  # all in all a division by 255, exact below 65535
            colours[channel] = mixed.astype(np.uint8)
    return np.asarray(cv2.merge(colours), np.uint8)


def _cut_band(pixels: Image.Image | NDArray[Any], top: int, bottom: int, name: str, premultiplied: bool) -> Image.Image:
    if isinstance(pixels, Image.Image):
        band = pixels if bottom - top == pixels.height else pixels.crop((0, top, pixels.width, bottom))
        if band.mode == "I" or band.mode.startswith("I;16"):
            return Image.fromarray(_to_u8(_deep_pixels(band, name)))
        return band
    values = _to_u8(pixels[top:bottom])
    if premultiplied and values.shape[2:] == (4,):
        values = np.minimum(values[:, :, :3].astype(np.uint16) + (255 - values[:, :, 3:]), 255).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(values))


def _convert_band(image: Image.Image, transform: _Transform) -> U8:
    transparent = image.mode[-1:] in "Aa" or "transparency" in image.info
    shown = image.convert("RGBA" if transparent else "RGB")
    mode, to_srgb = transform
    fits = {"": False, "RGB": image.mode != "CMYK", "L": image.mode in _GREY_MODES, "CMYK": image.mode == "CMYK"}
    if to_srgb is not None and fits[mode]:
        converted = to_srgb.apply(shown.convert("RGB") if mode == "RGB" else image.convert(mode))
        if transparent:
            converted.putalpha(shown.getchannel("A"))
        shown = converted
    return _lay_on_white(np.asarray(shown, np.uint8))


def _find_transform_or_warn(profile: bytes, name: str) -> _Transform:
    try:
        return _find_transform(profile)
    except (ImageCms.PyCMSError, OSError, ValueError) as error:  # ValueError: names that are not ASCII
        message = f"{name} has a damaged colour profile ({error}); its colours are taken for sRGB"
        warnings.warn(message, InputWarning, stacklevel=5)
        return "", None


class _ColourTable:
    """What a transform makes of every colour, to the bit."""

    def __init__(self, transform: ImageCms.ImageCmsTransform | _ColourTable) -> None:
        self._results = np.empty(2**24, np.uint32)
        for start in range(0, 2**24, 2**20):
            colours = np.arange(start, start + 2**20, dtype="<u4").view(np.uint8).reshape(1024, 1024, 4)
            image = transform.apply(Image.fromarray(np.ascontiguousarray(colours[:, :, :3])))
            self._results[start : start + 2**20] = _pack(image)

    def apply(self, image: Image.Image) -> Image.Image:
        """Convert an RGB picture."""
        results = np.take(self._results, _pack(image)).view(np.uint8)
        return Image.frombytes("RGB", image.size, results.reshape(-1, 4)[:, :3].tobytes())


def _pack(image: Image.Image) -> NDArray[np.uint32]:
    """One number of 24 bits per pixel of an RGB picture."""
    packed = np.frombuffer(image.tobytes("raw", "RGBX"), "<u4") & 0xFFFFFF
    return packed.astype(np.uint32, copy=False)


@lru_cache(8)  # frames of a folder share their profile
def _find_transform(profile: bytes) -> _Transform:
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


def _turn(pixels: U8, orientation: int) -> U8:
    """Apply EXIF's Orientation (Exif 3.0, 4.6.5.1.6); values that are unknown turn nothing."""
    turns: dict[int, Callable[[U8], Any]] = {
        2: lambda image: cv2.flip(image, 1),
        3: lambda image: cv2.rotate(image, cv2.ROTATE_180),
        4: lambda image: cv2.flip(image, 0),
        5: cv2.transpose,
        6: lambda image: cv2.rotate(image, cv2.ROTATE_90_CLOCKWISE),
        7: lambda image: cv2.rotate(cv2.transpose(image), cv2.ROTATE_180),
        8: lambda image: cv2.rotate(image, cv2.ROTATE_90_COUNTERCLOCKWISE),
    }
    return np.ascontiguousarray(turns[orientation](pixels)) if orientation in turns else pixels


def _deep_pixels(image: Image.Image, name: str) -> NDArray[np.uint16]:
    """16-bit grey values of a picture in mode "I" or "I;16"."""
    values = np.asarray(image)
    if values.size and not 0 <= int(values.min()) <= int(values.max()) <= 65535:
        raise InputError(
            f"{name} has mode {image.mode!r} and values {values.min()}..{values.max()}, expected 0..65535; "
            "scale them and pass image.convert('L')"
        )
    return values.astype(np.uint16)


def _to_u8(pixels: NDArray[Any]) -> U8:
    """Scale 16-bit values to 8 bits: 65535 becomes 255, rounded to nearest."""
    if pixels.dtype.kind == "u" and pixels.dtype.itemsize == 2:
        values = pixels.astype(np.uint32)
        values *= 255
        values += 32895
        values >>= 16  # the nearest of value / 257, for all 65536
        return values.astype(np.uint8)
    return pixels.astype(np.uint8, copy=False)
