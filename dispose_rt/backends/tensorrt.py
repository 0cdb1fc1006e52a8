"""TensorRT engines on an NVIDIA GPU, built with either flavour of TensorRT."""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from ..contract import NETWORKS, TensorSpec
from ..device import DeviceArray, DeviceMemory, Gpu, Stream, resolve_device, set_device
from ..errors import DeviceError, EngineError
from ..manifest import Manifest
from ..signature import Signature, signature_differences
from .sealed_file import read_sealed, write_sealed
from .tensorrt_flavour import RUNTIME_CACHE_SUFFIX, load_flavour, name_dimensions, read_head
from .validation import check_inputs, check_outputs_finite, largest_batch


class TensorRtOpener:
    """What the TensorRT engines of one directory share: GPU, runtime, stream, and one scratch memory for all.

    Args:
        manifest: a directory built for "tensorrt_rtx" or "tensorrt".
        device: "auto", "cuda" or "cuda:N".

    Raises:
        EngineError: that flavour of TensorRT is not installed.
        DeviceError: there is no such GPU.
    """

    def __init__(self, manifest: Manifest, device: str) -> None:
        self.manifest = manifest
        self.flavour = load_flavour(manifest.backend)
        self.gpu: Gpu = resolve_device(device)
        set_device(self.gpu.index)
        self.log = self.flavour.create_log()
        self.runtime: Any = self.flavour.trt.Runtime(self.log)
        self.stream = Stream()
        self.scratch = Scratch(self.stream)

    def open(self, network: str) -> TensorRtEngine:
        """Load one network.

        Raises:
            EngineError: the file is missing, damaged, foreign, or not the contract's network.
            DeviceError: the GPU lacks memory.
        """
        built_with = self.manifest.networks[network].backend
        if built_with != self.flavour.name:
            raise EngineError(f"{network} was built for {built_with}, and is opened with {self.flavour.name}")
        set_device(self.gpu.index)
        return TensorRtEngine(self, network)

    def close(self) -> None:
        """Free what the engines share, after the engines. Calling it twice is fine."""
        if self.runtime is not None:
            set_device(self.gpu.index)
            self.scratch.close()
            self.stream.close()
            self.runtime = None


class Scratch:
    """One block of memory in which all engines of a directory compute, one after the other.

    Safe because runs that share it follow each other on one stream. It grows when an engine that needs more is opened,
    and moves then: CUDA graphs captured before hold the old address, so open every network before capturing.
    """

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._memory: DeviceMemory | None = None
        self._contexts: dict[int, Any] = {}

    def attach(self, context: Any, size_bytes: int) -> None:
        """Let a context compute here.

        Args:
            context: an execution context whose memory is the caller's business.
            size_bytes: what it needs.

        Raises:
            DeviceError: the GPU lacks memory; engines that were opened before keep what they had.
        """
        if self._memory is None or self._memory.size_bytes < size_bytes:
            self._grow(size_bytes)
        self._contexts[id(context)] = context
        self._point([context])

    def _grow(self, size_bytes: int) -> None:
        before = self._memory.size_bytes if self._memory is not None else 0
        self._release()  # first: the two need not fit side by side
        try:
            self._memory = DeviceMemory(size_bytes)
        except DeviceError:
            if before:
                self._memory = DeviceMemory(before)
            raise
        finally:
            self._point(self._contexts.values())

    def _point(self, contexts: Iterable[Any]) -> None:
        if self._memory is not None:
            for context in contexts:
                context.set_device_memory(self._memory.address, self._memory.size_bytes)

    def _release(self) -> None:
        if self._memory is not None:
            self._stream.synchronize()
            self._memory.free()
            self._memory = None

    def detach(self, context: Any) -> None:
        """Forget a context."""
        self._contexts.pop(id(context), None)

    def close(self) -> None:
        """Free the memory. Calling it twice is fine."""
        self._contexts.clear()
        self._release()


class TensorRtEngine:
    """One network: an engine, its context, and a place on the GPU for each of its tensors, bound once.

    Tensors in bfloat16 are float32 on the host: inputs are rounded to the nearest, ties to even.

    Attributes:
        name: of the network.
        tensors: where each input and output lies, at its largest shape. Calls with fewer frames use the front of it.
    """

    def __init__(self, opener: TensorRtOpener, network: str) -> None:
        self.name = network
        self.tensors: dict[str, DeviceArray] = {}
        self._opener = opener
        self._spec = NETWORKS[network]
        self._sizes = opener.manifest.sizes
        self._compute_dtype = opener.manifest.networks[network].compute_dtype
        self._dynamic = {symbol: self._sizes.limit(symbol) for symbol in self._spec.dynamic}
        self._context: Any = None
        self._engine: Any = _deserialize(opener, network)
        self._cache: _RuntimeCache | None = None
        try:
            self._check_signature()
            self._create_context()
            self._bind()
        except BaseException:
            self.close()
            raise

    def _create_context(self) -> None:
        opener = self._opener
        path = opener.manifest.folder / f"{self.name}.{opener.gpu.capability}{RUNTIME_CACHE_SUFFIX}"
        kept = read_sealed(path) if opener.flavour.has_runtime_cache else None
        self._context, cache = opener.flavour.create_context(self._engine, kept)
        if self._context is None:
            raise EngineError(
                f"{opener.flavour.name} cannot prepare {self.name} on the {opener.gpu.name}:\n{opener.log.quote()}"
            )
        if cache is not None:
            self._cache = _RuntimeCache(path, cache, kept)
            self._cache.save()
        opener.scratch.attach(self._context, int(self._engine.device_memory_size_v2))

    def _bind(self) -> None:
        for tensor in (*self._spec.inputs, *self._spec.outputs):
            array = DeviceArray(self._shape(tensor), tensor.resolve_dtype(self._compute_dtype))
            self.tensors[tensor.name] = array
            self._require(self._context.set_tensor_address(tensor.name, array.address), f"binding {tensor.name}")
        self._set_shapes()

    def _shape(self, tensor: TensorSpec) -> tuple[int, ...]:
        return tuple(int(dim) for dim in self._sizes.resolve(tensor.shape, self._dynamic))

    def _set_shapes(self) -> None:
        for tensor in self._spec.inputs:
            if any(dim in self._spec.dynamic for dim in tensor.shape):
                shape = self._shape(tensor)
                self._require(self._context.set_input_shape(tensor.name, shape), f"{tensor.name} of shape {shape}")

    def _require(self, succeeded: bool, what: str) -> None:
        if not succeeded:
            raise EngineError(f"{self.name}: TensorRT refuses {what}:\n{self._opener.log.quote()}")

    def _check_signature(self) -> None:
        """Compare the engine's tensors with the contract."""
        theirs = self._signature()
        lines = signature_differences(self.name, self._sizes, self._compute_dtype, theirs)
        for tensor in self._spec.inputs:
            if not lines and any(dim in self._spec.dynamic for dim in tensor.shape):
                largest = tuple(self._engine.get_tensor_profile_shape(tensor.name, 0)[2])
                if largest != self._shape(tensor):
                    lines.append(f"{tensor.name} is at most {list(largest)}, expected {list(self._shape(tensor))}")
        if lines:
            path = self._opener.manifest.engine_path(self.name)
            raise EngineError(
                f"{path} is not the engine that it should be: engine and contract differ: {'; '.join(lines)}. "
                + _rebuild(self._opener)
            )

    def _signature(self) -> dict[str, Signature]:
        """Dtype and shape of the engine's tensors; what is dynamic gets the contract's name for it, or "?"."""
        engine = self._engine
        ours = {tensor.name: tensor.shape for tensor in (*self._spec.inputs, *self._spec.outputs)}
        theirs = {}
        for name in (engine.get_tensor_name(index) for index in range(engine.num_io_tensors)):
            shape = name_dimensions(tuple(engine.get_tensor_shape(name)), ours.get(name, ()), self._spec.dynamic)
            theirs[name] = (self._opener.flavour.dtype_name(engine.get_tensor_dtype(name)), shape)
        return theirs

    def set_batch(self, dynamic: Mapping[str, int]) -> None:
        """Choose the dynamic sizes of the runs that follow.

        Args:
            dynamic: a value from 1 to `max_batch` for every dynamic symbol of the network.
        """
        if dict(dynamic) != self._dynamic:
            self._dynamic = dict(dynamic)
            self._set_shapes()

    def enqueue(self, stream: Stream) -> None:
        """Queue one run on a stream, from and to `tensors`: no copy, no allocation, no waiting.

        The first run of a shape may compile kernels; after one run of the same shape, this can be captured into a CUDA
        graph. Runs of engines of one directory must not overlap: they share their scratch memory.

        Raises:
            EngineError: TensorRT refuses, or the engine was closed.
        """
        if self._context is None:
            raise EngineError(f"the network {self.name} was closed")
        if not self._context.execute_async_v3(stream.handle):
            raise EngineError(f"the network {self.name} failed in TensorRT:\n{self._opener.log.quote()}")

    def is_capturable(self, stream: Stream) -> bool:
        """Whether TensorRT says that a run on this stream can be captured into a CUDA graph."""
        return self._opener.flavour.is_capturable(self._context, stream.handle)

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """See `Engine.run`."""
        if self._context is None:
            raise EngineError(f"the network {self.name} was closed")
        dynamic = check_inputs(self._spec, self._sizes, self._compute_dtype, inputs)
        stream = self._opener.stream
        set_device(self._opener.gpu.index)  # the caller may be another thread than the one that opened
        self.set_batch(dynamic)
        sent = [self.tensors[tensor.name].upload(inputs[tensor.name], stream) for tensor in self._spec.inputs]
        self.enqueue(stream)
        outputs = {
            tensor.name: self.tensors[tensor.name].download(self._shape(tensor), stream)
            for tensor in self._spec.outputs
        }
        del sent  # not earlier: the copies read it until the stream was waited for
        check_outputs_finite(self.name, self._compute_dtype, outputs)
        return outputs

    def max_batch(self, dimension: str) -> int:
        """See `Engine.max_batch`."""
        return largest_batch(self._spec, self._sizes, dimension)

    def close(self) -> None:
        """See `Engine.close`."""
        if self._engine is None:
            return
        set_device(self._opener.gpu.index)
        if self._cache is not None:
            self._cache.save()
        if self._context is not None:
            self._opener.stream.synchronize()
            self._opener.scratch.detach(self._context)
        for array in self.tensors.values():
            array.free()
        self._context = self._cache = self._engine = None  # in this order: each refers to the next


class _RuntimeCache:
    """Kernels that TensorRT for RTX compiled for this GPU, beside the engine, so that the next start is fast."""

    def __init__(self, path: Path, cache: Any, kept: bytes | None) -> None:
        self._path = path
        self._cache = cache
        self._kept = kept

    def save(self) -> None:
        """Write what is new. A folder that cannot be written costs the time of the next start, and nothing else."""
        memory = self._cache.serialize()
        content = bytes(memory) if memory is not None else b""
        if content and content != self._kept and write_sealed(self._path, content):
            self._kept = content


def _rebuild(opener: TensorRtOpener) -> str:
    return f"Build the directory again: {opener.manifest.rebuild_command()}"


def _deserialize(opener: TensorRtOpener, network: str) -> Any:
    path = opener.manifest.engine_path(network)
    problem = opener.flavour.plan_problem(*read_head(path))
    if problem:
        raise EngineError(f"{path} cannot be used: {problem}. {_rebuild(opener)}")
    opener.log.messages.clear()
    # mapped, not read: TensorRT copies what it needs, and a plan has up to gigabytes
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as plan:
        refusal = opener.flavour.refusal(opener.runtime, plan)
        engine = None if refusal else opener.runtime.deserialize_cuda_engine(plan)
    if refusal:
        raise EngineError(f"{path} cannot be used on the {opener.gpu.name}: {refusal}. {_rebuild(opener)}")
    if engine is None:
        raise EngineError(
            f"{opener.flavour.name} {opener.flavour.version} cannot load {path}:\n{opener.log.quote()}\n"
            + _rebuild(opener)
        )
    return engine
