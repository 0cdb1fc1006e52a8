"""Fixtures shared by all tests: the golden arrays and the golden checkpoint (see tests/golden/README.md)."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

GOLDEN = Path(__file__).parent / "golden"


@cache
def load_golden(name: str) -> dict[str, NDArray[np.generic]]:
    with np.load(GOLDEN / f"{name}.npz") as file:
        return {key: file[key] for key in file.files}


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
