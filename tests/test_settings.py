"""Settings are validated once, and say everything that is wrong with them."""

from __future__ import annotations

import argparse
import inspect
import math
import re
from dataclasses import fields
from fractions import Fraction

import numpy as np
import pytest

from dispose_rt import Animator
from dispose_rt.cli.animate import add_arguments
from dispose_rt.contract import Sizes
from dispose_rt.errors import InputError
from dispose_rt.page.fields import list_fields
from dispose_rt.settings import SETTINGS, Settings, SettingsOptions
from tests.every import each

NO_PERSONS = (
    -1,
    1.0,
    "1",
    "left",
    True,
    None,
    (0.5,),
    (0.1, 0.2, 0.3),
    (0.5, 1.5),
    (math.nan, 0),
    ("0", "1"),
    {},
    b"ab",
)


def test_defaults_are_the_published_sample_settings():
    settings = Settings()
    assert (settings.steps, settings.guidance_scale, settings.overlap_in(16), settings.stride) == (25, 2.0, 6, 2)
    assert settings.controls == ("motion", "points")


@pytest.mark.parametrize("controls", [("points", "motion"), ["motion", "points"], ("motion", "points", "motion")])
def test_controls_are_a_set_in_one_order(controls):
    assert Settings(controls=controls).controls == ("motion", "points")


@each(
    changes__words=[
        ({"steps": 0}, "steps is 0"),
        ({"steps": 2.5}, "steps is 2.5; it must be an integer"),
        ({"steps": True}, "steps is True"),
        ({"steps": 10**400}, "steps is 1000"),
        ({"guidance_scale": 10**400}, "guidance_scale is 1000"),
        ({"overlap": np.float64(2)}, "overlap is "),
        ({"conditions_memory": ["auto"]}, "conditions_memory is ['auto']; choose from ['auto', 'device'"),
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
        ({"controls": (["motion"],)}, "unknown controls [['motion']]"),
        ({"controls": ("pose",)}, "unknown controls ['pose']"),
        ({"controls": "motion"}, "controls is the string 'motion'"),
        *(({"person": bad}, f"person is {bad!r}; pass 'largest', the person's number") for bad in NO_PERSONS),
        ({"crop": "person "}, "crop is 'person '; choose from ['centre', 'person']"),
        ({"duration_s": 0}, "duration_s is 0; it must lie in 0.001.."),
    ],
)
def test_bad_settings_are_refused_by_name(changes, words):
    with pytest.raises(InputError, match=re.escape(words)):
        Settings(**changes)


def test_all_problems_are_listed_at_once():
    with pytest.raises(InputError) as caught:
        Settings(steps=0, stride="2", seed=-5, controls="motion")
    assert all(name in str(caught.value) for name in ("steps", "stride", "seed", "controls"))


def test_numbers_of_other_types_become_plain_ones() -> None:
    settings = Settings(steps=np.int64(3), guidance_scale=np.float32(2), fps=Fraction(24, 1), seed=np.uint8(7))
    people = Settings(person=np.int64(2), reference_person=np.array([0, 0.5]))
    assert (people.person, people.reference_person) == (2, (0.0, 0.5))
    assert [type(one) for one in (people.person, *people.reference_person)] == [int, float, float]
    numbers = (settings.steps, settings.guidance_scale, settings.fps, settings.seed)
    assert numbers == (3, 2.0, 24.0, 7)
    assert [type(number) for number in numbers] == [int, float, float, int]


def test_an_overlap_that_is_not_given_suits_the_tiles() -> None:
    assert Settings(overlap=None).overlap_in(16) == Settings().overlap_in(16) == 6
    assert Settings(overlap=None).overlap_in(4) == 2
    assert Settings(overlap=1).overlap_in(4) == 1


def test_everything_agrees_with_the_table() -> None:
    """Types, defaults, ranges and sentences are told once: what shows them to people must take them from there."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    options = {action.dest: action for action in parser._actions}
    form = {field.name: field for field in list_fields([Sizes(64, 64, tile=10_002, chunk=1000)])}
    parameters = {name: inspect.signature(getattr(Animator, name)).parameters for name in ("run", "stream")}
    declared = {field.name: field for field in fields(Settings)}
    assert list(declared) == list(SETTINGS) == list(SettingsOptions.__annotations__)
    differ = []
    for name, row in SETTINGS.items():
        kind = SettingsOptions.__annotations__[name].__forward_arg__
        span, sentence = row.describe_range(), row.sentence
        found = {
            "its own type": declared[name].type
            == kind.replace("Sequence[str]", "tuple[str, ...]").replace("Sequence[float]", "tuple[float, float]"),
            "its own default": declared[name].default == row.default == getattr(Settings(), name),
            "None": row.is_optional == ("None" in kind) and (row.is_optional or row.default is not None),
            "run": (parameters["run"][name].default, parameters["run"][name].annotation) == (row.default, kind),
            "stream": parameters["stream"][name] == parameters["run"][name],
            "the option": options[name].default == row.default,
            "the help": sentence[1:] in str(options[name].help) and span in str(options[name].help),
            "the form": form[name].default == (list(row.default) if row.kind == "many" else row.default),
            "the hint": form[name].hint.startswith(sentence) and span.lower() in form[name].hint.lower(),
            "the choices": {value for _, value in form[name].choices} == set(row.values),
            "the reference": f"{name}: {sentence[0].lower()}" in str(Settings.__doc__),
        }
        differ += [f"{name}: {what}" for what, agrees in found.items() if not agrees]
    assert not differ


def test_the_table_is_what_is_checked() -> None:
    """Both ends of every range are taken, and what lies beyond them is refused."""
    wrong = []
    for name, row in SETTINGS.items():
        if row.kind not in ("integer", "number"):
            continue
        beyond = 1 if row.kind == "integer" else 1e-3
        for value, fits in [
            (row.low, True),
            (row.high, True),
            (row.low - beyond, False),
            (row.high + beyond, False),
        ]:
            try:
                taken = getattr(Settings(**{name: value}), name) == value
            except InputError:
                taken = False
            wrong += [f"{name}={value}"] if taken is not fits else []
    assert not wrong
