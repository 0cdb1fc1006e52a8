"""How many threads this process should compute with: its affinity mask, and the quotas of its control groups."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import InputError
from .control_groups import group_folders, read_text

THREADS_VARIABLE = "DISPOSE_RT_THREADS"


def compute_threads(root: Path = Path("/")) -> int:
    """Return the number of threads that networks on the CPU compute with.

    Args:
        root: where /proc and /sys are.

    Returns:
        The value of DISPOSE_RT_THREADS if it is set. Otherwise the cores in the process's affinity mask, or fewer
        where a control group's quota gives it less processor time than that.

    Raises:
        InputError: DISPOSE_RT_THREADS is not an integer in 1..1024.
    """
    text = os.environ.get(THREADS_VARIABLE)
    if not text:
        return usable_cores(root)
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 1024:
        raise InputError(f"{THREADS_VARIABLE} is {text!r}; set it to an integer in 1..1024, or unset it")
    return int(text)


def usable_cores(root: Path = Path("/")) -> int:
    """Return the number of cores whose time this process gets, at least 1.

    Args:
        root: where /proc and /sys are.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [quota for folder, version in group_folders("cpu", root) if (quota := _quota(folder, version)) is not None]
    return max(1, min([allowed, *(int(quota + 0.5) for quota in quotas)]))


def _quota(folder: Path, version: int) -> float | None:
    """Cores' worth of time that a group gets; None for no limit."""
    if version == 2:
        words = read_text(folder / "cpu.max").split()
    else:
        words = [read_text(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")]
    if len(words) != 2 or not all(word.isdigit() for word in words) or int(words[1]) == 0:  # "max" and -1: no limit
        return None
    return int(words[0]) / int(words[1])
