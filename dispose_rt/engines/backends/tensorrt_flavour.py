"""The two flavours of TensorRT: packages with one API, whose differences are all here.

`tensorrt_rtx` (TensorRT for RTX) compiles in two steps: the build needs no GPU and its plan runs on every GPU that it
targets; kernels are compiled for the GPU when an engine is loaded, and kept in a runtime cache. `tensorrt` (10, 11)
times kernels on the GPU at hand while it builds, keeps the timings in a cache, and its plan runs on that kind of GPU.

Neither is imported before it is needed.
"""

from __future__ import annotations

import gc
import importlib
import re
import struct
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from ...errors import DeviceError, EngineError, InputError

FLAVOURS = ("tensorrt_rtx", "tensorrt")
RUNTIME_CACHE_SUFFIX = ".runtime_cache"
_INSTALL = {
    "tensorrt_rtx": "pip install 'dispose-rt[tensorrt-rtx]', or pip install tensorrt-rtx-cu13 cuda-python",
    "tensorrt": "pip install 'dispose-rt[tensorrt]', or pip install 'tensorrt>=10.8' cuda-python",
}
_OLDEST = {"tensorrt_rtx": (1, 2), "tensorrt": (10, 8)}
"""First version that has everything we call."""

_KEPT_MESSAGES = 12
_NO_MEMORY = re.compile(
    r"out ?of ?memory|could not be allocated|failed to allocate|not enough (?:free )?memory|MemoryAllocation", re.I
)
"""Words of TensorRT and CUDA in the log where an allocation on the GPU has failed."""
_SCRATCH_MEMORY = re.compile(r"Total Activation Memory: (\d+) bytes")
"""What a builder says of a plan at its largest shapes. It needs no GPU for that."""

_life = threading.RLock()


@contextmanager
def builder_lock() -> Iterator[None]:
    """Hold this lock while builders and runtimes of TensorRT are created or destroyed, and while engines are compiled.

    TensorRT holds a lock of its own while it creates one and logs, which runs Python here, and takes the same lock to
    destroy one. So none may be destroyed meanwhile: not by another thread, and not by a garbage collection in the
    middle of the log call, which would deadlock.
    """
    with _life:
        collects = gc.isenabled()
        gc.disable()
        try:
            yield
        finally:
            if collects:
                gc.enable()


def portable_plan_runs_on(capability: str) -> bool:
    """Return whether a plan that `tensorrt_rtx` 1.x built without targets runs on a GPU.

    Turing must be named as a target, and this flavour does not support 9.x to 11.x: 1.7 refuses an H200, and 1.4
    compiles and runs single layers there, but has no kernels for real networks.

    Args:
        capability: for example "sm_89".
    """
    number = int(capability.removeprefix("sm_"))
    return number in (80, 86, 89) or number >= 120


def load_flavour(name: str) -> Flavour:
    """Import a flavour of TensorRT.

    Args:
        name: one of FLAVOURS.

    Raises:
        EngineError: the package is missing, cannot be loaded, or is too old; says what to install.
    """
    try:
        trt = importlib.import_module(name)
    except (ImportError, OSError) as error:  # OSError: the package is there, a library that it needs is not
        raise EngineError(f"{name} cannot be imported: {error}. Install it: {_INSTALL[name]}") from error
    version = str(trt.__version__)
    if tuple(int(part) for part in version.split(".")[:2]) < _OLDEST[name]:
        oldest = ".".join(map(str, _OLDEST[name]))
        raise EngineError(f"{name} {version} is too old, at least {oldest} is needed: {_INSTALL[name]}")
    return RtxFlavour(trt) if name == "tensorrt_rtx" else Flavour(trt)


def tensorrt_version(name: str) -> str:
    """Return the version of an installed flavour.

    Raises:
        EngineError: see `load_flavour`.
    """
    return load_flavour(name).version


class Flavour:
    """The data-centre package `tensorrt`, 10.x or 11.x.

    Attributes:
        name: of the package.
        trt: the imported module.
        version: of the package.
        has_timing_cache: a build keeps timings of kernels, which speed up the next one.
        has_runtime_cache: kernels that were compiled when an engine was loaded can be kept.
    """

    name = "tensorrt"
    has_timing_cache = True
    has_runtime_cache = False

    def __init__(self, trt: ModuleType) -> None:
        self.trt: Any = trt
        self.version = str(self.trt.__version__)

    # building

    def create_builder(self, log: Any) -> Any:
        """Return a builder; destroy it within `builder_lock`."""
        with builder_lock():
            return self.trt.Builder(log)

    def create_network(self, builder: Any) -> Any:
        """Return an empty network whose tensors get their types from the graph."""
        flag = self.trt.NetworkDefinitionCreationFlag
        weak_by_default = int(self.version.partition(".")[0]) == 10  # 11 knows no other than strongly typed networks
        return builder.create_network(1 << int(flag.STRONGLY_TYPED) if weak_by_default else 0)

    def resolve_targets(self, targets: Sequence[str]) -> tuple[str, ...]:
        """Check the targets of a build, and return those that its plan will run on.

        Args:
            targets: compute capabilities such as "sm_89"; none leaves the choice to TensorRT.

        Returns:
            Compute capabilities that the plan runs on; none means every GPU that this flavour supports.

        Raises:
            InputError: a target cannot be built for.
            DeviceError: there is no GPU, and this flavour cannot build without.
        """
        from ...device import resolve_device

        try:
            gpu = resolve_device("auto")
        except DeviceError as error:
            remedy = "build on the machine that has the GPU, or use --backend tensorrt_rtx"
            raise DeviceError(f"{self.name} builds for the GPU at hand alone; {remedy}: {error}") from error
        others = [target for target in targets if target != gpu.capability]
        if others:
            raise InputError(
                f"{self.name} builds for the GPU at hand alone, the {gpu.name} ({gpu.capability}); it cannot target "
                f"{', '.join(others)}. Leave --target unset, or use --backend tensorrt_rtx."
            )
        return (gpu.capability,)

    def configure(self, config: Any, targets: Sequence[str]) -> None:
        """Set the options of a builder configuration in which the flavours differ; `targets` as requested."""

    # running

    def create_runtime(self, log: Any) -> Any:
        """Return a runtime; destroy it within `builder_lock`."""
        with builder_lock():
            return self.trt.Runtime(log)

    def plan_problem(self, head: bytes, size_bytes: int) -> str | None:
        """Return what is wrong with a plan, judged by its first bytes and its length; None if nothing is.

        Args:
            head: the first 32 bytes of the file, or all where it is shorter.
            size_bytes: length of the file.
        """
        if len(head) < 32 or head[1:4] != b"trt":
            return f"it is no plan of TensorRT: {size_bytes} bytes that begin with {head[:8]!r}"
        if head[:4] == b"vtrt":
            return "it was built by tensorrt_rtx"
        return None

    def refusal(self, runtime: Any, plan: Any) -> str | None:
        """Return why a plan will not run on the current GPU, or None where TensorRT cannot tell."""
        return None

    def create_context(self, engine: Any, cache: bytes | None) -> tuple[Any, Any]:
        """Create an execution context whose scratch memory the caller provides.

        Args:
            engine: the engine to run.
            cache: contents of the runtime cache, where the flavour has one.

        Returns:
            The context, or None where TensorRT refuses; and the runtime cache object, or None.
        """
        return engine.create_execution_context(self.trt.ExecutionContextAllocationStrategy.USER_MANAGED), None

    def is_capturable(self, context: Any, stream_handle: int) -> bool:
        """Return whether a run on this stream can be captured into a CUDA graph."""
        return True

    # both

    def dtype_name(self, dtype: Any) -> str:
        """Return the contract's name of a tensor's dtype, e.g. "float16"."""
        names = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16", "BOOL": "bool"}
        name = str(dtype.name)
        return names.get(name, name.lower())

    def create_log(self) -> Any:
        """Return a logger that keeps the latest errors. It must outlive all that was made with it.

        Its `lacks_memory` says whether one of them means that memory of the GPU ran out; its `scratch_bytes`, what runs
        of the plan that was built last need beside weights and tensors, None before.
        """
        trt = self.trt

        class Log(trt.ILogger):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)
                self.messages: deque[str] = deque(maxlen=_KEPT_MESSAGES)
                self.scratch_bytes: int | None = None

            def log(self, severity: Any, message: str) -> None:
                if found := _SCRATCH_MEMORY.search(message):
                    self.scratch_bytes = int(found[1])
                serious = (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR)
                if severity in serious and message not in self.messages:
                    self.messages.append(message.strip())

            @property
            def lacks_memory(self) -> bool:
                """Whether one of the messages says that memory of the GPU ran out."""
                return any(_NO_MEMORY.search(message) for message in self.messages)

            def quote(self) -> str:
                """Return and forget the messages, one per line."""
                lines = [f"  {line}" for message in self.messages for line in message.splitlines()]
                self.messages.clear()
                return "\n".join(lines) or "  (it gave no reason)"

        return Log()


class RtxFlavour(Flavour):
    """TensorRT for RTX."""

    name = "tensorrt_rtx"
    has_timing_cache = False  # a no-op here since 1.2, and asking for it makes the build look for a GPU
    has_runtime_cache = True

    def create_network(self, builder: Any) -> Any:
        """See `Flavour.create_network`."""
        return builder.create_network(0)  # always strongly typed

    def resolve_targets(self, targets: Sequence[str]) -> tuple[str, ...]:
        """See `Flavour.resolve_targets`. No targets mean sm_80 and later; sm_75 must be named."""
        known = self._capabilities()
        unknown = [target for target in targets if target not in known]
        if unknown:
            raise InputError(
                f"{self.name} {self.version} cannot target {', '.join(unknown)}; it knows {', '.join(known)}. "
                "Leave --target unset for all of them."
            )
        return tuple(target for target in known if target in targets)

    def _capabilities(self) -> dict[str, Any]:
        members = self.trt.ComputeCapability.__members__
        numbered = sorted((int(name[2:]), member) for name, member in members.items() if name[2:].isdecimal())
        return {f"sm_{number}": member for number, member in numbered}

    def configure(self, config: Any, targets: Sequence[str]) -> None:
        """See `Flavour.configure`."""
        # without memory of its own at run time, a run can be captured into a CUDA graph
        config.set_flag(self.trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
        known = self._capabilities()
        wanted = self.resolve_targets(targets)
        if wanted:
            config.num_compute_capabilities = len(wanted)
        for index, target in enumerate(wanted):
            if not config.set_compute_capability(known[target], index):
                raise EngineError(f"{self.name} {self.version} refuses the target {target}; leave --target unset")

    def plan_problem(self, head: bytes, size_bytes: int) -> str | None:
        """See `Flavour.plan_problem`."""
        if len(head) < 32 or head[:4] != b"vtrt":
            return f"it is no plan of {self.name}: {size_bytes} bytes that begin with {head[:8]!r}"
        expected = int(struct.unpack_from("<Q", head, 16)[0])
        if self.version.startswith("1.") and expected != size_bytes:
            return f"it has {size_bytes} bytes, its header says {expected}"
        return None

    def refusal(self, runtime: Any, plan: Any) -> str | None:
        """See `Flavour.refusal`. A lack of memory is none: it may pass, and loading the plan tells of it."""
        validity, diagnostics = runtime.get_engine_validity(plan)
        if validity != self.trt.EngineValidity.INVALID:
            return None
        members = self.trt.EngineInvalidityDiagnostics.__members__
        found = [name for name, bit in members.items() if int(bit) & int(diagnostics)]
        reasons = [_DIAGNOSTICS.get(name, name) for name in found if name != "INSUFFICIENT_GPU_MEMORY"]
        return "; ".join(reasons) or None

    def create_context(self, engine: Any, cache: bytes | None) -> tuple[Any, Any]:
        """See `Flavour.create_context`."""
        trt = self.trt
        config = engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        # not lazily: the first runs of a shape would use other kernels than later ones, with other results
        config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
        # the caller captures whole steps; a graph inside each would be in the way
        config.cuda_graph_strategy = trt.CudaGraphStrategy.DISABLED
        runtime_cache = config.create_runtime_cache()
        if cache is not None:
            runtime_cache.deserialize(cache)  # refused for another GPU, driver or version: then it stays empty
        config.set_runtime_cache(runtime_cache)
        return engine.create_execution_context(config), runtime_cache

    def is_capturable(self, context: Any, stream_handle: int) -> bool:
        """See `Flavour.is_capturable`."""
        return bool(context.is_stream_capturable(stream_handle))


_DIAGNOSTICS = {
    "VERSION_MISMATCH": "it was built by another version of tensorrt_rtx",
    "UNSUPPORTED_CC": "it was not built for this GPU's compute capability",
    "OLD_CUDA_DRIVER": "the NVIDIA driver is too old for it",
    "OLD_CUDA_RUNTIME": "the CUDA runtime is too old for it",
    "MALFORMED_ENGINE": "it is damaged",
    "CUDA_ERROR": "CUDA does not work on this machine",
}


def read_head(path: Path) -> tuple[bytes, int]:
    """Return the first 32 bytes and the length of a file.

    Raises:
        EngineError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return file.read(32), path.stat().st_size
    except OSError as error:
        raise EngineError(f"{path} cannot be read: {error}") from error


def name_dimensions(theirs: Sequence[int], ours: Sequence[int | str], dynamic: Sequence[str]) -> tuple[int | str, ...]:
    """Name the dimensions that TensorRT leaves open (-1) as the contract does.

    Args:
        theirs: shape as TensorRT has it.
        ours: the contract's symbolic shape of the same tensor; empty where it knows no such tensor.
        dynamic: dynamic symbols of the network.

    Returns:
        The shape with names in place of -1; "?" where the contract has nothing dynamic.
    """
    names = [str(dim) if dim in dynamic else "?" for dim in ours] + ["?"] * len(theirs)
    return tuple(name if int(dim) == -1 else int(dim) for dim, name in zip(theirs, names, strict=False))
