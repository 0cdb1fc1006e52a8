"""Faults on purpose: a fuzzer that does not report every one of them is blind."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path

from dispose_rt.errors import InputError

from .area import Area, check_printed, watched_warnings

HARMLESS = ("accepted", "refused")
FAULTS = ("untyped", "mute", "obeyed", "warning", "traceback", "crash", "hang", "memory")
_ALL = (*HARMLESS, *FAULTS)


class Planted(Area):
    """Every kind of end in turn: the case's number decides."""

    limit_s = 1.5
    limit_bytes = 2**26

    def draw(self, rng: random.Random, case: Path, number: int) -> str:
        fault = _ALL[number % len(_ALL)]
        (case / "input.txt").write_text(fault)
        (case / "noise.bin").write_bytes(rng.randbytes(16))
        return f"{fault}, planted"

    def run(self, case: Path) -> bool:
        acts: dict[str, Callable[[], object]] = {
            "accepted": lambda: None,
            "refused": lambda: _refuse("the input is planted; take another one"),
            "untyped": _fail,
            "mute": lambda: _refuse(""),
            "obeyed": lambda: check_printed("\x1b[2J"),
            "warning": _warn,
            "traceback": _fail_in_thread,
            "crash": lambda: os.kill(os.getpid(), signal.SIGSEGV),
            "hang": lambda: time.sleep(3600),
            "memory": lambda: len(b"x" * 2**27),
        }
        acts[(case / "input.txt").read_text()]()
        return True


def _refuse(text: str) -> None:
    raise InputError(text)


def _fail() -> None:
    raise KeyError("no such key")


def _warn() -> None:
    with watched_warnings():
        warnings.warn("a library's own", RuntimeWarning, stacklevel=1)


def _fail_in_thread() -> None:
    thread = threading.Thread(target=_fail)
    thread.start()
    thread.join()
