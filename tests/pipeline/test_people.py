"""Whom the runtime animates, on puppets whose joints are known: nobody, somebody sometimes, several people."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dispose_rt import Animator
from dispose_rt.engines.manifest import read_manifest
from dispose_rt.engines.open import Engines
from dispose_rt.errors import InputError, InputWarning, NoPersonError
from dispose_rt.hooks.observer import NO_OBSERVER
from dispose_rt.hooks.progress import Progress
from dispose_rt.pipeline.photo import frame_photo
from dispose_rt.puppet import Stance, dance, draw_backdrop, draw_puppet, place_joints
from dispose_rt.settings import Settings
from dispose_rt.stages.framing import fit_reference
from dispose_rt.stages.pose.track import PersonFinder
from tests.every import every_item
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


WIDE = 400


def crowd(*stances: Stance, width: int = WIDE, height: int = HEIGHT) -> np.ndarray:
    """A photo of people."""
    picture = draw_backdrop(height, width)
    for stance in stances:
        picture = draw_puppet(place_joints(stance, width / height), height, width, background=picture)
    return picture


def test_what_the_crop_of_the_photo_loses_is_said_and_can_be_kept(engines: Path) -> None:
    """With whole runs' own networks, on photos whose person stands aside, is cut, or is one of several."""
    left, half, right = Stance(centre_unit=0.12), Stance(centre_unit=0.34), Stance(centre_unit=0.85, height_unit=0.6)
    small, middle = Stance(centre_unit=0.5, height_unit=0.45, top_unit=0.3), Stance()
    tall = {"width": WIDTH, "height": 560}
    head = Stance(top_unit=0.28, height_unit=0.3)
    offer = r'; pass crop="person" \(--crop person\) to move the crop there, or use engines of the photo\'s shape'
    none = (
        r"nobody was found in the part of the photo that a crop to 128 x 192 pixels keeps, but the whole photo shows a"
    )
    chosen = r"the chosen person was not found in the part .* shows this person at the left of the photo; pass crop="
    cases: list[tuple[str, np.ndarray, dict[str, Any], str]] = [
        ("whole", crowd(middle), {}, ""),
        ("left", crowd(left), {}, f"{none} person at the left of the photo{offer}"),
        (
            "half",
            crowd(half),
            {},
            r"cuts off the person's .*arms.* \(\d+ of 18 joints\) at the left of the photo" + offer,
        ),
        ("head", crowd(head, **tall), {}, r"cuts off the person's head.* at the top of the photo; pass crop="),
        ("other", crowd(left, small), {}, r"cuts off its most prominent person \(18 of 18 joints\) at the left of the"),
        ("nobody", crowd(), {}, "nobody was found in the reference image; pass"),
        ("chosen", crowd(left, middle), {"reference_person": 0}, chosen),
        (
            "beyond",
            crowd(left, middle),
            {"reference_person": 2},
            "the photo shows at most 2 people at once, so there is",
        ),
    ]
    for stances in ((half,), (left, small)):
        cases += [(f"kept {len(cases)}", crowd(*stances), {"crop": "person"}, "")]
    cases += [
        ("kept number", crowd(left, middle, right), {"crop": "person", "reference_person": 2}, ""),
        ("inside", crowd(left, middle), {"reference_person": (0.5, 0.5)}, ""),
        (
            "large",
            crowd(Stance(0.5, 0.1, 1.6), width=192, height=WIDTH),
            {"crop": "person"},
            "cuts off.*; use engines of",
        ),
    ]
    where = {"kept number": right, "inside": middle}
    with closing(Engines(read_manifest(engines), "cpu")) as networks, every_item() as every:
        for name, image, changes, words in cases:
            with every(name):
                finder = PersonFinder(
                    networks("person_detector"), networks("pose_estimator"), Progress(False), NO_OBSERVER
                )
                shown: list[np.ndarray] = []
                picture: Any = None
                problem = ""
                with warnings.catch_warnings(record=True) as caught:
                    warnings.simplefilter("always")
                    try:
                        picture, person = frame_photo(image, WIDTH, HEIGHT, Settings(**changes), finder, shown.append)
                    except InputError as error:
                        problem = str(error)
                texts = [*(str(one.message) for one in caught), *([problem] if problem else [])]
                assert [bool(re.search(words, text)) for text in texts] == ([True] if words else [])
                if picture is None:
                    continue
                assert shown[0] is picture
                assert picture.shape == (HEIGHT, WIDTH, 3)
                assert person.persons == 1
                if "crop" not in changes:
                    np.testing.assert_array_equal(picture, fit_reference(image, WIDTH, HEIGHT))
                elif name != "large":
                    assert person.visible.all()
                    assert (np.abs(person.joints - 0.5) <= 0.5).all()
                if name in where:
                    size = person.joints[0, [10, 13], 1].mean() - person.joints[0, 0, 1]
                    expected = place_joints(where[name], WIDE / HEIGHT)
                    assert abs(size - (expected[[10, 13], 1].mean() - expected[0, 1])) < 0.05


def see_poses(engines: Path, **changes: Any) -> dict[str, Any]:
    """What a run shows until its poses are drawn, where it ends."""

    class EnoughError(Exception):
        pass

    seen: dict[str, Any] = {}

    def watch(name: str, value: Any) -> None:
        seen[name] = value
        if name == "poses":
            raise EnoughError

    with Animator(engines) as animator, pytest.raises(EnoughError):
        animator.run(stride=1, progress=False, observer=watch, **changes)
    return seen


def test_the_chosen_people_and_the_part_of_the_photo_reach_the_run(engines: Path) -> None:
    """The same poses as with a photo and a film in which nothing else is to be seen."""
    aside, dancer = Stance(centre_unit=0.2), {"centre_unit": 0.75, "height_unit": 0.6}
    image = crowd(aside, Stance(centre_unit=0.8, height_unit=0.9))
    height, width = FILM_HEIGHT, 2 * FILM_WIDTH
    dance_unit = dance(6, width / height, stance=Stance(**dancer), period=12)
    alone = [draw_puppet(joints, height, width) for joints in dance_unit]
    crowded = [crowd(Stance(centre_unit=0.25), width=width, height=height) for _ in alone]
    both = [draw_puppet(joints, height, width, background=one) for joints, one in zip(dance_unit, crowded, strict=True)]
    both[3] = crowded[3]
    chosen = {"crop": "person", "reference_person": 0, "person": (0.75, 0.5), "start_s": 0.04, "duration_s": 0.2}
    with pytest.warns(InputWarning, match=r"the chosen person was not found in the video's frames 3; the pose of the"):
        found = see_poses(engines, ref=image, video=both, **chosen)
    alone[3] = alone[2]
    expected = see_poses(engines, ref=found["reference"], video=alone[1:])
    assert len(found["poses"]) == 6
    for name in ("reference", "poses"):
        np.testing.assert_array_equal(found[name], expected[name])


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
