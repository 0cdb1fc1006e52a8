"""Writing videos: what a player gets, and that a file is there whole or not at all."""

from __future__ import annotations

import errno
import resource
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from dispose_rt.errors import InputError
from dispose_rt.media import VideoWriter, check_output_path, encoders, open_video, open_writer, write_video, writer

from .conftest import noise_frames, numbered_frames


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_camera_clip_survives(camera_clip: Path, tmp_path: Path) -> None:
    frames = np.stack(list(open_video(camera_clip).frames(25)))
    path = write_video(tmp_path / "out.mp4", frames, 12)
    video = open_video(path)
    got = np.stack(list(video.frames()))
    assert got.shape == frames.shape
    assert video.fps == 12
    error = got.astype(np.float64) - frames
    assert 10 * np.log10(255**2 / np.mean(error**2)) > 36
    assert left_in(tmp_path) == ["out.mp4"]


def test_the_stored_planes_are_bt709(camera_clip: Path, tmp_path: Path) -> None:
    """Against the defining equations (ITU-R BT.709, 3.2 to 3.4) in floating point: no colour cast on average."""
    image = next(open_video(camera_clip).frames())
    rgb = image.astype(np.float64) / 255
    luma = rgb @ [0.2126, 0.7152, 0.0722]
    expected = [16 + 219 * luma, 128 + 224 * (rgb[:, :, 2] - luma) / 1.8556, 128 + 224 * (rgb[:, :, 0] - luma) / 1.5748]
    path = write_video(tmp_path / "out.mp4", [image], 24)
    with av.open(str(path)) as container:
        planes = next(container.decode(video=0)).to_ndarray().astype(np.float64)
    height = rgb.shape[0]
    parts = np.split(planes, [height, height + height // 4])
    for plane, values in zip(parts, expected, strict=True):
        assert abs(plane.mean() - values.mean()) < 0.3


def test_saturated_colours_survive(tmp_path: Path) -> None:
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 255, 255), (255, 0, 255)]
    colours += [(255, 255, 255), (0, 0, 0), (128, 128, 128), (200, 30, 90)]
    flat = np.repeat(np.array(colours, np.uint8), 32, axis=0)[None].repeat(64, axis=0)
    path = write_video(tmp_path / "colours.mp4", [flat] * 5, 24)
    for frame in open_video(path).frames():
        for number, colour in enumerate(colours):
            patch = frame[8:-8, 32 * number + 8 : 32 * number + 24].astype(int)
            assert np.abs(patch - colour).max() <= 3  # 8-bit limited range alone costs 2


def test_players_are_told_what_is_in_the_file(tmp_path: Path) -> None:
    path = write_video(tmp_path / "out.mp4", numbered_frames(12), 24)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        frame = next(container.decode(stream))
        assert (frame.colorspace, frame.color_primaries, frame.color_trc, frame.color_range) == (1, 1, 1, 1)
        assert stream.frames == 12
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


@pytest.mark.parametrize(
    ("fps", "stored"),
    [
        (24, Fraction(24)),
        (24000 / 1001, Fraction(24000, 1001)),
        (23.976, Fraction(2997, 125)),
        (12.5, Fraction(25, 2)),
        (1000 / 33, Fraction(1000, 33)),
        (Fraction(30000, 1001), Fraction(30000, 1001)),
        (0.5, Fraction(1, 2)),
        (240, Fraction(240)),
    ],
)
def test_frame_rates(tmp_path: Path, fps: float, stored: Fraction) -> None:
    path = write_video(tmp_path / "out.mp4", numbered_frames(6), fps)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.average_rate == stored
        assert stream.duration * stream.time_base == 6 / stored


@pytest.mark.parametrize("suffix", [".mp4", ".m4v", ".mov", ".mkv", ".MP4"])
@pytest.mark.parametrize("count", [1, 2, 30])
def test_containers_and_lengths(tmp_path: Path, suffix: str, count: int) -> None:
    path = write_video(tmp_path / f"out put ü%03d{suffix}", numbered_frames(count), 15)
    got = np.stack(list(open_video(path).frames()))
    assert got.shape == (count, 64, 96, 3)
    np.testing.assert_allclose(got.mean(axis=(1, 2, 3)), 16 + 4 * np.arange(count), atol=1)


def test_an_odd_size_is_padded(tmp_path: Path) -> None:
    [got] = open_video(write_video(tmp_path / "odd.mp4", [np.full((33, 47, 3), 200, np.uint8)], 24)).frames()
    assert got.shape == (34, 48, 3)
    assert np.abs(got.astype(int) - 200).max() <= 2


def test_strided_frames(tmp_path: Path) -> None:
    flipped = numbered_frames(3)[:, ::-1, ::-1]
    assert len(list(open_video(write_video(tmp_path / "a.mp4", flipped, 24)).frames())) == 3


def test_a_frame_may_be_reused_after_write(tmp_path: Path) -> None:
    buffer = np.empty((64, 96, 3), np.uint8)
    with VideoWriter(tmp_path / "out.mp4", 24, 96, 64) as out:
        for level in range(0, 200, 20):
            buffer[:] = level
            out.write(buffer)
            buffer[:] = 255
    means = [frame.mean() for frame in open_video(tmp_path / "out.mp4").frames()]
    np.testing.assert_allclose(means, range(0, 200, 20), atol=1)


def test_encoding_runs_beside_the_caller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`write` returns while the encoder is still busy, and waits once the queue is full."""
    gate = threading.Event()
    convert = encoders.to_yuv

    def slow(reformatter: Any, frame: Any) -> Any:
        gate.wait(30)
        return convert(reformatter, frame)

    monkeypatch.setattr(encoders, "to_yuv", slow)
    frames = numbered_frames(writer.QUEUED_FRAMES + 3)
    with VideoWriter(tmp_path / "out.mp4", 24, 96, 64) as out:
        for frame in frames[: writer.QUEUED_FRAMES]:
            out.write(frame)  # would hang here if it waited for the encoder
        rest = threading.Thread(target=lambda: [out.write(frame) for frame in frames[writer.QUEUED_FRAMES :]])
        rest.start()
        time.sleep(0.2)
        assert rest.is_alive()
        gate.set()
        rest.join(30)
    assert len(list(open_video(tmp_path / "out.mp4").frames())) == len(frames)


def test_same_frames_same_bytes(camera_clip: Path, tmp_path: Path) -> None:
    """Whatever was encoded before in the same process; x264 is not like that by default."""
    frames = np.stack(list(open_video(camera_clip).frames(12)))[:, :256, :320]
    rng = np.random.default_rng(7)
    seen = set()
    for _ in range(8):
        height, width = [(64, 96), (192, 320), (34, 48)][rng.integers(3)]
        still = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        panning = [np.roll(still, 3 * number, axis=1) for number in range(rng.integers(1, 30))]
        write_video(tmp_path / "other.mp4", panning, 24)
        seen.add(write_video(tmp_path / "out.mp4", frames, 24).read_bytes())
    assert len(seen) == 1
    # chance shows that dependence in few encodings only, so look at x264's note of its settings as well
    assert b" mbtree=0 " in seen.pop()


def test_no_path_writes_nothing(tmp_path: Path) -> None:
    with open_writer(None, 24, 96, 64) as write:
        write(numbered_frames(1)[0])
    with open_writer(tmp_path / "out.mp4", 24, 96, 64) as write:
        write(numbered_frames(1)[0])
    assert left_in(tmp_path) == ["out.mp4"]


# --- whole or not at all ---


def test_the_name_appears_when_the_file_is_complete(tmp_path: Path) -> None:
    (tmp_path / "out.mp4").write_bytes(b"older")
    with VideoWriter(tmp_path / "out.mp4", 24, 96, 64) as out:
        for frame in numbered_frames(10):
            out.write(frame)
        assert (tmp_path / "out.mp4").read_bytes() == b"older"
    assert len(list(open_video(tmp_path / "out.mp4").frames())) == 10
    assert left_in(tmp_path) == ["out.mp4"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("count", [0, 3, 60])
def test_an_exception_removes_the_file(tmp_path: Path, error: type[BaseException], count: int) -> None:
    (tmp_path / "out.mp4").write_bytes(b"older")
    threads = threading.active_count()
    with pytest.raises(error), VideoWriter(tmp_path / "out.mp4", 24, 96, 64) as out:  # noqa: PT012
        for frame in noise_frames(count):
            out.write(frame)
        raise error
    assert left_in(tmp_path) == ["out.mp4"]
    assert (tmp_path / "out.mp4").read_bytes() == b"older"
    assert threading.active_count() == threads


def test_a_failing_generator_leaves_nothing(tmp_path: Path) -> None:
    def frames() -> Iterator[NDArray[np.uint8]]:
        yield from numbered_frames(5)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_video(tmp_path / "out.mp4", frames(), 24)
    assert left_in(tmp_path) == []


@pytest.mark.skipif(sys.platform == "win32", reason="limits of this kind are POSIX")
@pytest.mark.parametrize(("limit_bytes", "count"), [(0, 2), (10_000, 2), (300_000, 200)])
def test_a_full_disk(tmp_path: Path, limit_bytes: int, count: int) -> None:
    """A limit on the size of files fails as a full disk does: while frames are written, or when the file is closed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    frames = noise_frames(count, 192, 320)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, hard))
        with pytest.raises(InputError, match=r"out\.mp4 cannot be written: .*File too large.*make room") as caught:
            write_video(tmp_path / "out.mp4", frames, 24)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert isinstance(caught.value.__cause__, OSError)
    assert left_in(tmp_path) == []


@pytest.mark.parametrize("at", [0, 5, "flush"])
def test_a_failing_encoder_blocks_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int | str) -> None:
    """More frames than the queue holds are waiting when it fails; then, when all of them were accepted."""
    add_stream = writer.add_stream

    class FailingStream:
        def __init__(self, *args: Any) -> None:
            self._stream, self._number = add_stream(*args), 0

        def encode(self, frame: Any) -> Any:
            if (frame is None and at == "flush") or self._number == at:
                raise OSError(errno.ENOSPC, "No space left on device")
            self._number += 1
            return self._stream.encode(frame)

    monkeypatch.setattr(writer, "add_stream", FailingStream)
    with pytest.raises(InputError, match="No space left"):
        write_video(tmp_path / "out.mp4", numbered_frames(3 * writer.QUEUED_FRAMES), 24)
    assert left_in(tmp_path) == []


def test_a_folder_that_vanishes(tmp_path: Path) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    with pytest.raises(InputError, match="cannot be written"), VideoWriter(folder / "out.mp4", 24, 96, 64) as out:  # noqa: PT012
        shutil.rmtree(folder)
        for frame in noise_frames(100):
            out.write(frame)


def test_a_checked_output_is_not_created(tmp_path: Path) -> None:
    assert check_output_path(str(tmp_path / "out.mp4")) == tmp_path / "out.mp4"
    assert left_in(tmp_path) == []


@pytest.mark.parametrize("make", [lambda path: VideoWriter(path, 24, 96, 64)])
def test_the_writer_must_be_entered(tmp_path: Path, make: Callable[[Path], VideoWriter]) -> None:
    with pytest.raises(InputError, match="with VideoWriter"):
        make(tmp_path / "out.mp4").write(numbered_frames(1)[0])
