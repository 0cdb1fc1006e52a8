"""A part of a video: the frames that are shown in a span of time, as if there were no others."""

from __future__ import annotations

import re
import warnings
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dispose_rt.errors import InputError
from dispose_rt.media import Video, open_video
from tests.every import every_item

from .conftest import ClipMaker, noise_frames, numbered_frames

COUNT = 30
UNEVEN_MS = (7000 + np.arange(COUNT) * 40 + np.arange(COUNT) ** 2).tolist()
SPANS: tuple[tuple[Any, Any], ...] = (
    (0.1, None),
    (np.float32(0.5), np.int64(7)),
    (0.32, 0.2),
)


def make_sources(folder: Path, make_clip: ClipMaker) -> dict[str, Any]:
    frames = numbered_frames(COUNT, 16, 32)
    pictures = [Image.fromarray(frame) for frame in frames]
    pictures[0].save(folder / "a.webp", save_all=True, append_images=pictures[1:], duration=50, lossless=True)
    broken = make_clip("twice.mkv", frames, 25, times_ms=[number // 4 * 160 for number in range(COUNT)])
    make_clip("drive.h264", frames, 25)
    return {
        "even": make_clip("even.mp4", frames, 30),
        "uneven, late": make_clip("uneven.mkv", frames, 30, times_ms=UNEVEN_MS),
        "counting": make_clip("a.avi", frames, 25, "mpeg4"),
        "transport": make_clip("a.ts", frames, 25),
        "without": folder / "drive.h264",
        "broken": broken,
        "webp": folder / "a.webp",
        "array": frames,
    }


def read(video: Video, step: int = 1) -> list[tuple[float, Fraction]]:
    return [(round(float(frame.mean()), 3), time_s) for frame, time_s in video.timed_frames(step)]


def test_a_part_is_what_is_shown_in_that_time(tmp_path: Path, make_clip: ClipMaker) -> None:
    """Of files, with even, uneven, broken and no time stamps, of arrays, and of parts themselves."""
    with warnings.catch_warnings(), every_item() as every:
        warnings.filterwarnings("ignore", message=".*broken time stamps")
        warnings.filterwarnings("ignore", message=".*states no usable frame rate")
        for name, source in make_sources(tmp_path, make_clip).items():
            whole = open_video(source)
            shown = read(whole)
            assert len(shown) == COUNT
            for start_s, duration_s in SPANS:
                with every(name, start_s, duration_s):
                    stop_s = 1e9 if duration_s is None else float(start_s) + float(duration_s) - 5e-4
                    numbers = [n for n, (_, time) in enumerate(shown) if float(start_s) - 5e-4 <= time < stop_s]
                    assert numbers
                    part = open_video(source).part(start_s, duration_s)
                    assert (part.first_frame, part.start_s) == (numbers[0], shown[numbers[0]][1])
                    if whole.frame_count == COUNT:  # some sources do not tell, or guess
                        assert part.frame_count == len(numbers)
                    expected = [(shown[n][0], shown[n][1] - part.start_s) for n in numbers]
                    assert read(part) == expected
                    assert read(part, 3) == expected[::3]
        with every("a part of a part"):
            whole = open_video(tmp_path / "even.mp4")
            again, once = whole.part(0.2).part(0.1, 0.4), whole.part(0.3, 0.4)
            assert (read(again), again.start_s, again.part_id) == (read(once), once.start_s, once.part_id)
            assert whole.part() is whole
        with every("an even part of uneven pictures"):
            times_ms = [*range(0, 200, 40), 300, 400, 500, 600]
            clip = make_clip("half.mkv", numbered_frames(9, 16, 32), 25, times_ms=times_ms)
            assert open_video(clip).is_variable
            assert not open_video(clip).part(0, 0.2).is_variable


def test_parts_that_cannot_be_are_refused(tmp_path: Path, make_clip: ClipMaker) -> None:
    """At once; of a generator, when it has ended. What ends behind the part is no truncated video."""
    clip, frames = make_clip("a.mp4", numbered_frames(COUNT), 30), numbered_frames(COUNT)
    late = r"start_s is 1, but .* is over after 1\.000 s; pass an earlier start_s"
    cases: dict[str, tuple[Any, dict[str, Any], str]] = {
        "late": (clip, {"start_s": 1}, late.replace(".*", re.escape(str(clip)))),
        "late array": (frames, {"start_s": 30, "duration_s": 1}, r"the video \(ndarray\) is over after 1\.250 s"),
        "late generator": (iter(frames), {"start_s": 30}, r"is over after 1\.250 s"),
        "empty": (
            clip,
            {"start_s": 0.51, "duration_s": 0.01},
            r"between 0\.51 and 0\.52 s, .* at 0\.533 s; pass a longer",
        ),
        "negative": (clip, {"start_s": -1}, "start_s is -1; it must lie in"),
        "nothing": (clip, {"duration_s": 0}, "duration_s is 0; it must lie in"),
        "text": (clip, {"start_s": "1"}, "start_s is '1'; it must be a finite number"),
    }
    with every_item() as every:
        for name, (source, part, words) in cases.items():
            with every(name), pytest.raises(InputError, match=words):
                list(open_video(source).part(**part).frames())
        with every("generator"):
            drawn = iter(noise_frames(COUNT))
            assert len(list(open_video(drawn).part(0.5, 0.25).frames())) == 6
            assert len(list(drawn)) == COUNT - 12 - 6 - 1  # what lies behind the part is not asked for
        with every("no warning"), warnings.catch_warnings():
            warnings.simplefilter("error")
            assert len(list(open_video(clip).part(0.1, 0.1).frames())) == 3
