"""The largest pictures, those that are made to break a decoder, and damaged ones: bounded, refused, in silence."""

from __future__ import annotations

import io
import json
import re
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from dispose_rt.errors import InputError
from dispose_rt.media import read_image
from tests.every import each, every_item

from .test_images import smooth_pixels

MAX_BYTES, MAX_S = 1.5e9, 5.0
SIZE = (10_500, 10_476)
"""Just within the limit."""
READ = """
import json, re, resource, sys
from dispose_rt.errors import InputError
from dispose_rt.media import read_image
def used():
    usage = resource.getrusage(resource.RUSAGE_SELF)  # its peak would be the one of the process that started this one
    peak = re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())
    return usage.ru_utime + usage.ru_stime, int(peak[1]) * 1024
for path in sys.argv[1:]:
    before, _ = used()
    try:
        said = str(read_image(path).shape)
    except InputError as error:
        said = str(error)
    after, peak = used()
    print(json.dumps([path, said, after - before, peak]))
"""


def read_elsewhere(paths: Iterable[Path]) -> list[tuple[str, str, float, int]]:
    """Name, shape or error, processor seconds, and peak memory in bytes up to then, of every picture."""
    command = [sys.executable, "-c", READ, *map(str, paths)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return [(Path(path).name, said, seconds, peak) for path, said, seconds, peak in lines]


def png(width: int, height: int, depth: int = 8, colour: int = 2, between: bytes = b"") -> bytes:
    """A black PNG, made without compressing all of it."""
    channels = {0: 1, 2: 3, 3: 1, 6: 4}[colour]
    total = height * (1 + width * channels * depth // 8)
    packer = zlib.compressobj(1, zlib.DEFLATED, -15)
    piece = packer.compress(bytes(2**20)) + packer.flush(zlib.Z_FULL_FLUSH)
    last = zlib.compressobj(1, zlib.DEFLATED, -15)
    rest = last.compress(bytes(total % 2**20)) + last.flush()
    body = b"\x78\x01" + piece * (total // 2**20) + rest + (((total % 65521) << 16) | 1).to_bytes(4, "big")
    parts = [chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)), between]
    parts += [chunk(b"PLTE", bytes(768))] if colour == 3 else []
    return b"\x89PNG\r\n\x1a\n" + b"".join([*parts, chunk(b"IDAT", body), chunk(b"IEND", b"")])


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def tiff(tags: dict[int, tuple[int, int, int]], big: bool = False) -> bytes:
    """A TIFF of one directory: type, count and value or offset by tag."""
    entries = b"".join(struct.pack("<HHQQ" if big else "<HHII", tag, *rest) for tag, rest in sorted(tags.items()))
    head = (
        struct.pack("<2sHHHQQ", b"II", 43, 8, 0, 16, len(tags)) if big else b"II*\0" + struct.pack("<IH", 8, len(tags))
    )
    return head + entries + bytes(5000)


def scans(count: int) -> bytes:
    """A progressive JPEG with a scan repeated."""
    file = io.BytesIO()
    Image.fromarray(smooth_pixels()).save(file, "JPEG", progressive=True)
    data = file.getvalue()
    start = data.rindex(b"\xff\xda")
    return data[:-2] + data[start:-2] * count + data[-2:]


def exif_jpeg() -> bytes:
    """EXIF blocks of which every entry names all of the rest: Pillow would take gigabytes to open it."""
    file = io.BytesIO()
    Image.fromarray(smooth_pixels()).save(file, "JPEG", jfif=False)
    data, count, size = file.getvalue(), 60_000, 50 * 65_000
    entries = b"".join(struct.pack("<HHII", tag, 7, size - 800_000, 800_000) for tag in range(1, count))
    block = (b"II*\0" + struct.pack("<IH", 8, count - 1) + entries).ljust(size, b"x")
    parts = [b"Exif\0\0" + block[at : at + 65_000] for at in range(0, size, 65_000)]
    return data[:2] + b"".join(b"\xff\xe1" + struct.pack(">H", len(part) + 2) + part for part in parts) + data[2:]


def bombs() -> dict[str, bytes]:
    size = {256: (4, 1, 30_000), 257: (4, 1, 30_000), 258: (3, 1, 8), 259: (3, 1, 5), 277: (3, 1, 3)}
    profile = chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(10**6)))
    return {
        "gif.gif": b"GIF89a\xff\x7f\xff\x7f" + bytes(33),
        "j2k.jp2": b"\xffO\xffQ" + bytes(1000),
        "huge.png": png(30_000, 30_000),
        "long.png": png(100_000, 9),
        "big.tiff": tiff(size, big=True),
        "two_widths.tiff": tiff({**size, 256: (4, 2, 400)}),
        "strip.tiff": tiff({**size, 256: (4, 1, 10_400), 257: (4, 1, 10_400), 258: (3, 1, 16), 277: (3, 1, 4)}),
        "tiles.tiff": tiff({**size, 256: (4, 1, 9_000), 257: (4, 1, 9_000), 322: (4, 1, 1), 323: (4, 1, 1)}),
        "values.tiff": tiff({**size, **dict.fromkeys(range(40_000, 44_000), (7, 5000, 8))}),
        "tags.tiff": b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, 2**40) + bytes(5000),
        "scans.jpg": scans(40),
        "exif.jpg": exif_jpeg(),
        "segments.jpg": b"\xff\xd8" + b"\xff\xfe\0\x02" * 10**6,
        "chunks.png": png(9, 9, between=chunk(b"vpAg", b"") * 2**18),
        "profiles.png": png(9, 9, between=profile * 100),
        "run_lengths.bmp": b"BM"
        + struct.pack("<IIIIiiHHIIiiII", 99, 0, 1078, 40, 9999, 9999, 1, 8, 1, 0, 0, 0, 0, 0)
        + bytes(2000),
    }


def test_bombs_are_refused_at_once(tmp_path: Path) -> None:
    for name, data in bombs().items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "whole.png").write_bytes(png(*SIZE))  # of the accepted ones, that is one of the slower
    with every_item() as every:
        for name, said, seconds, peak in read_elsewhere(sorted(tmp_path.iterdir())):
            with every(name):
                if name == "whole.png":
                    assert said == str((*SIZE[::-1], 3))
                    assert seconds < MAX_S
                    assert peak < MAX_BYTES
                else:
                    assert name in said
                    assert seconds < 0.5
                    assert peak < 0.25e9


@pytest.mark.slow
def test_the_largest_pictures(tmp_path: Path, jpeg_photo: Path) -> None:
    """All kinds; run with -s for the table."""
    width, height = SIZE
    black = Image.new("RGB", SIZE)

    def deep_tiff(path: Path) -> None:
        tifffile.imwrite(
            path, np.zeros((height, width, 3), np.uint16), photometric="rgb", compression="zlib", rowsperstrip=16
        )

    def turned_jpeg(path: Path) -> None:
        exif = Image.Exif()
        exif[0x0112] = 6
        profile = Image.open(jpeg_photo).info["icc_profile"]
        black.save(path, exif=exif, icc_profile=profile)

    kinds: dict[str, Callable[[Path], object]] = {
        "8bit.png": lambda at: at.write_bytes(png(*SIZE)),
        "alpha.png": lambda at: at.write_bytes(png(*SIZE, colour=6)),
        "palette.png": lambda at: at.write_bytes(png(*SIZE, colour=3)),
        "16bit.png": lambda at: at.write_bytes(png(*SIZE, depth=16)),
        "16bit_alpha.png": lambda at: at.write_bytes(png(*SIZE, depth=16, colour=6)),
        "plain.jpg": black.save,
        "turned_adobe_rgb.jpg": turned_jpeg,
        "progressive.jpg": lambda at: black.save(at, progressive=True, subsampling=0),
        "cmyk.jpg": lambda at: Image.new("CMYK", SIZE).save(at, progressive=True),
        "lossy.webp": lambda at: black.save(at, method=0),
        "alpha.webp": lambda at: Image.new("RGBA", SIZE).save(at, lossless=True, quality=0, method=0),
        "a.bmp": black.save,
        "8bit.tiff": lambda at: black.save(at, compression="tiff_lzw"),
        "16bit.tiff": deep_tiff,
    }
    with every_item() as every:
        for name, make in kinds.items():
            make(tmp_path / name)
            ((_, said, seconds, peak),) = read_elsewhere([tmp_path / name])
            (tmp_path / name).unlink()
            print(f"{name:24} {seconds:5.1f} s {peak / 1e6:6.0f} MB")
            with every(name):
                assert said in (str((height, width, 3)), str((width, height, 3)))
                assert peak < MAX_BYTES
                assert seconds < MAX_S


def test_a_table_of_all_colours_gives_the_same_bits(jpeg_photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photo = read_image(jpeg_photo)
    monkeypatch.setattr("dispose_rt.media.colours._TABLE_PIXELS", 0)
    np.testing.assert_array_equal(read_image(jpeg_photo), photo)


def test_bands_give_the_same_bits(jpeg_photo: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Large pictures are converted band by band."""
    part = Image.open(jpeg_photo).crop((0, 0, 90, 70))
    profile = part.info["icc_profile"]
    alpha = part.convert("RGBA")
    alpha.putalpha(part.convert("L"))
    kinds = {"a.png": part, "p.png": part.quantize(9), "1.png": part.convert("1"), "alpha.png": alpha, "a.tiff": alpha}
    for name, image in kinds.items():
        image.save(tmp_path / name, icc_profile=profile)
    part.convert("CMYK").save(tmp_path / "cmyk.jpg")
    cv2.imwrite(str(tmp_path / "deep.png"), np.asarray(part).astype(np.uint16) * 250)
    paths = sorted(tmp_path.iterdir())
    whole = [read_image(path) for path in paths]
    monkeypatch.setattr("dispose_rt.media.colours.BAND_PIXELS", 90 * 3)
    for path, expected in zip(paths, whole, strict=True):
        np.testing.assert_array_equal(read_image(path), expected, err_msg=path.name)


# --- damage ---


@pytest.fixture(scope="module")
def damaged_jpegs(jpeg_photo: Path) -> dict[str, list[bytes]]:
    """Photos with zeros in the middle, and photos cut and closed again."""
    part = Image.open(jpeg_photo).convert("RGB").resize((320, 256))
    made: dict[str, list[bytes]] = {"zeros": [], "closed": []}
    for options in ({}, {"progressive": True}, {"subsampling": 0, "quality": 95}, {"restart_marker_blocks": 20}):
        file = io.BytesIO()
        part.save(file, "JPEG", **options)
        data = file.getvalue()
        start = data.index(b"\xff\xda") + 40
        for at in np.linspace(start, len(data) - 2100, 6).astype(int):
            made["zeros"].append(data[:at] + bytes(2000) + data[at + 2000 :])
            made["closed"].append(data[:at] + b"\xff\xd9")
    return made


def test_damaged_jpegs_are_refused(damaged_jpegs: dict[str, list[bytes]], tmp_path: Path) -> None:
    """Pillow decodes nearly all of them without a word."""
    missed = {"zeros": 0, "closed": 0}
    for kind, files in damaged_jpegs.items():
        for data in files:
            (tmp_path / "a.jpg").write_bytes(data)
            try:
                read_image(tmp_path / "a.jpg")
                missed[kind] += 1
            except InputError as error:
                assert re.search(r"a\.jpg (is damaged \(.*save it anew|cannot be decoded)", str(error))  # noqa: PT017
    assert missed["closed"] == 0
    assert missed["zeros"] <= 2, "a decoder may fall into step again with the right number of blocks"


def test_both_decoders_of_jpegs_agree(jpeg_photo: Path, tmp_path: Path) -> None:
    """To the bit: Pillow's pixels are what was read before the strict decoder came."""
    part = Image.open(jpeg_photo).convert("RGB").crop((100, 100, 357, 291))
    with every_item() as every:
        for mode in ("RGB", "L", "CMYK"):
            for options in ({}, {"quality": 97, "subsampling": 0}, {"subsampling": 1}, {"progressive": True}):
                with every(mode, options):
                    part.convert(mode).save(tmp_path / "a.jpg", **options)
                    expected = np.asarray(Image.open(tmp_path / "a.jpg").convert("RGB"))
                    np.testing.assert_array_equal(read_image(tmp_path / "a.jpg"), expected)


@each(kind=["png", "tiff", "jpg", "webp", "bmp"])
def test_decoders_print_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str], kind: str) -> None:
    """Not even about files that they accept: what they print would stand between the lines of --json."""
    random = np.random.default_rng(3)
    deep = cv2.imencode(f".{kind}", smooth_pixels().astype(np.uint16) * 257)[1] if kind in ("png", "tiff") else None
    shallow = cv2.imencode(f".{kind}", smooth_pixels())[1]
    for data in (shallow, deep):
        for _ in range(100 if data is not None else 0):
            damaged = data.copy()
            damaged[random.integers(4, len(data), 3)] = random.integers(0, 256, 3)
            content = repair_checksums(damaged.tobytes()) if kind == "png" else damaged.tobytes()
            (tmp_path / "a").write_bytes(content)
            try:
                read_image(tmp_path / "a")
            except InputError:
                continue
    assert capfd.readouterr() == ("", "")


def repair_checksums(data: bytes) -> bytes:
    parts, at = [data[:8]], 8
    while at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        if end + 4 > len(data):
            break
        parts.append(chunk(data[at + 4 : at + 8], data[at + 8 : end]))
        at = end + 4
    return b"".join(parts)
