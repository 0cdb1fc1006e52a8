"""Where the golden arrays are (see tests/golden/README.md)."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

GOLDEN = Path(__file__).parent / "golden"


@cache
def load_golden(name: str) -> dict[str, NDArray[np.generic]]:
    """Arrays of tests/golden/`name`.npz by their names."""
    with np.load(GOLDEN / f"{name}.npz") as file:
        return {key: file[key] for key in file.files}
