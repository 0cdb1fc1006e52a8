"""Packages, GPUs, memory, disk, codecs, compiled kernels and caches of this machine, as far as they matter here."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from .. import __version__
from ..device import Gpu, find_gpus
from ..device.modules import REINSTALL
from ..errors import DeviceError, InputError
from ..system.cores import usable_cores
from ..system.files import cache_folder, free_disk_bytes
from ..system.memory import free_host_bytes

NEEDED = {
    "numpy": "numpy",
    "cv2": "opencv-python-headless",
    "av": "av",
    "onnxruntime": "onnxruntime",
    "PIL": "pillow",
    "simplejpeg": "simplejpeg",
    "tqdm": "tqdm",
    "cryptography": "cryptography",
}
"""Modules that every run imports, and the distributions that install them."""

OPTIONAL = ("torch", "tensorrt-rtx-cu13", "tensorrt-rtx-cu12", "tensorrt", "cuda-python")
"""Distributions that only some backends import."""

EXTRAS = {
    "export": ("torch", "diffusers", "transformers", "onnx", "onnxscript", "filelock", "safetensors"),
    "download": ("huggingface_hub", "filelock"),
    "page": ("gradio",),
}
"""Further modules that single commands need, by the extra in `pip install 'dispose-rt[EXTRA]'`."""

KERNELS = ("cpu", "cuda")
"""Targets for which kernels may have been compiled."""

ENCODER = "libx264"
DECODERS = ("h264", "hevc", "vp9", "av1")


@dataclass(frozen=True)
class Machine:
    """Facts about the machine.

    Attributes:
        versions: versions of Python, dispose_rt, and every installed package of NEEDED and OPTIONAL.
        platform: operating system and architecture.
        cpu: model, and number of cores that this process may use.
        memory_bytes: main memory.
        free_memory_bytes: the part of it that is available; None where the system does not say.
        free_disk_bytes: free space of the file system that holds the engines.
        gpus: NVIDIA GPUs.
        gpu_failure: why the driver failed; empty if it did not.
        driver: version of the NVIDIA driver; empty if none is loaded.
        kernels: compiled kernel modules, of "cpu" and "cuda".
        codecs: the required video encoders and decoders that are available.
        outputs: missing encoders of pictures and sound, by suffixes of outputs.
        extras: missing modules, by extra.
        pose_cache: folder of the pose cache; empty where there is no place for one.
        pose_cache_bytes: size of the pose cache.
        problems: what every run needs and is missing, with the command that fixes it.
        notes: what some runs need and is missing, likewise.
    """

    versions: dict[str, str]
    platform: str
    cpu: str
    memory_bytes: int
    free_memory_bytes: int | None
    free_disk_bytes: int
    gpus: tuple[Gpu, ...]
    gpu_failure: str
    driver: str
    kernels: tuple[str, ...]
    codecs: tuple[str, ...]
    outputs: dict[str, tuple[str, ...]]
    extras: dict[str, tuple[str, ...]]
    pose_cache: str
    pose_cache_bytes: int
    problems: tuple[str, ...]
    notes: tuple[str, ...]


def examine_machine(folder: Path | None = None) -> Machine:
    """Examine the machine without importing anything heavy: packages are known by their metadata.

    Args:
        folder: folder of the engines, present or future; None for the current folder.
    """
    versions = {"python": platform.python_version(), "dispose-rt": __version__, **dict(_package_versions())}
    kernels = tuple(kind for kind in KERNELS if importlib.util.find_spec(f"dispose_rt._kernels_{kind}"))
    codecs = (
        *(name for name in (ENCODER,) if _has_codec(name, "w")),
        *(one for one in DECODERS if _has_codec(one, "r")),
    )
    gpus, gpu_failure = _gpus()
    pose_cache, pose_cache_bytes = _pose_cache()
    return Machine(
        versions=versions,
        platform=platform.platform(),
        cpu=f"{_cpu_model()}, {usable_cores()} cores",
        memory_bytes=_memory_bytes(),
        free_memory_bytes=free_host_bytes(),
        free_disk_bytes=free_disk_bytes(folder or Path.cwd()),
        gpus=gpus,
        gpu_failure=gpu_failure,
        driver=_driver(),
        kernels=kernels,
        codecs=codecs,
        outputs={suffixes: _lacking(encoders) for suffixes, encoders in _output_encoders().items()},
        extras={extra: tuple(name for name in modules if not _is_installed(name)) for extra, modules in EXTRAS.items()},
        pose_cache=pose_cache,
        pose_cache_bytes=pose_cache_bytes,
        problems=tuple(_problems(kernels, codecs)),
        notes=tuple(_notes(gpus, kernels, versions)),
    )


def _package_versions() -> Iterator[tuple[str, str]]:
    for name in (*NEEDED.values(), *OPTIONAL):
        try:
            yield name, version(name)
        except PackageNotFoundError:
            continue


def _output_encoders() -> dict[str, tuple[str, ...]]:
    """Return the encoders of pictures and sound by suffixes of outputs."""
    return {"mp4 m4v mov mkv": (ENCODER, "aac"), "webm": ("libvpx-vp9", "libopus"), "gif": ("gif",)}


def _lacking(encoders: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name for name in encoders if not _has_codec(name, "w"))


def _has_codec(name: str, mode: Literal["r", "w"]) -> bool:
    try:
        from av.codec import Codec

        Codec(name, mode)
    except (ImportError, ValueError):  # ValueError: FFmpeg was built without it
        return False
    return True


def _is_installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _driver() -> str:
    try:
        return Path("/sys/module/nvidia/version").read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):  # none is loaded, or not Linux
        return ""


def _pose_cache() -> tuple[str, int]:
    """Return the pose cache's folder and its size in bytes."""
    try:
        folder = cache_folder("poses")
    except InputError:
        return "", 0
    size_bytes = 0
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            with contextlib.suppress(OSError):  # another process has removed it
                size_bytes += path.stat().st_size
    return str(folder), size_bytes


def _gpus() -> tuple[tuple[Gpu, ...], str]:
    try:
        return find_gpus(), ""
    except DeviceError as error:
        return (), str(error)


def _problems(kernels: tuple[str, ...], codecs: tuple[str, ...]) -> Iterator[str]:
    missing = [module for module in NEEDED if not _is_installed(module)]
    for module in missing:
        yield f"the package {module} is not installed: pip install {NEEDED[module]}"
    if "cpu" not in kernels:
        yield f"the compiled kernels are missing: with a C++ compiler on the PATH, {REINSTALL}"
    if "av" not in missing and ENCODER not in codecs:
        yield f"PyAV has no {ENCODER}, so no mp4 can be written: pip install --force-reinstall --only-binary av av"


def _notes(gpus: tuple[Gpu, ...], kernels: tuple[str, ...], versions: Mapping[str, str]) -> Iterator[str]:
    if not gpus:
        return
    if "cuda" not in kernels:
        yield f"our CUDA kernels are missing, no GPU can be used: with nvcc on the PATH, DISPOSE_RT_CUDA=ON {REINSTALL}"
    if not any("tensorrt" in name for name in versions):
        yield "no TensorRT is installed: pip install 'dispose-rt[tensorrt-rtx]' (see docs/ENGINES.md for others)"


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not Linux
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def _memory_bytes() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not POSIX
        return 0
