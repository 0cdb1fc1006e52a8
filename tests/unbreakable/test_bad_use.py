"""Nothing that a user hands in breaks the tool: typed errors, exit codes, nothing left behind, and it goes on.

`bad_use_cases` and `command_cases` are the tables of what is handed in; `test_bad_endings` has what happens on the way.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from dispose_rt import Animator
from dispose_rt.errors import DisposeError

from .bad_use_cases import CASES, Case
from .command_cases import COMMANDS, Command
from .conftest import OUTPUT_NAME, Captured, Workshop, run_command
from .materials import without_rights

Watch = Callable[[], AbstractContextManager[None]]


@pytest.fixture(autouse=True)
def unharmed(shop: Workshop) -> Any:
    """The Animator that all cases share keeps nothing of a failure. The last one is followed by a good run."""
    before = shop.used_bytes
    yield
    assert shop.used_bytes == before
    assert "idle" in repr(shop.animator)


@pytest.mark.parametrize("case", [one for one in CASES if one.where != "command"], ids=lambda case: case.name)
def test_in_python(case: Case, shop: Workshop, place: Path, nothing_left: Watch) -> None:
    given = {"output": place / OUTPUT_NAME} | case.make(place, shop)
    options = {"output": given["output"]} | given.get("settings", {})
    options |= {name: given[key] for key, name in (("reference", "ref"), ("video", "video")) if key in given}
    is_new = "engines" in given or "device" in given
    start = partial(Animator, given.get("engines", shop.engines), given.get("device", "auto"))
    with nothing_left(), pytest.raises(case.error) as caught, rights_of(case):
        start() if is_new else shop.run(**options)
    assert isinstance(caught.value, DisposeError)
    check_words(case, str(caught.value))


@pytest.mark.parametrize("case", [one for one in CASES if one.where != "python"], ids=lambda case: case.name)
def test_on_the_command_line(
    case: Case,
    shop: Workshop,
    place: Path,
    nothing_left: Watch,
    capsys: Captured,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shop.lend(monkeypatch)
    words = shop.words({"output": place / OUTPUT_NAME} | case.make(place, shop))
    with nothing_left(), rights_of(case):
        code, said = run_command(words, capsys)
    assert code == case.code, said
    check_words(case, said)


@pytest.mark.parametrize("case", COMMANDS, ids=lambda case: case.name)
def test_other_commands(case: Command, shop: Workshop, place: Path, nothing_left: Watch, capsys: Captured) -> None:
    words = [str(word) for word in case.words(place, shop)]
    with nothing_left():
        code, said = run_command(words, capsys)
    assert code == case.code, said
    check_words(case, said)


def rights_of(case: Case) -> AbstractContextManager[None]:
    return without_rights() if case.rightless else nullcontext()


def check_words(case: Case | Command, said: str) -> None:
    for pattern in (case.cause, case.remedy):
        assert re.search(pattern, said, re.DOTALL | re.IGNORECASE), f"{said!r} says nothing like {pattern!r}"
