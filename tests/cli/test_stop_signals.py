"""Signals: how they end a command, and what they leave behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dispose_rt import cli
from dispose_rt.cli.stop_signals import Interrupted, StopSignals
from dispose_rt.errors import Cancelled

from .conftest import Captured, FakeAnimator

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of this kind are POSIX")


def test_interruption(animator: type[FakeAnimator], arguments: list[str], tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "out.mp4").write_bytes(b"older")
    animator.failure = KeyboardInterrupt()
    assert cli.main(arguments) == 130
    assert capsys.readouterr().err == "\ndispose-rt: interrupted\n"
    assert animator.closed == 1
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]
    assert (tmp_path / "out.mp4").read_bytes() == b"older"


_INTERRUPTED_RUN = """
import signal, sys, time
from pathlib import Path
import numpy as np
import dispose_rt
from dispose_rt import cli, media
from dispose_rt.errors import Cancelled

class Animator:
    def __init__(self, engines, **options): pass
    def __enter__(self): return self
    def __exit__(self, *error):
        print("cleaning", flush=True)
        time.sleep(0.5)
        Path(sys.argv[-1] + ".cleaned").touch()
    def run(self, ref, video, *, output, cancel, **settings):
        rng = np.random.default_rng(0)
        with media.open_writer(output, 24, 320, 192) as write:
            for number in range(100_000):
                if cancel.is_set():
                    raise Cancelled("cancelled")
                write(rng.integers(0, 256, (192, 320, 3), dtype=np.uint8))
                if number == 60:
                    print("started", flush=True)

dispose_rt.Animator = Animator
# tests that a shell starts with & or nohup inherit signals that are ignored
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.fixture
def begun(arguments: list[str], tmp_path: Path) -> Callable[[], subprocess.Popen[str]]:
    """Start a run in a process of its own, and come back when it writes its output."""

    def start() -> subprocess.Popen[str]:
        command = [sys.executable, "-c", _INTERRUPTED_RUN, *arguments]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        assert any(".part" in path.name for path in tmp_path.iterdir())
        return process

    return start


def test_a_signal_to_a_process_leaves_nothing(begun: Callable[[], subprocess.Popen[str]], tmp_path: Path) -> None:
    """Ctrl-C, and a terminal that is closed; the next test has SIGTERM."""
    for number, code in ((signal.SIGINT, 130), (signal.SIGHUP, 129)):
        process = begun()
        process.send_signal(number)
        try:
            _, err = process.communicate(timeout=60)
        finally:
            process.kill()
        assert (number, process.returncode) == (number, code)
        assert err.strip() == "dispose-rt: interrupted"
        assert [path.name for path in tmp_path.iterdir()] == ["out.mp4.cleaned"]
        (tmp_path / "out.mp4.cleaned").unlink()


def test_a_second_signal_does_not_break_the_cleanup(begun: Callable[[], subprocess.Popen[str]], tmp_path: Path) -> None:
    process = begun()
    process.send_signal(signal.SIGTERM)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "cleaning\n"
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 143
    assert "already stopping" in err
    assert "Traceback" not in err
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4.cleaned"]


def hits(number: signal.Signals) -> bool:
    """Whether a signal to this process raises Interrupted."""
    try:
        os.kill(os.getpid(), number)
    except Interrupted:
        return True
    return False


def test_only_the_first_signal_raises(capfd: Captured) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopSignals() as stop:
        assert hits(signal.SIGTERM)
        assert stop.number == signal.SIGTERM
        assert stop.event.wait(10)
        assert not hits(signal.SIGTERM)
        assert not hits(signal.SIGINT)
        assert stop.number == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before
    assert capfd.readouterr().err.count("already stopping; if it hangs, ask again in 10 s") == 2


def test_what_hangs_can_be_stopped() -> None:
    with StopSignals(patience_s=0.2) as stop:
        assert hits(signal.SIGTERM)
        assert not hits(signal.SIGTERM)
        time.sleep(0.3)
        assert hits(signal.SIGTERM)
        assert not hits(signal.SIGTERM)
        assert stop.number == signal.SIGTERM


def test_gently_means_by_the_event() -> None:
    with StopSignals(patience_s=0.2) as stop:
        with stop.gently() as event:
            assert not hits(signal.SIGINT)
            assert event.wait(10)
            assert not hits(signal.SIGINT)
            time.sleep(0.3)
            assert hits(signal.SIGINT)  # it does not look at the event
        assert stop.number == signal.SIGINT


def test_ignored_signals_stay_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with StopSignals() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
        assert stop.number is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_other_threads_install_nothing(animator: type[FakeAnimator], arguments: list[str]) -> None:
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(cli.main(arguments)))
    thread.start()
    thread.join()
    assert codes == [0]


def test_a_run_hears_of_a_signal_by_its_event(
    animator: type[FakeAnimator], arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    def run(self: FakeAnimator, *sources: object, cancel: threading.Event, **settings: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        assert cancel.wait(10)
        raise Cancelled("cancelled at denoise 3 of 25")

    monkeypatch.setattr(animator, "run", run)
    assert cli.main(arguments) == 143
    assert capsys.readouterr().err == "\ndispose-rt: interrupted\n"
