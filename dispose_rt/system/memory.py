"""How much memory of the host a run may still take: the kernel's word, and the limits of the control groups."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_UNLIMITED_BYTES = 1 << 60
"""Version 1 of control groups says "no limit" by a number as large as that, or larger."""


def free_host_bytes(root: Path = Path("/")) -> int | None:
    """Bytes that this process can still allocate without swapping, or being killed for it.

    On Linux that is what the kernel calls available, or less where a control group (a container's, say) leaves less;
    what such a group keeps of files, unused, counts as free. Elsewhere it is what the C library calls free.

    Args:
        root: where /proc and /sys are.

    Returns:
        None where nothing tells.
    """
    available = _available_bytes(root)
    groups = [free for folder, names in _group_folders(root) if (free := _free_in_group(folder, *names)) is not None]
    known = [free for free in (available, *groups) if free is not None]
    return max(min(known), 0) if known else None


def _available_bytes(root: Path) -> int | None:
    found = re.search(r"^MemAvailable:\s+(\d+) kB$", _read(root / "proc/meminfo"), re.MULTILINE)
    if found is not None:
        return int(found[1]) * 1024
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # no such function, or no such name on this system
        return None


_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_V2 = ("memory.max", "memory.current", "inactive_file")


def _group_folders(root: Path) -> Iterator[tuple[Path, tuple[str, str, str]]]:
    """Control groups of this process, from its own outwards, each with its names for limit, usage and unused files."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0" and not controllers:
            mount, names = root / "sys/fs/cgroup", _V2
        elif "memory" in controllers.split(","):
            mount, names = root / "sys/fs/cgroup/memory", _V1
        else:
            continue
        group = PurePosixPath(path.lstrip("/"))
        for folder in (group, *group.parents):  # inside a container the path may not exist, but its own root does
            yield mount / folder, names


def _free_in_group(folder: Path, limit_name: str, usage_name: str, unused_name: str) -> int | None:
    limit, usage = _read(folder / limit_name).strip(), _read(folder / usage_name).strip()
    if not (limit.isdigit() and usage.isdigit()) or int(limit) >= _UNLIMITED_BYTES:
        return None
    unused = re.search(rf"^{unused_name} (\d+)$", _read(folder / "memory.stat"), re.MULTILINE)
    return int(limit) - int(usage) + (int(unused[1]) if unused is not None else 0)


def _read(path: Path) -> str:
    """What a file of the kernel says; nothing where there is no such file."""
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
