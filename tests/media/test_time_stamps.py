"""Time stamps: what a file says about when its pictures are shown goes in and comes out again."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image, ImageSequence

from dispose_rt.errors import InputError, InputWarning
from dispose_rt.media import VideoWriter, open_video, write_video
from dispose_rt.media.time_stamps import Stamps, time_frames
from tests.every import each

from .conftest import ClipMaker, noise_frames, numbered_frames

DRIVE = Path(__file__).parent.parent / "golden" / "drive.mkv"
UNEVEN_MS = [0, 40, 300, 340, 900, 1500, 1520]


@pytest.fixture(autouse=True)
def _warnings_fail() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error", InputWarning)
        yield


def times(video: Any, step: int = 1) -> list[float]:
    return [float(time_s) for _, time_s in video.timed_frames(step)]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov"])
def test_uneven_times_are_read(make_clip: ClipMaker, suffix: str) -> None:
    video = open_video(make_clip(f"in{suffix}", numbered_frames(7), 30, times_ms=UNEVEN_MS))
    assert video.is_variable
    assert times(video) == pytest.approx([time / 1000 for time in UNEVEN_MS], abs=1e-3)
    assert times(video, 3) == pytest.approx([0, 0.34, 1.52], abs=1e-3)
    for (timed, _), frame in zip(video.timed_frames(2), video.frames(2), strict=True):
        np.testing.assert_array_equal(timed, frame)


def test_times_begin_with_the_first_picture(make_clip: ClipMaker) -> None:
    video = open_video(make_clip("late.mkv", numbered_frames(5), 20, times_ms=[7000, 7050, 7100, 7150, 7200]))
    assert times(video) == [0, 0.05, 0.1, 0.15, 0.2]
    assert not video.is_variable


@each(
    rate=[24, 25, 30, 60, Fraction(24000, 1001), Fraction(30000, 1001), 7, Fraction(1, 2)],
    name=["a.mp4", "a.mkv", "a.avi", "a.h264"],
)
def test_an_even_rate_is_not_variable(make_clip: ClipMaker, rate: Any, name: str) -> None:
    """Matroska rounds to milliseconds; reordered pictures and streams without time stamps are no reason either."""
    clip = make_clip(name, numbered_frames(40), rate)
    video = open_video(clip, fps=float(rate) if name == "a.h264" else None)
    assert not video.is_variable
    assert times(video) == pytest.approx([number / float(rate) for number in range(40)], abs=2e-3)


def test_the_golden_clip_is_even() -> None:
    video = open_video(DRIVE)
    assert not video.is_variable
    assert times(video) == pytest.approx([number / video.fps for number in range(video.frame_count or 0)], abs=2e-3)


def test_a_dropped_picture_makes_it_variable(make_clip: ClipMaker) -> None:
    stamps = [40 * number for number in range(30) if number != 20]
    video = open_video(make_clip("dropped.mp4", numbered_frames(29), 25, times_ms=stamps))
    assert video.is_variable
    assert times(video)[19:21] == pytest.approx([0.76, 0.84])


def test_the_callers_rate_replaces_time_stamps(make_clip: ClipMaker) -> None:
    video = open_video(make_clip("in.mp4", numbered_frames(7), 30, times_ms=UNEVEN_MS), fps=10)
    assert not video.is_variable
    assert times(video, 2) == [0, 0.2, 0.4, 0.6]


def test_sequences_are_even() -> None:
    video = open_video(numbered_frames(5), fps=12.5)
    assert (video.is_variable, video.frame_count, video.path) == (False, 5, None)
    assert [time for _, time in video.timed_frames(2)] == [0, Fraction(4, 25), Fraction(8, 25)]
    assert open_video(iter(numbered_frames(5))).frame_count is None


@pytest.mark.parametrize(
    ("name", "codec"), [("a.mp4", "libx264"), ("a.mkv", "libx264"), ("a.webm", "libvpx"), ("a.avi", "mpeg4")]
)
def test_the_number_of_frames_to_expect(make_clip: ClipMaker, name: str, codec: str) -> None:
    video = open_video(make_clip(name, numbered_frames(23), 25, codec))
    assert video.frame_count == 23
    assert video.path is not None


def test_starts_gaps_and_impossible_rates_are_no_frames(make_clip: ClipMaker, tmp_path: Path) -> None:
    """A late start and a gap do not count as frames; a rate that cannot be written is none."""
    hour = 3_600_000
    for stamps in ([100 * hour + 40 * number for number in range(5)], [0, 40, 80, 120, 30 * hour]):
        for name in ("late.mkv", "late.webm"):
            clip = make_clip(name, numbered_frames(5), 25, "libvpx" if name == "late.webm" else "libx264", stamps)
            assert open_video(clip).frame_count == 5
    data = bytearray(make_clip("a.avi", numbered_frames(5), 25, "mpeg4").read_bytes())
    at = data.index(b"strh") + 28
    data[at : at + 8] = (2**31 - 1).to_bytes(4, "little") + (1).to_bytes(4, "little")
    (tmp_path / "slow.avi").write_bytes(data)
    with pytest.warns(InputWarning, match="states no usable frame rate; 24 is assumed"):
        video = open_video(tmp_path / "slow.avi")
    assert (video.fps, video.frame_count) == (24, 5)


def row(*stamps: float | None) -> list[tuple[int, Fraction | None, int]]:
    return [(n, None if s is None else Fraction(s).limit_denominator(1000), n) for n, s in enumerate(stamps)]


def stamps_of(*ticks: int | None) -> Stamps:
    present = sorted(tick for tick in ticks if tick is not None)
    return Stamps(present, Fraction(1, 10), len(ticks) - len(present))


@pytest.mark.parametrize(
    "ticks",
    [[0, None, 2, 3, None, 5], [0, 0, 0, 1, 1, 2], [0, 1, 2, 3, 4, 10**6]],
    ids=["missing", "equal", "far away"],
)
def test_broken_time_stamps_are_replaced_with_one_warning(ticks: list[int | None]) -> None:
    frames = row(*(None if tick is None else tick / 10 for tick in ticks))
    stamps = stamps_of(*ticks)
    assert stamps.is_even(4)
    with pytest.warns(InputWarning, match="the clip has missing or broken time stamps") as caught:
        got = list(time_frames(frames, stamps, 4, "the clip"))
    assert len(caught) == 1
    assert got == [(number, Fraction(number, 4)) for number in range(6)]


@pytest.mark.parametrize("bad", [None, 0.5, 0.3])
def test_one_broken_time_stamp_costs_no_other(bad: float | None) -> None:
    ticks = [number for number in range(21) if number != 6]
    frames = row(*(number / 10 for number in range(6)), bad, *(number / 10 for number in range(7, 21)))
    with pytest.warns(InputWarning, match="frame 6 is shown right after") as caught:
        got = [time for _, time in time_frames(frames, stamps_of(*ticks), 10, "the clip")]
    assert len(caught) == 1
    assert all(later > earlier for earlier, later in pairwise(got))
    assert [time for n, time in enumerate(got) if n != 6] == [Fraction(n, 10) for n in range(21) if n != 6]


def test_absent_time_stamps_are_no_reason_to_warn() -> None:
    got = list(time_frames(row(None, None), stamps_of(None, None), 5, "the clip"))
    assert [time for _, time in got] == [0, Fraction(1, 5)]


# --- writing ---


@pytest.mark.parametrize("suffix", [".mp4", ".m4v", ".mov", ".mkv", ".webm", ".gif"])
def test_uneven_times_survive(tmp_path: Path, suffix: str) -> None:
    given = [time / 1000 for time in UNEVEN_MS]
    path = write_video(tmp_path / f"out{suffix}", numbered_frames(7), 5, times_s=given)
    video = open_video(path)
    assert times(video) == pytest.approx(given, abs=1e-3)
    assert video.is_variable
    with av.open(str(path)) as container:
        assert container.duration / av.time_base == pytest.approx(1.72, abs=2e-3)  # the last one is shown for 1 / fps


@pytest.mark.parametrize("suffix", [".webm", ".gif"])
@pytest.mark.parametrize("fps", [10, 24, Fraction(30000, 1001)])
def test_even_times_survive(tmp_path: Path, suffix: str, fps: Any) -> None:
    path = write_video(tmp_path / f"out{suffix}", numbered_frames(30), fps)
    video = open_video(path)
    assert suffix == ".gif" or not video.is_variable  # FFmpeg guesses the rate of a gif, and not always right
    assert times(video) == pytest.approx([number / float(fps) for number in range(30)], abs=0.0051)  # 1/100 s in a gif
    got = np.stack(list(video.frames()))
    np.testing.assert_allclose(got.mean(axis=(1, 2, 3)), 16 + 4 * np.arange(30), atol=2)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        *[([0, 0], "not after"), ([1, 0.5], "not after"), ([-1], "0 or more"), ([float("nan")], "0 or more")],
        *[([0, None], "for all frames, or for none"), ([None, 0], "for all frames, or for none")],
    ],
)
def test_times_must_ascend(tmp_path: Path, given: list[Any], message: str) -> None:
    with pytest.raises(InputError, match=message), VideoWriter(tmp_path / "out.mp4", 24, 96, 64) as out:  # noqa: PT012
        for frame, time_s in zip(numbered_frames(2), given, strict=False):
            out.write(frame, time_s)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("count", [2, 4])
def test_one_time_per_frame(tmp_path: Path, count: int) -> None:
    with pytest.raises(InputError, match="another number of times"):
        write_video(tmp_path / "out.mp4", numbered_frames(3), 24, times_s=range(count))
    assert not list(tmp_path.iterdir())


# --- gif ---


def test_a_gif_plays_for_ever_at_its_size(tmp_path: Path) -> None:
    frames = [np.roll(noise_frames(1, 33, 47)[0] // 64 * 64, 3 * number, axis=1) for number in range(4)]
    with Image.open(write_video(tmp_path / "out.gif", frames, 8)) as gif:
        assert (gif.size, gif.n_frames, gif.info["loop"]) == ((47, 33), 4, 0)
        for frame, want in zip(ImageSequence.Iterator(gif), frames, strict=True):
            assert frame.info["duration"] in (120, 130)
            assert np.abs(np.asarray(frame.convert("RGB")).astype(int) - want).mean() < 8
    assert [path.name for path in tmp_path.iterdir()] == ["out.gif"]


def test_a_gif_leaves_out_what_no_browser_shows(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "dispose_rt"):
        video = open_video(write_video(tmp_path / "out.gif", numbered_frames(40), 100))
    assert "20 pictures were left out" in caplog.text
    assert times(video) == pytest.approx(np.arange(20) / 50)
