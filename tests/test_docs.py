"""The documents say what is so: links lead somewhere, commands parse, and quoted messages are ours."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from dispose_rt_export import command as build_engines

from dispose_rt.cli.parser import CommandParser
from scripts import api_reference

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        if "://" in target:
            continue
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        if anchor and linked.suffix == ".md":
            assert anchor in anchors(linked.read_text(encoding="utf-8")), target


def anchors(text: str) -> set[str]:
    """What headings are called in links."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands() -> Iterator[tuple[str, str]]:
    """(page, command line) of every `dispose-rt` in a code block."""
    for page in PAGES:
        for block in re.findall(r"^```\w*\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                if match := re.match(r"(?:\w+=\S+ )*dispose-rt (.*)", line):
                    yield page.name, match[1]


@pytest.mark.parametrize(("page", "line"), [pytest.param(*one, id=" ".join(one)[:80]) for one in commands()])
def test_commands_parse(page: str, line: str) -> None:
    name, *words = shlex.split(line, comments=True)
    parser = CommandParser(prog=f"dispose-rt {name}")
    add_arguments = (
        build_engines.add_arguments
        if name == "build"
        else importlib.import_module(f"dispose_rt.cli.{name}").add_arguments
    )
    add_arguments(parser)
    parser.parse_args(words)


def test_there_are_commands() -> None:
    assert len(list(commands())) > 10


def spoken(folder: str) -> str:
    """All texts in the sources of a package, values left out, so that a message is one piece."""
    texts = []
    for path in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
            elif isinstance(node, ast.JoinedStr):
                parts = (part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
                texts.append("".join(map(str, parts)))
    return "\n".join(texts)


QUOTED = re.findall(
    r"^\| `([^`]+)` \|", (ROOT / "docs" / "TROUBLESHOOTING.md").read_text(encoding="utf-8"), re.MULTILINE
)


@pytest.fixture(scope="module")
def texts() -> str:
    return spoken("dispose_rt") + spoken("export")


@pytest.mark.parametrize("words", QUOTED)
def test_messages_are_quoted_as_they_are(words: str, texts: str) -> None:
    assert words in texts


def test_there_are_messages() -> None:
    assert len(QUOTED) > 30


def test_the_api_reference_is_up_to_date() -> None:
    assert api_reference.PAGE.read_text(encoding="utf-8") == api_reference.make_page(), (
        "write it again: python scripts/api_reference.py"
    )
