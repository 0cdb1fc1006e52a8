"""How much memory of the host a run may still take, and whether an error means that there was too little."""

from __future__ import annotations

import ctypes
import errno
import os
import re
from contextlib import suppress
from pathlib import Path

from ..errors import DisposeError, OutOfMemoryError
from .control_groups import group_folders, read_text

_UNLIMITED_BYTES = 1 << 60
"""Version 1 of control groups says "no limit" by a number as large as that, or larger."""
_NO_MEMORY = re.compile(
    r"bad[_ ]?alloc|(?:failed to|cannot|can't) allocate|out of memory|insufficient memory|failed to map segment", re.I
)
"""Words of C++, ONNX Runtime, OpenCV and the dynamic linker, whose errors have no type of their own."""


def return_freed_memory() -> None:
    """Let the C library return to the system what was freed; glibc's keeps much of it, others have no such call."""
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error, of ours or of whatever library, means that an allocation failed."""
    if isinstance(error, DisposeError):  # our messages may speak of memory without a lack of it
        return isinstance(error, OutOfMemoryError)
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, MemoryError) or bool(_NO_MEMORY.search(str(error)))


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
    groups = [
        free
        for folder, version in group_folders("memory", root)
        if (free := _free_in_group(folder, *_NAMES[version])) is not None
    ]
    known = [free for free in (available, *groups) if free is not None]
    return max(min(known), 0) if known else None


def _available_bytes(root: Path) -> int | None:
    found = re.search(r"^MemAvailable:\s+(\d+) kB$", read_text(root / "proc/meminfo"), re.MULTILINE)
    if found is not None:
        return int(found[1]) * 1024
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # no such function, or no such name on this system
        return None


_NAMES = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    2: ("memory.max", "memory.current", "inactive_file"),
}
"""Names for limit, usage and unused files, by version."""


def _free_in_group(folder: Path, limit_name: str, usage_name: str, unused_name: str) -> int | None:
    limit, usage = read_text(folder / limit_name).strip(), read_text(folder / usage_name).strip()
    if not (limit.isdigit() and usage.isdigit()) or int(limit) >= _UNLIMITED_BYTES:
        return None
    unused = re.search(rf"^{unused_name} (\d+)$", read_text(folder / "memory.stat"), re.MULTILINE)
    return int(limit) - int(usage) + (int(unused[1]) if unused is not None else 0)
