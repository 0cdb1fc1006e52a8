"""Damaged pictures, films and sound."""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Iterator
from contextlib import closing
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dispose_rt.errors import DisposeError
from dispose_rt.media import open_video, open_writer, read_image
from dispose_rt.media.sound import has_sound
from dispose_rt.page.browser_copy import is_playable

from .area import Area, Problem, check_refusal, watched_warnings
from .damage import damage_bytes, mend_png

HEIGHT, WIDTH, FRAMES = 48, 64, 6
MOST_FRAMES = 2000
"""Frames of a film that are decoded: damage can repeat one, but not make a new one."""
_SUFFIXES = (
    *("png", "jpg", "webp", "gif", "tiff", "bmp", "avif", "mp4", "mov", "mkv", "webm", "avi", "ts", "m3u8"),
    "",
)
_FILMS: tuple[tuple[str, str, str, str | None], ...] = (
    ("mp4", "libx264", "yuv420p", "aac"),
    ("mov", "libx264", "yuv420p", "pcm_s16le"),
    ("mp4", "libx265", "yuv420p10le", None),
    ("mp4", "mpeg4", "yuv420p", "libmp3lame"),
    ("mov", "prores", "yuv422p10le", None),
    ("mov", "png", "rgb24", None),
    ("mkv", "libx264", "yuv420p", "flac"),
    ("mkv", "ffv1", "bgr0", "ac3"),
    ("webm", "libvpx", "yuv420p", "libopus"),
    ("webm", "libvpx-vp9", "yuv420p", None),
    ("webm", "libsvtav1", "yuv420p", None),
    ("avi", "mpeg4", "yuv420p", "mp2"),
    ("avi", "mjpeg", "yuvj420p", None),
    ("avi", "rawvideo", "bgr24", None),
    ("ts", "libx264", "yuv420p", "aac"),
    ("ts", "mpeg2video", "yuv420p", None),
    ("mpg", "mpeg2video", "yuv420p", "mp2"),
    ("flv", "flv", "yuv420p", None),
    ("wmv", "wmv2", "yuv420p", None),
    ("mxf", "mpeg2video", "yuv420p", None),
    ("nut", "mpeg4", "yuv420p", None),
    ("gif", "gif", "rgb8", None),
    ("apng", "apng", "rgb24", None),
    ("h264", "libx264", "yuv420p", None),
    ("y4m", "rawvideo", "yuv420p", None),
)
"""Container, codec, pixel format and sound of the films that are damaged."""


class Media(Area):
    """Pictures and films of every kind, read in every way that the package reads files."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.corpus = dict(_make_corpus(folder))

    def draw(self, rng: random.Random, case: Path, number: int) -> str:
        names = sorted(self.corpus)
        name = rng.choice(names)
        damaged, done = damage_bytes(rng, self.corpus[name], self.corpus[rng.choice(names)])
        if name.endswith("png") and rng.random() < 0.7:
            damaged, done = mend_png(damaged), f"{done}, checksums mended"
        suffix = rng.choice(_SUFFIXES) if rng.random() < 0.15 else name.rpartition(".")[2]
        (case / f"input.{suffix}").write_bytes(damaged)
        return f"{name}: {done}; named .{suffix}"

    def run(self, case: Path) -> bool:
        [path] = case.glob("input.*")
        accepted = False
        for use in (_use_picture, _use_film, _use_sound):
            try:
                with watched_warnings():
                    accepted |= use(path)
            except DisposeError as error:
                check_refusal(error)
        return accepted


def _use_picture(path: Path) -> bool:
    pixels = read_image(path)
    _check_pixels(pixels)
    return True


def _use_film(path: Path) -> bool:
    video, last_s = open_video(path), Fraction(-1)
    is_playable(path)
    _ = video.is_variable
    with closing(video.timed_frames()) as frames:  # type: ignore[type-var]  # a generator
        for frame, time_s in islice(frames, MOST_FRAMES):
            _check_pixels(frame)
            if frame.shape[:2] != (video.height, video.width):
                raise Problem("wrong result", f"a frame of {frame.shape}, announced {video.height} x {video.width}")
            if time_s < 0 or time_s < last_s:
                raise Problem("wrong result", f"a frame at {time_s} s follows one at {last_s} s")
            last_s = time_s
    return True


def _use_sound(path: Path) -> bool:
    if not has_sound(path):
        return False
    frame = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    with open_writer(path.with_name("output.mp4"), 24, WIDTH, HEIGHT, path) as write:
        for _ in range(FRAMES):
            write(frame)
    return True


def _check_pixels(pixels: NDArray[Any]) -> None:
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.flags.c_contiguous:
        raise Problem("wrong result", f"pixels of {pixels.dtype} {pixels.shape}")


def make_frames(count: int = FRAMES) -> NDArray[np.uint8]:
    """A coarse pattern that moves: [count, HEIGHT, WIDTH, 3]."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    frames = [
        np.stack((4 * columns + 9 * i, 5 * rows - 7 * i, (columns + i) // 8 * 40 + rows // 8 * 30), -1) % 256
        for i in range(count)
    ]
    return np.stack(frames).astype(np.uint8)


def _make_corpus(folder: Path) -> Iterator[tuple[str, bytes]]:
    """The whole files, by name. Encoders that this machine lacks leave theirs out; there are fewer cases then."""
    pixels = make_frames()
    yield from _make_pictures(pixels)
    for number, (kind, codec, layout, sound) in enumerate(_FILMS):
        path = folder / f"film{number}-{codec}.{kind}"
        try:
            _write_film(path, pixels, codec, layout, sound)
        except (av.FFmpegError, ValueError):
            continue
        yield path.name, path.read_bytes()
    for codec, kind in (("pcm_s16le", "wav"), ("libmp3lame", "mp3"), ("flac", "flac")):
        path = folder / f"sound.{kind}"
        _write_film(path, pixels, None, "", codec)
        yield path.name, path.read_bytes()


def _make_pictures(pixels: NDArray[np.uint8]) -> Iterator[tuple[str, bytes]]:
    images = [Image.fromarray(one) for one in pixels]
    image, exif = images[0], Image.Exif()
    exif[0x0112] = 6
    rgba = image.convert("RGBA")
    rgba.putalpha(image.getchannel(0))
    grey, indexed, cmyk = image.convert("L"), image.quantize(9), image.convert("CMYK")
    profile = _profile()
    plans: list[tuple[str, Image.Image, dict[str, Any]]] = [
        *((kind, image, {"exif": exif}) for kind in ("png", "jpeg", "webp", "tiff")),
        *((kind, image, {"icc_profile": profile}) for kind in ("png", "jpeg", "webp", "tiff")),
        *((kind, grey, {}) for kind in ("png", "jpeg", "tiff", "bmp")),
        *((kind, rgba, {}) for kind in ("png", "tiff", "bmp", "webp")),
        *((kind, indexed, {}) for kind in ("png", "bmp", "tiff", "gif")),
        *((kind, image, {}) for kind in ("bmp", "jpeg2000", "avif", "ppm", "ico")),
        ("jpeg", image, {"progressive": True}),
        ("jpeg", cmyk, {}),
        ("tiff", cmyk, {"compression": "tiff_lzw"}),
        ("tiff", image.convert("1"), {"compression": "group4"}),
        *(("tiff", image, {"compression": name}) for name in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")),
        ("tiff", image, {"big_tiff": True}),
        ("webp", rgba, {"lossless": True}),
        *((kind, image, {"save_all": True, "append_images": images[1:]}) for kind in ("webp", "gif", "png", "avif")),
    ]
    for number, (kind, picture, options) in enumerate(plans):
        file = io.BytesIO()
        picture.save(file, kind, **options)
        yield f"picture{number}.{kind}", file.getvalue()
    deep = pixels[0].astype(np.uint16) * 257
    for number, array in enumerate((deep, deep[:, :, 0], np.dstack((deep, deep[:, :, :1])))):
        for suffix in ("png", "tiff"):
            yield f"deep{number}.{suffix}", cv2.imencode(f".{suffix}", array)[1].tobytes()


def _profile() -> bytes:
    """An ICC profile that is not sRGB: its red and blue change places."""
    from PIL import ImageCms

    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, blue = profile.index(b"rXYZ"), profile.index(b"bXYZ")
    profile[red : red + 4], profile[blue : blue + 4] = profile[blue : blue + 4], profile[red : red + 4]
    return bytes(profile)


def _write_film(path: Path, pixels: NDArray[np.uint8], codec: str | None, layout: str, sound: str | None) -> None:
    make: Callable[..., Any] = av.open
    options = {"fflags": "+bitexact"}  # no random numbers: every run makes the same files
    form = {"apng": "apng", "h264": "h264", "y4m": "yuv4mpegpipe"}.get(path.suffix[1:])
    with make(str(path), "w", format=form, options=options) as container:
        film = container.add_stream(codec, rate=24, options={"threads": "1"}) if codec else None
        if film is not None:
            film.height, film.width, film.pix_fmt = HEIGHT, WIDTH, layout
            film.codec_context.thread_count = 1
        voice = container.add_stream(sound, rate=48000) if sound else None
        if voice is not None:
            voice.codec_context.layout = "mono"
        if film is not None:
            for number, one in enumerate(pixels):
                frame = av.VideoFrame.from_ndarray(one, format="rgb24")
                frame.pts = number
                container.mux(film.encode(frame))
            container.mux(film.encode(None))
        if voice is not None:
            _write_sound(container, voice)


def _write_sound(container: Any, voice: Any) -> None:
    voice.codec_context.open()
    size, form = voice.codec_context.frame_size or 1024, voice.codec_context.format.name
    wave = 0.3 * np.sin(np.arange(size) / 20)
    for number in range(FRAMES * 2000 // size):
        kind = np.float32 if form.startswith("flt") else np.int32 if form.startswith("s32") else np.int16
        scale = {np.float32: 1, np.int16: 2**15, np.int32: 2**31}[kind]
        frame = av.AudioFrame.from_ndarray((wave * scale).astype(kind)[None], format=form, layout="mono")
        frame.sample_rate, frame.pts = 48000, number * size
        container.mux(voice.encode(frame))
    container.mux(voice.encode(None))
