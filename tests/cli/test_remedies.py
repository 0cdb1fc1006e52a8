"""Every command that a message, a help text or a docstring names is one that the installed command accepts."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from dispose_rt_export.command import add_arguments as add_build_arguments
from dispose_rt_export.command import parse_sizes, parse_targets

import dispose_rt
from dispose_rt import Animator
from dispose_rt.cli.parser import CommandParser, UsageError
from dispose_rt.cli.program import _COMMANDS
from dispose_rt.doctor import diagnosis, machine
from dispose_rt.engines.directory import EngineDirectories
from dispose_rt.engines.integrity import check_unchanged, find_damage, repair_advice
from dispose_rt.engines.manifest import FILE_NAME
from dispose_rt.engines.open import Engines
from dispose_rt.errors import DisposeError, ManifestError
from tests.engines import test_preflight as preflight
from tests.engines.damaged_directory import put_file, removed, replaced, signed
from tests.engines.small_directory import write_directory
from tests.engines.test_preflight import GPU, make_host, write_compiled

PACKAGE = Path(dispose_rt.__file__).parent
PROJECT = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
FOREIGN = re.compile(r"export/build_engines|python export/|pip install (-e )?\.|[`:] ?make [a-z-]+`?$")
"""Commands that only a source tree has."""


def strings_of(path: Path) -> Iterator[str]:
    """Every text in a module; what an f-string fills in is a 1."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            text = "".join(str(part.value) if isinstance(part, ast.Constant) else "1" for part in node.values)
            yield text.replace("--backend 1", "--backend tensorrt")  # see test_next_steps_of_the_doctor
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
            yield node.value


def commands_in(text: str) -> Iterator[list[str]]:
    """What follows `dispose-rt` in a text, as words; prose such as "the `dispose-rt bench` command" yields one word."""
    for match in re.finditer(r"(?:^|[\s`(])dispose-rt ([a-z]+.*)", text):
        if not match[1].startswith("from)"):  # "where you got dispose-rt from"
            yield shlex.split(re.split(r"[`;()]|, | && |\. |\.$|: ", match[1])[0])


def complaint(words: list[str]) -> str:
    """What the installed command says against its arguments, or nothing."""
    name, *arguments = words
    if name not in _COMMANDS:
        return f"there is no command {name!r}"
    if not arguments:  # the command is named, not spelled out
        return ""
    parser = CommandParser(prog=name)
    (add_build_arguments if name == "build" else importlib.import_module(f"dispose_rt.cli.{name}").add_arguments)(
        parser
    )
    try:
        options = parser.parse_args(arguments)
        if name == "build":
            parse_sizes(options.size)
            parse_targets(options.target)
    except (UsageError, DisposeError) as error:
        return str(error)
    except SystemExit as end:  # --help
        return "" if end.code == 0 else f"exit status {end.code}"
    return ""


def complaints(texts: list[str], least: int) -> list[str]:
    """Complaints about all commands in texts, of which there have to be some."""
    found = [words for text in texts for words in commands_in(text)]
    assert len([words for words in found if len(words) > 1]) >= least
    return [f"{shlex.join(words)}: {why}" for words in found if (why := complaint(words))]


def test_commands_in_the_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISPOSE_RT_ENGINES", raising=False)
    texts = {path: list(strings_of(path)) for path in sorted(PACKAGE.rglob("*.py"))}
    assert complaints([text for one in texts.values() for text in one], least=25) == []
    foreign = [f"{path}: {text}" for path, one in texts.items() for text in one if FOREIGN.search(text)]
    assert foreign == []


def test_extras_in_the_sources_are_those_of_the_package() -> None:
    texts = [text for path in PACKAGE.rglob("*.py") for text in strings_of(path)]
    named = {
        extra for text in texts for one in re.findall(r"dispose-rt\[([a-z,-]+)\]", text) for extra in one.split(",")
    }
    assert {"export", "tensorrt-rtx"} <= named <= set(PROJECT["optional-dependencies"])


def refusals(tmp_path: Path) -> Iterator[str]:
    """What refused engine directories say, of every kind of refusal that names a command."""
    for number, (changes, machine_, _) in enumerate(preflight.TestMachines.CASES.values()):
        folder = write_compiled(tmp_path / f"with space {number}", **changes).folder
        with pytest.raises(ManifestError) as caught:
            EngineDirectories(folder, host=make_host(**machine_))
        yield str(caught.value)
    intact = write_directory(tmp_path / "it's intact")
    for device in ("cpu", "cuda"):
        folder = (
            write_compiled(tmp_path / f"for {device}", targets=("sm_89",)).folder if device == "cpu" else intact.folder
        )
        with pytest.raises(ManifestError) as caught:
            EngineDirectories(folder, device, make_host())
        yield str(caught.value)
    for number, damage in enumerate(
        (
            removed(FILE_NAME),
            lambda folder: put_file(folder / FILE_NAME, b"{}"),
            signed("revision", value=1),
            signed("sizes", "width", value=100),
            signed("sizes", "tile", value="$(id)"),
            signed("targets", value=["sm_89", "$(id)"]),
            removed("unet.onnx"),
        )
    ):
        folder = write_directory(tmp_path / f"damaged {number}").folder
        damage(folder)
        with pytest.raises(ManifestError) as caught:
            Animator(folder)
        yield str(caught.value)
    with pytest.raises(ManifestError) as caught:
        Animator(tmp_path / "no where")
    yield str(caught.value)
    [opened] = EngineDirectories(intact.folder).manifests
    replaced("unet.onnx", Path.mkdir)(intact.folder)
    yield repair_advice(intact, find_damage(intact))
    with pytest.raises(ManifestError) as caught:
        check_unchanged(opened, "unet")
    yield str(caught.value)
    onnx = dataclasses.replace(intact, backend="onnxruntime")
    with pytest.raises(DisposeError) as refused:
        Engines(onnx, "cuda")("dift")
    yield str(refused.value)


def test_commands_of_refused_directories(tmp_path: Path) -> None:
    texts = list(refusals(tmp_path))
    assert complaints(texts, least=20) == []
    assert [
        text for text in texts if not list(commands_in(text)) and "pip install" not in text and "driver" not in text
    ] == []
    assert [text for text in texts if FOREIGN.search(text)] == []


def test_next_steps_of_the_doctor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = []
    for gpus in ((), (GPU,), (dataclasses.replace(GPU, capability="sm_90"),)):
        monkeypatch.setattr(machine, "find_gpus", lambda gpus=gpus: gpus)
        for extras in ((), ("nosuchmodule",)):
            monkeypatch.setattr(machine, "EXTRAS", {"export": extras})
            texts.append(diagnosis.examine(None).next_step)
    folder = tmp_path / "no engines"
    texts.append(diagnosis.examine(folder).next_step)
    texts.append(diagnosis._next_step(machine.examine_machine(), folder, ()))
    assert complaints(texts, least=7) == []
