"""Packages that AOTInductor compiled, on the CPU or on an NVIDIA GPU. No other module of the runtime imports torch.

torch is imported when the first package is opened: without it, everything else works.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..contract import NETWORKS, NetworkSpec, Sizes
from ..errors import DeviceError, EngineError, InputError
from ..manifest import Manifest
from ..signature import contract_signature, signature_differences
from .aotinductor_package import PackageLabel, cpu_features, read_label, this_machine
from .validation import check_inputs, check_outputs_finite, host_dtype, largest_batch

if TYPE_CHECKING:
    import torch
    from torch import Tensor

CUDNN_BENCHMARK = True
"""Let cuDNN time its convolutions once per shape and keep the fastest: every run repeats the same few shapes."""

_LOADING = threading.Lock()
_DEVICE = re.compile(r"(auto|cpu|cuda)(?::([0-9]+))?")


def import_torch(version: str = "") -> Any:
    """Import torch.

    Args:
        version: the version that compiled the engines, for the message.

    Raises:
        EngineError: it is not installed, or its installation is broken.
    """
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: one of its libraries cannot be loaded
        wanted = f"torch=={version.partition('+')[0]}" if version else "torch"
        raise EngineError(
            f"engines of AOTInductor need torch, which cannot be imported: {error}. Install it: pip install '{wanted}' "
            "(where engines run on the CPU alone, add --index-url https://download.pytorch.org/whl/cpu)"
        ) from error
    return torch


class LoadedPackage:
    """One package, loaded. Runs on tensors; knows nothing of an engine directory.

    Args:
        path: the `.pt2` file.
        device: "cpu", or "cuda:N".

    Raises:
        EngineError: the file is damaged, foreign, or was compiled by another torch or for another processor.
        DeviceError: it was compiled for another device.

    Attributes:
        label: what the package says about itself.
        device: where its inputs must lie and its outputs will.
    """

    device: torch.device

    def __init__(self, path: Path, device: str) -> None:
        self.label = read_label(path)
        torch = import_torch(self.label.torch)
        self.device = torch.device(device)
        _check_fit(path, self.label, _target_of(torch, self.device), torch.__version__)
        _check_room(path)
        self._folder = tempfile.TemporaryDirectory(prefix="dispose-rt-", ignore_cleanup_errors=True)
        try:
            self._model: Any = _load(torch, path, self.device, Path(self._folder.name))
        except Exception as error:  # the loader raises whatever C++ throws
            self._folder.cleanup()
            raise EngineError(f"torch cannot load {path}: {error}") from error
        self._inference_mode = torch.inference_mode
        self._cudnn_flags = torch.backends.cudnn.flags

    def run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Run on the current stream: contiguous inputs in the contract's order to outputs in the contract's order.

        The library trusts dtypes, shapes and strides: whoever calls checks them.
        """
        with self._inference_mode(), self._numerics():
            return list(self._model.boxed_run(list(inputs)))

    def close(self) -> None:
        """Unload the library and remove what was unpacked. Calling it twice is fine."""
        self._model = None
        self._folder.cleanup()

    def _numerics(self) -> contextlib.AbstractContextManager[Any]:
        """float32 means float32: cuDNN would round to TF32, which networks kept in float32 do not bear."""
        if self.device.type == "cpu":
            return contextlib.nullcontext()
        flags: contextlib.AbstractContextManager[Any] = self._cudnn_flags(
            enabled=True, benchmark=CUDNN_BENCHMARK, allow_tf32=False
        )
        return flags


def _load(torch: Any, path: Path, device: torch.device, folder: Path) -> Any:
    """Load with a folder to unpack into: when loading fails, torch leaves there what it has unpacked.

    This is what `torch._inductor.aoti_load_package` calls. That one imports the whole compiler, and compiles tests of
    the processor in order to warn of one that `_check_fit` refuses.
    """
    index = -1 if device.index is None else device.index
    with _LOADING:
        kept = os.environ.get("TMPDIR")
        os.environ["TMPDIR"] = str(folder)
        try:
            # (single-threaded, one runner): the other way records events, which a CUDA graph cannot capture
            return torch._C._aoti.AOTIModelPackageLoader(str(path), "model", True, 1, index)
        finally:
            if kept is None:
                del os.environ["TMPDIR"]
            else:
                os.environ["TMPDIR"] = kept


def _target_of(torch: Any, device: torch.device) -> str:
    if device.type == "cpu":
        return "cpu"
    return "sm_{}{}".format(*torch.cuda.get_device_capability(device))


def _check_fit(path: Path, label: PackageLabel, target: str, torch_version: str) -> None:
    if label.target != target:
        raise DeviceError(f"{path} was compiled for {label.target}, this device is {target}: build it for {target}")
    ours, theirs = (version.partition("+")[0] for version in (torch_version, label.torch))
    if ours != theirs:
        raise EngineError(
            f"{path} was compiled by torch {theirs}, installed is {ours}, and packages run in their own version only: "
            f"pip install 'torch=={theirs}', or build the engines again"
        )
    missing = sorted(set(label.cpu_features) - set(cpu_features())) if cpu_features() else []
    if label.machine != this_machine() or missing:
        lacks = f", which lacks {', '.join(missing)}" if missing else ""
        raise EngineError(
            f"{path} was compiled on {label.machine} for its own processor; this one is {this_machine()}{lacks}. "
            "Build the engines on this machine, or on one of its kind."
        )


def _check_room(path: Path) -> None:
    """The loader unpacks into the folder for temporary files, and does not notice when that is full."""
    folder = tempfile.gettempdir()
    needed, free = path.stat().st_size, shutil.disk_usage(folder).free
    if free < needed:
        raise EngineError(
            f"{path} is unpacked to be loaded, which takes {needed / 1e6:.0f} MB in {folder}: {free / 1e6:.0f} MB are "
            "free. Free space there, or set TMPDIR to a folder with more."
        )


class AotInductorOpener:
    """Opens the networks of one engine directory that are AOTInductor packages.

    Args:
        manifest: the directory; its `targets` say what it was compiled for.
        device: "auto" takes what the engines were built for; "cpu", "cuda" or "cuda:N".

    Raises:
        InputError: the device is unknown.
        DeviceError: it is not there, or the engines were built for another one.
        EngineError: torch is not installed.
    """

    def __init__(self, manifest: Manifest, device: str) -> None:
        self._torch = import_torch(manifest.versions.get("torch", ""))
        self._manifest = manifest
        self._device = _choose_device(self._torch, manifest, device)
        on_gpu = self._device != "cpu"
        self._stream = self._torch.cuda.Stream(self._device) if on_gpu else None
        self._closed = False

    def open(self, network: str) -> AotInductorEngine:
        """Load one network.

        Raises:
            EngineError: the package is damaged or stale, or its tensors are not those of the contract.
            DeviceError: it was compiled for another device.
        """
        if self._closed:
            raise EngineError(f"the network {network} cannot be opened: its directory was closed. Open it again.")
        path, record = self._manifest.engine_path(network), self._manifest.networks[network]
        again = f"Build the directory again: {self._manifest.rebuild_command()}"
        try:
            package = LoadedPackage(path, self._device)
        except (EngineError, DeviceError) as error:
            raise type(error)(f"{network}: {error}. {again}") from error
        sizes, dtype = self._manifest.sizes, record.compute_dtype
        label = package.label
        differences = signature_differences(network, sizes, dtype, label.signature)
        limits = {symbol: sizes.limit(symbol) for symbol in NETWORKS[network].dynamic}
        if (label.network, dict(label.limits)) != (network, limits):
            differences.insert(0, f"it is {label.network} for {dict(label.limits)}, expected {network} for {limits}")
        if record.signature and dict(record.signature) != dict(label.signature):
            differences.append("its tensors are not those that the manifest lists")
        if differences:
            raise EngineError(f"{path} is not the engine that it should be: {'; '.join(differences)}. {again}")
        return AotInductorEngine(package, NETWORKS[network], sizes, dtype, self._stream)

    def close(self) -> None:
        """Open no more networks. Calling it twice is fine."""
        self._closed = True
        self._stream = None


def _choose_device(torch: Any, manifest: Manifest, device: str) -> str:
    """Resolve a device string to "cpu" or "cuda:N", and check that it is what the engines were built for."""
    match = _DEVICE.fullmatch(device)
    if match is None or (match[2] and match[1] != "cuda"):
        raise InputError(f"device is {device!r}; expected 'auto', 'cpu', 'cuda' or 'cuda:N'")
    targets = manifest.targets
    kind = match[1] if match[1] != "auto" else "cpu" if targets == ("cpu",) else "cuda"
    built = f"the engines of {manifest.folder} were compiled for {', '.join(targets) or 'no device'}"
    if kind == "cpu":
        if targets != ("cpu",):
            again = manifest.rebuild_command(target="cpu", output=f"{manifest.folder}-cpu")
            raise DeviceError(f"{built}, device is 'cpu': pass 'auto' or 'cuda', or build engines for the CPU: {again}")
        return "cpu"
    if not torch.cuda.is_available():
        cpu_only = getattr(torch.version, "cuda", None) is None
        reason = "the installed torch is built without CUDA" if cpu_only else "torch finds no NVIDIA GPU or driver"
        cure = f"pip install 'torch=={torch.__version__.partition('+')[0]}'" if cpu_only else "run nvidia-smi"
        raise DeviceError(f"{built}, device is {device!r}, but {reason}: {cure}")
    index = int(match[2]) if match[2] else torch.cuda.current_device()
    if index >= torch.cuda.device_count():
        raise DeviceError(
            f"there is no cuda:{index}: this machine has {torch.cuda.device_count()} GPUs, from cuda:0 on"
        )
    capability = _target_of(torch, torch.device("cuda", index))
    if capability not in targets:
        again = manifest.rebuild_command(target=capability, output=f"{manifest.folder}-{capability}")
        raise DeviceError(f"{built}, cuda:{index} is {capability}. Build engines for it: {again}")
    return f"cuda:{index}"


class AotInductorEngine:
    """One network as a loaded package; see `AotInductorOpener.open`."""

    def __init__(
        self, package: LoadedPackage, spec: NetworkSpec, sizes: Sizes, compute_dtype: str, stream: Any | None
    ) -> None:
        self.name = spec.name
        self._package: LoadedPackage | None = package
        self._spec = spec
        self._sizes = sizes
        self._compute_dtype = compute_dtype
        self._stream = stream
        self._lock = threading.Lock()  # the library runs one call at a time
        torch = import_torch()
        dtypes = {name: dtype for name, (dtype, _) in contract_signature(spec.name, sizes, compute_dtype).items()}
        self._torch_dtypes = {name: getattr(torch, dtype) for name, dtype in dtypes.items()}
        self._host_dtypes = {name: np.dtype(host_dtype(dtype)) for name, dtype in dtypes.items()}
        self._from_numpy, self._float32 = torch.from_numpy, torch.float32

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """See `Engine.run`. On a GPU it uses a stream of its own and waits for it; bfloat16 is float32 outside."""
        package = self._opened()
        check_inputs(self._spec, self._sizes, self._compute_dtype, inputs)
        with self._on_stream():
            tensors = {name: self._to_device(name, array, package) for name, array in inputs.items()}
            outputs = {name: self._to_host(tensor) for name, tensor in self._run(package, tensors).items()}
        check_outputs_finite(self.name, self._compute_dtype, outputs)
        return outputs

    def run_tensors(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run on tensors of the engine's device, on the caller's current stream, without copies and without waiting.

        It can be captured into a CUDA graph, after one run that is not captured.

        Args:
            inputs: every input of the contract by name, contiguous, with the contract's dtype and shape.

        Returns:
            Every output by name, on the device, contiguous. Whether they are finite is not looked at.

        Raises:
            InputError: a tensor is missing, unknown, elsewhere, or of another dtype, shape or layout.
            EngineError: the engine failed.
        """
        package = self._opened()
        self._check_tensors(package, inputs)
        return self._run(package, inputs)

    def max_batch(self, dimension: str) -> int:
        """See `Engine.max_batch`."""
        return largest_batch(self._spec, self._sizes, dimension)

    def close(self) -> None:
        """See `Engine.close`. What the loader unpacked is removed."""
        with self._lock:
            package, self._package = self._package, None
            if package is not None:
                package.close()

    def _opened(self) -> LoadedPackage:
        if self._package is None:
            raise EngineError(f"the network {self.name} was closed")
        return self._package

    def _run(self, package: LoadedPackage, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        ordered = [inputs[tensor.name] for tensor in self._spec.inputs]
        try:
            with self._lock:
                outputs = package.run(ordered)
        except Exception as error:  # a RuntimeError of any C++ exception; running out of memory is one
            raise EngineError(f"the network {self.name} failed in AOTInductor: {error}") from error
        pairs = zip(self._spec.outputs, outputs, strict=True)
        return {tensor.name: output.contiguous() for tensor, output in pairs}

    def _to_device(self, name: str, array: NDArray[Any], package: LoadedPackage) -> Tensor:
        # torch takes the memory as it is, but no memory that it could not write to
        safe = np.require(array, requirements=["C_CONTIGUOUS", "ALIGNED", "WRITEABLE"])
        tensor: Tensor = self._from_numpy(safe)
        return tensor.to(package.device, self._torch_dtypes[name])  # to bfloat16: to the nearest, ties to even

    def _to_host(self, tensor: Tensor) -> NDArray[Any]:
        host = tensor.cpu()
        name = str(host.dtype).removeprefix("torch.")
        return (host.to(self._float32) if host_dtype(name) != name else host).numpy()

    @contextlib.contextmanager
    def _on_stream(self) -> Iterator[None]:
        if self._stream is None:
            yield
            return
        torch = import_torch()
        with torch.cuda.stream(self._stream):
            yield

    def _check_tensors(self, package: LoadedPackage, inputs: Mapping[str, Tensor]) -> None:
        problems = []
        for name, tensor in inputs.items():
            wanted = self._torch_dtypes.get(name)
            if wanted is not None and (tensor.dtype, tensor.device) != (wanted, package.device):
                problems.append(f"{name} is {tensor.dtype} on {tensor.device}, expected {wanted} on {package.device}")
            elif not tensor.is_contiguous():
                problems.append(f"{name} is not contiguous")
        if problems:
            raise InputError(f"the network {self.name} cannot take these tensors: {'; '.join(sorted(problems))}")
        # arrays of the same shapes without memory: names and shapes are checked in one place
        empty = {dtype: np.empty((), dtype) for dtype in (*self._host_dtypes.values(), np.dtype(np.float32))}
        stand_ins = {
            name: np.broadcast_to(empty[self._host_dtypes.get(name, np.dtype(np.float32))], tuple(tensor.shape))
            for name, tensor in inputs.items()
        }
        check_inputs(self._spec, self._sizes, self._compute_dtype, stand_ins)
