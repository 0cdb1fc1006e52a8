"""Which frames are used, how fast they are shown, and whether the sound still fits."""

from __future__ import annotations

import warnings
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest

from dispose_rt import media
from dispose_rt.errors import InputError, InputWarning
from dispose_rt.media import write_video
from dispose_rt.pipeline import pace
from dispose_rt.pipeline.pace import Pace, find_audio
from dispose_rt.settings import Settings


def film(tmp_path: Path, fps: float = 30) -> media.Video:
    path = write_video(tmp_path / "film.mp4", np.zeros((6, 16, 16, 3), np.uint8), fps)
    return media.open_video(path)


def test_the_pace_follows_from_the_source_and_the_settings(tmp_path: Path) -> None:
    slow, fast = film(tmp_path), media.open_video(np.zeros((6, 16, 16, 3), np.uint8), fps=60)
    assert Pace.of(slow, Settings(stride=2)) == Pace(2, 15, 15, False)
    assert Pace.of(slow, Settings(stride=3, fps=7.5)) == Pace(3, 10, 7.5, True)
    assert Pace.of(fast, Settings(stride=2)) == Pace(4, 15, 15, False)
    with pytest.raises(InputError, match=r"would have 0\.005 frames per second.*smaller stride"):
        Pace.of(slow, Settings(stride=6000))
    assert Pace.of(slow, Settings(stride=6000, fps=1)).fps == 1


@pytest.mark.parametrize(("fps", "kept"), [(None, True), (15, True), (15.0001, True), (15.1, False), (30, False)])
def test_the_sound_stays_where_the_speed_stays(tmp_path: Path, fps: float | None, kept: bool) -> None:
    video = film(tmp_path)
    with patch.object(pace, "has_sound", lambda path, cancel: True), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = find_audio(video, Pace.of(video, Settings(fps=fps)), warn=True)
        assert find_audio(video, Pace.of(video, Settings(fps=fps)), warn=False) == found
    assert found == (video.path if kept else None)
    assert [one.category for one in caught] == ([] if kept else [InputWarning])
    assert all("Leave fps out to keep speed and sound" in str(one.message) for one in caught)
