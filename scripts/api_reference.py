"""Writes docs/API.md from the docstrings and signatures of the public names.

python scripts/api_reference.py            # write it
python scripts/api_reference.py --check    # only say whether it is up to date; a test does that
"""

from __future__ import annotations

import argparse
import ast
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import dispose_rt
from dispose_rt import debug, errors, media, noise, pictures
from dispose_rt.hooks import progress

ROOT = Path(__file__).resolve().parents[1]
LINE_LENGTH = 110
PAGE = ROOT / "docs" / "API.md"
HEAD = """\
# API reference

Made from the sources by `python scripts/api_reference.py`. Arrays are numpy's, pictures are RGB, everything is typed
(`py.typed`).
"""


@dataclass(frozen=True)
class Alias:
    """A name for a type, which a text below its definition describes."""

    module: ModuleType


Part = tuple[str, str, Sequence[tuple[str, Any]]]

PARTS: Sequence[Part] = (
    (
        "dispose_rt",
        "What a program needs.",
        [
            ("Animator", dispose_rt.Animator),
            ("Animation", dispose_rt.Animation),
            ("Settings", dispose_rt.Settings),
            ("Observer", dispose_rt.Observer),
            ("ProgressCallback", Alias(progress)),
        ],
    ),
    (
        "dispose_rt.errors",
        "Every error that is raised on purpose is a `DisposeError`.",
        [
            (name, value)
            for name, value in vars(errors).items()
            if inspect.isclass(value) and value.__module__ == errors.__name__
        ],
    ),
    (
        "dispose_rt.media",
        "Pictures and videos, for programs that read or write them as this one does.",
        [(name, getattr(media, name)) for name in ("read_image", "open_video", "Video", "open_writer", "write_video")],
    ),
    (
        "dispose_rt.pictures and dispose_rt.debug",
        "For people to look at.",
        [
            ("DebugPictures", debug.DebugPictures),
            *((name, getattr(pictures, name)) for name in ("flow_to_color", "contact_sheet", "save_png")),
        ],
    ),
    ("dispose_rt.noise", "Where random numbers come from.", [("seeded_noise", noise.seeded_noise)]),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Write or check the page. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if the page is stale")
    arguments = parser.parse_args(argv)
    text = make_page()
    if not arguments.check:
        PAGE.write_text(text, encoding="utf-8")
    elif not PAGE.exists() or PAGE.read_text(encoding="utf-8") != text:
        print(f"{PAGE.name} is stale; write it again: python scripts/api_reference.py", file=sys.stderr)
        return 1
    return 0


def make_page() -> str:
    """Return the whole page."""
    return "\n".join([HEAD, *_parts()])


def _parts() -> Iterator[str]:
    for title, summary, things in PARTS:
        yield f"## {title}\n\n{summary}\n"
        for name, thing in things:
            if isinstance(thing, Alias):
                yield _describe_alias(name, thing.module)
            elif inspect.isclass(thing):
                yield from _describe_class(name, thing)
            else:
                yield from _describe(f"### {name}", name, thing)


def _describe_alias(name: str, module: ModuleType) -> str:
    """Return the definition as written, and the text below it."""
    body = ast.parse(inspect.getsource(module)).body
    for definition, text in pairwise(body):
        if isinstance(definition, ast.Assign) and ast.unparse(definition.targets[0]) == name:
            assert isinstance(text, ast.Expr)
            assert isinstance(text.value, ast.Constant)
            return f"### {name}\n\n```python\n{ast.unparse(definition)}\n```\n\n{text.value.value!s}\n"
    raise LookupError(f"{module.__name__} defines no {name}")


def _describe_class(name: str, kind: type) -> Iterator[str]:
    if issubclass(kind, BaseException):
        bases = ", ".join(base.__name__ for base in kind.__bases__)
        yield f"### {name}\n\n`class {name}({bases})`\n\n{_to_markdown(kind)}\n"
        return
    yield from _describe(f"### {name}", name, kind)
    for member, value in vars(kind).items():
        if member.startswith("_"):
            continue
        if isinstance(value, property):
            yield f"#### {name}.{member}\n\n{_to_markdown(value)}\n"
        elif inspect.isfunction(value):
            yield from _describe(f"#### {name}.{member}", member, value)


def _describe(heading: str, name: str, thing: Callable[..., Any]) -> Iterator[str]:
    yield f"{heading}\n\n```python\n{_format_signature(name, thing)}\n```\n\n{_to_markdown(thing)}\n"


def _format_signature(name: str, thing: Callable[..., Any]) -> str:
    """Return a signature on one line if it is short, else with one parameter per line."""
    signature = inspect.signature(thing)
    answer = "" if inspect.isclass(thing) else f" -> {signature.return_annotation}"
    words: list[str] = []
    for one in signature.parameters.values():
        if one.kind is inspect.Parameter.KEYWORD_ONLY and "*" not in words:
            words.append("*")
        if one.name != "self":
            words.append(_format_parameter(one))
    line = f"{name}({', '.join(words)}){answer}"
    if len(line) <= LINE_LENGTH:
        return line
    return f"{name}(\n" + "".join(f"    {word},\n" for word in words) + f"){answer}"


def _format_parameter(one: inspect.Parameter) -> str:
    text = one.name if one.annotation is one.empty else f"{one.name}: {one.annotation}"
    default = "..." if repr(one.default) == "<factory>" else repr(one.default)  # a dataclass makes a new one each time
    return text if one.default is one.empty else f"{text} = {default}"


def _to_markdown(thing: Any) -> str:
    """Return a docstring with its sections (Args, Returns, ...) as lists."""
    lines, section = [], False
    for line in (inspect.getdoc(thing) or "").splitlines():
        if match := re.fullmatch(r"(Args|Attributes|Returns|Yields|Raises|Warns):", line):
            lines += [f"**{match[1]}**", ""]
            section = True
        elif section and re.match(r"    \S", line):
            lines.append(re.sub(r"^([\w, ]+):", r"- `\1`:", line.strip()))
        elif section and line.startswith("        "):
            lines.append(f"  {line.strip()}")
        else:
            section = section and not line
            lines.append(line)
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
