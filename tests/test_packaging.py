"""What an installation holds and needs."""

from __future__ import annotations

import ast
import importlib
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
NAMES = {
    "cv2": "opencv-python-headless",
    "PIL": "pillow",
    "cuda": "cuda-python",
    "tensorrt_rtx": "tensorrt-rtx",
}
"""Distributions by the names under which they are imported, where the two differ."""
BROUGHT_ALONG = {"starlette", "fastapi", "python_multipart", "uvicorn", "filelock"}
"""Dependencies of gradio and huggingface_hub."""
COMPILED = {"_kernels_cpu", "_kernels_cuda"}


def distribution(requirement: str) -> str:
    """The name in a requirement, without the part that names a version of CUDA."""
    name = re.match(r"[\w-]+", requirement)
    assert name is not None
    return re.sub(r"-cu\d+$", "", name[0].lower())


def needed(*extras: str) -> set[str]:
    project = PROJECT["project"]
    lists = [project["dependencies"], *(project["optional-dependencies"][extra] for extra in extras)]
    return {distribution(requirement) for one in lists for requirement in one}


def test_all_that_the_runtime_imports_is_declared() -> None:
    extras = set(PROJECT["project"]["optional-dependencies"]) - {"test", "export"}
    known = needed(*extras) | sys.stdlib_module_names | BROUGHT_ALONG | COMPILED | {"dispose_rt", "dispose_rt_export"}
    undeclared = []
    for path in sorted((ROOT / "dispose_rt").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            tops = {name.partition(".")[0] for name in names}
            undeclared += [f"{path}: {top}" for top in tops if NAMES.get(top, top) not in known]
    assert undeclared == []


def test_the_packages_the_command_and_the_extras_are_there() -> None:
    build, project = PROJECT["tool"]["scikit-build"], PROJECT["project"]
    assert build["wheel"]["packages"] == ["dispose_rt", "export/dispose_rt_export"]
    assert [package for package in build["wheel"]["packages"] if not (ROOT / package / "__init__.py").is_file()] == []
    assert (ROOT / "dispose_rt" / "py.typed").is_file()
    module, _, name = project["scripts"]["dispose-rt"].partition(":")
    assert callable(getattr(importlib.import_module(module), name))
    assert needed("bench") - needed() == {"matplotlib"}
    assert needed("bench") <= needed("test") | needed()
    imported = {"numpy", "opencv-python-headless", "av", "onnxruntime", "tqdm", "pillow", "simplejpeg", "cryptography"}
    assert needed() <= imported | {"huggingface_hub"}


@pytest.mark.slow
def test_a_wheel_holds_the_runtime_its_kernels_and_the_exporter(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run(command, check=True, env={**os.environ, "DISPOSE_RT_CUDA": "OFF"})
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        [metadata] = [archive.read(name).decode() for name in names if name.endswith(".dist-info/METADATA")]
    sources = [
        path for package in ("dispose_rt", "export/dispose_rt_export") for path in (ROOT / package).rglob("*.py")
    ]
    wanted = {str(path.relative_to(ROOT)).removeprefix("export/") for path in sources} | {"dispose_rt/py.typed"}
    assert wanted - set(names) == set()
    assert any(re.fullmatch(r"dispose_rt/_kernels_cpu\..*(so|pyd)", name) for name in names)
    assert {name.partition("/")[0] for name in names if ".dist-info" not in name} == {"dispose_rt", "dispose_rt_export"}
    required = re.findall(r"^Requires-Dist: ([\w-]+)[^;\n]*$", metadata, re.MULTILINE)
    assert {distribution(name) for name in required} == needed()
