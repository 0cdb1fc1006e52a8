"""What the host has left, as the kernel's files say it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dispose_rt.system.memory import free_host_bytes

MB = 1 << 20


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def meminfo(available_mb: int) -> dict[str, str]:
    return {"proc/meminfo": f"MemTotal:  {9000 * 1024} kB\nMemFree: 5 kB\nMemAvailable:   {available_mb * 1024} kB\n"}


def group(folder: str, limit: object, usage_mb: int, unused_mb: int = 0) -> dict[str, str]:
    return {
        f"{folder}/memory.max": f"{limit}\n",
        f"{folder}/memory.current": f"{usage_mb * MB}\n",
        f"{folder}/memory.stat": f"anon 1\nactive_file 77\ninactive_file {unused_mb * MB}\n",
    }


def old_group(folder: str, limit: object, usage_mb: int, unused_mb: int = 0) -> dict[str, str]:
    return {
        f"{folder}/memory.limit_in_bytes": f"{limit}\n",
        f"{folder}/memory.usage_in_bytes": f"{usage_mb * MB}\n",
        f"{folder}/memory.stat": f"inactive_file 5\ntotal_inactive_file {unused_mb * MB}\n",
    }


def test_without_control_groups_it_is_what_the_kernel_calls_available(tmp_path: Path) -> None:
    assert free_host_bytes(write(tmp_path, meminfo(700))) == 700 * MB


@pytest.mark.parametrize(
    ("files", "expected_mb"),
    [
        (group("sys/fs/cgroup/a/b", 500 * MB, 300, 50), 250),
        (group("sys/fs/cgroup/a/b", "max", 300), 700),
        (group("sys/fs/cgroup/a/b", "max", 300) | group("sys/fs/cgroup/a", 400 * MB, 310), 90),
        (group("sys/fs/cgroup", 600 * MB, 100), 500),  # what a container sees of its own group
        (group("sys/fs/cgroup/a/b", 5000 * MB, 300), 700),
        (group("sys/fs/cgroup/a/b", 100 * MB, 130), 0),
        (group("sys/fs/cgroup/other", 1, 0), 700),
    ],
)
def test_the_tightest_control_group_counts(tmp_path: Path, files: dict[str, str], expected_mb: int) -> None:
    write(tmp_path, meminfo(700) | {"proc/self/cgroup": "0::/a/b\n"} | files)
    assert free_host_bytes(tmp_path) == expected_mb * MB


@pytest.mark.parametrize(
    ("files", "expected_mb"),
    [
        (old_group("sys/fs/cgroup/memory/x", 500 * MB, 300, 20), 220),
        (old_group("sys/fs/cgroup/memory/x", 0x7FFFFFFFFFFFF000, 300), 700),
    ],
)
def test_control_groups_of_version_1(tmp_path: Path, files: dict[str, str], expected_mb: int) -> None:
    lines = "9:name=systemd:/\n4:cpu,memory:/x\n1:cpu:/\n0::/\n"
    write(tmp_path, meminfo(700) | {"proc/self/cgroup": lines} | files)
    assert free_host_bytes(tmp_path) == expected_mb * MB


def test_elsewhere_the_c_library_is_asked_or_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pages = {"SC_AVPHYS_PAGES": 10, "SC_PAGE_SIZE": 4096}
    monkeypatch.setattr(os, "sysconf", pages.__getitem__)
    assert free_host_bytes(tmp_path) == 40960

    def refuse(name: str) -> int:
        raise ValueError("unrecognized configuration name")

    monkeypatch.setattr(os, "sysconf", refuse)
    assert free_host_bytes(tmp_path) is None


def test_this_machine_has_some() -> None:
    free = free_host_bytes()
    assert free is not None
    assert free > 50 * MB
