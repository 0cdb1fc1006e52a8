"""Reading videos: the golden clip bit for bit, real and odd files, and iterables of frames."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from dispose_rt.errors import InputError, InputWarning
from dispose_rt.media import DEFAULT_FPS, frame_step, open_video
from tests.every import each

from .conftest import ClipMaker, noise_frames, numbered_frames

Golden = Callable[[str], dict[str, NDArray[Any]]]
DRIVE = Path(__file__).parent.parent / "golden" / "drive.mkv"


@pytest.fixture(autouse=True)
def _warnings_fail() -> Iterator[None]:
    """A warning that no test asks for is a false alarm."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", InputWarning)
        yield


def levels(frames: Iterator[NDArray[np.uint8]]) -> list[int]:
    """Numbers of `numbered_frames` after lossy coding."""
    return [round((float(frame.mean()) - 16) / 4) for frame in frames]


def test_the_golden_clip_is_decoded_bit_for_bit(golden: Golden) -> None:
    arrays = golden("e2e")
    video = open_video(DRIVE)
    frames = list(video.frames())
    assert video.fps == float(arrays["drive_fps"])
    assert [zlib.crc32(frame.tobytes()) for frame in frames] == arrays["drive_frame_crc32"].tolist()
    np.testing.assert_array_equal(
        np.stack([frames[index] for index in arrays["drive_frame_index"]]), arrays["drive_frames"]
    )
    assert (video.height, video.width) == frames[0].shape[:2]


@pytest.mark.parametrize("step", [1, 2, 3, 4, 10, 11, 500])
def test_every_step_th_frame(golden: Golden, step: int) -> None:
    video = open_video(DRIVE)
    expected = golden("e2e")["drive_frames"][::step]
    for _ in range(2):  # a file can be read again
        np.testing.assert_array_equal(np.stack(list(video.frames(step))), expected)


@each(
    stride__fps__step=[
        *[(1, 24, 1), (2, 24.0, 2), (2, 47.99, 2), (2, 48, 4), (4, 30, 4), (1, 60, 2), (2, 59.94, 4), (2, 120, 10)],
        *[(3, 71.9, 6), (2, 12.5, 2), (2, 23.976, 2), (2, 1000 / 33, 2), (2, 0.1, 2), (1, 240, 10)],
    ],
)
def test_frame_step_follows_the_reference(stride: int, fps: float, step: int) -> None:
    assert frame_step(stride, fps) == step


@each(
    rate=[
        Fraction(24000, 1001),
        Fraction(25, 2),
        Fraction(1000, 33),
        Fraction(30000, 1001),
        Fraction(7),
        Fraction(1, 2),
    ],
    suffix=[".mp4", ".mkv", ".avi"],
)
def test_odd_frame_rates(make_clip: ClipMaker, rate: Fraction, suffix: str) -> None:
    codec = "ffv1" if suffix == ".avi" else "libx264"
    video = open_video(make_clip(f"odd{suffix}", numbered_frames(9), rate, codec))
    # Matroska stores nanoseconds per frame, the others the fraction itself
    assert video.fps == pytest.approx(float(rate), rel=1e-5 if suffix == ".mkv" else 1e-12)
    assert levels(video.frames(2)) == [0, 2, 4, 6, 8]


def test_a_variable_frame_rate_is_averaged_and_frames_are_counted(make_clip: ClipMaker) -> None:
    times = [0, 10, 20, 200, 210, 500, 510, 520, 530, 540]
    video = open_video(make_clip("variable.mp4", numbered_frames(10), 30, times_ms=times))
    assert levels(video.frames(3)) == [0, 3, 6, 9]
    assert 15 < video.fps < 20  # ten frames in 0.54 s and the length of the last one


def test_a_clock_taken_for_a_frame_rate_is_measured(make_clip: ClipMaker) -> None:
    """Browsers record webm files that state their clock, 1000 per second, as the frame rate."""
    times = np.cumsum([0, *np.random.default_rng(3).integers(20, 60, 59)])
    clip = make_clip("browser.webm", numbered_frames(60), 1000, "libvpx", times_ms=times.tolist())
    with av.open(str(clip)) as container:
        assert container.streams.video[0].average_rate > 240
    video = open_video(clip)
    assert video.fps == pytest.approx(59 / (times[-1] / 1000), rel=1e-3)
    assert len(list(video.frames())) == 60


def test_the_caller_can_state_the_rate() -> None:
    assert open_video(DRIVE, fps=60).fps == 60
    assert open_video(numbered_frames(2), fps=12.5).fps == 12.5


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
@pytest.mark.parametrize("mirror", [(False, False), (True, False), (False, True)])
def test_rotation_and_mirroring_are_applied(make_clip: ClipMaker, degrees: int, mirror: tuple[bool, bool]) -> None:
    """FFmpeg turns counter-clockwise first, then mirrors: so does the expectation, with numpy."""
    stored = np.zeros((1, 64, 96, 3), np.uint8)
    stored[0, :32, :48], stored[0, :32, 48:], stored[0, 32:, :48] = 60, 120, 200
    video = open_video(make_clip("turned.mp4", stored, rotation=(degrees, *mirror), options={"crf": "1"}))
    expected = np.rot90(stored[0], degrees // 90)
    if mirror[0]:
        expected = expected[:, ::-1]
    if mirror[1]:
        expected = expected[::-1]
    [frame] = video.frames()
    assert frame.shape == expected.shape == (video.height, video.width, 3)
    assert frame.flags.c_contiguous
    assert np.abs(frame.astype(int) - expected).max() <= 6


@pytest.mark.parametrize(("codec", "name"), [("libx264", "wide.mp4"), ("libvpx-vp9", "wide.webm")])
def test_colours_are_those_that_went_in(make_clip: ClipMaker, codec: str, name: str) -> None:
    colours = np.array([[200, 30, 40], [30, 180, 60], [50, 60, 220], [128, 128, 128]], np.uint8)
    frames = np.repeat(np.repeat(colours, 32, axis=0)[None, None], 64, axis=1).repeat(3, axis=0)
    [_, frame, _] = open_video(make_clip(name, frames, codec=codec)).frames()
    middle = frame[32, 16::32].astype(int)
    assert np.abs(middle - colours).max() <= 4


@each(
    aspect__size=[
        *[(None, (96, 64)), (Fraction(1), (96, 64)), (Fraction(1001, 1000), (96, 64)), (Fraction(2), (192, 64))],
        *[(Fraction(1, 2), (96, 128)), (Fraction(64, 45), (137, 64)), (Fraction(10), (96, 64))],
    ],
    degrees=[0, 90],
)
def test_frames_have_square_pixels(
    make_clip: ClipMaker, aspect: Fraction | None, size: tuple[int, int], degrees: int
) -> None:
    """The left half of the picture stays half of it; where the pixels are square already, not a bit moves."""
    stored = np.zeros((2, 64, 96, 3), np.uint8)
    stored[:, :, :48] = 200
    clip = make_clip("wide.mp4", stored, rotation=(degrees, False, False), aspect=aspect)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        video = open_video(clip)
    assert ["pixels of 10:1, which cannot be true" in str(one.message) for one in caught] == [True] * (aspect == 10)
    frame = np.rot90(next(video.frames()), -degrees // 90)
    assert frame.shape == (size[1], size[0], 3)
    assert (video.width, video.height) == (size if not degrees else size[::-1])
    middle = frame[frame.shape[0] // 2, :, 0] > 100
    assert abs(np.flatnonzero(~middle)[0] - size[0] / 2) <= 2
    if size == (96, 64):
        plain = next(open_video(make_clip("plain.mp4", stored)).frames())
        np.testing.assert_array_equal(frame, plain)


def test_a_real_camera_clip(camera_clip: Path) -> None:
    """OpenCV's reader (its own FFmpeg, with its own default conversion) sees the same pictures."""
    video = open_video(camera_clip)
    assert (video.fps, video.width, video.height) == (25, 640, 272)
    frames = list(video.frames(25))
    assert len(frames) == 10
    assert len(list(video.frames(1))) == 250
    capture = cv2.VideoCapture(str(camera_clip))
    for number in range(50):
        ok, bgr = capture.read()
        assert ok
        if number % 25 == 0:
            assert np.abs(frames[number // 25].astype(int) - bgr[:, :, ::-1]).mean() < 2
    capture.release()


def test_names_that_ffmpeg_would_interpret(
    make_clip: ClipMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = make_clip("plain.mp4", numbered_frames(3))
    monkeypatch.chdir(tmp_path)
    for name in ("a:b.mp4", "frame%03d.mp4", "tänzerin 舞.mp4", "concat:x|y.mp4", "-i.mp4", "*.mp4"):
        copy = tmp_path / name
        copy.write_bytes(clip.read_bytes())
        for path in (copy, name):
            assert levels(open_video(path).frames()) == [0, 1, 2]


def test_a_cover_picture_is_not_the_video(make_clip: ClipMaker, tmp_path: Path) -> None:
    cover = tmp_path / "cover.png"
    Image.new("RGB", (32, 32)).save(cover)
    path = tmp_path / "song.mp4"
    with av.open(str(path), "w") as container:
        picture = container.add_stream("png", rate=1)
        picture.width = picture.height = 32
        picture.pix_fmt = "rgb24"
        picture.disposition = av.stream.Disposition.attached_pic
        sound = container.add_stream("aac", rate=44100)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 2048), np.float32), format="fltp", layout="mono")
        silence.sample_rate, silence.pts = 44100, 0
        container.mux(picture.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")))
        container.mux(picture.encode(None))
        container.mux(sound.encode(silence))
        container.mux(sound.encode(None))
    with pytest.raises(InputError, match="no video stream"):
        open_video(path)


def test_a_gif_is_a_video(tmp_path: Path) -> None:
    pictures = [Image.fromarray(frame) for frame in numbered_frames(5)]
    pictures[0].save(tmp_path / "dance.gif", save_all=True, append_images=pictures[1:], duration=100)
    video = open_video(tmp_path / "dance.gif")
    assert video.fps == pytest.approx(10)
    assert levels(video.frames()) == [0, 1, 2, 3, 4]


# --- damage ---


@pytest.mark.parametrize("part", [0.3, 0.6, 0.95])
@pytest.mark.parametrize("codec", ["libx264", "mpeg4", "mjpeg"])  # decoders that refuse, flag and hide what is missing
def test_a_truncated_mp4_gives_what_it_has(
    make_clip: ClipMaker, cut: Callable[[Path, float], Path], codec: str, part: float
) -> None:
    frames = noise_frames(48)
    whole = make_clip("whole.mp4", frames, codec=codec, muxer={"movflags": "+faststart"}, options={"bf": "0"})
    expected = list(open_video(whole).frames())
    short = cut(whole, part)
    with av.open(str(whole)) as container:
        ends = [packet.pos + packet.size for packet in container.demux(video=0) if packet.size]
    video = open_video(short)
    with pytest.warns(InputWarning, match=r"truncated or damaged: (\d+) of 48 announced frames") as caught:
        got = list(video.frames())
    assert f"{len(got)} of 48" in str(caught[0].message)
    assert len(got) == sum(end <= short.stat().st_size for end in ends)
    for frame, want in zip(got, expected, strict=False):  # nothing that the decoder made up
        np.testing.assert_array_equal(frame, want)


def test_truncation_between_two_pictures_is_noticed(make_clip: ClipMaker, tmp_path: Path) -> None:
    whole = make_clip("whole.mp4", noise_frames(20), muxer={"movflags": "+faststart"}, options={"bf": "0"})
    with av.open(str(whole)) as container:
        end = [packet.pos + packet.size for packet in container.demux(video=0) if packet.size][9]
    (tmp_path / "cut.mp4").write_bytes(whole.read_bytes()[:end])
    with pytest.warns(InputWarning, match="10 of 20 announced"):
        assert len(list(open_video(tmp_path / "cut.mp4").frames())) == 10


def test_damage_in_the_middle_is_left_out(make_clip: ClipMaker, tmp_path: Path) -> None:
    whole = make_clip("whole.mp4", noise_frames(30), options={"g": "5", "bf": "0"})
    data = bytearray(whole.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 3000] = bytes(3000)
    (tmp_path / "damaged.mp4").write_bytes(data)
    with pytest.warns(InputWarning, match=r"of 30 announced frames could be read"):
        got = list(open_video(tmp_path / "damaged.mp4").frames())
    assert 20 <= len(got) < 30


def test_an_edit_list_is_no_damage(make_clip: ClipMaker, tmp_path: Path) -> None:
    """A trimmed clip keeps all pictures in the file and lists the part that is shown; nothing is missing then."""
    clip = make_clip("trimmed.mp4", numbered_frames(24), options={"g": "6", "bf": "0"})
    data = bytearray(clip.read_bytes())
    at = data.index(b"elst") + 12  # behind type, version and number of entries: duration in the movie's clock, 1/1000 s
    assert int.from_bytes(data[at : at + 4], "big") == 1000
    data[at : at + 4] = (500).to_bytes(4, "big")
    (tmp_path / "trimmed.mp4").write_bytes(data)
    assert levels(open_video(tmp_path / "trimmed.mp4").frames()) == list(range(12))


def test_a_size_that_changes_names_the_frame(make_clip: ClipMaker, tmp_path: Path) -> None:
    parts = [make_clip(f"{size}.h264", noise_frames(4, size, size)).read_bytes() for size in (64, 128)]
    (tmp_path / "both.h264").write_bytes(b"".join(parts))
    frames = open_video(tmp_path / "both.h264").frames(3)
    assert next(frames).shape == (64, 64, 3)
    with pytest.raises(InputError, match=r"frame 4 of the video .* is 128 x 128 pixels, frame 0 is 64 x 64"):
        list(frames)
    odd = make_clip("odd.mov", noise_frames(1), codec="prores")
    content = bytearray(odd.read_bytes())
    content[content.index(b"icpf") + 20] = 3  # a matrix of colours that is reserved
    odd.write_bytes(content)
    with pytest.raises(InputError, match=r"frame 0 of the video .*odd\.mov cannot be converted to RGB"):
        list(open_video(odd).frames())


# --- iterables ---


@pytest.mark.parametrize("form", ["array", "list", "tuple", "generator", "pil", "paths", "map"])
def test_iterables_of_frames(tmp_path: Path, form: str) -> None:
    frames = noise_frames(7)
    paths = [tmp_path / f"{number}.png" for number in range(7)]
    for path, frame in zip(paths, frames, strict=True):
        Image.fromarray(frame).save(path)
    source: Any = {
        "array": frames,
        "list": list(frames),
        "tuple": tuple(frames),
        "generator": (frame for frame in frames),
        "pil": [Image.fromarray(frame) for frame in frames],
        "paths": paths,
        "map": map(np.asarray, frames),
    }[form]
    video = open_video(source)
    assert (video.fps, video.width, video.height) == (DEFAULT_FPS, 96, 64)
    np.testing.assert_array_equal(np.stack(list(video.frames(3))), frames[::3])
    if form in ("generator", "map"):
        with pytest.raises(InputError, match="used up"):
            video.frames()
    else:
        np.testing.assert_array_equal(np.stack(list(video.frames())), frames)


def test_grey_and_transparent_frames() -> None:
    [grey] = open_video([np.full((4, 6), 9, np.uint8)]).frames()
    assert grey.shape == (4, 6, 3)
    [clear] = open_video(np.zeros((1, 4, 6, 4), np.uint8)).frames()
    assert (clear == 255).all()


def test_fewer_frames_than_a_step() -> None:
    np.testing.assert_array_equal(np.stack(list(open_video(numbered_frames(3)).frames(7))), numbered_frames(3)[:1])


def test_generators_are_read_as_needed() -> None:
    taken = []

    def produce() -> Iterator[NDArray[np.uint8]]:
        for number, frame in enumerate(numbered_frames(10)):
            taken.append(number)
            yield frame

    frames = open_video(produce()).frames(2)
    assert taken == [0]
    for _ in range(3):
        next(frames)
    assert taken == [0, 1, 2, 3, 4]


def test_an_error_of_the_callers_generator_is_passed_on() -> None:
    def produce() -> Iterator[NDArray[np.uint8]]:
        yield from numbered_frames(2)
        raise ConnectionError("camera unplugged")

    frames = open_video(produce()).frames()
    with pytest.raises(ConnectionError, match="unplugged"):
        list(frames)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (np.zeros((64, 95, 3), np.uint8), "frame 2 of the video is 95 x 64 pixels, frame 0 is 96 x 64"),
        (np.zeros((64, 96, 3), np.float32), "frame 2 of the video: .* float32"),
        (None, "frame 2 of the video: .*NoneType"),
    ],
)
def test_a_bad_frame_is_named(bad: Any, message: str) -> None:
    frames = [*numbered_frames(2), bad, *numbered_frames(2)]
    with pytest.raises(InputError, match=message):
        list(open_video(frames).frames())


def test_frames_come_in_display_order(make_clip: ClipMaker) -> None:
    clip = make_clip("reordered.mp4", numbered_frames(30), options={"bf": "3", "b-adapt": "0"})
    with av.open(str(clip)) as container:
        stamps = [packet.pts for packet in container.demux(video=0) if packet.size]
    assert any(later < earlier for earlier, later in pairwise(stamps))  # stored in another order
    assert levels(open_video(clip).frames()) == list(range(30))
