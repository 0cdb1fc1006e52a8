"""Files and folders that nobody should hand in, made on the spot."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np

from dispose_rt.puppet import Stance, dance, draw_backdrop, draw_puppet
from dispose_rt.types import U8

FILM_WIDTH, FILM_HEIGHT = 96, 144
PDF = b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj\n<< /Type /Catalog >>\nendobj\n" + b"0 0 0 rg\n" * 200 + b"%%EOF\n"
NOBODY = 65534


def draw_photo(width: int, height: int) -> U8:
    """A puppet that stands."""
    [joints] = dance(1, width / height, energy=0)
    return draw_puppet(joints, height, width)


def draw_film(count: int) -> list[U8]:
    """A puppet that dances."""
    joints = dance(count, FILM_WIDTH / FILM_HEIGHT, stance=Stance(), period=12)
    return [draw_puppet(one, FILM_HEIGHT, FILM_WIDTH) for one in joints]


def put(folder: Path, name: str, data: bytes) -> Path:
    (folder / name).write_bytes(data)
    return folder / name


def picture(path: Path, image: U8) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), image[:, :, ::-1])
    return path


def film(path: Path, frames: Sequence[U8], codec: str = "ffv1", rate: int = 24, **muxer: str) -> Path:
    """Encode with PyAV alone."""
    with av.open(str(path), "w", options=muxer) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "bgr0" if codec == "ffv1" else "yuv420p"
        stream.codec_context.time_base = Fraction(1, rate)
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def song(path: Path) -> Path:
    """Sound without pictures."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 2048), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 44100, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def cut(path: Path, source: Path, part: float) -> Path:
    data = source.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    return path


def growing_film(path: Path) -> Path:
    """Raw H.264 whose pictures have another size from the third on."""
    data = b""
    for number, (width, height) in enumerate(((96, 144), (128, 96))):
        part = film(path.with_name(f"part{number}.h264"), [draw_backdrop(height, width)] * 2, "libx264")
        data += part.read_bytes()
        part.unlink()
    path.write_bytes(data)
    return path


def headless_film(path: Path) -> Path:
    """An mp4 with an index of forty frames and not one of them."""
    film(path, draw_film(4), "libx264", movflags="+faststart")
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"mdat") + 8])
    return path


def huge_film(path: Path) -> Path:
    """An avi whose header announces 400 megapixels."""
    film(path, [draw_backdrop(99, 111)], "ffv1")
    data = path.read_bytes()
    for small in (111, 99):
        data = data.replace(struct.pack("<I", small), struct.pack("<I", 20_000))
    path.write_bytes(data)
    return path


def huge_png() -> bytes:
    """A PNG that announces 10 gigapixels and holds next to nothing."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(bytes(100))), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def pipe(path: Path) -> Path:
    os.mkfifo(path)
    return path


def loop(path: Path) -> Path:
    path.symlink_to(path.name)
    return path


def folder(path: Path, **files: bytes) -> Path:
    path.mkdir()
    for name, data in files.items():
        (path / name.replace("_", ".")).write_bytes(data)
    return path


def png(image: U8) -> bytes:
    return bytes(cv2.imencode(".png", image[:, :, ::-1])[1])


def closed(path: Path) -> Path:
    """What only its owner could open, if he were allowed to."""
    path.chmod(0)
    return path


@contextmanager
def without_rights() -> Iterator[None]:
    """Permissions do not bind root: be somebody else for a while."""
    if os.geteuid():
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
