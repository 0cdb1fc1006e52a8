"""Which module may import which, and what an installation holds."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
STAGES = {"media", "framing", "pose", "motion", "appearance", "conditions", "denoise", "decode"}
EXPORTER_MAY_USE = {"backends", "contract", "errors", "manifest", "puppet", "scheduler", "signature"}
HEAVY = {"torch", "diffusers", "transformers", "onnx", "onnxscript", "safetensors"}


def sources(package: str) -> list[Path]:
    found = sorted((ROOT / package).rglob("*.py"))
    assert found
    return found


def imports(path: Path) -> Iterator[str]:
    """Absolute names of all modules that a file imports, wherever in the file."""
    package = path.relative_to(ROOT).with_suffix("").parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = [*package[: len(package) - node.level]] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", sources("dispose_rt"), ids=str)
def test_the_runtime_names_no_training_framework(path: Path) -> None:
    """But for the backend that is made of PyTorch, which imports it when a package is opened."""
    allowed = {"torch"} if path.name == "aotinductor.py" else set()
    assert {name.partition(".")[0] for name in imports(path)} & HEAVY <= allowed


@pytest.mark.parametrize("path", sources("export"), ids=str)
def test_the_exporter_needs_little_of_the_runtime(path: Path) -> None:
    used = {name.split(".")[1] for name in imports(path) if re.match(r"dispose_rt\.", name)}
    assert used <= EXPORTER_MAY_USE | {"__version__"}


@pytest.mark.parametrize("stage", sorted(STAGES))
def test_stages_do_not_import_each_other(stage: str) -> None:
    files = [*(ROOT / "dispose_rt").glob(f"{stage}.py"), *(ROOT / "dispose_rt" / stage).glob("*.py")]
    assert files
    for path in files:
        used = {name.split(".")[1] for name in imports(path) if name.startswith("dispose_rt.")}
        assert used & (STAGES - {stage}) == set(), path


def test_the_benchmark_is_used_by_its_command_alone() -> None:
    """It measures the runtime; nothing that it measures may know of it, and it knows nothing of the command line."""
    users = {path for path in sources("dispose_rt") if any("dispose_rt.bench" in name for name in imports(path))}
    outside = {str(path.relative_to(ROOT)) for path in users if path.parent.name != "bench"}
    assert outside <= {"dispose_rt/cli.py", "dispose_rt/cli/bench.py"}
    assert outside
    for path in sources("dispose_rt/bench"):
        assert not any(re.match(r"dispose_rt\.(cli|page)|export|benchmarks", name) for name in imports(path)), path


def test_the_puppet_needs_nothing_but_numpy_and_opencv() -> None:
    known = {name.partition(".")[0] for name in imports(ROOT / "dispose_rt" / "puppet.py")}
    assert known - sys.stdlib_module_names == {"numpy", "cv2"}


@pytest.mark.parametrize("path", [*sources("dispose_rt"), *sources("export"), *sources("benchmarks")], ids=str)
def test_files_stay_readable(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


def test_a_wheel_holds_the_runtime_its_kernels_and_the_exporter(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run(command, check=True, env={**os.environ, "DISPOSE_RT_CUDA": "OFF"})
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        [metadata] = [archive.read(name).decode() for name in names if name.endswith(".dist-info/METADATA")]
    for wanted in ("dispose_rt/py.typed", "dispose_rt/animator.py", "dispose_rt_export/build_engines.py"):
        assert wanted in names
    assert any(re.fullmatch(r"dispose_rt/_kernels_cpu\..*(so|pyd)", name) for name in names)
    assert {name.partition("/")[0] for name in names if ".dist-info" not in name} == {"dispose_rt", "dispose_rt_export"}
    required = re.findall(r"^Requires-Dist: ([\w-]+)[^;\n]*$", metadata, re.MULTILINE)
    assert set(required) == {"numpy", "opencv-python-headless", "av", "onnxruntime", "tqdm"}
