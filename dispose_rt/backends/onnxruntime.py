"""ONNX Runtime on the CPU: the backend that runs everywhere and that every other one is measured against."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnxruntime
from numpy.typing import NDArray

from ..contract import NETWORKS
from ..errors import DeviceError, EngineError
from ..manifest import Manifest
from ..signature import Signature, signature_differences
from .validation import check_inputs, check_outputs_finite, largest_batch

_DTYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(bfloat16)": "bfloat16"}


class OnnxRuntimeOpener:
    """Opens the networks of one engine directory that are ONNX files.

    Args:
        manifest: the directory. In one of another backend, single networks may be left to ONNX Runtime.
        device: "auto" or "cpu"; where the directory itself belongs to another backend, whatever that one runs on.

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

    def open(self, network: str) -> OnnxRuntimeEngine:
        """Load one network.

        Raises:
            EngineError: ONNX Runtime refuses the file, or its tensors are not those of the contract.
        """
        if self._closed:
            raise EngineError(f"the network {network} cannot be opened: its directory was closed. Open it again.")
        return OnnxRuntimeEngine(self._manifest, network)

    def close(self) -> None:
        """Open no more networks. Calling it twice is fine."""
        self._closed = True


class OnnxRuntimeEngine:
    """One network as an ONNX Runtime session.

    Raises:
        EngineError: ONNX Runtime refuses the file, or its tensors are not those of the contract.
    """

    def __init__(self, manifest: Manifest, network: str) -> None:
        self.name = network
        self._spec = NETWORKS[network]
        self._sizes = manifest.sizes
        self._compute_dtype = manifest.networks[network].compute_dtype
        path = manifest.engine_path(network)
        again = f"Build the directory again: {manifest.rebuild_command()}"
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        try:
            session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime raises a dozen unrelated types
            raise EngineError(f"{network}: ONNX Runtime cannot load {path}: {error}. {again}") from error
        differences = signature_differences(network, self._sizes, self._compute_dtype, _signature_of(session))
        if differences:
            listed = "; ".join(differences)
            raise EngineError(
                f"{path} is not the engine that it should be: file and contract differ: {listed}. {again}"
            )
        self._session: onnxruntime.InferenceSession | None = session

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """See `Engine.run`."""
        if self._session is None:
            raise EngineError(f"the network {self.name} was closed")
        check_inputs(self._spec, self._sizes, self._compute_dtype, inputs)
        names = [tensor.name for tensor in self._spec.outputs]
        try:
            outputs = dict(zip(names, self._session.run(names, dict(inputs)), strict=True))
        except Exception as error:
            raise EngineError(f"the network {self.name} failed in ONNX Runtime: {error}") from error
        check_outputs_finite(self.name, self._compute_dtype, outputs)
        return outputs

    def max_batch(self, dimension: str) -> int:
        """See `Engine.max_batch`."""
        return largest_batch(self._spec, self._sizes, dimension)

    def close(self) -> None:
        """See `Engine.close`."""
        self._session = None


def _signature_of(session: onnxruntime.InferenceSession) -> dict[str, Signature]:
    """Dtype and shape of every tensor as the file declares them; what it leaves open is a name, or "?"."""
    return {
        tensor.name: (
            _DTYPES.get(tensor.type, tensor.type),
            tuple(dim if isinstance(dim, int) else str(dim or "?") for dim in tensor.shape),
        )
        for tensor in (*session.get_inputs(), *session.get_outputs())
    }
