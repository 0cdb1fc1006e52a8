"""The process that runs the cases of one area. It may crash or hang: `watch` sees to it."""

from __future__ import annotations

import faulthandler
import importlib
import json
import os
import random
import resource
import shutil
import sys
import time
import traceback
from pathlib import Path
from typing import Any, TextIO

from dispose_rt.errors import DisposeError

from .area import Area, Problem, check_refusal

AREAS = {"media": "Media", "weights": "Weights", "manifests": "Manifests", "requests": "Requests", "planted": "Planted"}
"""Modules of this package, and the class in each."""
ADDRESS_BYTES = 6 * 2**30
"""Address space that a case may take beyond what is taken when it begins: what asks for more gets a MemoryError, and
this machine stays alive."""
_TRACES = ("Traceback (most recent", "Exception ignored", "Fatal Python error")


def serve(name: str, seed: int, folder: Path) -> None:
    """Run the cases whose numbers come in, one a line, and write what became of each as a line of JSON.

    Args:
        name: of the area.
        seed: of all cases.
        folder: for the area; the files of the case at work lie in its subfolder `case`.
    """
    answers, log = os.fdopen(os.dup(1), "w"), folder / "stderr.txt"
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    faulthandler.enable(all_threads=True)
    corpus = folder / "corpus"
    corpus.mkdir(exist_ok=True)
    module = importlib.import_module(f".{name}", __package__)
    area: Area = getattr(module, AREAS[name])(corpus)
    _say(answers, {"limit_s": area.limit_s})
    try:
        for line in sys.stdin:
            _run_case(area, answers, log, f"{seed}/{name}/{int(line)}", int(line), folder / "case")
    finally:
        area.close()


def _run_case(area: Area, answers: TextIO, log: Path, name: str, number: int, case: Path) -> None:
    shutil.rmtree(case, ignore_errors=True)
    case.mkdir()
    logged, pid = log.stat().st_size, area.watched_pid or os.getpid()
    _say(answers, {"done": area.draw(random.Random(name), case, number)})
    before, begin_s = _begin_memory(pid), time.monotonic()
    outcome, problem = _run(area, case)
    seconds, growth = time.monotonic() - begin_s, max(0, _memory(pid, "VmHWM") - before)
    with log.open("rb") as file:
        file.seek(logged)
        said = file.read().decode("utf-8", "replace")
    if not problem and any(trace in said for trace in _TRACES):
        outcome, problem = "failed", f"traceback: {said}"
    if not problem and growth > area.limit_bytes:
        outcome, problem = "failed", f"memory: grew by {growth / 1e6:.0f} MB"
    _say(answers, {"outcome": outcome, "problem": problem, "seconds": seconds, "growth": growth})


def _run(area: Area, case: Path) -> tuple[str, str]:
    """Return how a case ends, and what is wrong with that."""
    try:
        try:
            return ("accepted" if area.run(case) else "refused"), ""
        except DisposeError as error:
            check_refusal(error)
            return "refused", ""
    except Problem as error:
        return "failed", f"{error}\n{traceback.format_exc()}" if error.__cause__ else str(error)
    except Exception as error:
        return "failed", f"untyped: {type(error).__name__}: {error!s:.500}\n{traceback.format_exc()}"


def _begin_memory(pid: int) -> int:
    """Forget the peak of a process so far, and bound what it may take. Returns its resident bytes."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    bound = _memory(pid, "VmSize") + ADDRESS_BYTES
    resource.prlimit(pid, resource.RLIMIT_AS, (bound, resource.getrlimit(resource.RLIMIT_AS)[1]))
    return _memory(pid, "VmRSS")


def _memory(pid: int, name: str) -> int:
    """A number of /proc/PID/status in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return 0


def _say(answers: TextIO, line: dict[str, Any]) -> None:
    print(json.dumps(line), file=answers, flush=True)
