"""A TensorRT whose engines compute in this process, on the streams and in the memory of a fake GPU.

An engine reads and writes where its context was told to when the run was queued, and nothing is done before the caller
waits, so that a wrong address, a freed block, a missing shape or a missing wait shows as it would on a GPU: by an error
or by wrong numbers.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dispose_rt.contract import NETWORKS, Sizes
from tests.fakes.cuda import CallError, CudaError, FakeCuda


@dataclass(frozen=True)
class FakeRun:
    """What a run was queued with."""

    engine: FakeEngine
    addresses: dict[str, int]
    shapes: dict[str, tuple[int, ...]]
    memory: tuple[int, int]

    def compute(self) -> None:
        address, size = self.memory
        try:
            self.engine.cuda.floats(address, (size,), "uint8")[:] = 1
            self.engine.compute(self)
        except KeyError as error:
            raise CallError(CudaError.cudaErrorIllegalAddress) from error

    def tensor(self, name: str, shape: tuple[int, ...]) -> NDArray[Any]:
        dtype = self.engine.tensors[name][0]
        return self.engine.cuda.floats(self.addresses[name], shape, {"bfloat16": "uint16"}.get(dtype, dtype))


class FakeContext:
    def __init__(self, engine: FakeEngine) -> None:
        self.engine = engine
        self.addresses: dict[str, int] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.sized_for: dict[str, tuple[int, ...]] | None = None
        self.memory = (0, 0)
        self.calls: list[str] = []
        self.fails = False
        self.fails_once = ""

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.calls.append(f"set_tensor_address {name}")
        self.addresses[name] = address
        return name in self.engine.tensors and address % 256 == 0

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.calls.append(f"set_input_shape {name} {shape}")
        self.shapes[name] = shape
        return all(dim <= most for dim, most in zip(shape, self.engine.profile[name], strict=True))

    def update_device_memory_size_for_shapes(self) -> int:
        self.calls.append("update_device_memory_size_for_shapes")
        self.sized_for = dict(self.shapes)
        return self.engine.scratch_bytes(self.shapes)

    def set_device_memory(self, address: int, size: int) -> None:
        self.memory = (address, size)

    def is_stream_capturable(self, stream: int) -> bool:
        return stream in self.engine.cuda.streams and not self.engine.uncapturable

    def execute_async_v3(self, stream: int) -> bool:
        self.calls.append("execute_async_v3")
        if self.fails:
            self.engine.log.log("ERROR", "the kernel is unhappy")
            return False
        if self.fails_once:
            self.engine.log.log("ERROR", self.fails_once)
            self.fails_once = ""
            return False
        assert set(self.addresses) == set(self.engine.tensors)
        assert self.sized_for in (None, self.shapes), "its memory was divided for other shapes"
        needed = self.engine.device_memory_size_v2 if self.sized_for is None else self.engine.scratch_bytes(self.shapes)
        assert self.memory[1] >= needed
        run = FakeRun(self.engine, dict(self.addresses), dict(self.shapes), self.memory)
        try:
            self.engine.cuda.submit(stream, run.compute)
        except CallError as failure:
            self.engine.log.log("ERROR", f"CUDA says {failure.error.name}")
            return False
        return True


class Loaded:
    """An engine or a context as the backend holds it: its memory of the GPU, which TensorRT allocates, is given back
    with the last reference."""

    def __init__(self, what: Any, cuda: FakeCuda, size: int) -> None:
        self._what = what
        weakref.finalize(self, cuda.give_foreign, size)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._what, name)


class FakeEngine:
    """The engine of a network: `compute(run)` is what a run does.

    Attributes:
        weights_bytes: what it takes of the GPU once it is loaded; context_bytes: what a context takes.
        loads: how often it was loaded, or was to be.
    """

    def __init__(
        self, cuda: FakeCuda, network: str, sizes: Sizes, dtype: str, compute: Callable[[FakeRun], None]
    ) -> None:
        spec = NETWORKS[network]
        self.cuda = cuda
        self.compute = compute
        self.log: Any = None
        self.device_memory_size_v2 = 1000
        self.weights_bytes = self.context_bytes = self.loads = 0
        self.uncapturable = False
        self.cache = FakeRuntimeCache()
        self.contexts: list[FakeContext] = []
        self.tensors = {
            t.name: (t.resolve_dtype(dtype), tuple(d if isinstance(d, int) else -1 for d in sizes.resolve(t.shape)))
            for t in (*spec.inputs, *spec.outputs)
        }
        limits = {symbol: sizes.limit(symbol) for symbol in spec.dynamic}
        self.profile = {t.name: tuple(map(int, sizes.resolve(t.shape, limits))) for t in spec.inputs}

    @property
    def num_io_tensors(self) -> int:
        return len(self.tensors)

    def get_tensor_name(self, index: int) -> str:
        return list(self.tensors)[index]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.tensors[name][1]

    def get_tensor_dtype(self, name: str) -> Any:
        return SimpleNamespace(name={"float32": "FLOAT", "float16": "HALF", "bfloat16": "BF16"}[self.tensors[name][0]])

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        most = self.profile[name]
        return [(1, *most[1:]), most, most]

    def create_runtime_config(self) -> FakeRuntimeConfig:
        return FakeRuntimeConfig(self)

    def create_execution_context(self, how: Any) -> Any:
        strategy = how.strategy if isinstance(how, FakeRuntimeConfig) else how
        assert strategy == "USER_MANAGED"
        if not self.cuda.take_foreign(self.context_bytes):
            self.log.log("ERROR", "Error Code 2: OutOfMemory (Requested size was 123 bytes.)")
            return None
        self.contexts.append(FakeContext(self))
        return Loaded(self.contexts[-1], self.cuda, self.context_bytes)

    def scratch_bytes(self, shapes: dict[str, tuple[int, ...]]) -> int:
        """What runs of these shapes need: in proportion to the rows of the inputs that have some."""
        shares = [shape[0] / self.profile[name][0] for name, shape in shapes.items()]
        return int(np.ceil(self.device_memory_size_v2 * max(shares, default=1)))


class FakeRuntimeCache:
    def __init__(self) -> None:
        self.kernels = b""

    def deserialize(self, blob: bytes) -> bool:
        self.kernels = blob
        return True

    def serialize(self) -> bytes:
        return self.kernels or b"compiled kernels"


class FakeRuntimeConfig:
    def __init__(self, engine: FakeEngine) -> None:
        self._engine = engine
        self.strategy = "STATIC"

    def set_execution_context_allocation_strategy(self, strategy: str) -> None:
        self.strategy = strategy

    def create_runtime_cache(self) -> FakeRuntimeCache:
        return self._engine.cache

    def set_runtime_cache(self, cache: FakeRuntimeCache) -> bool:
        return cache is self._engine.cache


class FakeLogger:
    Severity = SimpleNamespace(INTERNAL_ERROR="INTERNAL_ERROR", ERROR="ERROR", WARNING="WARNING")

    def __init__(self) -> None:
        pass


class FakeRuntime:
    def __init__(self, trt: FakeTrt, log: Any) -> None:
        self._trt = trt
        self._log = log

    def get_engine_validity(self, plan: Any) -> tuple[str, int]:
        return self._trt.validity

    def deserialize_cuda_engine(self, plan: Any) -> Any:
        engine = self._trt.engines.get(bytes(plan[32:]).decode())
        if engine is None:
            self._log.log("ERROR", "assertion failed: this is no engine")
            return None
        engine.log = self._log
        engine.loads += 1
        if not engine.cuda.take_foreign(engine.weights_bytes):
            self._log.log("ERROR", "[defaultAllocator.cpp::allocate] Error Code 1: Cuda Runtime (out of memory)")
            return None
        return Loaded(engine, engine.cuda, engine.weights_bytes)


class FakeTrt:
    """What the backend calls of `tensorrt_rtx`, with engines by the text behind their plan's header."""

    __version__ = "1.7.1.116"
    ILogger = FakeLogger
    EngineValidity = SimpleNamespace(VALID="VALID", INVALID="INVALID")
    EngineInvalidityDiagnostics = IntEnum(
        "Diagnostics", {"VERSION_MISMATCH": 1, "UNSUPPORTED_CC": 2, "INSUFFICIENT_GPU_MEMORY": 4}
    )
    ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="USER_MANAGED")
    DynamicShapesKernelSpecializationStrategy = SimpleNamespace(EAGER="EAGER")
    CudaGraphStrategy = SimpleNamespace(DISABLED="DISABLED")

    def __init__(self) -> None:
        self.engines: dict[str, FakeEngine] = {}
        self.validity: tuple[str, int] = ("VALID", 0)

    def Runtime(self, log: Any) -> FakeRuntime:
        return FakeRuntime(self, log)
