"""Which module may import which; docs/ARCHITECTURE.md draws the house. Every check lists all offenders."""

from __future__ import annotations

import ast
import shutil
import sys
from collections.abc import Callable
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from tests.every import each

ROOT = Path(__file__).resolve().parents[1]
RUNTIME, EXPORTER = "dispose_rt", "export/dispose_rt_export"

FLOORS: tuple[frozenset[str], ...] = tuple(
    frozenset(floor.split())
    for floor in (
        "errors puppet",
        "contract settings system",
        "device",
        "types",
        "kernels engines hooks media noise pictures",
        "animation clip",
        "stages",
        "pipeline",
        "animator",
        "dispose_rt",  # the public names, which load the animator when they are first used
        "doctor download debug",
        "bench page",
        "cli",
        "__main__",
    )
)
"""Modules and packages of the runtime, the lowest first: each imports lower floors only, at any depth of its code."""

FLAT_MODULES = 9
HEAVY = {"torch", "diffusers", "transformers", "onnx", "onnxscript", "safetensors"}
EXPORTER_MAY_USE = (
    *("__version__", "contract", "errors", "puppet", "system"),
    *("engines.backends", "engines.manifest", "engines.onnx_file", "engines.signature", "engines.trust"),
)


def modules_of(root: Path, package: str) -> dict[str, Path]:
    """Files of a package by the dotted name of their module."""
    base = (root / package).parent
    names = {path: path.relative_to(base).with_suffix("").parts for path in sorted((root / package).rglob("*.py"))}
    assert len(names) > 20
    return {".".join(parts[:-1] if parts[-1] == "__init__" else parts): path for path, parts in names.items()}


def imported_names(module: str, path: Path, *, loading: bool = False) -> frozenset[str]:
    """Absolute dotted names that a file imports, those of `from` imports with the name that is taken.

    Args:
        module: name of the file's module.
        path: the file.
        loading: whether to leave out functions, whose imports run later. Blocks for type checkers never count.
    """
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    return frozenset(_find_imports(package, path.read_text(encoding="utf-8"), loading))


@cache
def _find_imports(package: str, source: str, loading: bool) -> list[str]:
    nodes: list[ast.AST] = [ast.parse(source)]
    names: list[str] = []
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: package.count(".") + 2 - node.level] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            names += [f"{source}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            nodes += node.orelse
        elif not (loading and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))):
            nodes += ast.iter_child_nodes(node)
    return names


def inner_imports(root: Path, package: str, *, loading: bool = False) -> dict[str, set[str]]:
    """The modules of the same package that every module imports."""
    modules = modules_of(root, package)
    graph: dict[str, set[str]] = {}
    for module, path in modules.items():
        names = imported_names(module, path, loading=loading)
        found = {name if name in modules else name.rpartition(".")[0] for name in names}
        graph[module] = (found & modules.keys()) - {module}
    return graph


def stage_of(module: str) -> str | None:
    parts = module.split(".")
    return parts[2] if parts[1:2] == ["stages"] and len(parts) > 2 else None


def find_arrows_between_stages(root: Path) -> list[str]:
    graph = inner_imports(root, RUNTIME)
    assert len({stage_of(module) for module in graph} - {None}) >= 7
    return [
        f"{module} imports {other}"
        for module, others in graph.items()
        for other in sorted(others)
        if None not in (stage_of(module), stage_of(other)) and stage_of(module) != stage_of(other)
    ]


def find_arrows_upwards(root: Path) -> list[str]:
    """Imports of the same or a higher floor, rooms without a floor, and circles among modules."""
    floors = {room: number for number, floor in enumerate(FLOORS) for room in floor}

    def room(module: str) -> str:
        return module.split(".")[1] if "." in module else module

    graph = inner_imports(root, RUNTIME)
    offences = [f"{name} has no floor" for name in sorted({room(module) for module in graph} - floors.keys())]
    offences += [
        f"{module} imports {other}, which is not below it"
        for module, others in graph.items()
        for other in sorted(others)
        if room(module) != room(other) and floors.get(room(module), 0) <= floors.get(room(other), 0)
    ]
    for package in (RUNTIME, EXPORTER):
        try:
            TopologicalSorter(inner_imports(root, package, loading=True)).prepare()
        except CycleError as error:
            offences.append(f"a circle: {' <- '.join(error.args[1])}")
    return offences


def find_heavy_imports(root: Path) -> list[str]:
    """Training frameworks outside the backend that runs in PyTorch, and code that no installation runs."""
    offences = []
    for module, path in modules_of(root, RUNTIME).items():
        allowed = {"torch"} if module.startswith("dispose_rt.engines.backends.aotinductor") else set()
        names = {name.partition(".")[0] for name in imported_names(module, path)}
        forbidden = (HEAVY | {"dispose_rt_export", "export", "benchmarks", "tests"}) - allowed
        offences += [f"{module} imports {name}" for name in sorted(names & forbidden)]
    return offences


def find_exporters_excess(root: Path) -> list[str]:
    """Parts of the runtime that the exporter has no business with."""
    return [
        f"{module} imports {name}"
        for module, path in modules_of(root, EXPORTER).items()
        for name in sorted(imported_names(module, path))
        if name.startswith("dispose_rt.")
        and not f"{name}.".startswith(tuple(f"dispose_rt.{o}." for o in EXPORTER_MAY_USE))
    ]


def find_flat_modules(root: Path) -> list[str]:
    """All flat modules, where there are too many."""
    flat = sorted(path.name for path in (root / RUNTIME).glob("*.py") if not path.name.startswith("__"))
    return flat if len(flat) > FLAT_MODULES else []


Check = Callable[[Path], list[str]]
CHECKS: tuple[Check, ...] = (
    find_arrows_between_stages,
    find_arrows_upwards,
    find_heavy_imports,
    find_exporters_excess,
    find_flat_modules,
)


@each(check=CHECKS)
def test_the_house_stands(check: Check) -> None:
    assert check(ROOT) == []


PLANTED: tuple[tuple[Check, str, str, str], ...] = (
    (find_arrows_between_stages, "dispose_rt/stages/decode.py", "from .framing import x", "stages.framing"),
    (find_arrows_between_stages, "dispose_rt/stages/pose/draw.py", "def f(): from .. import motion", "stages.motion"),
    (find_arrows_upwards, "dispose_rt/contract.py", "from .device import Array", "imports dispose_rt.device"),
    (find_arrows_upwards, "dispose_rt/media/files.py", "from ..stages import decode", "imports dispose_rt.stages"),
    (find_arrows_upwards, "dispose_rt/animator.py", "def f(): from .bench import clip", "imports dispose_rt.bench"),
    (find_arrows_upwards, "dispose_rt/bench/clip.py", "from ..page import serve", "imports dispose_rt.page"),
    (find_arrows_upwards, "dispose_rt/device/gpus.py", "from . import cuda", "a circle: dispose_rt.device."),
    (find_arrows_upwards, "export/dispose_rt_export/networks/cmp.py", "from .. import command", "a circle: "),
    (find_arrows_upwards, "dispose_rt/attic.py", "", "attic has no floor"),
    (find_heavy_imports, "dispose_rt/media/images.py", "def f(): import torch.nn", "media.images imports torch"),
    (find_heavy_imports, "dispose_rt/cli/build.py", "from dispose_rt_export import x", "imports dispose_rt_export"),
    (find_exporters_excess, "export/dispose_rt_export/checkpoints.py", "from dispose_rt import media", "media"),
    (find_exporters_excess, "export/dispose_rt_export/checkpoints.py", "import dispose_rt.device", "device"),
    (find_flat_modules, "dispose_rt/attic.py", "", "attic.py"),
)


def test_planted_arrows_are_reported(tmp_path: Path) -> None:
    """Every check, on a copy of the sources in which one line was added."""
    for package in (RUNTIME, EXPORTER):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=lambda folder, names: [
            name for name in names if ("." in name and not name.endswith(".py")) or name == "__pycache__"
        ])  # fmt: skip
    missed = []
    for check, file, line, expected in PLANTED:
        path = tmp_path / file
        before = path.read_text(encoding="utf-8") if path.exists() else None
        path.write_text(f"{before or ''}\n{line}\n", encoding="utf-8")
        offences = check(tmp_path)
        if not any(expected in offence for offence in offences):
            missed.append(f"{line!r} in {file}: {offences}")
        path.write_text(before, encoding="utf-8") if before is not None else path.unlink()
    assert missed == []


def test_the_puppet_needs_nothing_but_numpy_and_opencv() -> None:
    known = {name.partition(".")[0] for name in imported_names("dispose_rt.puppet", ROOT / "dispose_rt" / "puppet.py")}
    assert known - sys.stdlib_module_names == {"numpy", "cv2"}
