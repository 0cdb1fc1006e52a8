"""Observers, typed and in their older form: what they get, and what is not made for them."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from dispose_rt import Observer
from dispose_rt.errors import InputError
from dispose_rt.hooks.observer import NAMES, NO_OBSERVER, as_observer, is_wanted
from tests.every import each


class Choosy:
    """Wants some names."""

    def __init__(self, *wants: str) -> None:
        self.wants = set(wants)
        self.seen: list[tuple[str, Any]] = []

    def __call__(self, name: str, value: Any) -> None:
        self.seen.append((name, value))


def show_all(observer: Observer) -> None:
    """Call every method as a run does, with its own name for each argument."""
    for name in NAMES:
        method = getattr(observer, name)
        method(*((1, name) if name == "motion_part" else (name,)))


def wanted_of(observer: Observer) -> list[str]:
    return [name for name in NAMES if is_wanted(observer, name)]


def test_the_names_are_those_of_always() -> None:
    first = ("reference", "driving", "detected", "aligned", "poses", "motion_part", "motion", "conditions")
    assert (*first, "denoise_step", "latents", "frames") == NAMES


def test_only_what_is_overridden_is_wanted() -> None:
    seen = []

    class Curious(Observer):
        def latents(self, latents: Any) -> None:
            seen.append(latents)

    class MoreCurious(Curious):
        def motion_part(self, first_frame: int, motion: Any) -> None:
            seen.append((first_frame, motion))

    observer = MoreCurious()
    assert as_observer(observer) is observer
    assert wanted_of(observer) == ["motion_part", "latents"]
    assert wanted_of(Curious()) == ["latents"]
    show_all(observer)
    assert seen == [(1, "motion_part"), "latents"]


def test_every_method_says_what_it_gets() -> None:
    assert [name for name in NAMES if not str(inspect.getdoc(getattr(Observer, name))).startswith("Gets ")] == []


def test_a_function_with_wishes_gets_those() -> None:
    function = Choosy("poses", "motion_part")
    observer = as_observer(function)
    assert wanted_of(observer) == ["poses", "motion_part"]
    show_all(observer)
    assert function.seen == [("poses", "poses"), ("motion_part", (1, "motion_part"))]


def test_a_function_without_wishes_gets_all() -> None:
    seen: list[str] = []
    observer = as_observer(lambda name, value: seen.append(name))
    assert wanted_of(observer) == list(NAMES)
    show_all(observer)
    assert seen == list(NAMES)


def test_nothing_is_wanted_where_nobody_looks() -> None:
    assert as_observer(None) is NO_OBSERVER
    assert wanted_of(NO_OBSERVER) == wanted_of(as_observer(Choosy())) == []
    show_all(NO_OBSERVER)


def test_a_wish_that_does_not_exist() -> None:
    with pytest.raises(InputError, match=r"the observer wants \['pose'\]; choose from \['reference'"):
        as_observer(Choosy("pose"))


@each(given=[3, Observer, Choosy])
def test_what_is_no_observer_is_refused(given: Any) -> None:
    with pytest.raises(InputError, match=r"pass a function \(name, value\), an instance of a subclass of Observer"):
        as_observer(given)
