"""Packages that AOTInductor compiled, on the CPU or on an NVIDIA GPU. No other module of the runtime imports torch.

torch is imported when the first package is opened; everything else works without it.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...contract import NETWORKS
from ...device import Array, CpuDevice, Device, Gpu, Graph, Stream, check_device_name, resolve_device
from ...device.cpu import submit
from ...device.cuda import CudaDevice
from ...errors import DeviceError, DisposeError, EngineError, OutOfMemoryError
from ...system.memory import is_out_of_memory
from ..manifest import Manifest
from ..signature import signature_differences
from .aotinductor_package import PackageLabel, cpu_features, read_label, this_machine
from .protocol import Engine, EngineLoader
from .torch_numerics import ExactNumerics
from .torch_tensors import view_as_tensor
from .validation import check_alive

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_LOADING = threading.Lock()


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


_VERSION = re.compile(r"[0-9][0-9A-Za-z_.+!-]{0,63}")


class LoadedPackage:
    """One package, loaded. Runs on tensors; knows nothing of an engine directory.

    Args:
        path: the `.pt2` file.
        device: "cpu", or "cuda:N".

    Raises:
        EngineError: the file is damaged, foreign, or was compiled by another torch or for another processor.
        DeviceError: it was compiled for another device.

    Attributes:
        label: the package's description of itself.
        device: device of its inputs and outputs.
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
        # float32 means float32: cuDNN would round to TF32, which networks kept in float32 do not bear
        on_cpu = self.device.type == "cpu"
        self._numerics: contextlib.AbstractContextManager[Any] = (
            contextlib.nullcontext() if on_cpu else ExactNumerics(torch)
        )

    def run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Run on the current stream: contiguous inputs in the contract's order to outputs in the contract's order.

        The library trusts dtypes, shapes and strides: the caller checks them.
        """
        with self._inference_mode(), self._numerics:
            return list(self._model.boxed_run(list(inputs)))

    def close(self) -> None:
        """Unload the library and remove what was unpacked. Calling it twice is fine."""
        self._model = None
        self._folder.cleanup()


def _load(torch: Any, path: Path, device: torch.device, folder: Path) -> Any:
    """Load a package with a folder of its own to unpack into: a failed load leaves its unpacked files behind.

    This is what `torch._inductor.aoti_load_package` calls. The latter imports the whole compiler, and compiles tests of
    the processor only to warn of what `_check_fit` refuses.
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
    if not _VERSION.fullmatch(label.torch):  # it gets into a command
        raise EngineError(f"{path} was compiled by torch {label.torch!a:.60}, which is no version: build it again")
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
    """Check that there is room to unpack: the loader does not notice when the folder for temporary files is full."""
    folder = tempfile.gettempdir()
    needed, free = path.stat().st_size, shutil.disk_usage(folder).free
    if free < needed:
        raise EngineError(
            f"{path} is unpacked to be loaded, which takes {needed / 1e6:.0f} MB in {folder}: {free / 1e6:.0f} MB are "
            "free. Free space there, or set TMPDIR to a folder with more."
        )


class AotInductorLoader(EngineLoader):
    """Opens the networks of one engine directory that are AOTInductor packages.

    Args:
        manifest: the directory; its `targets` say what it was compiled for.
        device: "auto" for the device that the engines were built for; "cpu", "cuda" or "cuda:N".

    Raises:
        InputError: the device is unknown.
        DeviceError: it is not there, or the engines were built for another one.
        EngineError: torch is not installed.
    """

    keeps_graphs = False  # each has memory of its own for what its network computes: gigabytes

    def __init__(self, manifest: Manifest, device: str) -> None:
        self.torch = import_torch(manifest.versions.get("torch", ""))
        self._manifest = manifest
        gpu = _choose_gpu(self.torch, manifest, device)
        self.device: Device = CpuDevice() if gpu is None else CudaDevice(gpu)
        if gpu is not None:
            self.device.pool.reclaim = self.torch.cuda.empty_cache  # blocks that torch caches may be needed now
        self.stream = self.device.stream()
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
        self.trim()  # weights are allocated beside our memory
        try:
            package = LoadedPackage(path, self.device.name)
            self._wait_for_weights()
        except (EngineError, DeviceError) as error:
            if error.__cause__ is not None and is_out_of_memory(error.__cause__):
                raise OutOfMemoryError(
                    f"{network} takes {record.files[0].size_bytes / 1e6:,.0f} MB of {self.device.name}, which lacks "
                    f"them: {error}. Close other programs on it, or build with a smaller --size or --tile-frames"
                ) from error
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
            package.close()
            raise EngineError(f"{path} is not the engine that it should be: {'; '.join(differences)}. {again}")
        return AotInductorEngine(self, self._manifest, network, package)

    def _wait_for_weights(self) -> None:
        """Wait for copies that the package's loader has queued.

        It copies from memory that is not pinned, on the default stream. Such a copy may return before its last bytes
        have arrived, and our stream does not wait for the default one.
        """
        if self.device.name != "cpu":
            self.torch.cuda.synchronize(self.device.name)

    def capture(self, body: Callable[[], None]) -> Graph:
        """See `EngineLoader.capture`. On a GPU, what torch allocates meanwhile belongs to the graph while that lives.

        cuDNN's choices are kept per thread: without a run in the same thread before, it would time its convolutions
        now, which cannot be captured.
        """
        if self.device.name == "cpu":
            return super().capture(body)
        cuda = self.torch.cuda
        try:
            with cuda.device(self.device.name):
                cuda.synchronize()
                self.trim()  # the graph's memory comes on top of what torch and our pool keep
                pool = cuda.MemPool()
                with cuda.use_mem_pool(pool):
                    return _PooledGraph(super().capture(body), pool)
        except DisposeError:
            raise
        except Exception as error:  # torch raises whatever C++ throws
            raise DeviceError(f"torch cannot give a graph memory of its own: {error}") from error

    def close(self) -> None:
        """Open no more networks. Calling it twice is fine."""
        if not self._closed:
            self._closed = True
            self.stream.close()
            self.device.close()


class _PooledGraph(Graph):
    """A graph and the memory in which torch's part of it computes."""

    def __init__(self, graph: Graph, memory: object) -> None:
        self._graph = graph
        self._memory: object | None = memory

    def launch(self, stream: Stream) -> None:
        """See `Graph.launch`."""
        self._graph.launch(stream)

    def close(self) -> None:
        """See `Graph.close`."""
        self._graph.close()
        self._memory = None


def _choose_gpu(torch: Any, manifest: Manifest, device: str) -> Gpu | None:
    """Find the GPU that a device string means, or None for the CPU, and check that the engines were built for it."""
    check_device_name(device)
    targets = manifest.targets
    built = f"the engines of {manifest.folder} were compiled for {', '.join(targets) or 'no device'}"
    if device == "cpu" or (device == "auto" and targets == ("cpu",)):
        if targets != ("cpu",):
            again = manifest.rebuild_command(target="cpu", output=f"{manifest.folder}-cpu")
            raise DeviceError(f"{built}, device is 'cpu': pass 'auto' or 'cuda', or build engines for the CPU: {again}")
        return None
    if not torch.cuda.is_available():
        cpu_only = getattr(torch.version, "cuda", None) is None
        reason = "the installed torch is built without CUDA" if cpu_only else "torch finds no NVIDIA GPU or driver"
        cure = f"pip install 'torch=={torch.__version__.partition('+')[0]}'" if cpu_only else "run nvidia-smi"
        raise DeviceError(f"{built}, device is {device!r}, but {reason}: {cure}")
    gpu = resolve_device(device)
    if gpu.capability not in targets:
        again = manifest.rebuild_command(target=gpu.capability, output=f"{manifest.folder}-{gpu.capability}")
        raise DeviceError(f"{built}, cuda:{gpu.index} is {gpu.capability}. Build engines for it: {again}")
    return gpu


class AotInductorEngine(Engine):
    """One network as a loaded package; see `AotInductorLoader.open`."""

    def __init__(self, loader: AotInductorLoader, manifest: Manifest, network: str, package: LoadedPackage) -> None:
        dtype = manifest.networks[network].compute_dtype
        super().__init__(network, manifest.sizes, dtype, loader.device, loader.stream)
        self._torch = loader.torch
        self._package: LoadedPackage | None = package
        self._views: dict[str, Tensor] = {}
        self._failures = self._count_failed_allocations()

    def _place(self, name: str, array: Array) -> None:
        self._views[name] = view_as_tensor(self._torch, array)

    def _resize(self) -> None:
        """Nothing to do: runs take the fronts of the views when they are queued."""

    def _queue(self, stream: Stream) -> None:
        inputs = [self._front(tensor.name) for tensor in self._spec.inputs]
        outputs = [self._front(tensor.name) for tensor in self._spec.outputs]
        if self.device.name == "cpu":
            submit(stream, self._run_package, inputs, outputs, tuple(self._tensors.values()))
            return
        cuda = self._torch.cuda
        with cuda.stream(cuda.ExternalStream(stream.handle, self.device.name)):
            self._run_package(inputs, outputs, (), stream.capturing)

    def _front(self, name: str) -> Tensor:
        view, shape = self._views[name], self.shape(name)
        return view if tuple(view.shape) == shape else view[: shape[0]]

    def _run_package(
        self, inputs: list[Tensor], outputs: list[Tensor], arrays: Sequence[Array], capturing: bool = False
    ) -> None:
        """Run on torch's current stream, and copy the results from torch's memory to the output arrays."""
        check_alive(arrays)  # a graph may be launched late
        self._check_open()
        try:
            results = self._call(inputs)
        except OutOfMemoryError:
            pool = self.device.pool
            if capturing or pool.reserved_bytes == pool.used_bytes:
                raise
            pool.trim()
            results = self._call(inputs)
        shapes = [tuple(tensor.shape) for tensor in results], [tuple(tensor.shape) for tensor in outputs]
        if shapes[0] != shapes[1]:
            raise EngineError(f"the network {self.name} returned tensors of {shapes[0]}, expected {shapes[1]}")
        with self._torch.inference_mode():
            for target, result in zip(outputs, results, strict=True):
                target.copy_(result, non_blocking=True)

    def _call(self, inputs: list[Tensor]) -> list[Tensor]:
        assert self._package is not None
        try:
            return self._package.run(inputs)
        except Exception as error:  # a RuntimeError of any C++ exception
            before, self._failures = self._failures, self._count_failed_allocations()
            if self._failures > before or isinstance(error, self._torch.OutOfMemoryError):
                raise OutOfMemoryError(
                    f"the network {self.name} needs more memory than {self.device.name} has left: close other programs "
                    "on it, or build with a smaller --size or --tile-frames"
                ) from error
            raise EngineError(f"the network {self.name} failed in AOTInductor: {error}") from error

    def _count_failed_allocations(self) -> int:
        """Count torch's failed allocations on the device: exceptions of a package do not say that memory ran out."""
        if self.device.name == "cpu":
            return 0
        return int(self._torch.cuda.memory_stats(self.device.name).get("num_ooms", 0))

    def _free(self) -> None:
        with contextlib.suppress(DeviceError):  # the caller that waits for a run gets its error
            self.stream.synchronize()
        self._views.clear()
        if self._package is not None:
            self._package.close()
            self._package = None
