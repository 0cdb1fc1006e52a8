"""What this machine has of what dispose_rt needs: packages, GPUs, memory, disk, codecs, compiled kernels."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from . import __version__
from .device import Gpu, find_gpus
from .errors import DeviceError

NEEDED = {"numpy": "numpy", "cv2": "opencv-python-headless", "av": "av", "onnxruntime": "onnxruntime"}
"""Modules that every run imports, and the distributions that bring them where no other does."""

OPTIONAL = ("torch", "tensorrt-rtx-cu13", "tensorrt-rtx-cu12", "tensorrt", "cuda-python")
"""Distributions that single backends import."""

ENCODER = "libx264"
DECODERS = ("h264", "hevc", "vp9", "av1")


@dataclass(frozen=True)
class Machine:
    """What was found.

    Attributes:
        versions: of Python, of dispose_rt, and of every package in NEEDED and OPTIONAL that is installed.
        platform: operating system and architecture.
        cpu: model and number of cores that this process may use.
        memory_bytes: main memory; free_disk_bytes: on the file system of the engines.
        gpus: NVIDIA GPUs.
        gpu_failure: why the driver failed, where it did.
        kernels: compiled kernel modules, of "cpu" and "cuda".
        codecs: video encoders and decoders that matter here.
        problems: what is missing that every run needs, with the command that mends it.
    """

    versions: dict[str, str]
    platform: str
    cpu: str
    memory_bytes: int
    free_disk_bytes: int
    gpus: tuple[Gpu, ...]
    gpu_failure: str
    kernels: tuple[str, ...]
    codecs: tuple[str, ...]
    problems: tuple[str, ...]


def examine_machine(folder: Path | None = None) -> Machine:
    """Look at the machine, importing nothing heavy: packages are known by their metadata.

    Args:
        folder: where engines lie or shall lie; None for the current folder.
    """
    versions = {"python": platform.python_version(), "dispose-rt": __version__, **dict(_package_versions())}
    kernels = tuple(kind for kind in ("cpu", "cuda") if importlib.util.find_spec(f"dispose_rt._kernels_{kind}"))
    codecs = tuple(_codecs())
    gpus, gpu_failure = _gpus()
    return Machine(
        versions=versions,
        platform=platform.platform(),
        cpu=f"{_cpu_model()}, {_usable_cores()} cores",
        memory_bytes=_memory_bytes(),
        free_disk_bytes=shutil.disk_usage(_existing(folder or Path.cwd())).free,
        gpus=gpus,
        gpu_failure=gpu_failure,
        kernels=kernels,
        codecs=codecs,
        problems=tuple(_problems(kernels, codecs)),
    )


def _package_versions() -> Iterator[tuple[str, str]]:
    for name in (*NEEDED.values(), *OPTIONAL):
        try:
            yield name, version(name)
        except PackageNotFoundError:
            continue


def _codecs() -> Iterator[str]:
    try:
        from av.codec import Codec
    except ImportError:
        return
    for name, mode in ((ENCODER, "w"), *((decoder, "r") for decoder in DECODERS)):
        try:
            Codec(name, mode)
        except ValueError:  # what PyAV raises for a codec that FFmpeg was built without
            continue
        yield name


def _gpus() -> tuple[tuple[Gpu, ...], str]:
    try:
        return find_gpus(), ""
    except DeviceError as error:
        return (), str(error)


def _problems(kernels: tuple[str, ...], codecs: tuple[str, ...]) -> Iterator[str]:
    missing = [module for module in NEEDED if importlib.util.find_spec(module) is None]
    for module in missing:
        yield f"the package {module} is not installed: pip install {NEEDED[module]}"
    if "cpu" not in kernels:
        yield "the compiled kernels are missing: pip install . in the source tree, with a C++ compiler at hand"
    if "av" not in missing and ENCODER not in codecs:
        yield f"PyAV has no {ENCODER}, so no mp4 can be written: pip install --force-reinstall --only-binary av av"


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not Linux
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def _usable_cores() -> int:
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory_bytes() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not POSIX
        return 0


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())
