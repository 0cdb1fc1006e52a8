"""A build that is killed at any moment leaves a directory that the same command finishes."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dispose_rt.contract import NETWORKS
from dispose_rt.engines.integrity import check_files
from dispose_rt.engines.manifest import FILE_NAME, read_manifest

SCRIPT = Path(__file__).resolve().parents[2] / "export" / "build_engines.py"
STARTUP_SECONDS = 5.0
"""Kills before the imports are through would only test Python."""
CHEAP = ("cmp_image_encoder", "pose_net", "motion_encoder", "point_encoder", "pose_estimator")


def command(checkpoint: Path, output: Path, backend: str) -> list[str]:
    arguments = ["--weights", str(checkpoint), "--output", str(output), "--size", "64x64", "--tile-frames", "3"]
    arguments += ["--decode-chunk", "2", "--backend", backend, "--precision", "fp16"]
    return [sys.executable, str(SCRIPT), *arguments]


def build_killed_after(seconds: float, arguments: list[str]) -> bool:
    """Start a build and kill it. Answers whether it was still running."""
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        return True
    return False


def assert_valid(output: Path) -> None:
    manifest = read_manifest(output)
    check_files(manifest)
    named = {file.path for record in manifest.networks.values() for file in record.files}
    present = {path.name for path in output.iterdir() if path.is_file()}
    assert named <= present
    assert not [name for name in present if name.endswith(".part")]
    assert not (output / ".build" / "scratch").exists()


def finish(arguments: list[str]) -> str:
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def make_stale(output: Path, networks: list[str]) -> None:
    for name in networks:
        (output / ".build" / f"{name}.json").unlink(missing_ok=True)
    (output / FILE_NAME).unlink(missing_ok=True)


def test_a_killed_rebuild_is_finished_by_the_next(golden_checkpoint, golden_engines, tmp_path):
    """Kill the rebuild of two networks at a random moment; the other networks are there from the start."""
    from tests.golden_case import GoldenCase

    chance = random.Random(0)
    source = golden_engines(GoldenCase("one_tile_64"), "fp16")
    output = tmp_path / "e"
    shutil.copytree(source, output, copy_function=os.link, ignore=shutil.ignore_patterns("lock"))
    sizes = read_manifest(source).sizes
    arguments = command(golden_checkpoint, output, "onnxruntime")
    arguments[arguments.index("--tile-frames") + 1] = str(sizes.tile)
    arguments[arguments.index("--decode-chunk") + 1] = str(sizes.chunk)
    make_stale(output, chance.sample(CHEAP, 2))
    start = time.perf_counter()
    build_killed_after(STARTUP_SECONDS + chance.uniform(0, 6), arguments)
    assert time.perf_counter() - start < 60
    printed = finish(arguments)
    assert printed.count("up to date") >= len(NETWORKS) - 2
    assert_valid(output)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("backend", ["onnxruntime", "tensorrt_rtx"])
def test_ten_kills_at_random_moments(golden_checkpoint, tmp_path, backend):
    """Every round kills a build, finishes it, checks the directory, and takes a few networks away again."""
    if backend != "onnxruntime":
        pytest.importorskip(backend)
    chance = random.Random(2026)
    output = tmp_path / "e"
    arguments = command(golden_checkpoint, output, backend)
    killed = 0
    for attempt in range(10):
        # the first one builds everything, the others a few networks
        killed += build_killed_after(STARTUP_SECONDS + chance.uniform(0, 12 if attempt else 90), arguments)
        finish(arguments)
        assert_valid(output)
        make_stale(output, chance.sample(CHEAP, 3))
    print(f"{killed} of 10 builds were still running when they were killed")
    assert killed >= 5
