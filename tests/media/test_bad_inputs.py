"""Everything a user can hand in by mistake: one typed error each, which names the cause and says what to do."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from PIL import Image

from dispose_rt.errors import DisposeError, InputError
from dispose_rt.media import VideoWriter, check_output_path, open_video, read_image, write_video
from tests.every import each

from .conftest import ClipMaker, numbered_frames


@dataclass(frozen=True)
class Case:
    """One mistake: what is called (with a scratch folder), what the message must name, and the remedy it must offer."""

    name: str
    call: Callable[[Path], Any]
    cause: str
    remedy: str


def _put(folder: Path, name: str, data: bytes) -> Path:
    (folder / name).write_bytes(data)
    return folder / name


def _png(width: int, height: int) -> bytes:
    """A PNG that announces a size and holds next to nothing."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(bytes(100))), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def _sound(folder: Path) -> Path:
    path = folder / "song.m4a"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 2048), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 44100, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def _float_tiff(folder: Path) -> Path:
    cv2.imwrite(str(folder / "float.tiff"), np.full((8, 8, 3), 0.5, np.float32))
    return folder / "float.tiff"


def _write_nothing(path: Path) -> None:
    with VideoWriter(path, 24, 8, 8):
        pass


def _truncated_pil(folder: Path) -> Image.Image:
    Image.new("RGB", (64, 64), "red").save(folder / "whole.png")
    data = (folder / "whole.png").read_bytes()
    return Image.open(_put(folder, "cut.png", data[: len(data) // 2]))


def _frames(*shape: int, dtype: Any = np.uint8) -> Any:
    return np.zeros(shape, dtype)


IMAGES = [
    Case("missing", lambda at: read_image(at / "no.png"), "does not exist", "spelling"),
    Case("directory", read_image, "is a directory", "pass one image file"),
    Case("empty", lambda at: read_image(_put(at, "a.png", b"")), "empty", "again"),
    Case("text", lambda at: read_image(_put(at, "a.png", b"hello" * 99)), "damaged, or no picture", "pass a PNG"),
    Case("heic", lambda at: read_image(_put(at, "a.heic", b"\0\0\0\x18ftypheic" + bytes(99))), "HEIC", "export it as"),
    *(
        Case(
            kind, lambda at, data=data: read_image(_put(at, "a.png", data)), f"is an? {kind}.*not read", "export it as"
        )
        for kind, data in {
            "GIF": b"GIF89a\xff\x7f\xff\x7f" + bytes(33),
            "AVIF": b"\0\0\0\x18ftypavif" + bytes(99),
            "animated AVIF": b"\0\0\0\x18ftypavis" + bytes(99),
            "JPEG 2000": b"\0\0\0\x0cjP  \r\n" + bytes(99),
            "PNM": b"P6 9 9 255 " + bytes(243),
            "Photoshop": b"8BPS" + bytes(99),
            "PDF": b"%PDF-1.7" + bytes(99),
            "SVG": b"<svg xmlns=''/>",
        }.items()
    ),
    Case(
        "video", lambda at: read_image(_put(at, "a.mp4", b"\0\0\0\x18ftypisom" + bytes(99))), "like a video", "picture"
    ),
    Case("address", lambda at: read_image("https://example.org/a.png"), "web address", "download it"),
    Case("null byte", lambda at: read_image("a\0b"), r"'a\\x00b'.*null", "check"),
    Case(
        "large file",
        lambda at: read_image(_put(at, "a.png", _png(100_000, 100_000))),
        "100000 x 100000 pixels",
        "scale",
    ),
    Case("float file", lambda at: read_image(_float_tiff(at)), "float32", "8 or 16 bits"),
    Case(
        "large array", lambda at: read_image(np.broadcast_to(np.uint8(0), (20000, 20000, 3))), "20000 x 20000", "scale"
    ),
    Case("no pixels", lambda at: read_image(_frames(0, 5, 3)), "5 x 0 pixels", "at least one pixel"),
    Case("float array", lambda at: read_image(_frames(4, 4, 3, dtype=np.float32)), "float32", r"image \* 255"),
    Case("deep array", lambda at: read_image(_frames(4, 4, 3, dtype=np.uint16)), "uint16", "257"),
    Case("bool array", lambda at: read_image(_frames(4, 4, dtype=bool)), "bool", "astype"),
    Case("channels first", lambda at: read_image(_frames(3, 8, 8)), r"\(3, 8, 8\)", r"transpose\(1, 2, 0\)"),
    Case("two channels", lambda at: read_image(_frames(8, 8, 2)), r"\(8, 8, 2\)", r"\[height, width, 3\]"),
    Case("a stack", lambda at: read_image(_frames(2, 8, 8, 3)), r"\(2, 8, 8, 3\)", r"image\[0\]"),
    Case("a vector", lambda at: read_image(_frames(8)), r"\(8,\)", r"\[height, width, 3\]"),
    Case("a list", lambda at: read_image([[1, 2], [3, 4]]), "type .*list", "uint8 array"),  # type: ignore[arg-type]
    Case("none", lambda at: read_image(None), "NoneType", "pass a path"),  # type: ignore[arg-type]
    Case("pil float", lambda at: read_image(Image.new("F", (4, 4))), "'F'", "convert"),
    Case("pil range", lambda at: read_image(Image.new("I", (4, 4), -5)), "-5", "scale"),
    Case("pil truncated", lambda at: read_image(_truncated_pil(at)), "cannot be decoded", "complete file"),
    Case("pil empty", lambda at: read_image(Image.new("RGB", (0, 3))), "0 x 3 pixels", "at least one pixel"),
]
VIDEOS = [
    Case("missing", lambda at: open_video(at / "no.mp4"), "does not exist", "spelling"),
    Case("empty folder", open_video, "holds no picture", "Pass one video file"),
    Case("empty", lambda at: open_video(_put(at, "a.mp4", b"")), "empty", "again"),
    Case("noise", lambda at: open_video(_put(at, "a.mp4", bytes(range(256)) * 99)), "cannot be opened", "pass an mp4"),
    Case("text", lambda at: open_video(_put(at, "a.txt", b"hello\n" * 99)), "cannot be opened", "pass an mp4"),
    Case("picture", lambda at: open_video(_put(at, "a.mp4", _png(8, 8))), "picture or text", "pass an mp4"),
    Case("sound", lambda at: open_video(_sound(at)), "no video stream .*audio", "sound file"),
    Case("address", lambda at: open_video("rtsp://example.org/a"), "web address", "download it"),
    Case("bytes", lambda at: open_video(b"video"), "bytes", "pass a path"),  # type: ignore[arg-type]
    Case("number", lambda at: open_video(7), "int", "pass a path"),  # type: ignore[arg-type]
    Case("one picture", lambda at: open_video(_frames(8, 8, 3)), r"\(8, 8, 3\)", r"image\[None\]"),
    Case("one pil image", lambda at: open_video(Image.new("RGB", (4, 4))), "Image", "list"),  # type: ignore[arg-type]
    Case("no frames", lambda at: open_video(_frames(0, 8, 8, 3)), "no frames", "at least one"),
    Case("empty list", lambda at: open_video([]), "no frames", "at least one"),
    Case("bad first frame", lambda at: open_video([_frames(8, 8, dtype=int)]), "frame 0 .*int64", "astype"),
    Case("missing frame", lambda at: open_video([at / "no.png"]), "frame 0 .*does not exist", "spelling"),
    Case("zero fps", lambda at: open_video(_frames(1, 8, 8, 3), fps=0), "fps is 0", "lie in 0.01"),
    Case("nan fps", lambda at: open_video(_frames(1, 8, 8, 3), fps=float("nan")), "fps is nan", "lie in 0.01"),
    Case("text fps", lambda at: open_video(_frames(1, 8, 8, 3), fps="x"), "fps is 'x'", "lie in 0.01"),  # type: ignore[arg-type]
    Case("step 0", lambda at: open_video(_frames(1, 8, 8, 3)).frames(0), "step is 0", "1 or more"),
    Case("step 1.5", lambda at: open_video(_frames(1, 8, 8, 3)).frames(1.5), "step is 1.5", "integer"),  # type: ignore[arg-type]
]
OUTPUTS = [
    Case("suffix", lambda at: check_output_path(at / "out.avi"), "'.avi'", ".mp4"),
    Case("no suffix", lambda at: check_output_path(at / "out"), "suffix is ''", ".mp4"),
    Case("no folder", lambda at: check_output_path(at / "no" / "out.mp4"), "does not exist", "mkdir -p"),
    Case("file as folder", lambda at: check_output_path(_put(at, "a", b"x") / "out.mp4"), "does not exist", "mkdir"),
    Case("directory", lambda at: check_output_path(_made(at / "dir.mp4")), "is a directory", "name a file"),
    Case("zero fps", lambda at: VideoWriter(at / "a.mp4", 0, 64, 64), "fps .* is 0", "lie in 0.01"),
    Case("infinite fps", lambda at: VideoWriter(at / "a.mp4", float("inf"), 64, 64), "fps .* inf", "lie in 0.01"),
    Case("no width", lambda at: VideoWriter(at / "a.mp4", 24, 0, 64), "0 x 64", "at least 1"),
    Case("no frames", lambda at: write_video(at / "a.mp4", [], 24), "no frame", "at least one"),
    Case("float frame", lambda at: write_video(at / "a.mp4", [_frames(8, 8, 3, dtype=float)], 24), "float64", "uint8"),
    Case("grey frame", lambda at: write_video(at / "a.mp4", [_frames(8, 8)], 24), r"\(8, 8\)", "height, width, 3"),
    Case(
        "other size",
        lambda at: write_video(at / "a.mp4", [_frames(8, 8, 3), _frames(8, 9, 3)], 24),
        "frame 1 .*9, 3",
        "the size that the writer was opened with",
    ),
    Case("nothing written", lambda at: _write_nothing(at / "a.mp4"), "no frame", "at least"),
]


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


@each(case=[*IMAGES, *VIDEOS, *OUTPUTS])
def test_a_mistake_gets_a_typed_error_with_cause_and_remedy(
    case: Case, tmp_path_factory: pytest.TempPathFactory
) -> None:
    tmp_path = tmp_path_factory.mktemp("mistake")
    with pytest.raises(InputError, match=rf"(?s){case.cause}") as caught:
        case.call(tmp_path)
    assert isinstance(caught.value, DisposeError)
    message = str(caught.value)
    assert re.search(case.remedy, message), f"{message!r} offers no remedy like {case.remedy!r}"
    assert "\n" not in message
    assert not [path.name for path in tmp_path.rglob("*") if ".part" in path.name]
    assert not (tmp_path / "out.mp4").exists()


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder in which not even root may create files")
def test_a_folder_that_nobody_may_write_to() -> None:
    with pytest.raises(InputError, match=r"cannot be written: .*choose a folder"):
        check_output_path("/proc/self/out.mp4")


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
def test_an_mp4_without_its_index(make_clip: ClipMaker, cut: Callable[[Path, float], Path], part: float) -> None:
    clip = make_clip("recorded.mp4", numbered_frames(40))  # the index is written last
    with pytest.raises(InputError, match=r"'moov'.*stopped early.*Get the whole file"):
        open_video(cut(clip, part))


def test_an_mp4_with_an_index_and_no_frame(make_clip: ClipMaker, tmp_path: Path) -> None:
    clip = make_clip("started.mp4", numbered_frames(40), muxer={"movflags": "+faststart"})
    data = clip.read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: data.index(b"mdat") + 8])
    with pytest.raises(InputError, match=r"no frame that can be decoded \(40 announced\).*again"):
        open_video(tmp_path / "cut.mp4")


def test_a_recording_closed_before_its_first_frame(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "zero.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        container.start_encoding()
    with pytest.raises(InputError, match=r"no video stream .*nothing was recorded"):
        open_video(tmp_path / "zero.mp4")
