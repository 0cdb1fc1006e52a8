"""The build of the kernels: what every source declares, and, in the slow tests, the CUDA half wherever nvcc is found.

The slow tests need no GPU. They build one architecture, which DISPOSE_RT_TEST_CUDA_ARCHITECTURES may replace (as CMake
spells it), and all of those that an installation builds.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dispose_rt import kernels
from dispose_rt.device import compiled_module

ROOT = Path(__file__).parents[2]
ARCHITECTURES = os.environ.get("DISPOSE_RT_TEST_CUDA_ARCHITECTURES", "90-real")
INSTALLED = [f"sm_{architecture}" for architecture in (75, 80, 86, 89, 90, 100, 120)]

LOADING = """
import importlib.util, json, sys
spec = importlib.util.spec_from_file_location("_kernels_cuda", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
splat = lambda frames: module.splat_gaussian_flow(0, 0, 0, frames, 0, 8, 8, 0)
print(json.dumps([module.TARGET, [name for name in dir(module) if name[0] != "_"], splat(0), splat(1)]))
"""


def run_cmake(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    beside_python = Path(sys.executable).with_name("cmake")
    program = str(beside_python) if beside_python.exists() else shutil.which("cmake")
    if program is None:
        pytest.skip("no cmake")
    return subprocess.run(
        [program, *arguments], env=os.environ | environment, text=True, capture_output=True, check=False
    )


def configure(folder: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    definitions = [f"-D{option}" for option in (f"Python_EXECUTABLE={sys.executable}", *options)]
    return run_cmake("-S", str(ROOT), "-B", str(folder), *definitions, **environment)


def find_nvcc() -> None:
    """Skip where the build would find no CUDA compiler."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    places = [shutil.which("nvcc"), os.environ.get("CUDACXX"), *(f"{home}/bin/nvcc" for home in homes if home)]
    if not any(place and Path(place).exists() for place in places):
        pytest.skip("no nvcc on the PATH, in CUDACXX or in CUDA_HOME")


@pytest.fixture(scope="module", params=[ARCHITECTURES, ""])
def cuda_build(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a build of the CUDA module with warnings as errors, and the compiler's report."""
    find_nvcc()
    folder = tmp_path_factory.mktemp("cuda")
    options = [f"CMAKE_CUDA_ARCHITECTURES={request.param}"] if request.param else []
    configured = configure(folder, "DISPOSE_RT_CUDA=ON", "DISPOSE_RT_WERROR=ON", *options)
    assert configured.returncode == 0, configured.stdout + configured.stderr
    built = run_cmake("--build", str(folder), "--target", "_kernels_cuda")
    assert built.returncode == 0, built.stdout + built.stderr
    return folder, (folder / "cuda_resources.log").read_text()


def kernel_bodies() -> dict[str, str]:
    """The structs in the headers that a launch runs, with the header of each."""
    bodies = {}
    for header in (ROOT / "kernels").glob("*.h"):
        pattern = r"struct (\w+) \{\s*(?:using [^;]+;\s*)*static constexpr Position kLanes"
        bodies |= dict.fromkeys(re.findall(pattern, header.read_text()), header.name)
    assert {"GaussianSplat", "ScatterPointFeatures", "FramesToU8"} <= bodies.keys()
    return bodies


def bound_kernels() -> list[str]:
    names = re.findall(r'define\(module, "(\w+)"', (ROOT / "kernels" / "bindings.cpp").read_text())
    assert len(names) > 5
    return names


def test_what_both_targets_are_compiled_from_is_complete() -> None:
    """Without a compiler: the headers, the bindings, the built module, the wrappers, and the architectures."""
    folder, cmake = ROOT / "kernels", (ROOT / "CMakeLists.txt").read_text()
    included = set(re.findall(r'#include "(\w+\.h)"', (folder / "bindings.cpp").read_text()))
    assert [header for header in sorted(set(kernel_bodies().values())) if header not in included] == []
    assert '#include "bindings.cpp"' in (folder / "bindings.cu").read_text()
    assert [name for name in bound_kernels() if name not in dir(compiled_module("cpu"))] == []
    wrappers = {re.sub(r"_(f32|f16|bf16)$", "", name) for name in bound_kernels()}
    assert wrappers - set(kernels.__all__) == set()
    for target, source in (("_kernels_cpu", "bindings.cpp"), ("_kernels_cuda", "bindings.cu")):
        assert f"add_kernels({target} kernels/{source})" in cmake
    *_, newest = re.findall(r"set\(CMAKE_CUDA_ARCHITECTURES ([\d][^)]*)\)", cmake)
    assert [f"sm_{number}" for number in re.findall(r"\d+", newest)] == INSTALLED
    assert "-ffp-contract=off" in cmake
    assert "--fmad=false" in cmake


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_kernel_is_compiled_for_every_architecture(cuda_build: tuple[Path, str]) -> None:
    _, report = cuda_build
    entries: dict[str, list[str]] = {}
    for kernel, architecture in re.findall(r"Compiling entry function '(\w+)' for '(\w+)'", report):
        entries.setdefault(architecture, []).append(kernel)
    assert entries
    for architecture, compiled in entries.items():
        missing = [body for body in kernel_bodies() if not any(f"{len(body)}{body}" in kernel for kernel in compiled)]
        assert not missing, architecture


@pytest.mark.slow
@pytest.mark.parametrize("cuda_build", [""], indirect=True)
@pytest.mark.timeout(1800)
def test_an_installation_has_every_architecture(cuda_build: tuple[Path, str]) -> None:
    assert sorted(set(re.findall(r"for '(sm_\w+)'", cuda_build[1]))) == sorted(INSTALLED)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_no_kernel_spills_or_has_a_stack_frame(cuda_build: tuple[Path, str]) -> None:
    _, report = cuda_build
    frames = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", report)
    assert len(frames) >= len(re.findall("Compiling entry function", report)) > 0
    assert set(frames) == {("0", "0", "0")}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_module_loads_without_a_driver_and_reports_its_refusal(cuda_build: tuple[Path, str]) -> None:
    folder, _ = cuda_build
    (module,) = folder.glob("_kernels_cuda*.so")
    loaded = subprocess.run(
        [sys.executable, "-c", LOADING, str(module)],
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        text=True,
        capture_output=True,
        check=False,
    )
    assert loaded.returncode == 0, loaded.stderr
    target, names, nothing, refusal = json.loads(loaded.stdout)
    assert target == "cuda"
    assert set(bound_kernels()) <= set(names)
    assert nothing is None  # no frames, no launch
    assert "CUDA" in refusal


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_stack_frame_ends_the_build(tmp_path: Path) -> None:
    """Code for debuggers keeps variables in memory."""
    find_nvcc()
    options = ("DISPOSE_RT_CUDA=ON", "DISPOSE_RT_WERROR=ON")
    options += ("CMAKE_CUDA_ARCHITECTURES=90-real", "CMAKE_CUDA_FLAGS=-G")
    assert configure(tmp_path, *options).returncode == 0
    built = run_cmake("--build", str(tmp_path), "--target", "_kernels_cuda")
    assert built.returncode != 0
    assert "Local memory used for function" in (tmp_path / "cuda_resources.log").read_text()
    assert "DISPOSE_RT_ALLOW_SPILLS" in built.stdout + built.stderr
    assert not list(tmp_path.glob("_kernels_cuda*.so"))


@pytest.mark.parametrize(
    ("compiler", "problem"),
    [
        ("/nonexistent/nvcc", "no CUDA compiler found"),
        pytest.param(shutil.which("false"), "does not build a test program", marks=pytest.mark.slow),
    ],
)
def test_without_a_working_compiler_cuda_is_left_out_or_refused(compiler: str, problem: str, tmp_path: Path) -> None:
    automatic = configure(tmp_path / "auto", "DISPOSE_RT_CUDA=AUTO", CUDACXX=compiler)
    assert automatic.returncode == 0, automatic.stderr
    assert "CUDA kernels: left out" in automatic.stdout
    assert problem in automatic.stdout
    insisting = configure(tmp_path / "on", "DISPOSE_RT_CUDA=ON", CUDACXX=compiler)
    assert insisting.returncode != 0
    message = " ".join(insisting.stderr.split())
    assert "DISPOSE_RT_CUDA=ON, but" in message
    assert problem in message
