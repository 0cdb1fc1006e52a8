"""Folders of pictures and animated pictures as driving videos; digests of what was read."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageSequence

from dispose_rt.errors import InputError
from dispose_rt.media import folders, open_video, read_image
from tests.every import each

from .conftest import ClipMaker, noise_frames, numbered_frames


def save(folder: Path, names: list[str], frames: Any) -> Path:
    folder.mkdir(exist_ok=True)
    for name, frame in zip(names, frames, strict=True):
        Image.fromarray(frame).save(folder / name, **({"quality": 95} if name.endswith("g") else {}))
    return folder


def test_natural_order(tmp_path: Path) -> None:
    names = ["frame1.png", "frame2.png", "Frame3.PNG", "frame10.png", "frame11b2.png", "frame11b10.png", "z.png"]
    frames = noise_frames(7)
    order = [3, 0, 6, 2, 5, 1, 4]
    folder = save(tmp_path / "in", [names[index] for index in order], frames[order])
    video = open_video(folder)
    assert (video.fps, video.width, video.height, video.frame_count, video.path) == (24, 96, 64, 7, None)
    for _ in range(2):
        np.testing.assert_array_equal(np.stack(list(video.frames())), frames)
    np.testing.assert_array_equal(np.stack(list(video.frames(3))), frames[::3])
    assert [float(time) for _, time in open_video(folder, fps=4).timed_frames(2)] == [0, 0.5, 1, 1.5]


def test_all_kinds_of_pictures(tmp_path: Path) -> None:
    names = ["1.png", "2.jpg", "3.jpeg", "4.webp", "5.bmp", "6.tif", "7.TIFF"]
    video = open_video(save(tmp_path / "in", names, numbered_frames(7)))
    assert [round((frame.mean() - 16) / 4) for frame in video.frames()] == list(range(7))


def test_other_files_are_ignored(tmp_path: Path) -> None:
    folder = save(tmp_path / "in", ["1.png", "2.png", ".3.png"], numbered_frames(3))
    (folder / "Thumbs.db").write_bytes(b"x")
    (folder / "notes.txt").write_bytes(b"x")
    (folder / "folder.png").mkdir()
    (folder / "circle").symlink_to(folder)
    os.mkfifo(folder / "pipe.png")
    (folder / "nowhere.png").symlink_to(folder / "gone.png")
    assert open_video(folder).frame_count == 2


def test_a_folder_without_pictures_says_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "dance.mp4").write_bytes(b"x")
    with pytest.raises(InputError, match=r"holds no picture .*it holds dance\.mp4.*Pass one video file"):
        open_video(tmp_path)


def test_another_size_names_the_file(tmp_path: Path) -> None:
    folder = save(tmp_path / "in", ["1.png", "2.png"], numbered_frames(2))
    save(folder, ["3.png"], noise_frames(1, 64, 95))
    with pytest.raises(InputError, match=r"frame 2 of the video \(.*3\.png\) is 95 x 64 pixels, frame 0 is 96 x 64"):
        list(open_video(folder).frames())


def test_a_damaged_picture_is_named(tmp_path: Path) -> None:
    folder = save(tmp_path / "in", ["1.png", "2.png"], numbered_frames(2))
    (folder / "2.png").write_bytes(b"x")
    with pytest.raises(InputError, match=r"frame 1 of the video: .*2\.png cannot be decoded"):
        list(open_video(folder).frames())


def test_a_folder_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(folder: Path) -> None:
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(folders.os, "scandir", refuse)
    with pytest.raises(InputError, match="cannot be read: .*Permission denied.*check its permissions"):
        open_video(tmp_path)


@each(kind=["circle", "dangling", "pipe", "device", "socket"])
def test_paths_that_lead_to_no_file(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"{kind}.mp4"
    match = "is a link that leads nowhere"
    if kind == "circle":
        path.symlink_to(path)
    elif kind == "dangling":
        path.symlink_to(tmp_path / "gone.mp4")
    else:
        path = Path("/dev/zero") if kind == "device" else path
        match = "is not a regular file"
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "socket":
            os.mknod(path, stat.S_IFSOCK | 0o600)
    for read in (open_video, read_image):
        with pytest.raises(InputError, match=match):
            read(path)


# --- animated pictures ---


@pytest.mark.parametrize("lossless", [True, False])
@pytest.mark.parametrize("count", [2, 5, 40])
def test_an_animated_webp(tmp_path: Path, lossless: bool, count: int) -> None:
    path = tmp_path / "dance.webp"
    levels = [(83 * number) % 256 for number in range(count)]  # far apart: libwebp drops what looks the same
    pictures = [Image.new("RGB", (96, 64), (level, level, level)) for level in levels]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=50, lossless=lossless)
    video = open_video(path)
    assert (video.fps, video.width, video.height, video.frame_count, video.path) == (20, 96, 64, count, path)
    assert not video.is_variable
    for step in (1, 3, 35):
        got = [float(frame.mean()) for frame in video.frames(step)]
        assert got == pytest.approx(levels[::step], abs=2)


def test_an_uneven_webp_with_transparency(tmp_path: Path) -> None:
    path = tmp_path / "dance.webp"
    frames = noise_frames(4)
    alpha = np.full((64, 96, 1), 255, np.uint8)
    alpha[:, :50] = 0
    pictures = [Image.fromarray(np.concatenate([frame, alpha], axis=2)) for frame in frames]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=[100, 30, 200, 10], lossless=True)
    video = open_video(path)
    assert video.is_variable
    got, times = zip(*video.timed_frames(), strict=True)
    assert [float(time) for time in times] == [0, 0.1, 0.13, 0.33]
    for frame, want in zip(got, frames, strict=True):
        np.testing.assert_array_equal(frame[:, 50:], want[:, 50:])
        assert (frame[:, :50] == 255).all()


def test_an_animated_png(tmp_path: Path) -> None:
    path = tmp_path / "dance.png"
    pictures = [Image.fromarray(frame) for frame in numbered_frames(4)]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=100)
    assert [round((frame.mean() - 16) / 4) for frame in open_video(path).frames()] == [0, 1, 2, 3]


@pytest.mark.parametrize("part", [0.02, 0.5, 0.95])
def test_a_truncated_webp(tmp_path: Path, part: float) -> None:
    path = tmp_path / "dance.webp"
    pictures = [Image.fromarray(frame) for frame in noise_frames(5)]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=50)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * part)])
    with pytest.raises(InputError, match=r"dance\.webp"):
        list(open_video(path).frames())


def test_a_still_webp_is_a_picture(tmp_path: Path) -> None:
    Image.fromarray(noise_frames(1)[0]).save(tmp_path / "a.webp")
    with pytest.raises(InputError, match="picture or text"):
        open_video(tmp_path / "a.webp")


def test_gif_frames_are_those_that_pillow_shows(tmp_path: Path) -> None:
    pictures = [Image.fromarray(frame // 64 * 64).quantize(64) for frame in noise_frames(4)]
    pictures[0].save(tmp_path / "a.gif", save_all=True, append_images=pictures[1:], duration=[100, 40, 300, 100])
    got, times = zip(*open_video(tmp_path / "a.gif").timed_frames(), strict=True)
    assert [float(time) for time in times] == [0, 0.1, 0.14, 0.44]
    with Image.open(tmp_path / "a.gif") as gif:
        for frame, want in zip(got, ImageSequence.Iterator(gif), strict=True):
            np.testing.assert_array_equal(frame, np.asarray(want.convert("RGB")))


# --- traps ---


def test_a_huge_video_is_refused_before_it_is_decoded(make_clip: ClipMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = make_clip("huge.mp4", noise_frames(2))
    monkeypatch.setattr("dispose_rt.media.accepted.MAX_FRAME_PIXELS", 96 * 64 - 1)
    monkeypatch.setattr("dispose_rt.media.containers._decode", lambda *_: pytest.fail("something was decoded"))
    with pytest.raises(InputError, match=r"frames of 96 x 64 pixels, more than the 6143.*scale it down"):
        open_video(clip)


def test_a_bomb_is_refused_by_its_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = [Image.fromarray(frame) for frame in noise_frames(2)]
    pictures[0].save(tmp_path / "a.webp", save_all=True, append_images=pictures[1:])
    data = bytearray((tmp_path / "a.webp").read_bytes())
    data[24:30] = (4095).to_bytes(3, "little") * 2  # width and height of the canvas, less one
    (tmp_path / "a.webp").write_bytes(data)
    (tmp_path / "a.gif").write_bytes(b"GIF89a\xff\x7f\xff\x7f" + bytes(30))
    for decoder in ("animated_webp.open_picture", "accepted.av"):
        monkeypatch.setattr(f"dispose_rt.media.{decoder}", SimpleNamespace())
    for name, size in [("a.webp", 4096), ("a.gif", 32767)]:
        with pytest.raises(
            InputError, match=rf"frames of {size} x {size} pixels, more than the \d+ .*that are accepted.*down"
        ):
            open_video(tmp_path / name)


# --- digests ---


def test_the_digest_of_a_file_is_that_of_its_bytes(make_clip: ClipMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = make_clip("in.mp4", noise_frames(3))
    monkeypatch.setattr(folders, "CHUNK_BYTES", 100)
    assert open_video(clip).content_digest() == hashlib.sha256(clip.read_bytes()).hexdigest()


def test_the_digest_of_a_folder_knows_names_bytes_and_order(tmp_path: Path) -> None:
    folder = save(tmp_path / "in", ["1.png", "2.png"], numbered_frames(2))
    before = open_video(folder).content_digest()
    (folder / "notes.txt").write_bytes(b"x")
    assert open_video(folder).content_digest() == before
    (folder / "2.png").rename(folder / "3.png")
    renamed = open_video(folder).content_digest()
    save(folder, ["3.png"], noise_frames(1))
    assert len({before, renamed, open_video(folder).content_digest()}) == 3


def test_iterables_have_no_digest() -> None:
    assert open_video(noise_frames(2)).content_digest() is None


def test_the_digest_of_a_file_that_is_gone(make_clip: ClipMaker) -> None:
    clip = make_clip("in.mp4", noise_frames(1))
    video = open_video(clip)
    clip.unlink()
    with pytest.raises(InputError, match=r"in\.mp4 cannot be read"):
        video.content_digest()
