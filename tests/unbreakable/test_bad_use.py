"""Nothing that a user hands in breaks the tool: typed errors, exit codes, nothing left behind, and it goes on.

`bad_use_cases` and `command_cases` are the tables of what is handed in; `test_bad_endings` has what happens on the way.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from dispose_rt import Animator
from dispose_rt.errors import DisposeError
from tests.every import every_item

from .bad_use_cases import GROUPS, Case
from .command_cases import COMMANDS, Command
from .conftest import OUTPUT_NAME, Captured, Workshop, leaves_nothing, new_place, run_command
from .materials import without_rights


@contextmanager
def unharmed(shop: Workshop) -> Iterator[None]:
    """The Animator that all cases share keeps nothing of a failure. The last one is followed by a good run."""
    before = shop.used_bytes
    yield
    assert shop.used_bytes == before
    assert "idle" in repr(shop.animator)


@pytest.mark.parametrize("group", GROUPS)
def test_in_python(group: str, shop: Workshop, surroundings: Path) -> None:
    with every_item() as every:
        for case in GROUPS[group]:
            if case.where != "command":
                with every(case.name), new_place() as place, unharmed(shop):
                    given = {"output": place / OUTPUT_NAME} | case.make(place, shop)
                    with leaves_nothing(place, surroundings), rights_of(case):
                        use_in_python(case, shop, given)


def use_in_python(case: Case, shop: Workshop, given: dict[str, Any]) -> None:
    options = {"output": given["output"]} | given.get("settings", {})
    options |= {name: given[key] for key, name in (("reference", "ref"), ("video", "video")) if key in given}
    is_new = "engines" in given or "device" in given
    start = partial(Animator, given.get("engines", shop.engines), given.get("device", "auto"))
    with pytest.raises(case.error) as caught:
        start() if is_new else shop.run(**options)
    assert isinstance(caught.value, DisposeError)
    check_words(case, str(caught.value))


@pytest.mark.parametrize("group", GROUPS)
def test_on_the_command_line(
    group: str, shop: Workshop, surroundings: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.lend(monkeypatch)
    with every_item() as every:
        for case in GROUPS[group]:
            if case.where != "python":
                with every(case.name), new_place() as place, unharmed(shop):
                    words = shop.words({"output": place / OUTPUT_NAME} | case.make(place, shop))
                    with leaves_nothing(place, surroundings), rights_of(case):
                        code, said = run_command(words, capsys)
                    assert code == case.code, said
                    check_words(case, said)


def test_other_commands(shop: Workshop, surroundings: Path, capsys: Captured) -> None:
    with every_item() as every:
        for case in COMMANDS:
            with every(case.name), new_place() as place, unharmed(shop):
                words = [str(word) for word in case.words(place, shop)]
                with leaves_nothing(place, surroundings):
                    code, said = run_command(words, capsys)
                assert code == case.code, said
                check_words(case, said)


def rights_of(case: Case) -> AbstractContextManager[None]:
    return without_rights() if case.rightless else nullcontext()


def check_words(case: Case | Command, said: str) -> None:
    for pattern in (case.cause, case.remedy):
        assert re.search(pattern, said, re.DOTALL | re.IGNORECASE), f"{said!r} says nothing like {pattern!r}"
