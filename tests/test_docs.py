"""The documents are true: links lead somewhere, commands parse, and quoted messages exist."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from dispose_rt_export import command as exporter

from dispose_rt.cli.parser import CommandParser, UsageError
from dispose_rt.errors import DisposeError
from scripts import api_reference

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]


def test_links_lead_somewhere() -> None:
    assert [broken for page in PAGES for broken in broken_links(page)] == []


def broken_links(page: Path) -> Iterator[str]:
    """Links of a page to files or headings that do not exist."""
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        if "://" in target:
            continue
        linked = (page.parent / path).resolve() if path else page
        is_heading = linked.suffix != ".md" or not anchor or anchor in anchors(linked.read_text(encoding="utf-8"))
        if not linked.exists() or not is_heading:
            yield f"{page.name}: {target}"


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


def test_commands_parse() -> None:
    lines = list(commands())
    assert len(lines) > 10
    assert [f"{page}: {line}: {problem}" for page, line in lines if (problem := parse_problem(line))] == []


def parse_problem(line: str) -> str:
    """What the installed command says about a command line; nothing if it accepts it."""
    name, *words = shlex.split(line, comments=True)
    parser = CommandParser(prog=f"dispose-rt {name}")
    add_arguments = (
        exporter.add_arguments if name == "build" else importlib.import_module(f"dispose_rt.cli.{name}").add_arguments
    )
    add_arguments(parser)
    try:
        parser.parse_args(words)
    except (DisposeError, UsageError, SystemExit) as error:
        return repr(error)
    return ""


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


def test_messages_are_quoted_as_they_are() -> None:
    texts = spoken("dispose_rt") + spoken("export")
    assert len(QUOTED) > 30
    assert [words for words in QUOTED if words not in texts] == []


def test_the_api_reference_is_up_to_date() -> None:
    assert api_reference.PAGE.read_text(encoding="utf-8") == api_reference.make_page(), (
        "write it again: python scripts/api_reference.py"
    )
