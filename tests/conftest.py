"""Fixtures shared by all tests: the golden arrays and the golden checkpoint (see tests/golden/README.md)."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from golden_case import GoldenCase, Trace, animate
from golden_data import GOLDEN, load_golden
from numpy.typing import NDArray


@pytest.fixture(scope="session")
def golden() -> Callable[[str], dict[str, NDArray[np.generic]]]:
    """`golden("nets")` is the dictionary of arrays of tests/golden/nets.npz."""
    return load_golden


@pytest.fixture(scope="session")
def golden_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint whose outputs the golden arrays record, in the published layout."""
    if kept := os.environ.get("DISPOSE_RT_GOLDEN_CHECKPOINT"):
        return Path(kept)
    folder = tmp_path_factory.mktemp("golden") / "checkpoint"
    command = [sys.executable, str(GOLDEN / "make_checkpoint.py"), str(folder), "--spec", str(GOLDEN / "spec")]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return folder


@pytest.fixture(scope="session")
def golden_engines(golden_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`golden_engines(case, precision)` builds (once) the engine directory that a golden case needs."""
    from export.build_engines import build_engines

    kept = os.environ.get("DISPOSE_RT_GOLDEN_ENGINES")
    root = Path(kept) if kept else tmp_path_factory.mktemp("engines")

    def build(case: GoldenCase, precision: str = "fp32") -> Path:
        width, height = case.size
        output = root / f"{width}x{height}-{case.tile}-{case.chunk}-{precision}"
        build_engines(golden_checkpoint, output, size=case.size, tile=case.tile, chunk=case.chunk, precision=precision)
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
def toy_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's checkpoint, whose pose networks find puppets and nothing else."""
    from export.toy_checkpoint import write_toy_checkpoint

    if kept := os.environ.get("DISPOSE_RT_TOY_CHECKPOINT"):
        return Path(kept)
    return write_toy_checkpoint(tmp_path_factory.mktemp("toy") / "checkpoint")


@pytest.fixture(scope="session")
def toy_engines(toy_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int, int], Path]:
    """`toy_engines(width, height)` builds (once) toy engines with tiles of 4 frames beside those of other sizes."""
    from export.build_engines import build_engines

    kept = os.environ.get("DISPOSE_RT_TOY_ENGINES")
    root = Path(kept) if kept else tmp_path_factory.mktemp("toy-engines")

    def build(width: int, height: int) -> Path:
        output = root / f"{width}x{height}"
        build_engines(toy_checkpoint, output, size=(width, height), tile=4, chunk=3)
        return output

    return build
