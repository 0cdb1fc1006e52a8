"""A CUDA runtime and a TensorRT whose device memory is memory of this process, for tests without a GPU.

Addresses are real, copies copy, and an engine computes where its context was told to read and write, so that a wrong
address, a freed block or a missing shape shows as it would on a GPU: by an error or by wrong numbers.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from enum import IntEnum
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dispose_rt.contract import NETWORKS, Sizes


class CudaError(IntEnum):
    cudaSuccess = 0  # noqa: N815
    cudaErrorMemoryAllocation = 2  # noqa: N815
    cudaErrorInsufficientDriver = 35  # noqa: N815
    cudaErrorInvalidValue = 1  # noqa: N815
    cudaErrorInvalidDevice = 101  # noqa: N815


class FakeCuda:
    """What `dispose_rt.device` calls of `cuda.bindings.runtime`."""

    cudaStreamNonBlocking = 1  # noqa: N815
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)  # noqa: N815

    def __init__(self, gpus: int = 1, memory_bytes: int = 1 << 28) -> None:
        self.gpus = gpus
        self.memory_bytes = memory_bytes
        self.blocks: dict[int, Any] = {}
        self.calls: list[str] = []
        self.current = 0

    def cudaGetErrorString(self, error: CudaError) -> tuple[CudaError, bytes]:
        return CudaError.cudaSuccess, f"explanation of {error.name}".encode()

    def cudaGetLastError(self) -> tuple[CudaError]:
        return (CudaError.cudaSuccess,)

    def cudaGetDeviceCount(self) -> tuple[CudaError, int | None]:
        return (CudaError.cudaSuccess, self.gpus) if self.gpus else (CudaError.cudaErrorInsufficientDriver, None)

    def cudaGetDevice(self) -> tuple[CudaError, int]:
        return CudaError.cudaSuccess, self.current

    def cudaSetDevice(self, index: int) -> tuple[CudaError]:
        if index >= self.gpus:
            return (CudaError.cudaErrorInvalidDevice,)
        self.current = index
        return (CudaError.cudaSuccess,)

    def cudaGetDeviceProperties(self, index: int) -> tuple[CudaError, Any]:
        return CudaError.cudaSuccess, SimpleNamespace(name=b"Fake GPU\0\0", major=8, minor=index + 6)

    def cudaDriverGetVersion(self) -> tuple[CudaError, int]:
        return CudaError.cudaSuccess, 12090

    def cudaMemGetInfo(self) -> tuple[CudaError, int, int]:
        return CudaError.cudaSuccess, self.memory_bytes - self.used_bytes, self.memory_bytes

    @property
    def used_bytes(self) -> int:
        return sum(len(block) for block in self.blocks.values())

    def cudaMalloc(self, size: int) -> tuple[CudaError, int | None]:
        self.calls.append("cudaMalloc")
        if self.used_bytes + size > self.memory_bytes:
            return CudaError.cudaErrorMemoryAllocation, None
        block = ctypes.create_string_buffer(b"\xff" * size, size)  # NaN until something is written
        self.blocks[ctypes.addressof(block)] = block
        return CudaError.cudaSuccess, ctypes.addressof(block)

    def cudaFree(self, address: int) -> tuple[CudaError]:
        self.calls.append("cudaFree")
        return (CudaError.cudaSuccess if self.blocks.pop(address, None) else CudaError.cudaErrorInvalidValue,)

    def cudaMemcpyAsync(self, target: int, source: int, size: int, kind: int, stream: int) -> tuple[CudaError]:
        self.calls.append("cudaMemcpyAsync")
        device = target if kind == 1 else source
        if device not in self.blocks or size > len(self.blocks[device]):
            return (CudaError.cudaErrorInvalidValue,)
        ctypes.memmove(target, source, size)
        return (CudaError.cudaSuccess,)

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[CudaError, int]:
        return CudaError.cudaSuccess, 77

    def cudaStreamSynchronize(self, stream: int) -> tuple[CudaError]:
        self.calls.append("cudaStreamSynchronize")
        return (CudaError.cudaSuccess,)

    def cudaStreamDestroy(self, stream: int) -> tuple[CudaError]:
        return (CudaError.cudaSuccess,)

    def floats(self, address: int, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
        """The front of an allocated block, as an array."""
        block = self.blocks[address]  # KeyError: it was freed, or never allocated
        return np.frombuffer(block, dtype, math.prod(shape)).reshape(shape)


class FakeContext:
    def __init__(self, engine: FakeEngine) -> None:
        self.engine = engine
        self.addresses: dict[str, int] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.memory = (0, 0)
        self.calls: list[str] = []
        self.fails = False

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.calls.append(f"set_tensor_address {name}")
        self.addresses[name] = address
        return name in self.engine.tensors

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.calls.append(f"set_input_shape {name} {shape}")
        self.shapes[name] = shape
        return all(dim <= most for dim, most in zip(shape, self.engine.profile[name], strict=True))

    def set_device_memory(self, address: int, size: int) -> None:
        self.memory = (address, size)

    def is_stream_capturable(self, stream: int) -> bool:
        return stream == 77

    def execute_async_v3(self, stream: int) -> bool:
        self.calls.append("execute_async_v3")
        if self.fails:
            self.engine.log.log("ERROR", "the kernel is unhappy")
            return False
        scratch, size = self.memory
        assert size >= self.engine.device_memory_size_v2
        self.engine.cuda.floats(scratch, (size,), "uint8")[:] = 1  # a freed block is a KeyError
        self.engine.compute(self)
        return True

    def tensor(self, name: str, shape: tuple[int, ...]) -> NDArray[Any]:
        dtype = self.engine.tensors[name][0]
        return self.engine.cuda.floats(self.addresses[name], shape, {"bfloat16": "uint16"}.get(dtype, dtype))


class FakeEngine:
    """The engine of a network: `compute(context)` is what a run does."""

    def __init__(
        self, cuda: FakeCuda, network: str, sizes: Sizes, dtype: str, compute: Callable[[FakeContext], None]
    ) -> None:
        spec = NETWORKS[network]
        self.cuda = cuda
        self.compute = compute
        self.log: Any = None
        self.device_memory_size_v2 = 1000
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

    def create_execution_context(self, how: Any) -> FakeContext:
        strategy = how.strategy if isinstance(how, FakeRuntimeConfig) else how
        assert strategy == "USER_MANAGED"
        self.contexts.append(FakeContext(self))
        return self.contexts[-1]


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

    def deserialize_cuda_engine(self, plan: Any) -> FakeEngine | None:
        engine = self._trt.engines.get(bytes(plan[32:]).decode())
        if engine is None:
            self._log.log("ERROR", "assertion failed: this is no engine")
            return None
        engine.log = self._log
        return engine


class FakeTrt:
    """What the backend calls of `tensorrt_rtx`, with engines by the text behind their plan's header."""

    __version__ = "1.7.1.116"
    ILogger = FakeLogger
    EngineValidity = SimpleNamespace(VALID="VALID", INVALID="INVALID")
    EngineInvalidityDiagnostics = IntEnum("Diagnostics", {"VERSION_MISMATCH": 1, "UNSUPPORTED_CC": 2})
    ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="USER_MANAGED")
    DynamicShapesKernelSpecializationStrategy = SimpleNamespace(EAGER="EAGER")
    CudaGraphStrategy = SimpleNamespace(DISABLED="DISABLED")

    def __init__(self) -> None:
        self.engines: dict[str, FakeEngine] = {}
        self.validity: tuple[str, int] = ("VALID", 0)

    def Runtime(self, log: Any) -> FakeRuntime:
        return FakeRuntime(self, log)
