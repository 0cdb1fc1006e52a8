"""Steps of a build run in a process of their own, whose death is an error and not the end."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from dispose_rt_export.builds import worker as build_worker
from dispose_rt_export.builds.worker import BuildWorker, report

from dispose_rt.errors import DisposeError, ManifestError

ROOT = Path(__file__).resolve().parents[3]


def double(number: int) -> int:
    return 2 * number


def identify() -> int:
    return os.getpid()


def name_temporary_file() -> Path:
    with tempfile.NamedTemporaryFile(delete=False) as file:
        return Path(file.name)


def hold(megabytes: int) -> int:
    held = bytearray(megabytes << 20)
    held[::4096] = b"x" * len(held[::4096])
    return os.getpid()


def refuse() -> None:
    raise ManifestError("no good", ["reason"], "remedy")


def raise_foreign() -> None:
    class LocalError(Exception):  # cannot be pickled: its class has no importable name
        pass

    raise LocalError("deep inside")


def crash() -> None:
    ctypes.string_at(0)


def be_killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def leave() -> None:
    os._exit(3)


def talk() -> str:
    report("one")
    report("two")
    return "done"


def test_steps_run_in_one_other_process(tmp_path):
    with BuildWorker(tmp_path / "w") as worker:
        assert worker.run("x", double, 21) == 42
        first = worker.run("x", identify)
        assert first != os.getpid()
        assert worker.run("x", identify) == first
        assert worker.peak_bytes > 1 << 20
        assert worker.run("x", name_temporary_file).parent == tmp_path / "w"
    assert not (tmp_path / "w").exists()
    with pytest.raises(ProcessLookupError):
        os.kill(first, 0)


def test_a_process_that_held_much_memory_is_replaced(tmp_path, monkeypatch):
    monkeypatch.setattr(build_worker, "RESTART_ABOVE_BYTES", 200 << 20)
    with BuildWorker(tmp_path / "w") as worker:
        first = worker.run("x", identify)
        assert worker.run("x", hold, 300) == first
        assert worker.run("x", identify) != first
        assert worker.peak_bytes > 300 << 20


def test_the_memory_of_the_parent_does_not_count(tmp_path):
    held = bytearray(400 << 20)
    held[::4096] = b"x" * len(held[::4096])
    with BuildWorker(tmp_path / "w") as worker:
        worker.run("x", identify)
        assert 1 << 20 < worker.peak_bytes < 300 << 20


def test_errors_of_a_step_are_raised_here_and_the_worker_goes_on(tmp_path):
    with BuildWorker(tmp_path / "w") as worker:
        with pytest.raises(ManifestError, match="no good"):
            worker.run("x", refuse)
        with pytest.raises(DisposeError, match="LocalError: deep inside"):
            worker.run("x", raise_foreign)
        assert worker.run("x", double, 1) == 2


@pytest.mark.parametrize(
    ("step", "message"),
    [(crash, "signal SIGSEGV"), (be_killed, "memory ran out"), (leave, "exit status 3")],
)
def test_the_death_of_the_process_is_an_error(tmp_path, step, message):
    with BuildWorker(tmp_path / "w") as worker:
        with pytest.raises(DisposeError, match=rf"(?s)unet: compiling: .*{message}.*same command again"):
            worker.run("unet: compiling", step)
        assert worker.run("x", double, 2) == 4


def test_steps_report_what_they_do(tmp_path):
    heard: list[str] = []
    with BuildWorker(tmp_path / "w") as worker:
        assert worker.run("x", talk, progress=heard.append) == "done"
        assert worker.run("x", talk) == "done"
    assert heard == ["one", "two"]
    report("outside of a worker")


def test_the_process_ends_with_its_killed_parent(tmp_path):
    program = (
        "import pickle, sys, time\n"
        "from pathlib import Path\n"
        "from tests.export.builds.test_build_worker import identify\n"
        "from dispose_rt_export.builds.worker import BuildWorker\n"
        "worker = BuildWorker(Path(sys.argv[1]))\n"
        "print(worker.run('x', identify), flush=True)\n"
        "worker._connection.send_bytes(pickle.dumps((time.sleep, (60,))))\n"
        "time.sleep(60)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "w")],
        stdout=subprocess.PIPE,
        env=environment,
    )
    assert process.stdout is not None
    child = int(process.stdout.readline())
    process.kill()
    process.wait()
    process.stdout.close()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            status = Path(f"/proc/{child}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return
        if status.rpartition(")")[2].split()[0] == "Z":  # dead, and waiting for whoever adopted it
            return
        time.sleep(0.05)
    raise AssertionError(f"process {child} outlived its parent")
