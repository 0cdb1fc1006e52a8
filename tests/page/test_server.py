"""Serving: what is missing or in the way is said in one message, and nothing stays behind."""

from __future__ import annotations

import os
import socket
import sys
import tempfile
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dispose_rt import cli
from dispose_rt.cli import page as page_command
from dispose_rt.cli.parser import CommandParser
from dispose_rt.errors import InputError, InputWarning, ManifestError
from dispose_rt.page import build_page, serve_page
from dispose_rt.page.jobs import Jobs

from .fake_runner import FakeRunner


@pytest.fixture(scope="module")
def engines(toy_engines: Callable[[int, int], Path]) -> Path:
    return toy_engines(64, 64)


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where temporary folders are made; it must be empty in the end."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert list(folder.iterdir()) == []


def serve(engines: Path, port: int, look: Callable[[str], None], **named: Any) -> None:
    """Serve until `look`, which gets the address, has returned."""
    stop = threading.Event()

    def announce(url: str) -> None:
        try:
            look(url)
        finally:
            stop.set()

    serve_page(FakeRunner(), engines, port=port, announce=announce, stop=stop, **named)


def test_the_page_is_private_and_keeps_to_itself(
    engines: Path, free_port: int, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")  # nobody is there
    monkeypatch.delenv("GRADIO_TEMP_DIR", raising=False)
    seen: dict[str, Any] = {}

    def look(url: str) -> None:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(url, timeout=20) as answer:
            seen.update(answer.headers, text=answer.read().decode())
        [folder] = temporary.iterdir()
        seen["mode"] = folder.stat().st_mode & 0o777
        seen["cache"] = os.environ["GRADIO_TEMP_DIR"]

    serve(engines, free_port, look)
    assert "default-src 'self'" in seen["content-security-policy"]
    assert "likeness without that person" in seen["text"]
    assert str(engines) in seen["text"]
    assert seen["mode"] == 0o700
    assert seen["cache"].startswith(str(temporary))
    assert "GRADIO_TEMP_DIR" not in os.environ
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "0"


def test_a_port_in_use_is_an_error(engines: Path, temporary: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(InputError, match=f"port {port}.*--port {port % 65535 + 1}"):
            serve(engines, port, lambda url: pytest.fail("it was served"))


def test_other_machines_are_let_in_with_a_warning(engines: Path, free_port: int, temporary: Path) -> None:
    with pytest.warns(InputWarning, match="no password"):
        serve(engines, free_port, lambda url: None, host="0.0.0.0")


def test_ports_have_a_range(engines: Path) -> None:
    for port in (0, 65536):
        with pytest.raises(InputError, match=rf"port is {port}; it must lie in 1\.\.65535"):
            serve(engines, port, lambda url: None)


def test_the_command_serves_this_machine_alone_at_its_documented_port() -> None:
    parser = CommandParser(prog="dispose-rt page")
    page_command.add_arguments(parser)
    options = parser.parse_args(["--engines", "engines"])
    assert (options.host, options.port, options.device) == ("127.0.0.1", 7860, "auto")


def test_no_engines_no_page(tmp_path: Path) -> None:
    with pytest.raises(ManifestError):
        build_page(Jobs(FakeRunner(), tmp_path, tmp_path), tmp_path)


def test_without_gradio_the_command_says_what_to_install(
    engines: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert cli.main(["page", "--engines", str(engines)]) == 1
    assert "pip install 'dispose-rt[page]'" in capsys.readouterr().err


def test_the_package_loads_no_gradio() -> None:
    import subprocess

    code = "import sys, dispose_rt.page, dispose_rt.cli; sys.exit('gradio' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
