"""Builds one network's files, and keeps a record of each finished one so that an interrupted build can go on."""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from torch import nn

from dispose_rt.manifest import FileRecord, NetworkRecord, record_file

from .build_plan import RECIPES, NetworkPlan, resolve_shapes
from .checkpoints import Checkpoint, Weights
from .onnx_export import TORCH_DTYPES, export_onnx
from .verify import comparison_sizes, verify_onnx

RECORDS = ".build"
"""Folder in the engine directory: one JSON record per finished network, and the scratch folder of the one at work."""


def finished_record(output: Path, plan: NetworkPlan) -> NetworkRecord | None:
    """The record of a network that is built already, with the same ingredients, and whose files are still there."""
    try:
        body = json.loads(_record_path(output, plan).read_text(encoding="utf-8"))
        files = tuple(FileRecord(**file) for file in body["files"])
        record = NetworkRecord(files, body["build_key"], body["compute_dtype"], body["verification"])
        intact = all((output / file.path).stat().st_size == file.size_bytes for file in files)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return record if intact and record.build_key == plan.build_key else None


def reuse_sibling(plan: NetworkPlan, output: Path) -> NetworkRecord | None:
    """Take a network over from a directory beside this one that holds the very same, by hard link where possible.

    Directories of other sizes or precisions share what does not depend on them: CLIP, CMP, the pose networks and more.
    """
    for sibling in sorted(output.absolute().parent.iterdir()):
        record = finished_record(sibling, plan) if sibling.name != output.name else None
        if record is None or any(record_file(sibling, file.path) != file for file in record.files):
            continue
        for file in record.files:
            _link_or_copy(sibling / file.path, output / file.path)
        _write_record(output, plan, record)
        return record
    return None


def _link_or_copy(source: Path, target: Path) -> None:
    temporary = target.with_name(target.name + ".part")
    temporary.unlink(missing_ok=True)
    target.unlink(missing_ok=True)  # renaming one link of a file to another link of it does nothing
    try:
        temporary.hardlink_to(source)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(source, temporary)
    temporary.replace(target)


def build_network(plan: NetworkPlan, checkpoint: Checkpoint, output: Path) -> NetworkRecord:
    """Build one network into an engine directory.

    The files are written and verified in a scratch folder, then renamed into place, then recorded: whenever this stops,
    the directory holds the old state, or files without a record, which the next build writes again.

    Raises:
        CheckpointError: its weights are missing, damaged, or of other shapes.
        VerificationError: it does not compute what PyTorch computes.
    """
    _record_path(output, plan).unlink(missing_ok=True)
    with _scratch_folder(output) as scratch:
        path = scratch / f"{plan.spec.name}.onnx"
        if plan.spec.published:
            shutil.copyfile(checkpoint.path(plan.spec.name), path)
            verification: dict[str, float] = {}
        else:
            verification = _export_verified(plan, checkpoint, path)
        names = [path.name, *sorted(other.name for other in scratch.iterdir() if other != path)]
        for name in names:
            (scratch / name).replace(output / name)
    record = NetworkRecord(
        tuple(record_file(output, name) for name in names), plan.build_key, plan.compute_dtype, verification
    )
    _write_record(output, plan, record)
    return record


def _export_verified(plan: NetworkPlan, weights: Weights, path: Path) -> dict[str, float]:
    """Write the network, and compare it with PyTorch at its own size, or through a small trace of the same module."""
    module = _build_module(plan, weights).to(TORCH_DTYPES[plan.compute_dtype])
    export_onnx(module, plan.spec, plan.sizes, plan.compute_dtype, path)
    sizes = comparison_sizes(plan.sizes)
    folder = path.parent / "compared"
    compared = path
    if resolve_shapes(plan.spec, sizes) != resolve_shapes(plan.spec, plan.sizes):
        folder.mkdir()
        compared = folder / path.name
        export_onnx(module, plan.spec, sizes, plan.compute_dtype, compared)
    del module
    gc.collect()  # the traced program holds the weights a second time
    # compared with a fresh module: rounding the weights is part of the error
    module = _build_module(plan, weights)
    errors = verify_onnx(module, plan.spec, sizes, plan.compute_dtype, compared, plan.tolerance)
    shutil.rmtree(folder, ignore_errors=True)
    return errors


def _build_module(plan: NetworkPlan, weights: Weights) -> nn.Module:
    return RECIPES[plan.spec.name].build(weights).eval().requires_grad_(False)


def _record_path(output: Path, plan: NetworkPlan) -> Path:
    return output / RECORDS / f"{plan.spec.name}.json"


def _write_record(output: Path, plan: NetworkPlan, record: NetworkRecord) -> None:
    path = _record_path(output, plan)
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_suffix(".part")
    temporary.write_text(json.dumps(asdict(record), indent=1), encoding="utf-8")
    temporary.replace(path)


@contextmanager
def _scratch_folder(output: Path) -> Iterator[Path]:
    folder = output / RECORDS / "scratch"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
