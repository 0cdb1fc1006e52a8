"""Checks whether an engine directory can be used on this machine; one error lists every problem and its remedy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from ..device import Gpu, compiled_module, resolve_device
from ..device.modules import REINSTALL
from ..errors import DeviceError, EngineError, ManifestError
from .backends.tensorrt_flavour import FLAVOURS, portable_plan_runs_on, tensorrt_version
from .footprint import least_bytes
from .integrity import find_damage, repair_advice
from .manifest import Manifest
from .trust import find_distrust

_PACKAGES = {"tensorrt_rtx": "tensorrt-rtx-cu13", "tensorrt": "tensorrt", "aotinductor": "torch"}


def _package_version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _kernel_problem() -> str | None:
    try:
        compiled_module("cuda")
    except DeviceError as error:
        return str(error)
    return None


@dataclass(frozen=True)
class Host:
    """Facts about the machine, each looked up when it is needed.

    Attributes:
        resolve_gpu: returns the GPU that a device string means; raises DeviceError where there is none.
        tensorrt_version: returns the version of a flavour of TensorRT; raises EngineError where it cannot be imported.
        package_version: returns the version of an installed Python package, or None.
        kernel_problem: returns why our CUDA kernels cannot be used, or None.
    """

    resolve_gpu: Callable[[str], Gpu] = resolve_device
    tensorrt_version: Callable[[str], str] = tensorrt_version
    package_version: Callable[[str], str | None] = _package_version
    kernel_problem: Callable[[], str | None] = _kernel_problem


@dataclass(frozen=True)
class Problem:
    """One reason why a directory cannot be used, and its remedy."""

    text: str
    remedy: str


def check_directory(
    manifest: Manifest, device: str = "auto", host: Host | None = None, *, rehash: bool = False
) -> None:
    """Check an engine directory before it is used.

    Args:
        manifest: the directory.
        device: "auto", "cpu", "cuda" or "cuda:N".
        host: facts about the machine; None looks them up.
        rehash: hash every file again, whatever is remembered.

    Raises:
        ManifestError: lists every problem, and the commands that fix them.
        InputError: the device is unknown.
    """
    problems = find_problems(manifest, device, host or Host(), rehash=rehash)
    if problems:
        remedies = dict.fromkeys(problem.remedy for problem in problems)
        headline = f"the engine directory {manifest.folder} cannot be used:"
        raise ManifestError(headline, [problem.text for problem in problems], "\n".join(remedies))


def find_problems(manifest: Manifest, device: str, host: Host, *, rehash: bool = False) -> list[Problem]:
    """Return every problem of an engine directory on this machine; see `check_directory`."""
    return [
        *_trust_problems(manifest),
        *_damage_problems(manifest, rehash),
        *_software_problems(manifest, host),
        *_device_problems(manifest, device, host),
    ]


def runs_on_gpu(manifest: Manifest) -> bool:
    """Return whether the directory's engines need a GPU."""
    return manifest.backend != "onnxruntime" and "cpu" not in manifest.targets


def _trust_problems(manifest: Manifest) -> Iterator[Problem]:
    if distrust := find_distrust(manifest):
        yield Problem(*distrust)


def _damage_problems(manifest: Manifest, rehash: bool) -> Iterator[Problem]:
    damages = find_damage(manifest, rehash=rehash)
    for damage in damages:
        yield Problem(str(damage), repair_advice(manifest, damages))


def _software_problems(manifest: Manifest, host: Host) -> Iterator[Problem]:
    """Engines run only in the version of the software that compiled them."""
    backend = manifest.backend
    if backend == "onnxruntime":
        return
    again = f"build the directory with the installed version: {manifest.rebuild_command()}"
    recorded = backend if backend in FLAVOURS else "torch"
    built = manifest.versions.get(recorded)
    if built is None:
        yield Problem(f"it does not say which version of {recorded} built it", f"To know it, {again}")
        return
    install = f"pip install '{_PACKAGES[backend]}=={_public(built)}'"
    if backend in FLAVOURS:
        try:
            installed = host.tensorrt_version(backend)
        except EngineError as error:
            yield Problem(f"it needs {recorded} {built}: {error}", f"Install what built it: {install}")
            return
    else:
        found = host.package_version("torch")
        if found is None:
            yield Problem(f"it needs {recorded} {built}, which is not installed", f"Install what built it: {install}")
            return
        installed = found
    if _public(installed) != _public(built):
        text = f"it was built with {recorded} {built}, installed is {installed}: engines run in their own version only"
        yield Problem(text, f"Install what built it: {install}; or {again}")


def _public(text: str) -> str:
    """Return a version without its local part: "2.13.0+cpu" -> "2.13.0"."""
    return text.partition("+")[0]


def _device_problems(manifest: Manifest, device: str, host: Host) -> Iterator[Problem]:
    folder = manifest.folder
    on_cpu = manifest.rebuild_command(
        backend="onnxruntime", precision="fp32", target="", output=f"{folder}-onnxruntime"
    )
    if not runs_on_gpu(manifest):
        if device not in ("auto", "cpu"):
            on_gpu = manifest.rebuild_command(backend="tensorrt_rtx", target="", output=f"{folder}-tensorrt_rtx")
            yield Problem(
                f"its engines run on the CPU, device is {device!r}",
                f"Pass device='auto' or 'cpu', or build engines for the GPU: {on_gpu}",
            )
        return
    if device == "cpu":
        yield Problem(
            f"its {manifest.backend} engines need an NVIDIA GPU, device is 'cpu'",
            f"Pass device='auto' or 'cuda', or build engines for the CPU: {on_cpu}",
        )
        return
    if reason := host.kernel_problem():
        yield Problem(
            reason,
            "Install the package again where a CUDA compiler is (nvcc, of NVIDIA's CUDA toolkit): "
            f"DISPOSE_RT_CUDA=ON {REINSTALL}",
        )
    try:
        gpu = host.resolve_gpu(device)
    except DeviceError as error:
        yield Problem(str(error), f"Without an NVIDIA GPU, build engines for the CPU: {on_cpu}")
        return
    yield from _gpu_problems(manifest, gpu, host)


def _gpu_problems(manifest: Manifest, gpu: Gpu, host: Host) -> Iterator[Problem]:
    label = f"{gpu.name} (cuda:{gpu.index})"
    unknown = manifest.backend == "tensorrt_rtx" and not portable_plan_runs_on(gpu.capability)
    if gpu.capability not in manifest.targets and (manifest.targets or unknown):
        built_for = ", ".join(manifest.targets) or "what TensorRT for RTX runs on"
        # it can be made to target Turing, but no data-centre GPU after Ampere
        leave = unknown and gpu.capability != "sm_75"
        change = {"backend": "aotinductor", "target": ""} if leave else {"target": gpu.capability}
        yield Problem(
            f"it was built for {built_for}, and {label} is {gpu.capability}",
            f"Build for this GPU: {manifest.rebuild_command(**change)}",
        )
    bindings = host.package_version("cuda-bindings")
    if bindings and _major(gpu.driver_version) < _major(bindings):
        yield Problem(
            f"the NVIDIA driver supports CUDA {gpu.driver_version}, installed packages need {_major(bindings)}.0",
            "Update the NVIDIA driver (https://www.nvidia.com/drivers).",
        )
    needed = least_bytes(manifest)
    if gpu.free_bytes < needed:
        smaller = manifest.rebuild_command(**{"tile-frames": str(max(2, manifest.sizes.tile // 2))})
        yield Problem(
            f"{label} has {_giga(gpu.free_bytes)} of {_giga(gpu.total_bytes)} GB free; a run takes at least "
            f"{_giga(needed)} GB, with engines closed behind each stage and frames decoded one by one",
            "Close other programs on the GPU (nvidia-smi lists them), pass another GPU, e.g. device='cuda:1', or build "
            f"engines for a smaller --size or shorter tiles: {smaller}",
        )


def _giga(count: int) -> str:
    return f"{count / 1e9:.2f}"


def _major(text: str) -> int:
    digits = text.partition(".")[0]
    return int(digits) if digits.isdecimal() else 0
