"""A diagnosis as lines of text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from .diagnosis import Diagnosis
from .machine import Machine
from .trials import NetworkReport

_COMMANDS = {"export": "build", "download": "download", "page": "page"}
"""Commands by the extra that brings their packages."""


def to_lines(diagnosis: Diagnosis) -> Iterator[str]:
    """Yield the diagnosis as text for people."""
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
