"""ONNX Runtime on the CPU: the backend that runs everywhere and that every other one is measured against."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnxruntime
from numpy.typing import NDArray

from ..contract import NETWORKS
from ..errors import EngineError, InputError
from ..manifest import Manifest
from .validation import check_inputs

_NUMPY_DTYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(bfloat16)": "bfloat16"}


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
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        try:
            self._session: onnxruntime.InferenceSession | None = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # ONNX Runtime raises a dozen unrelated types
            raise EngineError(f"ONNX Runtime cannot load {path}: {error}. Build the directory again.") from error
        self._check_signature()

    def _check_signature(self) -> None:
        assert self._session is not None
        theirs = {t.name: _NUMPY_DTYPES.get(t.type, t.type) for t in self._session.get_inputs()}
        theirs |= {t.name: _NUMPY_DTYPES.get(t.type, t.type) for t in self._session.get_outputs()}
        ours = {t.name: t.resolve_dtype(self._compute_dtype) for t in (*self._spec.inputs, *self._spec.outputs)}
        if theirs != ours:
            different = sorted(theirs.items() ^ ours.items())
            raise EngineError(f"{self.name}: file and contract differ in {different}. Build the directory again.")

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """See `Engine.run`."""
        if self._session is None:
            raise EngineError(f"the network {self.name} was closed")
        check_inputs(self._spec, self._sizes, self._compute_dtype, inputs)
        names = [tensor.name for tensor in self._spec.outputs]
        try:
            outputs = self._session.run(names, dict(inputs))
        except Exception as error:
            raise EngineError(f"the network {self.name} failed in ONNX Runtime: {error}") from error
        return dict(zip(names, outputs, strict=True))

    def max_batch(self, dimension: str) -> int:
        """See `Engine.max_batch`."""
        if dimension not in self._spec.dynamic:
            raise InputError(f"{dimension!r} is no dynamic dimension of {self.name}; it has {self._spec.dynamic}")
        return self._sizes.limit(dimension)

    def close(self) -> None:
        """See `Engine.close`."""
        self._session = None
