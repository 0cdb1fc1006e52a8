"""Strings of files, paths and foreign errors reach a terminal without what it would obey."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from dispose_rt.cli import main

HOSTILE = "e\x1b[2J\x9b31m\u202etxt\x07\r"
SHOWN = r"e\x1b[2J\x9b31m\u202etxt\x07\r"


def test_control_characters_are_printed_as_escapes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On both streams, by every kind of command; JSON has its own escapes."""
    folder = str(tmp_path / HOSTILE)
    commands = {
        "an error": ["inspect", folder],
        "a result": ["doctor", folder],
        "a usage error": ["inspect", folder, f"--{HOSTILE}"],
        "the exporter": ["build", "--weights", folder, "--output", str(tmp_path / "e")],
    }
    for what, command in commands.items():
        assert main(command) in (1, 2), what
        captured = capsys.readouterr()
        said = captured.out + captured.err
        assert SHOWN in said, what
        assert said.replace("\n", "").replace("\t", "").isprintable(), what
    assert main(["inspect", folder, "--json"]) == 1
    assert folder in json.loads(capsys.readouterr().out)["error"]["message"]
    assert sys.stdout is not None
