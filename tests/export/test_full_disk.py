"""A build whose disk is full ends with a message, and goes on where it stopped once there is space."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from dispose_rt_export.command import main

SCRIPT = Path(__file__).resolve().parents[2] / "export" / "build_engines.py"
_LIMITED = """
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="limits of this kind are POSIX")
def test_a_build_on_a_full_disk(golden_checkpoint: Path, tmp_path: Path) -> None:
    """The kernel itself refuses to let a file grow beyond the limit."""
    build = ["--weights", str(golden_checkpoint), "--output", str(tmp_path / "e")]
    build += ["--size", "64x64", "--only", "point_encoder"]
    limited = [sys.executable, "-c", _LIMITED, "100000", str(SCRIPT), *build]
    done = subprocess.run(limited, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in done.stderr
    assert "Free space" in done.stderr
    assert not list((tmp_path / "e").glob("point_encoder.onnx*"))
    assert main(build) == 0
    assert (tmp_path / "e" / "point_encoder.onnx").stat().st_size > 100_000
