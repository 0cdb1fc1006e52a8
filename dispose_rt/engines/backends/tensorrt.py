"""TensorRT engines on an NVIDIA GPU, built with either flavour of TensorRT."""

from __future__ import annotations

import contextlib
import mmap
import shlex
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ...device import Array, Graph, Stream, resolve_device
from ...device.cuda import CudaDevice
from ...errors import DeviceError, DeviceLostError, DisposeError, EngineError, OutOfMemoryError
from ...system.sealed_file import read_sealed, write_sealed
from ..manifest import Manifest
from ..signature import Signature, signature_differences
from .protocol import Engine, EngineLoader
from .tensorrt_flavour import RUNTIME_CACHE_SUFFIX, builder_lock, load_flavour, name_dimensions, read_head


class TensorRtLoader(EngineLoader):
    """Loads the TensorRT engines of one directory, which share a GPU, a runtime, a stream and one scratch memory.

    Args:
        manifest: a directory built for "tensorrt_rtx" or "tensorrt".
        device: "auto", "cuda" or "cuda:N".

    Raises:
        EngineError: that flavour of TensorRT is not installed.
        DeviceError: there is no such GPU.
    """

    device: CudaDevice

    def __init__(self, manifest: Manifest, device: str) -> None:
        self.manifest = manifest
        self.flavour = load_flavour(manifest.backend)
        self.device = CudaDevice(resolve_device(device))
        self.device.make_current()
        self.log = self.flavour.create_log()
        self.runtime: Any = self.flavour.create_runtime(self.log)
        self.stream = self.device.stream()
        self.scratch = Scratch(self.stream)

    def open(self, network: str) -> TensorRtEngine:
        """Load one network.

        Raises:
            EngineError: the file is missing, damaged, foreign, or not the contract's network.
            DeviceError: the GPU lacks memory.
        """
        if self.runtime is None:
            raise EngineError(f"the network {network} cannot be opened: its directory was closed. Open it again.")
        built_with = self.manifest.networks[network].backend
        if built_with != self.flavour.name:
            raise EngineError(f"{network} was built for {built_with}, and is opened with {self.flavour.name}")
        self.device.make_current()
        self.trim()  # TensorRT allocates for itself
        return TensorRtEngine(self, network)

    def capture(self, body: Callable[[], None]) -> Graph:
        """See `EngineLoader.capture`. The driver allocates for the graph, beside our memory."""
        self.trim()
        return _ScratchGraph(self.stream.capture(body), self.scratch)

    def explain_failure(self, what: str, advice: str = "") -> DisposeError:
        """Return the error of a call that TensorRT refused, with what its log says.

        Args:
            what: what failed.
            advice: what helps where it is not a lack of memory.
        """
        lacks_memory, quoted = self.log.lacks_memory, self.log.quote()
        if not lacks_memory:
            return EngineError(f"{what}:\n{quoted}" + (f"\n{advice}" if advice else ""))
        free, total = self.device.memory_bytes()
        folder = shlex.quote(str(self.manifest.folder))
        return OutOfMemoryError(
            f"{what}, as the GPU is out of memory: {free / 1e6:,.0f} of {total / 1e6:,.0f} MB are free:\n{quoted}\n"
            "Close other programs on it (nvidia-smi lists them), pass a smaller decode_chunk, or build engines with a "
            f"smaller --size or --tile-frames; `dispose-rt doctor {folder} --plan` says what fits"
        )

    def close(self) -> None:
        """Free the shared resources, after the engines. Calling it twice is fine."""
        if self.runtime is not None:
            self.scratch.close()
            self.stream.close()
            with builder_lock():
                self.runtime = None
            self.device.close()


class Scratch:
    """One block of memory in which all engines of a directory compute, one after the other.

    This is safe because all runs follow each other on one stream. Allocating an engine that needs more memory moves
    it; graphs that were captured before would compute at the old address. When the engine that needs most is closed,
    the memory shrinks to what the others need.

    Attributes:
        moves: number of times that it has moved.
    """

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._memory: Array | None = None
        self._contexts: dict[int, Any] = {}
        self._needs: dict[int, int] = {}
        self.moves = 0

    def attach(self, context: Any, size_bytes: int) -> None:
        """Let a context compute here.

        Args:
            context: an execution context whose memory the caller provides.
            size_bytes: memory that it needs.

        Raises:
            OutOfMemoryError: the GPU lacks memory; engines that were attached before keep theirs.
            DeviceError: it would have to grow while a graph is being captured.
        """
        if self._memory is None or self._memory.nbytes < size_bytes:
            self._grow(size_bytes)
        self._contexts[id(context)] = context
        self._needs[id(context)] = size_bytes
        self._point([context])

    def _grow(self, size_bytes: int) -> None:
        device = self._stream.device
        device.check_allocation()
        before = self._memory.nbytes if self._memory is not None else 0
        self._stream.synchronize()
        self._release()  # first: the two need not fit side by side
        try:
            self._memory = device.empty((size_bytes,), "uint8")
        except OutOfMemoryError:
            if before:
                with contextlib.suppress(OutOfMemoryError):
                    self._memory = device.empty((before,), "uint8")
            raise
        finally:
            if self._memory is None:
                self._contexts.clear()  # they attach again before they run
                self._needs.clear()
            self._point(self._contexts.values())

    def _point(self, contexts: Iterable[Any]) -> None:
        if self._memory is not None:
            for context in contexts:
                # more than it needs is fine, less would be a message in the log and wrong results: `attach` sees to it
                context.set_device_memory(self._memory.address, self._memory.nbytes)

    def _release(self) -> None:
        if self._memory is not None:
            self._memory.free()
            self._memory = None
            self.moves += 1
            with contextlib.suppress(DeviceLostError):
                self._stream.device.pool.trim()  # the largest block of all: others cannot allocate what the pool keeps

    def serves(self, context: Any) -> bool:
        """Whether a context computes here."""
        return id(context) in self._contexts

    def detach(self, context: Any) -> None:
        """Forget a context that attaches again."""
        self._contexts.pop(id(context), None)

    def leave(self, context: Any) -> None:
        """Forget a context that is destroyed, after its runs, and free what none of the others needs.

        The others attach again before they run.
        """
        self.detach(context)
        self._needs.pop(id(context), None)
        if self._memory is not None and max(self._needs.values(), default=0) < self._memory.nbytes:
            self._contexts.clear()
            self._release()

    def close(self) -> None:
        """Free the memory, after the runs in it. Calling it twice is fine."""
        self._contexts.clear()
        self._needs.clear()
        self._release()


class _ScratchGraph(Graph):
    """A graph whose kernels compute where the scratch memory was when it was captured."""

    def __init__(self, graph: Graph, scratch: Scratch) -> None:
        self._graph = graph
        self._scratch = scratch
        self._moves = scratch.moves

    @property
    def is_usable(self) -> bool:
        """See `Graph.is_usable`."""
        return self._scratch.moves == self._moves

    def launch(self, stream: Stream) -> None:
        """See `Graph.launch`. Refused once the scratch memory has moved."""
        if not self.is_usable:
            raise DeviceError(
                "the graph computes in memory that TensorRT engines have given up since: one that was allocated or run "
                "after the capture needed more, or they were closed. Allocate all of them first, or capture it again."
            )
        self._graph.launch(stream)

    def close(self) -> None:
        """See `Graph.close`."""
        self._graph.close()


class TensorRtEngine(Engine):
    """One network: an engine, its execution context, and an array on the GPU for each of its tensors."""

    def __init__(self, loader: TensorRtLoader, network: str) -> None:
        compute_dtype = loader.manifest.networks[network].compute_dtype
        super().__init__(network, loader.manifest.sizes, compute_dtype, loader.device, loader.stream)
        self._loader = loader
        self._context: Any = None
        self._cache: _RuntimeCache | None = None
        self._built_limits = dict(self._limits)
        self._was_limited = False
        self._engine: Any = _deserialize(loader, network)
        try:
            self._check_signature()
            self._create_context()
            self._set_shapes()
        except BaseException:
            self.close()
            raise

    def _create_context(self) -> None:
        loader = self._loader
        gpu = loader.device.gpu
        path = loader.manifest.folder / f"{self.name}.{gpu.capability}{RUNTIME_CACHE_SUFFIX}"
        kept = read_sealed(path) if loader.flavour.has_runtime_cache else None
        with builder_lock():  # kernels are compiled here, and what the compiler has to say is logged
            self._context, cache = loader.flavour.create_context(self._engine, kept)
        if self._context is None:
            raise loader.explain_failure(f"{loader.flavour.name} cannot prepare {self.name} on the {gpu.name}")
        if cache is not None:
            self._cache = _RuntimeCache(path, cache, kept)
            self._cache.save()

    def allocate(self) -> None:
        """See `Engine.allocate`."""
        super().allocate()
        scratch = self._loader.scratch
        if not scratch.serves(self._context):
            scratch.attach(self._context, self._scratch_bytes())

    def _scratch_bytes(self) -> int:
        """Memory that the runs that follow need: for the largest shapes of the build, unless limits were lowered."""
        largest = int(self._engine.device_memory_size_v2)
        if not self._was_limited:
            return largest
        self._loader.device.make_current()
        needed = int(self._context.update_device_memory_size_for_shapes())
        self._require(needed > 0 or largest == 0, f"to size its memory for {self._dynamic}")
        return needed

    def _place(self, name: str, array: Array) -> None:
        self._require(self._context.set_tensor_address(name, array.address), f"to place {name}")

    def _resize(self) -> None:
        self._loader.device.make_current()
        self._set_shapes()
        self._was_limited |= self._limits != self._built_limits
        if self._was_limited:  # its memory, and how it is divided, depend on the shapes from now on
            self._loader.scratch.detach(self._context)

    def _set_shapes(self) -> None:
        for tensor in self._spec.inputs:
            if any(dim in self._spec.dynamic for dim in tensor.shape):
                shape = self.shape(tensor.name)
                self._require(self._context.set_input_shape(tensor.name, shape), f"{tensor.name} of shape {shape}")

    def _require(self, succeeded: bool, what: str) -> None:
        if not succeeded:
            raise self._loader.explain_failure(f"{self.name}: TensorRT refuses {what}")

    def _check_signature(self) -> None:
        """Compare the engine's tensors with the contract."""
        theirs = self._signature()
        lines = signature_differences(self.name, self._sizes, self._compute_dtype, theirs)
        for tensor in self._spec.inputs:
            if not lines and any(dim in self._spec.dynamic for dim in tensor.shape):
                largest = tuple(self._engine.get_tensor_profile_shape(tensor.name, 0)[2])
                if largest != self.shape(tensor.name):
                    lines.append(f"{tensor.name} is at most {list(largest)}, expected {list(self.shape(tensor.name))}")
        if lines:
            path = self._loader.manifest.engine_path(self.name)
            raise EngineError(
                f"{path} is not the engine that it should be: engine and contract differ: {'; '.join(lines)}. "
                + _rebuild(self._loader)
            )

    def _signature(self) -> dict[str, Signature]:
        """Return dtype and shape of the engine's tensors; dynamic dimensions get the contract's names, or "?"."""
        engine = self._engine
        ours = {tensor.name: tensor.shape for tensor in (*self._spec.inputs, *self._spec.outputs)}
        theirs = {}
        for name in (engine.get_tensor_name(index) for index in range(engine.num_io_tensors)):
            shape = name_dimensions(tuple(engine.get_tensor_shape(name)), ours.get(name, ()), self._spec.dynamic)
            theirs[name] = (self._loader.flavour.dtype_name(engine.get_tensor_dtype(name)), shape)
        return theirs

    def _queue(self, stream: Stream) -> None:
        loader = self._loader
        loader.device.make_current()
        loader.log.messages.clear()
        if self._context.execute_async_v3(stream.handle):
            return
        if loader.log.lacks_memory and not stream.capturing:  # its kernels are loaded when they first run
            loader.log.messages.clear()
            loader.trim()
            if self._context.execute_async_v3(stream.handle):
                return
        raise loader.explain_failure(f"the network {self.name} failed in TensorRT")

    def capture_problem(self, stream: Stream) -> str | None:
        """See `Engine.capture_problem`."""
        self._check_open()
        if self._loader.flavour.is_capturable(self._context, stream.handle):
            return None
        return f"{self._loader.flavour.name} says that runs of {self.name} cannot be captured"

    def _free(self) -> None:
        with contextlib.suppress(DeviceError):  # the caller that waits for a run gets its error
            self._loader.device.make_current()
            self.stream.synchronize()
        if self._cache is not None:
            self._cache.save()
        if self._context is not None:
            self._loader.scratch.leave(self._context)
        self._context = self._cache = self._engine = None  # in this order: each refers to the next


class _RuntimeCache:
    """Kernels that TensorRT for RTX compiled for this GPU, kept beside the engine to make the next start fast."""

    def __init__(self, path: Path, cache: Any, kept: bytes | None) -> None:
        self._path = path
        self._cache = cache
        self._kept = kept

    def save(self) -> None:
        """Write the kernels if there are new ones. A folder that cannot be written only makes the next start slower."""
        memory = self._cache.serialize()
        content = bytes(memory) if memory is not None else b""
        if content and content != self._kept and write_sealed(self._path, content):
            self._kept = content


def _rebuild(loader: TensorRtLoader) -> str:
    return f"Build the directory again: {loader.manifest.rebuild_command()}"


def _deserialize(loader: TensorRtLoader, network: str) -> Any:
    path = loader.manifest.engine_path(network)
    problem = loader.flavour.plan_problem(*read_head(path))
    if problem:
        raise EngineError(f"{path} cannot be used: {problem}. {_rebuild(loader)}")
    loader.log.messages.clear()
    # mapped, not read: TensorRT copies what it needs, and a plan has up to gigabytes
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as plan:
        refusal = loader.flavour.refusal(loader.runtime, plan)
        engine = None if refusal else loader.runtime.deserialize_cuda_engine(plan)
        if engine is not None:
            # TensorRT copies weights from this mapping on a stream of its own: ours does not wait for it, and a copy
            # from memory that is not pinned may return before its last bytes have arrived
            loader.device.call("cudaDeviceSynchronize")
    if refusal:
        raise EngineError(f"{path} cannot be used on the {loader.device.gpu.name}: {refusal}. {_rebuild(loader)}")
    if engine is None:
        raise loader.explain_failure(
            f"{loader.flavour.name} {loader.flavour.version} cannot load {path}", _rebuild(loader)
        )
    return engine
