"""ONNX Runtime on the CPU: the backend that runs everywhere, and the yardstick of all others."""

from __future__ import annotations

import numpy as np
import onnxruntime

from ...device import Array, CpuDevice, Stream
from ...device.cpu import submit
from ...errors import DeviceError, EngineError, OutOfMemoryError
from ...system.cores import compute_threads
from ...system.memory import is_out_of_memory
from ..integrity import find_foreign_parts_of
from ..manifest import Manifest
from ..signature import Signature, signature_differences
from .protocol import Engine, EngineLoader
from .validation import check_alive

_DTYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(bfloat16)": "bfloat16"}


_FREE_MEMORY = "Close other programs, raise the limit if there is one (`ulimit -v`, a container's), "
_LOADING_HELP = f"{_FREE_MEMORY}or build the engines with --precision fp16 or a smaller --size"
_RUNNING_HELP = f"{_FREE_MEMORY}or build the engines for a smaller --size, fewer --tile-frames or a --decode-chunk of 1"


class OnnxRuntimeLoader(EngineLoader):
    """Opens the networks of one engine directory that are ONNX files.

    Args:
        manifest: the directory; one of another backend may leave single networks to ONNX Runtime.
        device: "auto" or "cpu"; ignored where the directory itself belongs to another backend.

    Raises:
        DeviceError: the directory is for ONNX Runtime, and the device is no CPU.
    """

    def __init__(self, manifest: Manifest, device: str) -> None:
        if manifest.backend == "onnxruntime" and device not in ("auto", "cpu"):
            raise DeviceError(
                f"ONNX Runtime runs on the CPU here, device is {device!r}: pass 'cpu' or 'auto', or build GPU engines: "
                + manifest.rebuild_command(backend="tensorrt_rtx", output=f"{manifest.folder}-tensorrt_rtx")
            )
        self._manifest = manifest
        self._closed = False
        self.device = CpuDevice()
        self.stream = self.device.stream()

    def open(self, network: str) -> OnnxRuntimeEngine:
        """Load one network.

        Raises:
            EngineError: ONNX Runtime refuses the file, or its tensors are not those of the contract.
        """
        if self._closed:
            raise EngineError(f"the network {network} cannot be opened: its directory was closed. Open it again.")
        return OnnxRuntimeEngine(self, self._manifest, network)

    def close(self) -> None:
        """Open no more networks. Calling it twice is fine."""
        self._closed = True
        self.device.close()


class OnnxRuntimeEngine(Engine):
    """One network as an ONNX Runtime session.

    Raises:
        EngineError: ONNX Runtime refuses the file, or its tensors are not those of the contract.
    """

    def __init__(self, loader: OnnxRuntimeLoader, manifest: Manifest, network: str) -> None:
        super().__init__(
            network, manifest.sizes, manifest.networks[network].compute_dtype, loader.device, loader.stream
        )
        path = manifest.engine_path(network)
        again = f"Build the directory again: {manifest.rebuild_command()}"
        try:
            foreign = find_foreign_parts_of(manifest, network)
        except (OSError, ValueError) as error:
            raise EngineError(f"{network}: ONNX Runtime cannot load {path}: {error}. {again}") from error
        if foreign:
            raise EngineError(f"{network}: {path} is not opened: it {'; it '.join(foreign)}. {again}")
        try:
            session = onnxruntime.InferenceSession(str(path), _session_options(), providers=["CPUExecutionProvider"])
            signature = _signature_of(session)  # names that are no UTF-8 raise
        except Exception as error:  # ONNX Runtime raises a dozen unrelated types
            if is_out_of_memory(error):
                raise OutOfMemoryError(
                    f"{network}: there is too little memory to load {path}. {_LOADING_HELP}"
                ) from error
            raise EngineError(f"{network}: ONNX Runtime cannot load {path}: {error}. {again}") from error
        differences = signature_differences(network, self._sizes, self._compute_dtype, signature)
        if differences:
            listed = "; ".join(differences)
            raise EngineError(
                f"{path} is not the engine that it should be: file and contract differ: {listed}. {again}"
            )
        if "bfloat16" in {tensor.resolve_dtype(self._compute_dtype) for tensor in self._specs.values()}:
            raise EngineError(
                f"{network}: ONNX Runtime takes no bfloat16 tensors on the CPU. Build the directory with --precision "
                "fp32 or fp16, or for another backend."
            )
        self._session: onnxruntime.InferenceSession | None = session
        self._binding: onnxruntime.IOBinding | None = None

    def _place(self, name: str, array: Array) -> None:
        self._binding = None

    def _resize(self) -> None:
        self._binding = None

    def _queue(self, stream: Stream) -> None:
        if self._binding is None:  # a new one, not a changed one: a graph may hold the one before
            self._binding = self._bind_tensors()
        submit(stream, self._run_binding, self._binding, tuple(self._tensors.values()))

    def _bind_tensors(self) -> onnxruntime.IOBinding:
        assert self._session is not None
        binding = self._session.io_binding()
        for spec, bind in (
            *((tensor, binding.bind_input) for tensor in self._spec.inputs),
            *((tensor, binding.bind_output) for tensor in self._spec.outputs),
        ):
            array = self.tensor(spec.name)
            bind(spec.name, "cpu", 0, np.dtype(array.dtype), self.shape(spec.name), array.address)
        return binding

    def _run_binding(self, binding: onnxruntime.IOBinding, arrays: tuple[Array, ...]) -> None:
        self._check_open()
        assert self._session is not None
        check_alive(arrays)  # a graph may be launched late
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:
            if is_out_of_memory(error):
                batches = ", ".join(f"{symbol} {value}" for symbol, value in self._dynamic.items())
                where = f" with {batches}" if batches else ""
                raise OutOfMemoryError(
                    f"there is too little memory to run the network {self.name}{where}. {_RUNNING_HELP}"
                ) from error
            raise EngineError(
                f"the network {self.name} failed in ONNX Runtime: {error}. `dispose-rt doctor` tries out the engines"
            ) from error

    def _free(self) -> None:
        self._session = self._binding = None


def _session_options() -> onnxruntime.SessionOptions:
    """Threads and memory of every session.

    Sessions keep pools of their own: a pool for all of them (`set_global_thread_pool_sizes`) would make ONNX Runtime
    refuse the sessions of other libraries in this process. Threads that wait without spinning leave the cores to
    whichever session works. A given number of threads is pinned to no core: pinning fails in containers whose cores are
    restricted. Without an arena per session, memory of one network's run is free for the next one's; and without a
    pattern per shape, which is one block for all of a run's tensors, a tensor's memory is free for the next tensor's.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = compute_threads()
    options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def _signature_of(session: onnxruntime.InferenceSession) -> dict[str, Signature]:
    """Return dtype and shape of every tensor as the file declares them; open dimensions are names, or "?"."""
    return {
        tensor.name: (
            _DTYPES.get(tensor.type, tensor.type),
            tuple(dim if isinstance(dim, int) else str(dim or "?") for dim in tensor.shape),
        )
        for tensor in (*session.get_inputs(), *session.get_outputs())
    }
