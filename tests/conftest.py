"""Fixtures shared by all tests: the golden arrays and the golden checkpoint (see tests/golden/README.md)."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock
from numpy.typing import NDArray

from tests.golden_case import GoldenCase, Trace, animate
from tests.golden_data import GOLDEN, load_golden

LONGEST = ("test_tensorrt_directory", "test_end_to_end", "test_people", "test_killed_builds", "test_build_engines")
"""Files that take minutes, longest first: the first two build all golden engines, each its own precision."""


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # as where a script starts the tests with `&`; tests send SIGINT to themselves and to processes that they start
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest, so that no worker process is left with it in the end."""
    rank = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(LONGEST)))


@pytest.fixture(scope="session")
def golden() -> Callable[[str], dict[str, NDArray[np.generic]]]:
    """`golden("nets")` is the dictionary of arrays of tests/golden/nets.npz."""
    return load_golden


@pytest.fixture(scope="session")
def kept_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where checkpoints and engines are built, once for all worker processes of a test run.

    DISPOSE_RT_TEST_CACHE names a folder that outlives the run: engines whose ingredients have not changed are reused,
    checkpoints as they are.
    """
    if kept := os.environ.get("DISPOSE_RT_TEST_CACHE"):
        return Path(kept)
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session", autouse=True)
def _keys_of_the_tests(kept_folder: Path) -> Iterator[None]:
    """Builds sign with a key that all worker processes share, and never with the user's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(kept_folder.absolute() / "config"))
        patch.delenv("DISPOSE_RT_TRUST", raising=False)
        yield


@contextmanager
def made_once(path: Path) -> Iterator[Path]:
    """Keep other worker processes out while the block makes `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f"{path.name}.lock")):
        yield path


@pytest.fixture(scope="session")
def golden_checkpoint(kept_folder: Path) -> Path:
    """The tiny checkpoint whose outputs the golden arrays record, in the published layout."""
    with made_once(kept_folder / "golden-checkpoint") as folder:
        if not folder.exists():
            part = folder.with_name(f"{folder.name}.part")
            command = [sys.executable, str(GOLDEN / "make_checkpoint.py"), str(part), "--spec", str(GOLDEN / "spec")]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            part.rename(folder)
    return folder


@pytest.fixture(scope="session")
def golden_engines(golden_checkpoint: Path, kept_folder: Path) -> Callable[..., Path]:
    """`golden_engines(case, precision, backend)` builds (once) the engine directory that a golden case needs."""
    from dispose_rt_export.command import build_engines

    def build(case: GoldenCase, precision: str = "fp32", backend: str = "onnxruntime", **targets: Any) -> Path:
        width, height = case.size
        kind = "-".join([precision, *([] if backend == "onnxruntime" else [backend]), *targets.get("targets", ())])
        name = f"{width}x{height}-{case.tile}-{case.chunk}-{kind}"
        options = {"size": case.size, "tile": case.tile, "chunk": case.chunk, "precision": precision}
        options |= {"backend": backend, **targets}
        with made_once(kept_folder / "golden-engines" / name) as output:
            build_engines(golden_checkpoint, output, **options)
        return output

    return build


@pytest.fixture(scope="session")
def golden_trace(golden_engines: Callable[..., Path]) -> Callable[..., Trace]:
    """`golden_trace(name, precision)` runs (once) a golden case."""
    traces: dict[tuple[str, str], Trace] = {}

    def run(name: str, precision: str = "fp32") -> Trace:
        if (name, precision) not in traces:
            case = GoldenCase(name)
            traces[name, precision] = animate(golden_engines(case, precision), **case.arguments())
        return traces[name, precision]

    return run


@pytest.fixture(scope="session")
def toy_checkpoint(kept_folder: Path) -> Path:
    """The demo's checkpoint: lanes of its weights carry the picture, and its pose networks find puppets."""
    from dispose_rt_export.synthetic.toy_checkpoint import write_toy_checkpoint

    with made_once(kept_folder / "toy-checkpoint") as folder:
        if not folder.exists():
            write_toy_checkpoint(folder.with_name(f"{folder.name}.part")).rename(folder)
    return folder


@pytest.fixture(scope="session")
def puppet_checkpoint(golden_checkpoint: Path, kept_folder: Path) -> Path:
    """The golden weights with the demo's pose networks, which find puppets and nothing else."""
    from dispose_rt_export.synthetic.toy_pose_networks import write_pose_networks

    with made_once(kept_folder / "puppet-checkpoint") as folder:
        if not folder.exists():
            part = folder.with_name(f"{folder.name}.part")
            shutil.copytree(golden_checkpoint, part, copy_function=os.link, ignore=shutil.ignore_patterns("*.onnx"))
            write_pose_networks(part / "dwpose")
            part.rename(folder)
    return folder


@pytest.fixture(scope="session")
def toy_engines(
    puppet_checkpoint: Path, golden_engines: Callable[..., Path], kept_folder: Path
) -> Callable[[int, int], Path]:
    """`toy_engines(width, height)` builds (once) engines that find puppets.

    They begin as links to golden engines: a build traces none of the networks at the golden sizes, which are 64x64 with
    tiles of 7 frames and 128x192 with tiles of 5, and elsewhere, with tiles of 4, those that depend on the size.
    """
    from dispose_rt_export.command import build_engines

    def build(width: int, height: int) -> Path:
        square = GoldenCase("one_tile_64")
        same = [case for case in (square, GoldenCase("tiles_128x192")) if case.size == (width, height)]
        golden = golden_engines(same[0] if same else square)
        tile, chunk = (same[0].tile, same[0].chunk) if same else (4, 3)
        with made_once(kept_folder / "toy-engines" / f"{width}x{height}") as output:
            if not output.exists():
                passing = shutil.ignore_patterns("lock", "manifest.json", ".checked.json")
                shutil.copytree(golden, output, copy_function=os.link, ignore=passing)
            build_engines(puppet_checkpoint, output, size=(width, height), tile=tile, chunk=chunk)
        return output

    return build
