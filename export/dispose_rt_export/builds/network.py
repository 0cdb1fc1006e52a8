"""Builds one network's files: load -> trace -> verify -> compile, in a scratch folder, then renames them into place."""

from __future__ import annotations

import shutil
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import torch
from torch import nn

from dispose_rt.contract import NetworkSpec, Sizes
from dispose_rt.engines.backends.tensorrt_flavour import FLAVOURS
from dispose_rt.engines.manifest import NetworkRecord, Signature, record_file
from dispose_rt.engines.signature import contract_signature
from dispose_rt.errors import EngineError, VerificationError

from ..checkpoints import Weights
from ..compile.aotinductor import compare_package, compile_package
from ..compile.precision import apply_precision
from ..compile.tensorrt import CompiledPlan, build_plan
from ..compile.trace import export_onnx
from ..compile.verify import compare_onnx, comparison_sizes, expected_outputs
from .plan import RECIPES, NetworkPlan, resolve_shapes
from .records import FAILED, forget_record, scratch_folder, share_files, write_record
from .worker import BuildWorker, report

WIDE_CHANNELS = 128
"""Channels of the outermost level from which networks are handled in a process of their own."""

TIMING_CACHE = "timing.cache"

Result = TypeVar("Result")
StepProgress: TypeAlias = Callable[[str], None]
"""Called with the name of the step: "tracing", "compiling: 40 %"."""


def build_network(
    plan: NetworkPlan, weights: Weights, output: Path, worker: BuildWorker, progress: StepProgress
) -> NetworkRecord:
    """Build one network into an engine directory.

    Files are written and verified in a scratch folder, renamed into place, then recorded. If the build stops at any
    point, the directory holds the old state, or files without a record, which the next build writes again.

    Raises:
        CheckpointError: its weights are missing, damaged, or of other shapes.
        VerificationError: it does not compute what PyTorch computes.
        EngineError: a compiler refuses it.
        DisposeError: a compiler crashed, or memory ran out.
    """
    start = time.perf_counter()
    forget_record(output, plan.spec.name)
    with scratch_folder(output) as scratch:
        build = _NetworkBuild(plan, weights, scratch, worker, progress)
        verification, signature, scratch_bytes = build.run(output / TIMING_CACHE)
        path = scratch / plan.file_name
        names = [path.name, *sorted(other.name for other in scratch.glob(f"{path.name}.*"))]
        for name in names:
            (scratch / name).replace(output / name)
    files = tuple(record_file(output, name) for name in names)
    share_files(output, files)
    record = NetworkRecord(
        files, plan.build_key, plan.compute_dtype, verification, plan.backend, signature, scratch_bytes
    )
    write_record(output, plan.spec.name, record, time.perf_counter() - start)
    return record


class _NetworkBuild:
    """The steps of one network, all of them in the scratch folder."""

    def __init__(
        self, plan: NetworkPlan, weights: Weights, scratch: Path, worker: BuildWorker, progress: StepProgress
    ) -> None:
        self._plan = plan
        self._weights = weights
        self._scratch = scratch
        self._worker = worker
        self._progress = progress

    def run(self, timing_cache: Path) -> tuple[dict[str, float], dict[str, Signature], int | None]:
        """Write the backend's file; return measured errors, tensors as the compiler saw them, and scratch bytes."""
        plan = self._plan
        if plan.backend == "aotinductor":
            errors, scratch_bytes = self._package(self._scratch / plan.file_name)
            return errors, contract_signature(plan.spec.name, plan.sizes, plan.compute_dtype), scratch_bytes
        onnx = self._scratch / f"{plan.spec.name}.onnx"
        verification: dict[str, float] = {}
        if plan.spec.published:
            shutil.copyfile(self._weights.published_file(plan.spec.name, self._scratch), onnx)
        else:
            verification = self._export(onnx)
        if plan.backend not in FLAVOURS:
            return verification, {}, None
        return verification, *self._compile(onnx, timing_cache)

    def _compile(self, onnx: Path, timing_cache: Path) -> CompiledPlan:
        plan = self._plan
        try:
            return self._in_worker("compiling", compile_engine, plan, onnx, timing_cache)
        except EngineError as error:
            kept = self._scratch.parent / FAILED / onnx.name
            kept.parent.mkdir(exist_ok=True)
            for path in (onnx, *onnx.parent.glob(f"{onnx.name}.*")):
                path.replace(kept.with_name(path.name))
            raise EngineError(f"{error}\nThe graph is kept as {kept}; {_reduce_hint(plan.backend, kept)}") from error

    def _export(self, onnx: Path) -> dict[str, float]:
        """Trace the network, and compare it with PyTorch."""
        plan = self._plan
        sizes = comparison_sizes(plan.sizes)
        wanted = self._files_at(plan.sizes, sizes, onnx)
        traced = self._step("tracing", trace_network, plan, self._weights, wanted)
        run = self._step("running PyTorch", run_network, plan, self._weights, sizes, "cpu", self._expected)
        _check_same(plan.spec.name, traced, run)
        compared = wanted[-1][1]
        errors = self._step("comparing", compare_onnx, plan.spec, compared, self._expected, plan.tolerance)
        shutil.rmtree(self._expected.parent)
        return errors

    def _package(self, path: Path) -> tuple[dict[str, float], int | None]:
        """Compile the network with AOTInductor, and compare it with PyTorch; on a GPU, measure its memory as well."""
        plan = self._plan
        device = "cpu" if plan.devices == ("cpu",) else "cuda"
        sizes = comparison_sizes(plan.sizes) if device == "cpu" else plan.sizes
        wanted = self._files_at(plan.sizes, sizes, path)
        compiled = self._in_worker("compiling", compile_network, plan, self._weights, wanted, device)
        run = self._step("running PyTorch", run_network, plan, self._weights, sizes, device, self._expected)
        _check_same(plan.spec.name, compiled, run)
        compared = wanted[-1][1]
        return self._in_worker("comparing", run_package, plan.spec, compared, self._expected, device, plan.tolerance)

    @property
    def _expected(self) -> Path:
        """File of PyTorch's inputs and outputs."""
        return self._scratch / "compared" / "expected.npz"

    def _files_at(self, own: Sizes, comparable: Sizes, path: Path) -> list[tuple[Sizes, Path]]:
        """Return the file to write and, where its size cannot be run here, a small one to compare instead."""
        aside = self._scratch / "compared"
        aside.mkdir()
        if resolve_shapes(self._plan.spec, comparable) == resolve_shapes(self._plan.spec, own):
            return [(own, path)]
        return [(own, path), (comparable, aside / path.name)]

    def _in_worker(self, label: str, step: Callable[..., Result], *arguments: Any) -> Result:
        self._progress(label)
        return self._worker.run(f"{self._plan.spec.name}: {label}", step, *arguments, progress=self._progress)

    def _step(self, label: str, step: Callable[..., Result], *arguments: Any) -> Result:
        """Run a step in this process, or in the worker if it needs much memory."""
        if self._plan.sizes.channels[0] >= WIDE_CHANNELS:
            return self._in_worker(label, step, *arguments)
        self._progress(label)
        return step(*arguments)


def _reduce_hint(backend: str, onnx: Path) -> str:
    variable = "POLYGRAPHY_USE_TENSORRT_RTX=1 " if backend == "tensorrt_rtx" else ""
    check = f"--check polygraphy convert polygraphy_debug.onnx --convert-to trt --strongly-typed -o {onnx.stem}.engine"
    return f"to find the part that is refused:\n  {variable}polygraphy debug reduce {onnx} -o reduced.onnx {check}"


def trace_network(plan: NetworkPlan, weights: Weights, wanted: list[tuple[Sizes, Path]]) -> int:
    """Write the network as ONNX, once per size; return the checksum of its values."""
    module, checksum = _ready_module(plan, weights)
    for sizes, path in wanted:
        export_onnx(module, plan.spec, sizes, plan.compute_dtype, path)
    return checksum


def compile_network(plan: NetworkPlan, weights: Weights, wanted: list[tuple[Sizes, Path]], device: str) -> int:
    """Compile the network with AOTInductor, once per size; return the checksum of its values."""
    module, checksum = _ready_module(plan, weights)
    module = module.to(device)
    for sizes, path in wanted:
        compile_package(module, plan.spec, sizes, plan.compute_dtype, device=device, output=path)
    return checksum


def run_package(
    spec: NetworkSpec, path: Path, expected: Path, device: str, tolerance: float
) -> tuple[dict[str, float], int | None]:
    """Compare a package with PyTorch; see `compare_package`.

    Returns:
        The largest relative error of every output; and, on a GPU, the most memory that torch took from it for the run,
        in bytes. Weights are not among it, which a package allocates by itself; inputs and outputs are.
    """
    if device == "cpu":
        return compare_package(spec, path, expected, device, tolerance), None
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_reserved()
    errors = compare_package(spec, path, expected, device, tolerance)
    return errors, torch.cuda.max_memory_reserved() - before


def compile_engine(plan: NetworkPlan, onnx: Path, timing_cache: Path) -> CompiledPlan:
    """Compile an ONNX file with TensorRT, beside it."""
    return build_plan(
        onnx,
        plan.spec,
        plan.sizes,
        plan.compute_dtype,
        flavour=plan.backend,
        targets=plan.devices,
        workspace_mib=plan.workspace_mib,
        timing_cache=timing_cache,
        output=onnx.with_name(plan.file_name),
        progress=lambda phase, done, total: report(f"compiling: {phase} {done}/{total}"),
    )


def run_network(plan: NetworkPlan, weights: Weights, sizes: Sizes, device: str, path: Path) -> int:
    """Store PyTorch's outputs in float32 from unrounded weights: rounding them is part of the error.

    Returns:
        The checksum of the network's values.
    """
    torch.backends.cudnn.allow_tf32 = False
    module = _build_module(plan, weights)
    checksum = checksum_values(module)
    expected_outputs(module.to(device), plan.spec, sizes, plan.compute_dtype, path)
    return checksum


def checksum_values(module: nn.Module) -> int:
    """Return the CRC-32 of all parameters and buffers, by which two steps know that they read the same."""
    checksum = 0
    for tensor in (*module.parameters(), *module.buffers()):
        values: Any = tensor.detach().contiguous().flatten().view(torch.uint8).numpy()
        checksum = zlib.crc32(values, checksum)
    return checksum


def _check_same(network: str, first: int, second: int) -> None:
    if first != second:
        raise VerificationError(
            f"{network}: the weights were read twice, with other values the second time (checksums {first:08x} and "
            f"{second:08x}). Leave the files alone during a build, check disk and memory, and run the command again."
        )


def _ready_module(plan: NetworkPlan, weights: Weights) -> tuple[nn.Module, int]:
    """Return the network in its precision, and the checksum of its values before they are rounded."""
    module = _build_module(plan, weights)
    checksum = checksum_values(module)
    return apply_precision(module, plan.spec.name, plan.compute_dtype), checksum


def _build_module(plan: NetworkPlan, weights: Weights) -> nn.Module:
    return RECIPES[plan.spec.name].build(weights).eval().requires_grad_(False)
