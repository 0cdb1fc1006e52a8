"""scripts/gpu_check.sh: which stages run, what the table says, and the exit status, with programs that act a part."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "gpu_check.sh"
STAGES = (
    *("build", "tests", "compile", "graph", "bench-kernels", "engines", "latency", "sanitizer", "step", "tensorrt"),
    "baseline",
)

PYTHON = """#!/usr/bin/env bash
# an interpreter that has everything, notes what it is asked to run, and answers as the test says
[[ $1 == -c ]] && { echo "${MISSING:-}"; exit 0; }
echo "$PWD $*" >>"$CALLS"
[[ -n ${SLOW:-} && " $* " == *" $SLOW "* ]] && sleep 60
[[ -n ${BROKEN:-} && " $* " == *" $BROKEN "* ]] && exit 3
[[ " $* " == *graph_step* ]] && echo "tile-step   baseline 600.00 ms   ours 380.00 ms   ratio 1.58"
[[ " $* " == *probe_tensorrt* ]] && echo "${PROBE:-RUNS}"
exit 0
"""
NVIDIA_SMI = """#!/usr/bin/env bash
[[ "$*" == *compute_cap* ]] && echo 9.0 || echo "NVIDIA H200"
"""
SANITIZER = """#!/usr/bin/env bash
while [[ $1 == --* ]]; do [[ $1 == --error-exitcode || $1 == --target-processes || $1 == --tool ]] && shift; shift; done
exec "$@"
"""


class Machine:
    """A machine that the script finds."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.results, self.calls = folder, folder / "results", folder / "calls"
        self.programs = folder / "bin"
        self.programs.mkdir()
        self._write("python", PYTHON)
        self._environment = {
            "PATH": f"{self.programs}:/usr/bin:/bin",
            "PYTHON": str(self.programs / "python"),
            "RESULTS": str(self.results),
            "CALLS": str(self.calls),
        }

    def _write(self, name: str, text: str) -> None:
        path = self.programs / name
        path.write_text(text)
        path.chmod(0o755)

    def add_gpu(self) -> None:
        self._write("nvidia-smi", NVIDIA_SMI)
        self._write("compute-sanitizer", SANITIZER)
        engines = self.results / "engines" / "full"
        (engines / ".build").mkdir(parents=True)
        (engines / ".build" / "unet.json").touch()
        (engines / "manifest.json").touch()

    def run(self, *words: str, script: str = str(SCRIPT), **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", script, *words],
            cwd=self.folder,
            env=self._environment | environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=50,
        )

    def table(self) -> dict[str, str]:
        """What became of every stage."""
        rows = (line.split("\t") for line in (self.results / "stages.tsv").read_text().splitlines())
        return {stage: result for stage, _, result in rows}

    def asked(self) -> list[str]:
        return self.calls.read_text().splitlines() if self.calls.exists() else []


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_without_a_gpu_every_stage_but_the_build_is_skipped_by_name(machine: Machine) -> None:
    done = machine.run(*STAGES[1:])
    assert done.returncode == 0, done.stderr
    assert machine.table() == dict.fromkeys(STAGES[1:], "skipped: no GPU (nvidia-smi names none)")
    table = done.stdout.partition("=== results in")[2]
    assert all(f"\n{stage} " in table for stage in STAGES[1:])
    assert machine.asked() == []


def test_with_a_gpu_every_stage_runs_its_command(machine: Machine) -> None:
    machine.add_gpu()
    done = machine.run(*STAGES[1:])
    assert done.returncode == 0, done.stdout
    assert machine.table() == dict.fromkeys(STAGES[1:], "passed")
    asked = "\n".join(machine.asked())
    for part in (
        "-m pytest",
        "--only controlnet,unet",
        "graph_step.py",
        "benchmarks/speed/kernel_times.py",
        "latency.py",
    ):
        assert part in asked
    for part in ("denoise_step.py", "probe_tensorrt.py tensorrt_rtx", "probe_tensorrt.py tensorrt\n", "baseline.py"):
        assert part in asked
    assert all(line.startswith(f"{ROOT} ") for line in machine.asked())
    assert "graph: tile-step   baseline 600.00 ms   ours 380.00 ms   ratio 1.58" in done.stdout


def test_paths_count_from_the_folder_of_the_caller(machine: Machine) -> None:
    machine.add_gpu()
    relative = os.path.relpath(SCRIPT, machine.folder)
    done = machine.run("bench-kernels", script=relative, RESULTS="there", PYTHON="./bin/python", OUT="./copies")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (machine.folder / "there" / "stages.tsv").read_text().endswith("\tpassed\n")
    assert all(line.startswith(f"{ROOT} ") for line in machine.asked())


def test_every_network_is_built_in_one_of_the_parts(machine: Machine) -> None:
    from dispose_rt.contract import NETWORKS

    machine.add_gpu()
    machine.run("engines")
    words = [line.split() for line in machine.asked()]
    parts = [line[line.index("--only") + 1].split(",") for line in words if "--only" in line]
    published = {name for name, spec in NETWORKS.items() if spec.published}
    assert sorted(name for part in parts for name in part) == sorted(NETWORKS.keys() - published)
    [whole] = [line for line in words if "--only" not in line]
    assert whole[whole.index("--output") + 1] == str(machine.results / "engines" / "full")


def test_a_stage_that_fails_does_not_stop_the_others(machine: Machine) -> None:
    machine.add_gpu()
    done = machine.run("bench-kernels", "graph", "tensorrt", BROKEN="benchmarks/speed/kernel_times.py")
    assert done.returncode == 1
    assert machine.table() == {"bench-kernels": "FAILED with exit status 3", "graph": "passed", "tensorrt": "passed"}


def test_a_stage_is_ended_when_its_time_is_over(machine: Machine) -> None:
    machine.add_gpu()
    done = machine.run("bench-kernels", "graph", SLOW="benchmarks/speed/kernel_times.py", STAGE_SECONDS="5")
    assert done.returncode == 1
    assert machine.table() == {"bench-kernels": "FAILED: ended after 5 s", "graph": "passed"}


def test_what_does_not_fit_into_the_budget_is_skipped(machine: Machine) -> None:
    machine.add_gpu()
    done = machine.run("bench-kernels", "graph", BUDGET_SECONDS="4")
    assert done.returncode == 0
    assert machine.table() == dict.fromkeys(("bench-kernels", "graph"), "skipped: no time is left of 4 s")
    assert machine.asked() == []


def test_what_is_not_installed_is_named(machine: Machine) -> None:
    machine.add_gpu()
    done = machine.run("compile", "graph", MISSING="diffusers av")
    assert done.returncode == 0
    assert machine.table() == dict.fromkeys(("compile", "graph"), "skipped: not installed: diffusers av")


def test_stages_name_the_ones_that_they_need(machine: Machine) -> None:
    machine.add_gpu()
    shutil.rmtree(machine.results / "engines")
    assert machine.run("graph", "latency").returncode == 0
    assert machine.table() == {
        "graph": "skipped: no full-size packages: run the stage compile",
        "latency": "skipped: no full-size engines: run the stages compile and engines",
    }


@pytest.mark.parametrize(("answer", "status"), [("RUNS", 0), ("REFUSED: not this GPU", 0), ("WRONG: 0.5", 1)])
def test_a_refusal_of_tensorrt_is_an_answer(machine: Machine, answer: str, status: int) -> None:
    machine.add_gpu()
    done = machine.run("tensorrt", PROBE=answer)
    assert done.returncode == status
    assert (f"tensorrt: {answer}" in done.stdout) == (status == 0)


def test_unknown_stages_are_refused_before_anything_runs(machine: Machine) -> None:
    done = machine.run("graph", "nonsense")
    assert done.returncode == 2
    assert "nonsense is no stage; choose from build tests" in done.stderr
    assert not machine.results.exists()


def test_the_quick_pass_leaves_out_what_takes_long(machine: Machine) -> None:
    machine.add_gpu()
    done = machine.run("--quick", "tests", MISSING="pytest")
    assert done.returncode == 0
    machine.run("--quick", "tests")
    assert machine.asked()[-1].endswith("tests/device tests/kernels")
    machine.run("tests")
    assert "tests/device" not in machine.asked()[-1]


def test_results_are_copied_after_every_stage(machine: Machine) -> None:
    copies = machine.folder / "copies"
    copies.mkdir()
    assert machine.run("tests", "graph", OUT=str(copies)).returncode == 0
    assert (copies / "logs.tar.gz").exists()
    assert (copies / "stages.tsv").read_text() == (machine.results / "stages.tsv").read_text()


@pytest.mark.slow
def test_the_build_keeps_the_compiler_s_report(tmp_path: Path) -> None:
    """In a copy of the tree, so that the kernels of this one stay as they are."""
    for tool in ("nvcc", "cmake"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    tree = tmp_path / "tree"
    for name in ("scripts", "kernels", "dispose_rt"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for name in ("CMakeLists.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, tree / name)
    environment = os.environ | {"PYTHON": sys.executable}
    environment.pop("RESULTS", None)
    command = ["bash", str(tree / "scripts" / "gpu_check.sh"), "build"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "with a stack frame or spills: 0" in done.stdout
    assert "0 bytes spill stores" in (tree / "out" / "gpu_check" / "registers.log").read_text()
    assert len(list((tree / "dispose_rt").glob("_kernels_c*.so"))) == 2
