"""`dispose-rt doctor`: examines this machine, tries out engine directories, and finds what to do next."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from ..contract import NETWORKS
from ..device import check_device_name
from ..engines.backends.tensorrt_flavour import portable_plan_runs_on
from ..engines.manifest import Manifest, find_directories, read_manifest
from ..engines.preflight import Host, check_directory
from ..errors import ManifestError
from .machine import Machine, examine_machine
from .trials import NetworkReport, try_network


@dataclass(frozen=True)
class DirectoryReport:
    """Outcome of one engine directory; `failure` says why it cannot be used, found before any network was loaded."""

    folder: str
    summary: str
    failure: str
    networks: tuple[NetworkReport, ...]

    @property
    def is_healthy(self) -> bool:
        """Whether the directory can be used."""
        return not self.failure and not any(network.failure for network in self.networks)


@dataclass(frozen=True)
class Diagnosis:
    """Everything that was found, and what to do next."""

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
    trust: bool = False,
    host: Host | None = None,
    progress: Callable[[str], None] = _ignore,
) -> Diagnosis:
    """Examine the machine, and try out every network of an engine directory.

    Args:
        root: an engine directory or a folder of several; None for the machine alone.
        device: "auto", "cpu", "cuda" or "cuda:N".
        load_only: load the networks without running them.
        trust: the caller vouches for native code in the directories.
        host: facts about the machine that directories are checked against; None looks them up.
        progress: receives what is being done, as a line of text.

    Raises:
        InputError: the device is unknown.
    """
    check_device_name(device)
    machine = examine_machine(root)
    folders = [] if root is None else find_directories(root)
    reports = tuple(_examine_directory(folder, device, load_only, trust, host, progress) for folder in folders)
    healthy = not machine.problems and all(report.is_healthy for report in reports)
    return Diagnosis(machine, reports, healthy, _next_step(machine, root, reports))


def _examine_directory(
    folder: Path, device: str, load_only: bool, trust: bool, host: Host | None, progress: Callable[[str], None]
) -> DirectoryReport:
    """Check an engine directory with every file hashed again, then load and run its networks one by one."""
    summary = ""
    try:
        manifest = replace(read_manifest(folder), trusted=trust)
        summary = summarize(manifest)
        progress(f"{folder}: hashing files")
        check_directory(manifest, device, host, rehash=True)
    except ManifestError as error:
        return DirectoryReport(str(folder), summary, str(error), ())
    networks = []
    for name in NETWORKS:
        progress(f"{folder}: {name}")
        networks.append(try_network(manifest, name, device, load_only))
    return DirectoryReport(str(folder), summary, "", tuple(networks))


def summarize(manifest: Manifest) -> str:
    """Describe an engine directory in a few words."""
    sizes = manifest.sizes
    kind = f"{sizes.width}x{sizes.height}, tiles of {sizes.tile} frames, {manifest.backend}, {manifest.precision}"
    return ", ".join([kind, *manifest.targets])


def _next_step(machine: Machine, root: Path | None, reports: tuple[DirectoryReport, ...]) -> str:
    """Return the remedy of the first problem, or the command that makes a video."""
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
    """Return the backend that runs on the first GPU, or on the CPU."""
    if not machine.gpus:
        return "onnxruntime"
    runs_rtx = portable_plan_runs_on(machine.gpus[0].capability)
    return f"{'tensorrt_rtx' if runs_rtx else 'aotinductor'} --precision fp16"
