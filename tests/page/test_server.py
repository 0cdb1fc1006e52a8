"""Serving: what is missing or in the way is said in one message, and nothing stays behind."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
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
from dispose_rt.page.folders import private_folder
from dispose_rt.page.jobs import Jobs
from tests.engines.small_directory import write_directory

from .fake_runner import FakeRunner


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("engines") / "64x64"
    write_directory(folder)
    return folder


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
    assert engines.name in seen["text"]
    assert str(engines.parent) not in seen["text"]
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
    code = "import sys, dispose_rt.page, dispose_rt.cli; sys.exit('gradio' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_page_that_was_killed_is_cleared_up_after(temporary: Path, tmp_path: Path) -> None:
    """The next start removes its folder, and leaves those of living pages and of others alone."""
    code = (
        "import time; from dispose_rt.page.folders import private_folder\n"
        "with private_folder() as folder: (folder / 'results').mkdir(); print(folder, flush=True); time.sleep(600)"
    )
    command, environment = [sys.executable, "-c", code], {**os.environ, "TMPDIR": str(temporary)}
    killed, living = (subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) for _ in range(2))
    try:
        left, kept = (Path(one.stdout.readline().strip()) for one in (killed, living) if one.stdout)
        killed.kill()
        killed.wait()
        (left / "results" / "upload.png").write_bytes(b"private")
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "lock").touch()
        others = [temporary / f"dispose-rt-page-{name}" for name in ("link", "unlocked", "open")]
        others[0].symlink_to(tmp_path / "mine")
        for other in others[1:]:
            other.mkdir(0o700)
        (others[2] / "lock").touch()
        others[2].chmod(0o755)
        with private_folder() as own:
            assert set(temporary.iterdir()) == {own, kept, *others}
            assert own.stat().st_mode & 0o777 == 0o700
        assert (kept / "results").is_dir()
    finally:
        for process in (killed, living):
            process.kill()
            process.wait()
            process.communicate()
    (others[2] / "lock").unlink()
    others[0].unlink()
    for other in others[1:]:
        other.rmdir()
    with private_folder():
        assert not kept.exists()


def test_the_command_passes_on_who_may_come(
    engines: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[dict[str, Any]] = []
    monkeypatch.setattr("dispose_rt.page.serve_page", lambda *args, **named: seen.append(named))
    monkeypatch.setattr("dispose_rt.Animator", lambda *args, **named: contextlib.nullcontext())
    monkeypatch.setenv("DISPOSE_RT_PAGE_TOKEN", "from-the-environment")
    options = ["--allowed-host", "a.example.org", "--allowed-host", "b.example.org", "--root-path", "/dispose"]
    assert cli.main(["page", "--engines", str(engines), *options]) == 0
    assert cli.main(["page", "--engines", str(engines), "--token", "from-the-option"]) == 0
    assert seen[0]["allowed_hosts"] == ["a.example.org", "b.example.org"]
    assert [one["root_path"] for one in seen] == ["/dispose", ""]
    assert [one["token"] for one in seen] == ["from-the-environment", "from-the-option"]
    monkeypatch.undo()
    assert cli.main(["page", "--engines", str(engines), "--token", "short"]) == 1
    assert "must have 8 or more characters" in capsys.readouterr().err
