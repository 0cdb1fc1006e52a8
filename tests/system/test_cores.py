"""How many threads networks on the CPU compute with."""

from __future__ import annotations

import os

import pytest

from dispose_rt.errors import InputError
from dispose_rt.system.cores import compute_threads, usable_cores
from tests.every import each

from .test_memory import write

CGROUP = "sys/fs/cgroup"
SELF_2, SELF_1 = {"proc/self/cgroup": "0::/a/b\n"}, {"proc/self/cgroup": "4:cpu,cpuacct:/a\n1:name=systemd:/x\n"}


@each(
    files__expected=[
        ({}, 8),
        (SELF_2, 8),
        (SELF_2 | {f"{CGROUP}/a/b/cpu.max": "max 100000\n"}, 8),
        (SELF_2 | {f"{CGROUP}/a/b/cpu.max": "250000 100000\n"}, 3),
        (SELF_2 | {f"{CGROUP}/a/b/cpu.max": "20000 100000\n"}, 1),
        (SELF_2 | {f"{CGROUP}/a/b/cpu.max": "max 100000\n", f"{CGROUP}/a/cpu.max": "200000 50000\n"}, 4),
        (SELF_2 | {f"{CGROUP}/cpu.max": "200000 100000\n"}, 2),  # what a container sees of its own group
        (SELF_2 | {f"{CGROUP}/a/b/cpu.max": "9900000 100000\n"}, 8),
        (SELF_2 | {f"{CGROUP}/a/b/cpu.max": "nonsense"}, 8),
        (SELF_1 | {f"{CGROUP}/cpu/a/cpu.cfs_quota_us": "-1\n", f"{CGROUP}/cpu/a/cpu.cfs_period_us": "100000\n"}, 8),
        (SELF_1 | {f"{CGROUP}/cpu/a/cpu.cfs_quota_us": "150000\n", f"{CGROUP}/cpu/a/cpu.cfs_period_us": "50000\n"}, 3),
    ]
)
def test_the_tightest_of_mask_and_quotas_counts(
    files: dict[str, str], expected: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
        assert usable_cores(write(tmp_path_factory.mktemp("root"), files)) == expected


def test_the_environment_has_the_last_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISPOSE_RT_THREADS", "3")
    assert compute_threads() == 3
    for text in ("0", "-1", "two", "1025", "1.5"):
        monkeypatch.setenv("DISPOSE_RT_THREADS", text)
        with pytest.raises(InputError, match="DISPOSE_RT_THREADS is .*1..1024"):
            compute_threads()
    monkeypatch.setenv("DISPOSE_RT_THREADS", "")
    assert compute_threads() == usable_cores()
