"""From a PyTorch module to a package that AOTInductor compiled: one `.pt2` file for one kind of device.

The packages run wherever torch does, also on GPUs that TensorRT does not know, and on the CPU.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.fx.experimental import _config

from dispose_rt.contract import NetworkSpec, Sizes
from dispose_rt.engines.backends.aotinductor import LoadedPackage
from dispose_rt.engines.backends.aotinductor_package import LABEL_KEY, PackageLabel, cpu_features, this_machine
from dispose_rt.engines.signature import contract_signature
from dispose_rt.errors import DeviceError, DisposeError, EngineError, InputError, VerificationError

from .trace import TORCH_DTYPES, sample_inputs, trace_sizes
from .verify import compare_outputs

COMMON_OPTIONS: Mapping[str, Any] = {
    # weights are data after the library, mapped when it is loaded: no assembler reads them, whatever their size
    "aot_inductor.force_mmap_weights": True,
    # precompiled headers pay when many libraries are compiled with one cache; here every network has its own
    "aot_inductor.precompile_headers": False,
    "aot_inductor.enable_line_tables": False,
    "max_autotune": False,
    "freezing": False,
}
"""Options of torch._inductor for every device. Options that the installed version does not know are left out."""

CPU_OPTIONS: Mapping[str, Any] = {
    # the wrapper only calls kernels and libraries, but with thousands of calls it is what the compiler works on longest
    "aot_inductor.compile_wrapper_opt_level": "O0",
}

CUDA_OPTIONS: Mapping[str, Any] = {
    "aot_inductor.compile_wrapper_opt_level": "O1",
    "layout_optimization": True,  # convolutions in channels-last layout, which tensor cores want
    "coordinate_descent_tuning": False,
}


def package_target(devices: Sequence[str] = ()) -> str:
    """Return the target to compile for: "cpu", or the compute capability of this machine's GPU, e.g. "sm_90".

    Args:
        devices: the requested targets; empty for this machine's GPU.

    Raises:
        InputError: several devices are asked for.
        DeviceError: this machine lacks the requested GPU; kernels are compiled and timed on the GPU itself.
    """
    if len(devices) > 1:
        raise InputError(f"AOTInductor compiles for one device at a time, --target is {','.join(devices)}")
    if tuple(devices) == ("cpu",):
        return "cpu"
    wanted = devices[0] if devices else "a GPU"
    if not torch.cuda.is_available():
        raise DeviceError(
            f"AOTInductor compiles for {wanted} only where it is, and torch {torch.__version__} finds no GPU here. "
            "Build on the machine with the GPU, or pass --target cpu for engines that run on this processor."
        )
    capability = "sm_{}{}".format(*torch.cuda.get_device_capability())
    if devices and capability != wanted:
        raise DeviceError(f"AOTInductor compiles for the GPU at hand, which is {capability}, not {wanted}")
    return capability


def compile_package(
    module: nn.Module, spec: NetworkSpec, sizes: Sizes, compute_dtype: str, *, device: str, output: Path
) -> None:
    """Compile a module into a package.

    Args:
        module: in evaluation mode, with the contract's inputs in order as arguments; moved to the device.
        spec: the network.
        sizes: resolves the contract's shapes.
        compute_dtype: dtype of the module's parameters and of tensors marked "compute".
        device: "cpu" or "cuda"; the package runs on the same processor, or GPU with the same compute capability.
        output: file to write, under a temporary name that becomes this one at the end.

    Raises:
        DeviceError: device is "cuda" and there is no GPU.
        EngineError: the network cannot be traced or compiled.
    """
    label = _describe(spec, sizes, compute_dtype, package_target(("cpu",) if device == "cpu" else ()))
    samples = sample_inputs(spec, sizes, compute_dtype, trace_sizes(spec, sizes))
    with tempfile.TemporaryDirectory(prefix=".compiling-", dir=output.parent) as folder, _scratch(Path(folder), device):
        package = Path(folder) / f"{spec.name}.pt2"
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of the tracer, about its own internals
                program = _trace(module.to(device), spec, sizes, {k: v.to(device) for k, v in samples.items()})
                torch._inductor.aoti_compile_and_package(
                    program, package_path=str(package), inductor_configs=compiler_options(device, label)
                )
        except Exception as error:  # torch raises dozens of types, and the compiler's own output as one of them
            raise EngineError(
                f"AOTInductor cannot compile {spec.name} for {label.target}: {type(error).__name__}: {error}\n"
                "It needs a C++ compiler: g++ or clang++ on the PATH, or one named by the variable CXX."
            ) from error
        package.replace(output)


def compare_package(spec: NetworkSpec, path: Path, expected: Path, device: str, tolerance: float) -> dict[str, float]:
    """Run a package on stored inputs and compare.

    Args:
        spec: the network.
        path: the package.
        expected: file that `verify.expected_outputs` wrote.
        device: "cpu" or "cuda".
        tolerance: largest relative error allowed.

    Returns:
        The largest relative error of every output.

    Raises:
        VerificationError: an output misses the tolerance, or the package does not run.
    """
    try:
        opened = LoadedPackage(path, "cpu" if device == "cpu" else f"cuda:{torch.cuda.current_device()}")
        with contextlib.closing(opened) as package:
            dtypes = {name: TORCH_DTYPES[dtype] for name, (dtype, _) in package.label.signature.items()}

            def run(inputs: Mapping[str, NDArray[np.float32]]) -> list[NDArray[np.generic]]:
                tensors = [
                    torch.from_numpy(inputs[tensor.name]).to(package.device, dtypes[tensor.name])
                    for tensor in spec.inputs
                ]
                return [output.float().cpu().numpy() for output in package.run(tensors)]

            return compare_outputs(spec, run, expected, tolerance)
    except DisposeError:
        raise
    except Exception as error:
        raise VerificationError(f"{spec.name}: the package cannot be run: {error}") from error


def compiler_options(device: str, label: PackageLabel) -> dict[str, Any]:
    """Return those options of torch._inductor that the installed version has."""
    options = {**COMMON_OPTIONS, **(CPU_OPTIONS if device == "cpu" else CUDA_OPTIONS)}
    known = torch._inductor.config.get_config_copy()
    chosen = {name: value for name, value in options.items() if name in known}
    return chosen | {"aot_inductor.metadata": {LABEL_KEY: label.to_json()}}


def _describe(spec: NetworkSpec, sizes: Sizes, compute_dtype: str, target: str) -> PackageLabel:
    return PackageLabel(
        network=spec.name,
        target=target,
        torch=torch.__version__,
        machine=this_machine(),
        cpu_features=cpu_features(),
        limits={symbol: sizes.limit(symbol) for symbol in spec.dynamic},
        signature=contract_signature(spec.name, sizes, compute_dtype),
    )


def _trace(
    module: nn.Module, spec: NetworkSpec, sizes: Sizes, samples: Mapping[str, Tensor]
) -> torch.export.ExportedProgram:
    if next(iter(samples.values())).is_cuda:
        for layer in module.modules():
            if isinstance(layer, nn.Conv2d):  # else every run would rearrange the weights
                layer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    # a dimension of 1 is a size like any other, and nothing that is broadcast or specialised on
    with _config.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]
        return torch.export.export(
            module, tuple(samples.values()), dynamic_shapes=_dynamic_shapes(spec, sizes), strict=False
        )


def _dynamic_shapes(spec: NetworkSpec, sizes: Sizes) -> tuple[dict[int, Any], ...] | None:
    """Return ranges from 1 to the limit; a dimension whose limit is 1 is not dynamic."""
    ranges = {
        symbol: torch.export.Dim(symbol, min=1, max=sizes.limit(symbol))
        for symbol in spec.dynamic
        if sizes.limit(symbol) > 1
    }
    if not ranges:
        return None
    return tuple(
        {axis: ranges[dim] for axis, dim in enumerate(tensor.shape) if isinstance(dim, str) and dim in ranges}
        for tensor in spec.inputs
    )


@contextlib.contextmanager
def _scratch(folder: Path, device: str) -> Iterator[None]:
    """Direct the caches and leftovers of torch and its compilers into a folder.

    The user's TORCHINDUCTOR_CACHE_DIR is respected. For a GPU, torch starts compiler processes that outlive this call
    and keep using the temporary folder that they were started with, so it stays the process's own.
    """
    from torch._inductor.utils import fresh_cache

    cache = contextlib.nullcontext() if "TORCHINDUCTOR_CACHE_DIR" in os.environ else fresh_cache(dir=str(folder))
    with cache, contextlib.nullcontext() if device == "cuda" else _temporary_files_in(folder):
        yield


@contextlib.contextmanager
def _temporary_files_in(folder: Path) -> Iterator[None]:
    before, default = os.environ.get("TMPDIR"), tempfile.tempdir
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = default
        if before is None:
            del os.environ["TMPDIR"]
        else:
            os.environ["TMPDIR"] = before
