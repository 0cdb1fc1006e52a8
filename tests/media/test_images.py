"""Reading pictures: every form they come in ends as the same upright uint8 RGB array that Pillow shows."""

from __future__ import annotations

import io
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps

from dispose_rt.errors import InputError, InputWarning
from dispose_rt.media import PilImage, images, read_image
from tests.every import each

from .conftest import package_file

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


def test_grey_is_replicated(pixels: NDArray[np.uint8]) -> None:
    grey = pixels[:, :, 0]
    for form in (grey, grey[:, :, None]):
        np.testing.assert_array_equal(read_image(form), np.stack([grey] * 3, axis=-1))


def test_alpha_is_laid_on_white() -> None:
    rgba = np.array([[[10, 20, 30, 255], [10, 20, 30, 0], [0, 100, 255, 51]]], np.uint8)
    np.testing.assert_array_equal(read_image(rgba), [[[10, 20, 30], [255, 255, 255], [204, 224, 255]]])


def test_every_alpha_value_is_rounded_to_nearest() -> None:
    value, alpha = np.meshgrid(np.arange(256), np.arange(256))
    rgba = np.stack([value, value, value, alpha], axis=-1).astype(np.uint8)
    exact = value * (alpha / 255) + 255 * (1 - alpha / 255)
    np.testing.assert_array_equal(read_image(rgba)[:, :, 0], np.floor(exact + 0.5 + 1e-9))


@pytest.mark.parametrize("suffix", [".png", ".webp", ".bmp", ".tiff"])
def test_lossless_files_are_exact(pixels: NDArray[np.uint8], tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"bild_ü_写真 100%d{suffix}"
    Image.fromarray(pixels).save(path, **({"lossless": True} if suffix == ".webp" else {}))
    np.testing.assert_array_equal(read_image(path), pixels)
    np.testing.assert_array_equal(read_image(str(path)), pixels)


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tiff"])
def test_transparent_files_are_laid_on_white(tmp_path: Path, suffix: str) -> None:
    rgba = np.random.default_rng(2).integers(0, 256, (16, 16, 4), dtype=np.uint8)
    rgba[:8, :, 3] = 0
    Image.fromarray(rgba).save(
        tmp_path / f"cut{suffix}", **({"lossless": True, "exact": True} if suffix == ".webp" else {})
    )
    np.testing.assert_array_equal(read_image(tmp_path / f"cut{suffix}"), read_image(rgba))


@each(extra=["unassalpha", "assocalpha"], bits=[8, 16], orientation=[1, 6], kind=["rgb", "minisblack"])
def test_transparent_tiffs(tmp_path: Path, extra: str, bits: int, orientation: int, kind: str) -> None:
    """Both ways of storing alpha (TIFF 6.0, section 18), in every depth."""
    most = 2**bits - 1
    rgba = np.random.default_rng(2).integers(0, most + 1, (16, 24, 4)).astype(f"u{bits // 8}")
    rgba[:8, :, 3] = 0
    if kind == "minisblack":
        rgba[:, :, :3] = rgba[:, :, :1]
    shown = rgba if orientation == 1 else np.rot90(rgba, -1)
    alpha = shown[:, :, 3:] / most
    expected = shown[:, :, :3] / most * alpha + 1 - alpha
    stored = rgba.copy()
    if extra == "assocalpha":
        stored[:, :, :3] = np.round(rgba[:, :, :3] * (rgba[:, :, 3:] / most))
    tag = [(274, "H", 1, orientation, True)]
    stored = stored if kind == "rgb" else stored[:, :, 2:]
    options: dict[str, Any] = {"photometric": kind, "planarconfig": "contig", "extratags": tag}
    tifffile.imwrite(tmp_path / "a.tiff", stored, extrasamples=[extra], **options)
    assert np.abs(read_image(tmp_path / "a.tiff") - 255 * expected).max() < 1.6


@pytest.mark.parametrize("suffix", [".png", ".tiff", ".jpg", ".bmp"])
def test_colour_modes_of_files(tmp_path: Path, suffix: str) -> None:
    modes = {".jpg": ("1", "L", "CMYK"), ".tiff": ("1", "L", "LA", "P", "CMYK"), ".png": ("1", "L", "LA", "P")}
    wrong = []
    for mode in modes.get(suffix, ("1", "L", "P")):
        path = tmp_path / f"{mode}{suffix}"
        Image.fromarray(smooth_pixels()).convert(mode).save(path)
        expected = np.asarray(Image.open(path).convert("RGB"))
        # without a profile CMYK has no one true conversion, and TIFF is OpenCV's; ink must not count as transparency
        tolerance = 40 if (mode, suffix) == ("CMYK", ".tiff") else 0
        if np.abs(read_image(path).astype(int) - expected).max() > tolerance:
            wrong.append(mode)
    assert wrong == []


@pytest.mark.parametrize(("mode", "suffix"), [("P", ".png"), ("L", ".png"), ("RGB", ".png")])
def test_a_transparent_colour(tmp_path: Path, mode: str, suffix: str) -> None:
    stored = Image.fromarray(smooth_pixels()).convert(mode)
    path = tmp_path / f"stored{suffix}"
    stored.save(path, transparency=stored.getpixel((0, 0)))
    image = read_image(path)
    assert (image[0, 0] == 255).all()
    np.testing.assert_array_equal(image[0, 60], np.asarray(stored.convert("RGB"))[0, 60])


def test_opencv_decodes_the_same_pixels(jpeg_photo: Path, tmp_path: Path) -> None:
    """Pillow's pixels are those of a decoder of another build, at the time of writing to the last bit."""
    part = Image.open(jpeg_photo).convert("RGB").crop((100, 100, 357, 291))
    kinds: dict[str, dict[str, Any]] = {
        "plain.jpg": {},
        "fine.jpg": {"quality": 97, "subsampling": 0},
        "progressive.jpg": {"progressive": True},
        "grey.jpg": {},
        "lossy.webp": {"quality": 70},
    }
    wrong = {}
    for name, options in kinds.items():
        (part.convert("L") if name == "grey.jpg" else part).save(tmp_path / name, **options)
        expected = cv2.imread(str(tmp_path / name))[:, :, ::-1]
        difference = np.abs(read_image(tmp_path / name).astype(int) - expected)
        if difference.max() > 4 or difference.mean() > 0.5:
            wrong[name] = difference.max()
    assert wrong == {}


def test_the_first_picture_of_several_is_taken(pixels: NDArray[np.uint8], tmp_path: Path) -> None:
    first, second = Image.fromarray(pixels), Image.fromarray(255 - pixels)
    for kind in ("png", "tiff", "webp", "mpo"):
        path = tmp_path / f"two.{kind}"
        first.save(path, save_all=True, append_images=[second], **({"lossless": True} if kind == "webp" else {}))
        first.save(tmp_path / "one.jpg" if kind == "mpo" else tmp_path / f"one.{kind}", lossless=True)
        one = read_image(tmp_path / ("one.jpg" if kind == "mpo" else f"one.{kind}"))
        np.testing.assert_array_equal(read_image(path), one, err_msg=kind)


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
def test_sixteen_bits_are_scaled(tmp_path: Path, suffix: str) -> None:
    levels = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    nearest = np.floor(levels / 257 + 0.5).astype(np.uint8)
    cv2.imwrite(str(tmp_path / f"grey{suffix}"), levels)
    colour = np.stack([levels, levels[::-1], levels[:, ::-1]], axis=-1)
    cv2.imwrite(str(tmp_path / f"colour{suffix}"), colour[:, :, ::-1])
    np.testing.assert_array_equal(read_image(tmp_path / f"grey{suffix}")[:, :, 1], nearest)
    expected = np.stack([nearest, nearest[::-1], nearest[:, ::-1]], axis=-1)
    np.testing.assert_array_equal(read_image(tmp_path / f"colour{suffix}"), expected)
    with Image.open(tmp_path / f"grey{suffix}") as opened:
        np.testing.assert_array_equal(read_image(opened)[:, :, 1], nearest)


def test_sixteen_bits_with_transparency(tmp_path: Path) -> None:
    deep = np.random.default_rng(4).integers(0, 65536, (9, 12, 4), dtype=np.uint16)
    cv2.imwrite(str(tmp_path / "deep.png"), deep[:, :, [2, 1, 0, 3]])
    np.testing.assert_array_equal(read_image(tmp_path / "deep.png"), read_image(np.round(deep / 257).astype(np.uint8)))


def test_sixteen_bit_channels_one_after_the_other_are_refused(tmp_path: Path) -> None:
    """OpenCV would return two channels of noise."""
    planes = np.random.default_rng(4).integers(0, 65536, (3, 9, 12), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "planes.tiff", planes, photometric="rgb", planarconfig="separate")
    with pytest.raises(InputError, match=r"planes\.tiff stores its 16-bit channels one after the other.*PNG"):
        read_image(tmp_path / "planes.tiff")
    small = (planes >> 8).astype(np.uint8)
    tifffile.imwrite(tmp_path / "small.tiff", small, photometric="rgb", planarconfig="separate")
    np.testing.assert_array_equal(read_image(tmp_path / "small.tiff"), small.transpose(1, 2, 0))


@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "tiff", "rgba.png", "rgba.webp", "deep.png", "deep.tiff"])
def test_exif_orientation_of_files(tmp_path: Path, kind: str) -> None:
    stored = smooth_pixels()
    if kind.startswith("rgba"):
        alpha = np.full((48, 80, 1), 255, np.uint8)
        alpha[40:] = 0
        stored = np.concatenate([stored, alpha], axis=2)
    image = Image.fromarray(stored)
    if kind.startswith("deep"):
        image = Image.fromarray(stored[:, :, 0].astype(np.uint16) * 257)
    path = tmp_path / f"turned.{kind}"
    wrong = []
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        image.save(path, exif=exif, **({"quality": 95} if kind == "jpg" else {"lossless": True}))
        with Image.open(path) as opened:
            if kind.startswith("deep"):  # of which Pillow does not turn each
                image.getexif()[0x0112] = orientation
                expected = read_image(image)
            else:
                expected = read_image(np.asarray(ImageOps.exif_transpose(opened)))
        if not kind.startswith("deep"):
            with Image.open(path) as opened:
                np.testing.assert_array_equal(read_image(opened), expected)
        got = read_image(path)
        assert got.flags.c_contiguous
        if (
            got.shape != expected.shape
            or not (got == expected).all()
            or (got.shape == (80, 48, 3)) != (orientation >= 5)
        ):
            wrong.append(orientation)
    assert wrong == []


def test_exif_orientation_of_pil_images(pixels: NDArray[np.uint8]) -> None:
    for orientation in range(1, 9):
        image = Image.fromarray(pixels)
        image.getexif()[0x0112] = orientation
        expected = np.asarray(ImageOps.exif_transpose(image))
        np.testing.assert_array_equal(read_image(image), expected, err_msg=str(orientation))


def test_a_damaged_exif_block_turns_nothing(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker" * 9
    image, wrong = Image.fromarray(smooth_pixels()), []
    for at in range(6, len(exif.tobytes())):
        damaged = bytearray(exif.tobytes())
        damaged[at] ^= 0xFF
        for cut in (damaged, damaged[:at]):
            image.save(tmp_path / "a.jpg", exif=bytes(cut), quality=95)
            if read_image(tmp_path / "a.jpg").shape not in ((48, 80, 3), (80, 48, 3)):
                wrong.append(at)
    assert wrong == []


# --- colour profiles ---


def profile_of(path: Path) -> bytes:
    with Image.open(path) as image:
        return bytes(image.info["icc_profile"])


@pytest.fixture(scope="session")
def adobe_rgb(jpeg_photo: Path) -> bytes:
    return profile_of(jpeg_photo)


@pytest.fixture(scope="session")
def grey_profile() -> bytes:
    return profile_of(package_file("scikit-image", "skimage/data/page.png"))


def test_adobe_rgb_becomes_srgb(jpeg_photo: Path) -> None:
    """Against the definitions (Adobe RGB (1998) 4.3.4 and 4.3.5, IEC 61966-2-1) in floating point."""
    with Image.open(jpeg_photo) as opened:
        stored = np.asarray(opened.convert("RGB")) / 255
        np.testing.assert_array_equal(read_image(opened), read_image(jpeg_photo))
    adobe = [[0.57667, 0.18556, 0.18823], [0.29734, 0.62736, 0.07529], [0.02703, 0.07069, 0.99134]]
    srgb = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    linear = np.clip(stored ** (563 / 256) @ np.transpose(np.linalg.inv(srgb) @ adobe), 0, 1)
    expected = 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    difference = np.abs(read_image(jpeg_photo) - expected)
    assert difference.mean() < 0.6
    assert np.quantile(difference, 0.99) < 2
    assert np.abs(255 * stored - expected).mean() > 4


def test_display_p3_becomes_srgb() -> None:
    """As phones store photos; against the definitions (SMPTE EG 432-1 with D65, IEC 61966-2-1) in floating point."""
    path = Path(__file__).with_name("display_p3.jpg")
    with Image.open(path) as opened:
        stored = np.asarray(opened.convert("RGB")) / 255
    p3 = [[0.48657, 0.26567, 0.19822], [0.22897, 0.69174, 0.07929], [0.0, 0.04511, 1.04394]]
    srgb = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    linear = np.where(stored <= 0.04045, stored / 12.92, ((stored + 0.055) / 1.055) ** 2.4)
    linear = np.clip(linear @ np.transpose(np.linalg.inv(srgb) @ p3), 0, 1)
    expected = 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    difference = np.abs(read_image(path) - expected)
    assert difference.mean() < 0.6
    assert np.quantile(difference, 0.99) < 2
    assert np.abs(255 * stored - expected).mean() > 10


def test_profiles_reach_all_kinds_of_pictures(tmp_path: Path, adobe_rgb: bytes) -> None:
    expected = read_image(_with(Image.fromarray(smooth_pixels()), adobe_rgb))
    assert (expected != smooth_pixels()).any()
    cv2.imwrite(str(tmp_path / "deep.png"), smooth_pixels()[:, :, ::-1].astype(np.uint16) * 257)
    data = (tmp_path / "deep.png").read_bytes()
    body = b"iCCPx\0\0" + zlib.compress(adobe_rgb)
    chunk = (len(body) - 4).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")
    (tmp_path / "deep.png").write_bytes(data[:33] + chunk + data[33:])
    picture = Image.fromarray(smooth_pixels())
    for name, image in {"a.png": picture, "a.tiff": picture, "a.webp": picture, "p.png": picture.quantize(16)}.items():
        image.save(tmp_path / name, icc_profile=adobe_rgb, lossless=True)
    for path in sorted(tmp_path.iterdir()):
        np.testing.assert_array_equal(read_image(path), expected, err_msg=path.name)


def test_a_profile_leaves_transparency_alone(tmp_path: Path, adobe_rgb: bytes) -> None:
    rgba = np.dstack([smooth_pixels(), np.full((48, 80), 255, np.uint8)])
    rgba[:, :10, 3] = 0
    Image.fromarray(rgba).save(tmp_path / "a.png", icc_profile=adobe_rgb)
    image = read_image(tmp_path / "a.png")
    assert (image[:, :10] == 255).all()
    np.testing.assert_array_equal(image[:, 10:], read_image(_with(Image.fromarray(smooth_pixels()), adobe_rgb))[:, 10:])


def test_a_grey_profile(grey_profile: bytes) -> None:
    """Dot gain darkens: the stored values stand for lighter ones in the middle, for the same at both ends."""
    ramp = Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    grey = read_image(_with(ramp, grey_profile))[0].astype(int)
    assert (grey == grey[:, :1]).all()
    assert (np.diff(grey[:, 0]) >= 0).all()
    assert grey[[0, 255], 0].tolist() == [0, 255]
    assert np.abs(grey[:, 0] - np.arange(256)).max() > 10


def test_a_profile_for_other_pictures_is_left_alone(adobe_rgb: bytes, grey_profile: bytes) -> None:
    colour = Image.fromarray(smooth_pixels())
    for image, profile in ((colour, grey_profile), (colour.convert("CMYK"), adobe_rgb)):
        np.testing.assert_array_equal(read_image(_with(image, profile)), np.asarray(image.convert("RGB")))


def test_srgb_by_any_name_changes_no_pixel(photo: Path) -> None:
    ours = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    values = np.stack(np.meshgrid(*[np.arange(0, 256, 5, dtype=np.uint8)] * 3), -1).reshape(52, -1, 3)
    for profile in (ours, profile_of(photo)):
        np.testing.assert_array_equal(read_image(_with(Image.fromarray(values), profile)), values)


def test_a_damaged_profile_is_reported(tmp_path: Path, adobe_rgb: bytes) -> None:
    for profile in (b"no profile", adobe_rgb[:200], adobe_rgb[:16] + b"R\xffB " + adobe_rgb[20:]):
        Image.fromarray(smooth_pixels()).save(tmp_path / "a.png", icc_profile=profile)
        with pytest.warns(InputWarning, match=r"a\.png has a damaged colour profile .* taken for sRGB"):
            np.testing.assert_array_equal(read_image(tmp_path / "a.png"), smooth_pixels())


def _with(image: Image.Image, profile: bytes) -> Image.Image:
    image.info["icc_profile"] = profile
    return image


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_an_unknown_orientation_is_left_alone(tmp_path: Path, value: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = value
    rgba = np.concatenate([smooth_pixels(), np.full((48, 80, 1), 255, np.uint8)], axis=2)
    rgba[0, 0, 3] = 254
    Image.fromarray(rgba).save(tmp_path / "odd.png", exif=exif)
    assert read_image(tmp_path / "odd.png").shape == (48, 80, 3)


@each(mode=["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I", "I;16"])
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


def test_a_real_photograph(photo: Path) -> None:
    np.testing.assert_array_equal(read_image(photo), np.asarray(Image.open(photo).convert("RGB")))


def test_bytes_behind_a_complete_jpeg_are_ignored(jpeg_photo: Path, tmp_path: Path) -> None:
    """Phones append a short film to a photo."""
    (tmp_path / "motion.jpg").write_bytes(jpeg_photo.read_bytes() + b"\xff\xda" + bytes(1000))
    np.testing.assert_array_equal(read_image(tmp_path / "motion.jpg"), read_image(jpeg_photo))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF"])
def test_truncated_files_are_refused_quietly(tmp_path: Path, kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (200, 300, 3), dtype=np.uint8)).save(buffer, kind)
    path = tmp_path / "cut.img"
    for part in (0.3, 0.7, 0.999):
        path.write_bytes(buffer.getvalue()[: int(len(buffer.getvalue()) * part)])
        with pytest.raises(InputError, match="cannot be decoded" if kind in ("BMP", "TIFF") else "truncated"):
            read_image(path)
    assert capfd.readouterr() == ("", "")


def test_damage_in_a_png_is_found(pixels: NDArray[np.uint8], tmp_path: Path) -> None:
    """Pillow alone would show what is left of most."""
    Image.fromarray(pixels).save(tmp_path / "a.png")
    data = bytearray((tmp_path / "a.png").read_bytes())
    accepted = []
    for at in range(40, len(data) - 12, 97):
        damaged = data.copy()
        damaged[at] ^= 4
        (tmp_path / "a.png").write_bytes(damaged)
        try:
            read_image(tmp_path / "a.png")
            accepted.append(at)
        except InputError:
            continue
    assert accepted == []


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
        Image.open(photo).save(tmp_path / "a.tiff")
        read_image(tmp_path / "a.tiff")
        (tmp_path / "no.tiff").write_bytes(b"II*\0no picture")
        with pytest.raises(InputError):
            read_image(tmp_path / "no.tiff")
        assert images._set_log_level(2) == 2
    finally:
        images._set_log_level(before)


@pytest.mark.parametrize("size", [(300, 17), (5, 1000)])
def test_a_huge_picture_is_refused_before_it_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]
) -> None:
    kinds: dict[str, dict[str, Any]] = {
        "a.png": {},
        "a.jpg": {},
        "progressive.jpg": {"progressive": True},
        "lossless.webp": {"lossless": True},
        "lossy.webp": {},
        "exif.webp": {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0"},
        "a.bmp": {},
        "a.tiff": {},
        "big.tiff": {"big_tiff": True},
    }
    monkeypatch.setattr(images, "MAX_PIXELS", size[0] * size[1] - 1)
    for decode in ("_load", "_decode_with_opencv", "_decode_with_ffmpeg", "finish_pixels"):
        monkeypatch.setattr(images, decode, lambda *_: pytest.fail("something was decoded"))
    monkeypatch.setattr("simplejpeg.decode_jpeg", lambda *_: pytest.fail("something was decoded"))
    for name, options in kinds.items():
        Image.new("RGB", size).save(tmp_path / name, **options)
        with pytest.raises(InputError, match=rf"{name} has {size[0]} x {size[1]} pixels, more than"):
            read_image(tmp_path / name)


def test_pillows_own_limit_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is lower than ours, and would refuse what large cameras take."""
    for name in ("a.png", "a.jpg", "a.webp", "a.bmp", "a.tiff"):
        Image.new("RGB", (60, 40)).save(tmp_path / name)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 60)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for path in sorted(tmp_path.iterdir()):
            assert read_image(path).shape == (40, 60, 3), path.name
