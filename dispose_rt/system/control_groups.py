"""The control groups (cgroups) that limit this process, a container's for example."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath


def group_folders(controller: str, root: Path) -> Iterator[tuple[Path, int]]:
    """Yield the folders of this process's groups, from its own outwards, each with the version of its files: 1 or 2.

    Args:
        controller: name in version 1, such as "memory" or "cpu".
        root: where /proc and /sys are.
    """
    for line in read_text(root / "proc/self/cgroup").splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0" and not controllers:
            mount, version = root / "sys/fs/cgroup", 2
        elif controller in controllers.split(","):
            mount, version = root / "sys/fs/cgroup" / controller, 1
        else:
            continue
        group = PurePosixPath(path.lstrip("/"))
        for folder in (group, *group.parents):  # inside a container the path may not exist, but its own root does
            yield mount / folder, version


def read_text(path: Path) -> str:
    """Return the text of a file of the kernel; empty where there is no such file."""
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
