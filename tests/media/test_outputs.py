"""Where videos go: every way in which that fails, and what is left behind (nothing)."""

from __future__ import annotations

import errno
import io
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from dispose_rt.errors import InputError, OutputError
from dispose_rt.media import SUFFIXES, VideoWriter, check_output_path, gif, open_video, outputs, write_video, writer
from dispose_rt.pipeline.task import make_task
from tests.every import every_item

from .conftest import noise_frames, numbered_frames


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("out.avi", r"'\.avi'; name it with one of \.mp4.*\.gif"),
        ("no/out.mp4", "does not exist; create it: mkdir -p"),
        ("a" * 300 + ".mp4", "File name too long.*choose another name"),
        ("a\0b.mp4", "null"),
        ("pipe.mp4", "device or pipe"),
        (".", "its suffix"),
    ],
)
def test_every_problem_of_a_path_is_an_output_error(tmp_path: Path, name: str, message: str) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    for call in (check_output_path, lambda path: VideoWriter(path, 24, 96, 64).__enter__()):
        with pytest.raises(OutputError, match=rf"(?s)^the output .* cannot be written: .*{message}"):
            call(tmp_path / name)
    assert left_in(tmp_path) == ["pipe.mp4"]


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder in which not even root may create files")
def test_a_read_only_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OutputError, match="choose a folder that you may write to"):
        check_output_path("/proc/self/out.mp4")
    monkeypatch.setattr(writer, "check_output_path", Path)
    with pytest.raises(OutputError, match="cannot be written"), VideoWriter("/proc/self/out.mp4", 24, 96, 64):
        pass


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("count", [1, 40])
def test_a_full_disk_says_how_much_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, count: int
) -> None:
    """A disk that is full when the first byte is written, and one that is full when the file is finished."""
    if count == 1:
        fake = SimpleNamespace(open=full_disk, VideoFrame=av.VideoFrame, FFmpegError=av.FFmpegError)
        for module in (writer, gif):
            monkeypatch.setattr(module, "av", fake)
    monkeypatch.setattr(outputs.os, "fsync", full_disk)
    monkeypatch.setattr(outputs.shutil, "disk_usage", lambda folder: SimpleNamespace(free=4096))
    (tmp_path / f"out{suffix}").write_bytes(b"older")
    match = rf"No space left on device; 4096 bytes are free in {re.escape(str(tmp_path))}: make room there or choose"
    with pytest.raises(OutputError, match=match):
        write_video(tmp_path / f"out{suffix}", numbered_frames(count), 24)
    assert left_in(tmp_path) == [f"out{suffix}"]
    assert (tmp_path / f"out{suffix}").read_bytes() == b"older"


def test_a_disk_that_is_full_before_a_gif_is_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its frames wait in a nameless file; FFmpeg alone would say "error in callback"."""

    class FullFile(io.BytesIO):
        def write(self, data: Any) -> int:
            return full_disk() if self.tell() > 10_000 else super().write(data)

    monkeypatch.setattr(gif.tempfile, "TemporaryFile", lambda dir: FullFile())
    with pytest.raises(OutputError, match=r"No space left on device; \d+ bytes are free"):
        write_video(tmp_path / "out.gif", noise_frames(30), 24)
    assert left_in(tmp_path) == []


def full_disk(*args: Any, **options: Any) -> int:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("suffix", [".webm", ".gif"])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("count", [0, 30])
def test_an_exception_leaves_nothing(tmp_path: Path, suffix: str, error: type[BaseException], count: int) -> None:
    with pytest.raises(error), VideoWriter(tmp_path / f"out{suffix}", 24, 96, 64) as out:  # noqa: PT012
        for frame in noise_frames(count):
            out.write(frame)
        raise error
    assert left_in(tmp_path) == []


PROCESS = """
    import os, signal, sys, time
    import numpy as np
    from dispose_rt.media import VideoWriter

    def end(*_):
        raise SystemExit(1)

    signal.signal(signal.SIGTERM, end)
    with VideoWriter(sys.argv[1], 24, 96, 64) as out:
        while True:
            out.write(np.zeros((64, 96, 3), np.uint8))
            print("written", flush=True)
            time.sleep(0.01)
"""


@pytest.fixture
def writing(tmp_path: Path) -> Any:
    """A process that writes out.mp4 and does not end."""
    command = [sys.executable, "-c", textwrap.dedent(PROCESS), str(tmp_path / "out.mp4")]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=root, env={**os.environ, "PYTHONPATH": "."}) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"written\n"
        yield process
        process.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_nothing(tmp_path: Path, writing: Any, number: int) -> None:
    assert len(left_in(tmp_path)) == 1
    writing.send_signal(number)
    assert writing.wait(30) != 0
    assert left_in(tmp_path) == []


def make_old(path: Path) -> None:
    os.utime(path, (time.time() - 3600,) * 2)


def test_the_part_file_of_a_killed_process_is_removed_by_the_next(tmp_path: Path, writing: Any) -> None:
    [part] = tmp_path.iterdir()
    writing.send_signal(signal.SIGSTOP)
    make_old(part)
    write_video(tmp_path / "out.mp4", numbered_frames(2), 24)
    assert left_in(tmp_path) == [part.name, "out.mp4"]  # its process lives
    writing.kill()
    writing.wait(30)
    write_video(tmp_path / "other.mp4", numbered_frames(2), 24)
    assert part.exists()  # another output's
    write_video(tmp_path / "out.mp4", numbered_frames(2), 24)
    assert left_in(tmp_path) == ["other.mp4", "out.mp4"]


def test_what_only_looks_like_a_part_file_stays(tmp_path: Path) -> None:
    names = [".out.mkv.12345678.part", ".out.mp4.1234567g.part", ".outer.mp4.12345678.part", "out.mp4.12345678.part"]
    for name in [*names, ".out.mp4.12345678.part"]:
        (tmp_path / name).write_bytes(b"x")
        make_old(tmp_path / name)
    (tmp_path / ".out.mp4.00000000.part").write_bytes(b"x")  # a minute has not passed
    write_video(tmp_path / "out.mp4", numbered_frames(1), 24)
    assert left_in(tmp_path) == sorted([*names, ".out.mp4.00000000.part", "out.mp4"])


def test_permissions_and_links_stay(tmp_path: Path) -> None:
    """A private file stays private; what is written to a link goes to the file behind it."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    private, link, broken = folder / "out.mp4", tmp_path / "link.mp4", tmp_path / "broken.gif"
    private.write_bytes(b"older")
    private.chmod(0o600)
    link.symlink_to(private)
    broken.symlink_to(folder / "new.gif")
    for path in (link, broken):
        write_video(path, numbered_frames(2), 24)
        assert path.is_symlink()
        assert len(list(open_video(path).frames())) == 2
    assert private.stat().st_mode & 0o777 == 0o600
    assert left_in(folder) == ["new.gif", "out.mp4"]
    write_video(private, numbered_frames(3), 24)
    assert private.stat().st_mode & 0o777 == 0o600
    (tmp_path / "lost.mp4").symlink_to(tmp_path / "no" / "out.mp4")
    with pytest.raises(OutputError, match=r"the folder .*no does not exist; create it: mkdir -p .*no"):
        check_output_path(tmp_path / "lost.mp4")


def test_an_input_is_never_replaced(tmp_path: Path) -> None:
    """By `Animator.run` as little as by the command line; whatever the input is called, and however it is passed."""
    clip = write_video(tmp_path / "mine.mp4", numbered_frames(2), 24)
    picture = tmp_path / "mine.gif"
    Image.fromarray(numbered_frames(1)[0]).save(picture, "PNG")  # the suffix of a video, content of a picture
    (tmp_path / "link.mp4").symlink_to(clip)
    (tmp_path / "hard.mp4").hardlink_to(clip)
    (tmp_path / "frames").mkdir()
    pick: Any = SimpleNamespace(pick=lambda width, height: None)
    frame = numbered_frames(1)[0]
    cases: list[tuple[Path, Any, Any, str]] = [
        *[(tmp_path / name, frame, clip, "is the video itself") for name in ("mine.mp4", "link.mp4", "hard.mp4")],
        (picture, picture, clip, "is the reference itself"),
        (picture, Image.open(picture), clip, "is the reference itself"),
        (picture, frame, [picture, picture], "is the video itself"),
        (tmp_path / "frames" / "new.mp4", frame, tmp_path / "frames", "lies among the pictures of the video"),
    ]
    with every_item() as every:
        for output, ref, video, message in cases:
            with every(output.name, message), pytest.raises(InputError, match=message):
                make_task(pick, ref, video, {}, None, output, False, None, None)
    with pytest.raises(InputError, match="is the source of the sound itself"):
        VideoWriter(tmp_path / "link.mp4", 24, 96, 64, clip)
    assert len(list(open_video(clip).frames())) == 2


def test_a_long_name(tmp_path: Path) -> None:
    path = write_video(tmp_path / f"{'a' * 251}.mp4", numbered_frames(1), 24)
    assert left_in(tmp_path) == [path.name]
    with pytest.raises(OutputError, match="too long"):
        check_output_path(tmp_path / f"{'ä' * 130}.mp4")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_folder_that_vanishes_is_named(tmp_path: Path, suffix: str) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    with (  # noqa: PT012
        pytest.raises(OutputError, match="the folder .*gone is gone"),
        VideoWriter(folder / f"a{suffix}", 24, 96, 64) as out,
    ):
        out.write(numbered_frames(1)[0])
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()


def test_an_odd_size_is_padded_in_a_webm(tmp_path: Path) -> None:
    [got] = open_video(write_video(tmp_path / "odd.webm", [np.full((33, 47, 3), 200, np.uint8)], 24)).frames()
    assert got.shape == (34, 48, 3)
    assert np.abs(got.astype(int) - 200).max() <= 3
