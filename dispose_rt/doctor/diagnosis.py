"""`dispose-rt doctor`: tries out this machine and an engine directory, and says what to type next."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..contract import NETWORKS, NetworkSpec, Sizes, TensorSpec
from ..device import check_device_name
from ..engines.backends import Engine
from ..engines.backends.tensorrt_flavour import portable_plan_runs_on
from ..engines.backends.validation import host_dtype
from ..engines.manifest import Manifest, find_directories, read_manifest
from ..engines.open import Engines
from ..engines.preflight import Host, check_directory
from ..errors import DisposeError, ManifestError
from .machine import Machine, examine_machine

_CONSTANTS = {"added_time_ids": [[6.0, 127.0, 0.0]], "timestep": [0.9]}
"""Stable Video Diffusion's usual ids; a quarter of the logarithm of a sigma in the middle of a schedule."""


_COMMANDS = {"export": "build", "download": "download", "page": "page"}
"""Which command an extra is for."""


@dataclass(frozen=True)
class SmokeRun:
    """One call of a network with made-up inputs: the value of every dynamic dimension, and how long it took."""

    dynamic: dict[str, int]
    seconds: float


@dataclass(frozen=True)
class NetworkReport:
    """How one network fared; `failure` is empty where it loaded and answered finite values."""

    name: str
    backend: str
    load_s: float
    runs: tuple[SmokeRun, ...]
    failure: str


@dataclass(frozen=True)
class DirectoryReport:
    """How one engine directory fared; `failure` says what keeps it from being used, before any network was loaded."""

    folder: str
    summary: str
    failure: str
    networks: tuple[NetworkReport, ...]

    @property
    def is_healthy(self) -> bool:
        """Whether it can be used."""
        return not self.failure and not any(network.failure for network in self.networks)


@dataclass(frozen=True)
class Diagnosis:
    """All that was found, and what to do next."""

    machine: Machine
    directories: tuple[DirectoryReport, ...]
    healthy: bool
    next_step: str


def _ignore(text: str) -> None:
    """Show nothing."""


def examine(
    root: Path | None,
    device: str = "auto",
    *,
    load_only: bool = False,
    host: Host | None = None,
    progress: Callable[[str], None] = _ignore,
) -> Diagnosis:
    """Look at the machine, and try out every network of an engine directory.

    Args:
        root: an engine directory or a folder of several; None for the machine alone.
        device: "auto", "cpu", "cuda" or "cuda:N".
        load_only: load the networks without running them.
        host: what the machine has; None looks.
        progress: gets what is being done.

    Raises:
        InputError: the device is unknown.
    """
    check_device_name(device)
    machine = examine_machine(root)
    folders = [] if root is None else find_directories(root)
    reports = tuple(_examine_directory(folder, device, load_only, host, progress) for folder in folders)
    healthy = not machine.problems and all(report.is_healthy for report in reports)
    return Diagnosis(machine, reports, healthy, _next_step(machine, root, reports))


def _examine_directory(
    folder: Path, device: str, load_only: bool, host: Host | None, progress: Callable[[str], None]
) -> DirectoryReport:
    """Check an engine directory with every file hashed again, then load and run its networks one by one."""
    summary = ""
    try:
        manifest = read_manifest(folder)
        summary = _summarize(manifest)
        progress(f"{folder}: hashing files")
        check_directory(manifest, device, host, rehash=True)
    except ManifestError as error:
        return DirectoryReport(str(folder), summary, str(error), ())
    networks = []
    for name in NETWORKS:
        progress(f"{folder}: {name}")
        networks.append(_try_network(manifest, name, device, load_only))
    return DirectoryReport(str(folder), summary, "", tuple(networks))


def _summarize(manifest: Manifest) -> str:
    sizes = manifest.sizes
    kind = f"{sizes.width}x{sizes.height}, tiles of {sizes.tile} frames, {manifest.backend}, {manifest.precision}"
    return ", ".join([kind, *manifest.targets])


def _try_network(manifest: Manifest, name: str, device: str, load_only: bool) -> NetworkReport:
    """Load one network alone, run it with every dynamic dimension at 1 and at its limit, and let it go again."""
    record, spec = manifest.networks[name], NETWORKS[name]
    engines = Engines(manifest, device)
    runs: list[SmokeRun] = []
    load_s, failure = 0.0, ""
    start = time.perf_counter()
    try:
        engine = engines(name)
        load_s = time.perf_counter() - start
        for dynamic in [] if load_only else _extremes(spec, manifest.sizes):
            inputs = sample_inputs(spec, manifest.sizes, record.compute_dtype, dynamic)
            runs.append(_smoke_run(engine, inputs, dynamic))
    except DisposeError as error:
        failure = str(error)
    finally:
        engines.close()
    return NetworkReport(name, record.backend, load_s, tuple(runs), failure)


def _smoke_run(engine: Engine, inputs: Mapping[str, NDArray[Any]], dynamic: dict[str, int]) -> SmokeRun:
    start = time.perf_counter()
    engine.run(inputs)  # it checks that the outputs are finite
    return SmokeRun(dynamic, time.perf_counter() - start)


def _extremes(spec: NetworkSpec, sizes: Sizes) -> list[dict[str, int]]:
    """The smallest and the largest call."""
    smallest = dict.fromkeys(spec.dynamic, 1)
    largest = {symbol: sizes.limit(symbol) for symbol in spec.dynamic}
    return [smallest] if smallest == largest else [smallest, largest]


def sample_inputs(
    spec: NetworkSpec, sizes: Sizes, compute_dtype: str, dynamic: Mapping[str, int]
) -> dict[str, NDArray[Any]]:
    """Make up plausible inputs of a network, the same ones every time.

    Args:
        spec: the network.
        sizes: resolves static symbols.
        compute_dtype: dtype of tensors marked "compute".
        dynamic: a value for every dynamic symbol.

    Returns:
        C-contiguous arrays by name, of the contract's shapes and host dtypes.
    """
    random = np.random.default_rng(0)
    samples = {}
    for tensor in spec.inputs:
        shape = tuple(int(dim) for dim in sizes.resolve(tensor.shape, dynamic))
        dtype = host_dtype(tensor.resolve_dtype(compute_dtype))
        samples[tensor.name] = np.ascontiguousarray(_sample(tensor, shape, random), dtype)
    return samples


def _sample(tensor: TensorSpec, shape: tuple[int, ...], random: np.random.Generator) -> NDArray[np.float32]:
    if tensor.name in _CONSTANTS:
        return np.array(_CONSTANTS[tensor.name], np.float32)
    if tensor.name == "images":  # the person detector reads pixels as they are
        return random.uniform(0, 255, shape).astype(np.float32)
    values = random.standard_normal(shape, np.float32)
    if tensor.name in ("image", "pose_images"):
        return np.clip(values, -1, 1)
    if tensor.name == "mask":
        return (values > 2).astype(np.float32)
    return values


def _next_step(machine: Machine, root: Path | None, reports: tuple[DirectoryReport, ...]) -> str:
    """What to type next: what mends the first thing that is wrong, or what makes a video."""
    if machine.problems:
        return machine.problems[0]
    for report in reports:
        if report.failure:
            return report.failure.splitlines()[-1]
        for network in report.networks:
            if network.failure:
                return network.failure
    if root is not None:
        engines = shlex.quote(str(root))
        return f"dispose-rt animate --engines {engines} --reference photo.jpg --video dance.mp4 --output out.mp4"
    if machine.extras["export"]:
        return "pip install 'dispose-rt[export]', then dispose-rt build --help; or copy an engine directory here"
    backend = _choose_backend(machine)
    return f"dispose-rt build --weights WEIGHTS --output engines/576x1024 --size 576x1024 --backend {backend}"


def _choose_backend(machine: Machine) -> str:
    """What runs on the first GPU, or on the CPU."""
    if not machine.gpus:
        return "onnxruntime"
    runs_rtx = portable_plan_runs_on(machine.gpus[0].capability)
    return f"{'tensorrt_rtx' if runs_rtx else 'aotinductor'} --precision fp16"


def to_lines(diagnosis: Diagnosis) -> Iterator[str]:
    """The diagnosis as text, for people."""
    yield from _machine_lines(diagnosis.machine)
    for report in diagnosis.directories:
        yield ""
        yield f"{report.folder}: {report.summary}" if report.summary else report.folder
        yield from (f"  {line}" for line in report.failure.splitlines())
        yield from map(_network_line, report.networks)
    yield ""
    yield f"{'all is well' if diagnosis.healthy else 'something is wrong'}; next: {diagnosis.next_step}"


def _machine_lines(machine: Machine) -> Iterator[str]:
    yield "  ".join(f"{name} {version}" for name, version in machine.versions.items())
    yield machine.platform
    free = "" if machine.free_memory_bytes is None else f" ({_giga(machine.free_memory_bytes)} free)"
    memory = f"{_giga(machine.memory_bytes)} of memory{free}"
    yield f"CPU: {machine.cpu}, {memory}, {_giga(machine.free_disk_bytes)} of disk free"
    for gpu in machine.gpus:
        memory = f"{_giga(gpu.free_bytes)} of {_giga(gpu.total_bytes)} free"
        yield f"GPU: cuda:{gpu.index} {gpu.name}, {gpu.capability}, {memory}, driver for CUDA {gpu.driver_version}"
    if not machine.gpus:
        yield f"GPU: {machine.gpu_failure or 'none found'}"
    if machine.driver:
        yield f"NVIDIA driver: {machine.driver}"
    yield f"kernels: {', '.join(machine.kernels) or 'none'}; codecs: {', '.join(machine.codecs) or 'none'}"
    yield "outputs: " + ", ".join(f"{suffixes}{_lacks(names)}" for suffixes, names in machine.outputs.items())
    yield "commands: " + ", ".join(f"{_COMMANDS[extra]}{_lacks(names)}" for extra, names in machine.extras.items())
    if machine.pose_cache:
        yield f"pose cache: {machine.pose_cache_bytes / 1e6:.1f} MB in {machine.pose_cache}"
    yield from (f"problem: {problem}" for problem in machine.problems)
    yield from (f"note: {note}" for note in machine.notes)


def _lacks(names: tuple[str, ...]) -> str:
    """For example " (lacks gradio)"."""
    return f" (lacks {', '.join(names)})" if names else ""


def _network_line(network: NetworkReport) -> str:
    if network.failure:
        return f"  {network.name:18} FAILED: {network.failure}"
    runs = [f"{_format_dynamic(run.dynamic)}{run.seconds * 1e3:.0f} ms" for run in network.runs]
    return f"  {network.name:18} {network.backend:12} loaded in {network.load_s:5.2f} s  {'  '.join(runs)}".rstrip()


def _format_dynamic(dynamic: Mapping[str, int]) -> str:
    """For example "frames 16: "."""
    return "".join(f"{symbol} {value}: " for symbol, value in dynamic.items())


def _giga(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
