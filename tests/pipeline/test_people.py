"""Whom the runtime animates, on puppets whose joints are known: nobody, somebody sometimes, several people."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dispose_rt import Animator
from dispose_rt.errors import InputWarning, NoPersonError
from dispose_rt.puppet import Stance, dance, draw_backdrop, draw_puppet
from tests.golden_case import animate

WIDTH, HEIGHT = 128, 192
FILM_WIDTH, FILM_HEIGHT = 192, 288


def film(count: int, **stance: float) -> list[np.ndarray]:
    joints = dance(count, FILM_WIDTH / FILM_HEIGHT, stance=Stance(**stance), period=12)
    return [draw_puppet(one, FILM_HEIGHT, FILM_WIDTH) for one in joints]


def photo(width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    [joints] = dance(1, width / height, energy=0)
    return draw_puppet(joints, height, width)


def run(engines: Path, **changes: Any) -> Any:
    defaults = {"ref": photo(), "steps": 1, "overlap": 1, "stride": 1, "progress": False, "controls": ()}
    return animate(engines, **{**defaults, **changes})


@pytest.fixture(scope="module")
def engines(toy_engines: Callable[[int, int], Path]) -> Path:
    return toy_engines(WIDTH, HEIGHT)


def test_reference_with_nobody(engines: Path) -> None:
    with pytest.raises(NoPersonError, match="reference image"):
        run(engines, ref=draw_backdrop(HEIGHT, WIDTH), video=film(2))


def test_video_with_nobody(engines: Path) -> None:
    empty = [draw_backdrop(FILM_HEIGHT, FILM_WIDTH)] * 3
    with pytest.raises(NoPersonError, match="frame"):
        run(engines, video=empty)


def test_frames_with_nobody_take_the_nearest_pose_and_are_named(engines: Path) -> None:
    frames = film(7)
    empty = draw_backdrop(FILM_HEIGHT, FILM_WIDTH)
    video = [empty, frames[1], empty, empty, frames[4], frames[5], empty]
    with pytest.warns(InputWarning, match=r"frames 0, 2, 3, 6;"):
        [poses] = run(engines, video=video).seen["poses"]
    driven = poses[1:]
    for stand_in, shown in ((0, 1), (2, 1), (3, 4), (6, 5)):
        np.testing.assert_array_equal(driven[stand_in], driven[shown])
    assert (driven[1] != driven[4]).any()


def test_warning_counts_source_frames(engines: Path) -> None:
    empty = draw_backdrop(FILM_HEIGHT, FILM_WIDTH)
    frames = film(6)
    video = [frames[0], empty, empty, empty, frames[4], empty]
    with pytest.warns(InputWarning, match=r"frames 2;"):
        run(engines, video=video, stride=2)


def test_the_most_prominent_of_two_people_is_followed(engines: Path) -> None:
    """A small bystander beside the dancer leaves the drawn pose where it is, and is not drawn."""
    height, width = FILM_HEIGHT, 2 * FILM_WIDTH
    dancer = dance(5, width / height, stance=Stance(centre_unit=0.3, height_unit=0.6, top_unit=0.25), period=12)
    alone = [draw_puppet(joints, height, width) for joints in dancer]
    [bystander] = dance(1, width / height, stance=Stance(centre_unit=0.85, height_unit=0.35, top_unit=0.1), energy=0)
    crowded = [draw_puppet(bystander, height, width, background=frame) for frame in alone]
    [expected] = run(engines, video=alone).seen["poses"]
    [poses] = run(engines, video=crowded).seen["poses"]
    np.testing.assert_array_equal(poses, expected)
    # the bystander is no mere backdrop: alone in the picture, it is the one that is found
    [other] = run(engines, video=[draw_puppet(bystander, height, width)] * 5).seen["poses"]
    assert (other[1:] != expected[1:]).any(axis=(1, 2, 3)).all()


SIZES = ((WIDTH, HEIGHT), (64, 64))


@pytest.mark.parametrize(("width", "height"), [*SIZES, pytest.param(128, 64, marks=pytest.mark.slow)])
def test_portrait_square_and_landscape(toy_engines: Callable[[int, int], Path], width: int, height: int) -> None:
    trace = run(toy_engines(width, height), ref=photo(width, height), video=film(4), controls=("motion", "points"))
    assert trace.animation.frames.shape == (4, height, width, 3)
    assert trace.seen["poses"][0][1:].any(axis=(1, 2, 3)).all()


def test_a_parent_directory_serves_every_aspect(toy_engines: Callable[[int, int], Path]) -> None:
    [parent] = {toy_engines(width, height).parent for width, height in SIZES}
    with Animator(parent) as animator:
        for width, height in ((150, 300), (300, 300), (300, 150)):
            frames = animator.run(
                photo(width, height), film(1), steps=1, overlap=1, stride=1, progress=False, controls=()
            ).frames
            assert frames.shape[1:3] == ((HEIGHT, WIDTH) if width < height else (64, 64))
