"""`dispose-rt build`: how the exporter is found, and what happens without it."""

from __future__ import annotations

import builtins
import contextlib
import importlib.util
import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from dispose_rt import cli
from dispose_rt.cli import build

from .conftest import Captured


def test_build_hands_its_arguments_to_the_exporter(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    exporter = ModuleType("build_engines")
    exporter.main = lambda argv, parser: seen.append(argv) or 7  # type: ignore[attr-defined]
    monkeypatch.setattr(build, "import_exporter", lambda: exporter)
    assert cli.main(["build", "--random-weights", "toy", "--output", "x", "--help"]) == 7
    assert seen == [["--random-weights", "toy", "--output", "x", "--help"]]


def test_a_signal_during_a_build_has_its_own_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """The exporter ends itself in order after Ctrl-C, and answers 130 whatever the signal was."""

    def interrupt(argv: list[str], parser: object) -> int:
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
        return 130

    exporter = ModuleType("build_engines")
    exporter.main = interrupt  # type: ignore[attr-defined]
    monkeypatch.setattr(build, "import_exporter", lambda: exporter)
    assert cli.main(["build"]) == 143


@contextlib.contextmanager
def _without(monkeypatch: pytest.MonkeyPatch, hidden: str) -> Iterator[None]:
    """Python as it is where one package is not installed."""
    real = builtins.__import__

    def refuse(name: str, *rest: Any, **named: Any) -> Any:
        if name.partition(".")[0] == hidden:
            raise ModuleNotFoundError(f"No module named {hidden!r}", name=hidden)
        return real(name, *rest, **named)

    for name in [name for name in sys.modules if name.partition(".")[0] == "dispose_rt_export"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", refuse)
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "dispose_rt_export"]:
        del sys.modules[name]  # half-imported
    monkeypatch.undo()  # with the modules that other tests hold


def test_build_without_torch_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    with _without(monkeypatch, "torch"):
        code = cli.main(["build", "--random-weights", "toy", "--output", "x"])
    err = capsys.readouterr().err
    assert code == 1
    assert "'torch', which is not installed" in err
    assert "pip install 'dispose-rt[export]'" in err
    assert "Traceback" not in err


def test_build_without_the_exporter(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Captured) -> None:
    monkeypatch.setattr(build, "__file__", str(tmp_path / "site-packages" / "dispose_rt" / "cli" / "build.py"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert cli.main(["build"]) == 1
    assert "pip install 'dispose-rt[export]'" in capsys.readouterr().err


def test_usage_errors_name_the_command(capsys: Captured) -> None:
    assert cli.main(["build", "--json"]) == 2
    out, err = capsys.readouterr()
    assert json.loads(out)["error"]["type"] == "UsageError"
    assert err.startswith("usage: dispose-rt build ")
    assert "the following arguments are required: --output" in err


def test_errors_as_json(tmp_path: Path, capsys: Captured) -> None:
    output = ("--output", str(tmp_path / "e"))
    assert cli.main(["build", "--weights", str(tmp_path / "nowhere"), *output, "--json"]) == 1
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert found["error"]["type"] == "CheckpointError"
    assert str(tmp_path / "nowhere") in found["error"]["message"]
    assert found["directories"] == []
    assert err.startswith("error: ")
    assert "Traceback" not in err


def test_a_build_as_json(golden_checkpoint: Path, tmp_path: Path, capsys: Captured) -> None:
    output = tmp_path / "e"
    arguments = ["build", "--weights", str(golden_checkpoint), "--output", str(output), "--size", "64x64", "--json"]
    assert cli.main([*arguments, "--only", "point_encoder"]) == 0
    out, err = capsys.readouterr()
    [first] = json.loads(out)["directories"]
    assert first["directory"] == str(output)
    assert (first["complete"], first["built"], first["up_to_date"]) == (False, ["point_encoder"], [])
    assert "unet" in first["missing"]
    assert first["bytes"] == (output / "point_encoder.onnx").stat().st_size
    assert first["seconds"] > 0
    assert first["peak_bytes"] > 1e6
    assert "still lacks" in err
    assert cli.main([*arguments, "--only", "point_encoder"]) == 0
    [second] = json.loads(capsys.readouterr().out)["directories"]
    assert (second["built"], second["up_to_date"]) == ([], ["point_encoder"])
