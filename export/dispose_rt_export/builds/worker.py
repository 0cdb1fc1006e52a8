"""Runs steps of a build in a process of their own.

Its memory is freed with it, and a compiler that crashes or is killed for lack of memory ends in an error message
instead of ending the build.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import dispose_rt
from dispose_rt.errors import DisposeError

Result = TypeVar("Result")

RESTART_ABOVE_BYTES = 2 << 30
"""A process that has held more than this is replaced: allocators keep what they once had."""

_PACKAGES = [str(Path(dispose_rt.__file__).parents[1]), str(Path(__file__).parents[2])]
"""Folders that the process imports the two packages from, where they are not installed."""
_BOOTSTRAP = "import sys; from dispose_rt_export.builds.worker import serve; serve(int(sys.argv[1]))"


class BuildWorker:
    """A process that runs one step after the other. Use it as a context manager.

    Args:
        folder: for the process's temporary files; made when it starts, removed with it.

    Attributes:
        peak_bytes: largest memory of any of its processes so far.
    """

    def __init__(self, folder: Path) -> None:
        self.peak_bytes = 0
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None

    def __enter__(self) -> BuildWorker:
        """Return itself; the process starts with the first step."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the process, at once if a step is running."""
        self.stop()

    def run(
        self, label: str, step: Callable[..., Result], *arguments: Any, progress: Callable[[str], None] | None = None
    ) -> Result:
        """Run `step(*arguments)` in the process and wait for it.

        Args:
            label: name of the step in error messages: "unet: compiling".
            step: a function of a module of this package.
            arguments: anything that can be pickled.
            progress: receives the texts that the step passes to `report`.

        Returns:
            The step's result.

        Raises:
            DisposeError: the process ended before the step did.
            BaseException: any exception of the step.
        """
        connection = self._started()
        connection.send_bytes(pickle.dumps((step, arguments)))
        try:
            kind, result, used = pickle.loads(connection.recv_bytes())
            while kind == _REPORT:
                if progress is not None:
                    progress(result)
                kind, result, used = pickle.loads(connection.recv_bytes())
        except (EOFError, ConnectionError):
            raise DisposeError(f"{label}: {self._death()}") from None
        self.peak_bytes = max(self.peak_bytes, used)
        if used > RESTART_ABOVE_BYTES:
            self.stop()
        if kind == _FAILED:
            raise result
        returned: Result = result
        return returned

    def _started(self) -> Connection:
        if self._connection is not None:
            return self._connection
        ours, theirs = socket.socketpair()
        with theirs:
            descriptor = theirs.fileno()
            command = [sys.executable, "-c", _BOOTSTRAP, str(descriptor)]
            self._folder.mkdir(parents=True, exist_ok=True)
            environment = {
                **os.environ,
                "PYTHONPATH": os.pathsep.join([*_PACKAGES, *filter(None, [os.environ.get("PYTHONPATH")])]),
                "TMPDIR": str(self._folder.absolute()),
            }
            self._process = subprocess.Popen(command, env=environment, pass_fds=[descriptor])
        self._connection = Connection(ours.detach())
        return self._connection

    def _death(self) -> str:
        assert self._process is not None
        status = self._process.wait()
        self.stop()
        if status == -signal.SIGKILL:
            return (
                "its process was killed, most likely because memory ran out. Close other programs or add swap, then "
                "run the same command again: finished networks are kept."
            )
        how = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
        return (
            f"its process crashed ({how}); what it printed last stands above. Run the same command again: finished "
            "networks are kept. If it crashes again, try another --precision or --backend."
        )

    def stop(self) -> None:
        """End the process. The next step starts a new one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
            shutil.rmtree(self._folder, ignore_errors=True)


_DONE, _FAILED, _REPORT = "done", "failed", "report"
_to_parent: list[Connection] = []
"""Connection to the parent, in a worker process."""


def report(text: str) -> None:
    """Send the parent what the step is doing; outside of a worker process, do nothing."""
    for connection in _to_parent:
        connection.send_bytes(pickle.dumps((_REPORT, text, 0)))


def serve(descriptor: int) -> None:
    """Run steps in the worker process until the parent closes the connection."""
    _end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets it as well, and ends this process
    connection = Connection(descriptor)
    _to_parent.append(connection)
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            step, arguments = pickle.loads(connection.recv_bytes())
            try:
                outcome: tuple[str, Any] = (_DONE, step(*arguments))
            except BaseException as error:
                outcome = (_FAILED, _picklable(error))
            connection.send_bytes(pickle.dumps((*outcome, peak_memory_bytes())))


def peak_memory_bytes() -> int:
    """Return the largest memory of this process so far; 0 where the system does not say."""
    # of this program: the value of getrusage begins, on Linux, with the size of the parent that started it
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) * 1024
    try:
        import resource
    except ModuleNotFoundError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _picklable(error: BaseException) -> BaseException:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return DisposeError(f"{type(error).__name__}: {error}")
    return error


def _end_with_parent() -> None:
    """Have the system end this process when its parent is killed, so that it no longer writes to the scratch folder."""
    if sys.platform.startswith("linux"):
        parent = os.getppid()
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
        if os.getppid() != parent:  # it was killed in between
            os._exit(1)
