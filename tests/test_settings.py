"""Settings are validated once, and say everything that is wrong with them."""

from __future__ import annotations

import math

import pytest

from dispose_rt.errors import InputError
from dispose_rt.settings import Settings


def test_defaults_are_the_published_sample_settings():
    settings = Settings()
    assert (settings.steps, settings.guidance_scale, settings.overlap, settings.stride) == (25, 2.0, 6, 2)
    assert settings.controls == ("motion", "points")


@pytest.mark.parametrize("controls", [("points", "motion"), ["motion", "points"], ("motion", "points", "motion")])
def test_controls_are_a_set_in_one_order(controls):
    assert Settings(controls=controls).controls == ("motion", "points")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"steps": 2.5}, "steps is 2.5; it must be an integer"),
        ({"steps": True}, "steps is True"),
        ({"guidance_scale": 0.5}, "guidance_scale is 0.5"),
        ({"guidance_scale": math.nan}, "guidance_scale is nan"),
        ({"guidance_scale": "2"}, "guidance_scale is '2'"),
        ({"overlap": -1}, "overlap is -1"),
        ({"stride": 0}, "stride is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": None}, "seed is None"),
        ({"fps": 0}, "fps is 0"),
        ({"fps": math.inf}, "fps is inf"),
        ({"noise_aug_strength": 1.5}, "noise_aug_strength is 1.5"),
        ({"motion_bucket_id": 4000}, "motion_bucket_id is 4000"),
        ({"controls": ("pose",)}, "unknown controls ['pose']"),
        ({"controls": "motion"}, "controls is the string 'motion'"),
    ],
)
def test_bad_settings_are_refused_by_name(changes, words):
    with pytest.raises(InputError, match="^.*" + words.replace("[", r"\[").replace("]", r"\]").replace(".", r"\.")):
        Settings(**changes)


def test_all_problems_are_listed_at_once():
    with pytest.raises(InputError) as caught:
        Settings(steps=0, stride=0, seed=-5)
    assert all(name in str(caught.value) for name in ("steps", "stride", "seed"))


def test_an_overlap_that_is_not_given_suits_the_tiles() -> None:
    assert Settings(overlap=None).overlap_in(16) == Settings().overlap_in(16) == 6
    assert Settings(overlap=None).overlap_in(4) == 2
    assert Settings(overlap=1).overlap_in(4) == 1
