"""Reading pictures: every form they come in ends as the same upright uint8 RGB array that Pillow shows."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from dispose_rt.errors import InputError
from dispose_rt.media import PilImage, headers, images, read_image

Golden = Callable[[str], dict[str, NDArray[Any]]]
RNG_SHAPE = (24, 40, 3)


@pytest.fixture
def pixels() -> NDArray[np.uint8]:
    return np.random.default_rng(5).integers(0, 256, RNG_SHAPE, dtype=np.uint8)


def smooth_pixels() -> NDArray[np.uint8]:
    """Four flat quarters: survives JPEG's colour subsampling, and no two orientations look alike."""
    image = np.zeros((48, 80, 3), np.uint8)
    image[:24, :40], image[:24, 40:], image[24:, :40] = (220, 30, 30), (30, 200, 40), (40, 40, 220)
    return image


def test_the_golden_reference_is_read_exactly(golden: Golden) -> None:
    image = read_image(Path(__file__).parent.parent / "golden" / "ref.png")
    np.testing.assert_array_equal(image, golden("e2e")["ref_image"])


def test_an_rgb_array_passes_through(pixels: NDArray[np.uint8]) -> None:
    np.testing.assert_array_equal(read_image(pixels), pixels)


def test_a_strided_array_becomes_contiguous(pixels: NDArray[np.uint8]) -> None:
    image = read_image(pixels[::2, ::-1])
    assert image.flags.c_contiguous
    np.testing.assert_array_equal(image, pixels[::2, ::-1])


@pytest.mark.parametrize("axis", [False, True])
def test_grey_is_replicated(pixels: NDArray[np.uint8], axis: bool) -> None:
    grey = pixels[:, :, 0]
    image = read_image(grey[:, :, None] if axis else grey)
    for channel in range(3):
        np.testing.assert_array_equal(image[:, :, channel], grey)


def test_alpha_is_laid_on_white() -> None:
    rgba = np.array([[[10, 20, 30, 255], [10, 20, 30, 0], [0, 100, 255, 51]]], np.uint8)
    np.testing.assert_array_equal(read_image(rgba), [[[10, 20, 30], [255, 255, 255], [204, 224, 255]]])


def test_every_alpha_value_is_rounded_to_nearest() -> None:
    value, alpha = np.meshgrid(np.arange(256), np.arange(256))
    rgba = np.stack([value, value, value, alpha], axis=-1).astype(np.uint8)
    exact = value * (alpha / 255) + 255 * (1 - alpha / 255)
    np.testing.assert_array_equal(read_image(rgba)[:, :, 0], np.floor(exact + 0.5 + 1e-9))


@pytest.mark.parametrize("suffix", [".png", ".webp", ".bmp", ".tiff", ".ppm"])
def test_lossless_files_are_exact(pixels: NDArray[np.uint8], tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"bild_ü_写真 100%d{suffix}"
    Image.fromarray(pixels).save(path, **({"lossless": True} if suffix == ".webp" else {}))
    np.testing.assert_array_equal(read_image(path), pixels)
    np.testing.assert_array_equal(read_image(str(path)), pixels)


@pytest.mark.parametrize("suffix", [".png", ".webp"])
def test_transparent_files_are_laid_on_white(tmp_path: Path, suffix: str) -> None:
    rgba = np.random.default_rng(2).integers(0, 256, (16, 16, 4), dtype=np.uint8)
    rgba[:8, :, 3] = 0
    Image.fromarray(rgba).save(
        tmp_path / f"cut{suffix}", **({"lossless": True, "exact": True} if suffix == ".webp" else {})
    )
    np.testing.assert_array_equal(read_image(tmp_path / f"cut{suffix}"), read_image(rgba))


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [
        *((mode, ".png") for mode in ("1", "L", "LA", "P")),
        *((mode, ".tiff") for mode in ("1", "L", "LA", "P", "CMYK")),
        *((mode, ".jpg") for mode in ("1", "L", "CMYK")),
    ],
)
def test_colour_modes_of_files(tmp_path: Path, mode: str, suffix: str) -> None:
    path = tmp_path / f"image{suffix}"
    Image.fromarray(smooth_pixels()).convert(mode).save(path)
    expected = np.asarray(Image.open(path).convert("RGB"))
    # without a colour profile CMYK has no one true conversion; what matters is that ink is not taken for transparency
    tolerance = 40 if mode == "CMYK" else 1
    assert np.abs(read_image(path).astype(int) - expected).max() <= tolerance


def test_a_transparent_palette(tmp_path: Path) -> None:
    stored = Image.fromarray(smooth_pixels()).convert("P")
    path = tmp_path / "palette.png"
    stored.save(path, transparency=stored.getpixel((0, 0)))
    image = read_image(path)
    assert (image[0, 0] == 255).all()
    np.testing.assert_array_equal(image[0, 60], np.asarray(stored.convert("RGB"))[0, 60])


def test_sixteen_bits_are_scaled(tmp_path: Path) -> None:
    levels = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    nearest = np.floor(levels / 257 + 0.5).astype(np.uint8)
    cv2.imwrite(str(tmp_path / "grey.png"), levels)
    colour = np.stack([levels, levels[::-1], levels[:, ::-1]], axis=-1)
    cv2.imwrite(str(tmp_path / "colour.png"), colour[:, :, ::-1])
    np.testing.assert_array_equal(read_image(tmp_path / "grey.png")[:, :, 1], nearest)
    expected = np.stack([nearest, nearest[::-1], nearest[:, ::-1]], axis=-1)
    np.testing.assert_array_equal(read_image(tmp_path / "colour.png"), expected)
    with Image.open(tmp_path / "grey.png") as opened:
        np.testing.assert_array_equal(read_image(opened)[:, :, 1], nearest)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "tiff", "rgba.png", "rgba.webp"])
def test_exif_orientation_of_files(tmp_path: Path, kind: str, orientation: int) -> None:
    stored = smooth_pixels()
    if kind.startswith("rgba"):
        alpha = np.full((48, 80, 1), 255, np.uint8)
        alpha[40:] = 0
        stored = np.concatenate([stored, alpha], axis=2)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"turned.{kind}"
    Image.fromarray(stored).save(path, exif=exif, **({"quality": 95} if kind == "jpg" else {"lossless": True}))
    with Image.open(path) as opened:
        shown = ImageOps.exif_transpose(opened)
        ground = Image.new("RGBA", shown.size, "white")
        expected = np.asarray(Image.alpha_composite(ground, shown.convert("RGBA")).convert("RGB"))
    image = read_image(path)
    assert image.flags.c_contiguous
    assert image.shape == expected.shape == ((80, 48, 3) if orientation >= 5 else (48, 80, 3))
    assert np.abs(image.astype(int) - expected).max() <= (4 if kind == "jpg" else 0)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_of_pil_images(pixels: NDArray[np.uint8], orientation: int) -> None:
    image = Image.fromarray(pixels)
    image.getexif()[0x0112] = orientation
    expected = np.asarray(ImageOps.exif_transpose(image))
    np.testing.assert_array_equal(read_image(image), expected)


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_an_unknown_orientation_is_left_alone(tmp_path: Path, value: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = value
    rgba = np.concatenate([smooth_pixels(), np.full((48, 80, 1), 255, np.uint8)], axis=2)
    rgba[0, 0, 3] = 254
    Image.fromarray(rgba).save(tmp_path / "odd.png", exif=exif)
    assert read_image(tmp_path / "odd.png").shape == (48, 80, 3)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I", "I;16"])
def test_pil_modes(mode: str) -> None:
    grey = Image.fromarray(np.tile(np.arange(0, 250, 5, dtype=np.uint8), (20, 1)))
    if mode.startswith("I"):
        deep = np.asarray(grey).astype(np.uint16) * 257
        image = Image.fromarray(deep if mode == "I;16" else deep.astype(np.int32))
        assert image.mode == mode
    else:
        image = (grey if mode in ("1", "L", "LA") else Image.fromarray(smooth_pixels())).convert(mode)
    assert isinstance(image, PilImage)
    expected = np.asarray((grey if mode.startswith("I") else image).convert("RGB"))
    np.testing.assert_array_equal(read_image(image), expected)


def test_the_result_of_a_pil_image_can_be_written(pixels: NDArray[np.uint8]) -> None:
    image = read_image(Image.fromarray(pixels))
    image[0, 0] = 7
    assert (image[0, 0] == 7).all()


def test_a_real_photograph(photo: Path, jpeg_photo: Path) -> None:
    np.testing.assert_array_equal(read_image(photo), np.asarray(Image.open(photo).convert("RGB")))
    # libjpeg builds differ in their inverse DCT and colour upsampling by a few levels
    decoded, expected = read_image(jpeg_photo), np.asarray(Image.open(jpeg_photo).convert("RGB"))
    assert decoded.shape == expected.shape
    assert np.abs(decoded.astype(int) - expected).mean() < 0.5


def test_bytes_behind_a_complete_jpeg_are_ignored(jpeg_photo: Path, tmp_path: Path) -> None:
    """Phones append a short film to a photo."""
    (tmp_path / "motion.jpg").write_bytes(jpeg_photo.read_bytes() + b"\xff\xda" + bytes(1000))
    np.testing.assert_array_equal(read_image(tmp_path / "motion.jpg"), read_image(jpeg_photo))


@pytest.mark.parametrize("part", [0.3, 0.7, 0.999])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF"])
def test_truncated_files_are_refused_quietly(
    tmp_path: Path, kind: str, part: float, capfd: pytest.CaptureFixture[str]
) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (200, 300, 3), dtype=np.uint8)).save(buffer, kind)
    path = tmp_path / "cut.img"
    path.write_bytes(buffer.getvalue()[: int(len(buffer.getvalue()) * part)])
    with pytest.raises(InputError, match="cannot be decoded" if kind in ("BMP", "TIFF") else "truncated"):
        read_image(path)
    assert capfd.readouterr() == ("", "")


def test_the_end_of_a_thumbnail_is_not_the_end_of_the_photo(jpeg_photo: Path, tmp_path: Path) -> None:
    photo, thumbnail = jpeg_photo.read_bytes(), io.BytesIO()
    Image.new("RGB", (16, 16)).save(thumbnail, "JPEG")
    body = b"Exif\0\0" + thumbnail.getvalue()
    segment = b"\xff\xe1" + (len(body) + 2).to_bytes(2, "big") + body
    path = tmp_path / "cut.jpg"
    path.write_bytes(photo[:2] + segment + photo[2 : len(photo) // 2])
    with pytest.raises(InputError, match="truncated"):
        read_image(path)


def test_decoding_leaves_opencv_logging_as_it_was(photo: Path, tmp_path: Path) -> None:
    before = images._set_log_level(2)
    try:
        read_image(photo)
        (tmp_path / "no.png").write_bytes(b"no picture")
        with pytest.raises(InputError):
            read_image(tmp_path / "no.png")
        assert images._set_log_level(2) == 2
    finally:
        images._set_log_level(before)


HEADERS = {
    "PNG": {},
    "JPEG": {},
    "WEBP": {"lossless": True},
    "BMP": {},
    "TIFF": {},
    "progressive JPEG": {"progressive": True},
    "lossy WEBP": {},
    "WEBP with a profile": {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0"},
}


@pytest.mark.parametrize("name", HEADERS)
@pytest.mark.parametrize("size", [(300, 17), (5, 1000)])
def test_a_huge_picture_is_refused_before_it_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, size: tuple[int, int]
) -> None:
    [form] = [word for word in name.split() if word.isupper()]
    Image.new("RGB", size).save(tmp_path / "a", form, **HEADERS[name])
    assert headers.read_size((tmp_path / "a").read_bytes()) == size
    monkeypatch.setattr(images, "MAX_PIXELS", size[0] * size[1] - 1)
    monkeypatch.setattr(images, "_decode", lambda *_: pytest.fail("something was decoded"))
    with pytest.raises(InputError, match=rf"{size[0]} x {size[1]} pixels, more than"):
        read_image(tmp_path / "a")


@pytest.mark.parametrize("name", HEADERS)
def test_a_cut_header_states_no_size_or_the_right_one(name: str) -> None:
    [form] = [word for word in name.split() if word.isupper()]
    file = io.BytesIO()
    Image.new("RGB", (300, 17)).save(file, form, **HEADERS[name])
    for length in range(200):
        assert headers.read_size(file.getvalue()[:length]) in (None, (300, 17))
