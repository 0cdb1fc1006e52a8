"""Plants one small fault after the other in the sources and says which of them the tests notice.

    python scripts/plant_faults.py draw --seed 20 --output faults.json      # one fault per module
    python scripts/plant_faults.py run faults.json --results results.json   # tests of the module, then the wide ones

A fault is a changed operator, constant or index, or a dropped statement. Work in a clone that holds nothing else: the
sources are changed in place and put back after every fault.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import random
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("dispose_rt", "export")
KINDS = ("operator", "constant", "index", "dropped statement")

_OPERATORS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.FloorDiv: ast.Mult,
    ast.Div: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.And: ast.Or,
    ast.Or: ast.And,
}


@dataclass(frozen=True)
class Fault:
    """A changed statement.

    Attributes:
        path: of the source file, relative to the root.
        line: of the statement, from 1 on, in the tree in which it was drawn.
        kind: one of KINDS.
        before: the statement's text.
        after: what it is replaced by.
    """

    path: str
    line: int
    kind: str
    before: str
    after: str


def draw_faults(root: Path, seed: int) -> list[Fault]:
    """Draw one fault for every module that has a statement to change."""
    faults = []
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            name = path.relative_to(root).as_posix()
            source = path.read_text(encoding="utf-8")
            candidates = list(_candidates(name, source))
            if candidates:
                chance = random.Random(zlib.crc32(name.encode()) ^ seed)
                kinds = sorted({fault.kind for fault in candidates})
                kind = chance.choice(kinds)
                faults.append(chance.choice([fault for fault in candidates if fault.kind == kind]))
    return faults


def _candidates(name: str, source: str) -> Iterator[Fault]:
    tree = ast.parse(source)
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef):
            continue
        for statement in _simple_statements(function.body):
            text = ast.get_source_segment(source, statement)
            if text is None or source.count(text) != 1:  # it has to be found again in a tree whose lines have moved
                continue
            for kind, changed in _changes(statement):
                after = "pass" if changed is None else ast.unparse(changed)
                yield Fault(name, statement.lineno, kind, text, after)


def _simple_statements(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    for number, statement in enumerate(body):
        is_docstring = number == 0 and isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
        if (
            isinstance(statement, ast.Assign | ast.AugAssign | ast.AnnAssign | ast.Return | ast.Expr)
            and not is_docstring
        ):
            yield statement
        for field in ("body", "orelse", "finalbody"):
            inner = getattr(statement, field, None)
            if isinstance(inner, list) and not isinstance(statement, ast.FunctionDef | ast.ClassDef):
                yield from _simple_statements(inner)


def _changes(statement: ast.stmt) -> Iterator[tuple[str, ast.stmt | None]]:
    if isinstance(statement, ast.Expr | ast.AugAssign):
        yield "dropped statement", None
    text = ast.unparse(statement)
    for place, node in enumerate(ast.walk(ast.parse(text))):
        for kind in KINDS[:3]:
            copy = ast.parse(text)
            twin = list(ast.walk(copy))[place]
            if type(twin) is type(node) and _change(kind, twin):
                yield kind, copy.body[0]


def _change(kind: str, node: ast.AST) -> bool:
    """Change a node in place; False where there is nothing of this kind to change."""
    if kind == "operator":
        if isinstance(node, ast.BinOp | ast.BoolOp) and type(node.op) in _OPERATORS:
            node.op = _OPERATORS[type(node.op)]()  # type: ignore[assignment]
            return True
        if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in _OPERATORS:
            node.ops = [_OPERATORS[type(node.ops[0])]()]  # type: ignore[list-item]
            return True
    if kind == "index" and isinstance(node, ast.Subscript):
        place = node.slice
        if isinstance(place, ast.Constant) and isinstance(place.value, int):
            place.value += 1
            return True
    if kind == "constant" and isinstance(node, ast.Constant):
        if isinstance(node.value, bool):
            node.value = not node.value
            return True
        if isinstance(node.value, int | float):
            node.value = node.value + 1
            return True
    return False


def run_fault(fault: Fault, suites: Sequence[Sequence[str]], timeout_s: float) -> tuple[str, float]:
    """Plant a fault and run suites of tests until one fails.

    Returns:
        "caught", "timed out" or "survived", or "not planted" where the statement is gone; and the seconds.
    """
    path = ROOT / fault.path
    source = path.read_text(encoding="utf-8")
    if source.count(fault.before) != 1:
        return "not planted", 0.0
    start = time.monotonic()
    path.write_text(source.replace(fault.before, fault.after), encoding="utf-8")
    try:
        for suite in suites:
            if problem := _find_problem(suite, timeout_s):
                return problem, time.monotonic() - start
    finally:
        path.write_text(source, encoding="utf-8")
    return "survived", time.monotonic() - start


def _find_problem(suite: Sequence[str], timeout_s: float) -> str:
    """Return "caught" if a test fails, "timed out" if the tests do not end, "" if all pass."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-m", "not slow", "-p", "no:cacheprovider", *suite]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    try:
        ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        return "timed out"
    return "" if ended.returncode in (0, 5) else "caught"  # 5: no test was collected


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    draw = commands.add_parser("draw", help="write one fault per module")
    draw.add_argument("--seed", type=int, default=20)
    draw.add_argument("--output", type=Path, required=True)
    run = commands.add_parser("run", help="plant each and run the tests that are listed for its module")
    run.add_argument("faults", type=Path)
    run.add_argument("--suites", type=Path, required=True, help='JSON: {"path of a module": [["tests", ...], ...]}')
    run.add_argument("--results", type=Path, required=True, help="gone on with where it exists")
    run.add_argument("--timeout", type=float, default=600.0, help="seconds for one suite (default: 600)")
    arguments = parser.parse_args()
    if arguments.command == "draw":
        faults = draw_faults(ROOT, arguments.seed)
        arguments.output.write_text(json.dumps([asdict(fault) for fault in faults], indent=1) + "\n", encoding="utf-8")
        print(f"{len(faults)} faults in {arguments.output}")
        return 0
    suites = json.loads(arguments.suites.read_text(encoding="utf-8"))
    known = json.loads(arguments.results.read_text(encoding="utf-8")) if arguments.results.exists() else {}
    for entry in json.loads(arguments.faults.read_text(encoding="utf-8")):
        fault = Fault(**entry)
        name = f"{fault.path}:{fault.line}"
        if name in known:
            continue
        outcome, seconds = run_fault(fault, suites.get(fault.path, suites["*"]), arguments.timeout)
        known[name] = {"outcome": outcome, "seconds": round(seconds, 1), **asdict(fault)}
        arguments.results.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
        print(f"{outcome:12} {seconds:6.1f} s  {fault.kind:18} {fault.path}:{fault.line}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
