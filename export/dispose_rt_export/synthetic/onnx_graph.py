"""Writes small ONNX graphs by hand, one operation per call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

OPSET = 13
IR_VERSION = 8
Operand = str | NDArray[np.generic] | float


class GraphWriter:
    """Collects nodes and constants. Every value is a name; numbers and arrays become constants where they are used."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []

    def add(self, kind: str, *operands: Operand, output: str | None = None, **attributes: object) -> str:
        """Append a node.

        Args:
            kind: ONNX operator.
            operands: value names, arrays (kept in their dtype) or floats (stored as float32).
            output: name of the result; None makes one up.
            attributes: the operator's attributes.

        Returns:
            The name of its (first) output.
        """
        names = [operand if isinstance(operand, str) else self._add_constant(operand) for operand in operands]
        result = output or f"{kind.lower()}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, names, [result], name=f"node_{result}", **attributes))
        return result

    def model(self, inputs: Mapping[str, Sequence[int]], outputs: Mapping[str, Sequence[int]]) -> onnx.ModelProto:
        """Return the checked model. Inputs and outputs are float32, given as name -> shape."""

        def describe(table: Mapping[str, Sequence[int]]) -> list[onnx.ValueInfoProto]:
            return [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in table.items()]

        graph = helper.make_graph(
            self._nodes, self._name, describe(inputs), describe(outputs), initializer=self._constants
        )
        opset = [helper.make_opsetid("", OPSET)]
        model = helper.make_model(graph, producer_name="dispose_rt", opset_imports=opset, ir_version=IR_VERSION)
        onnx.checker.check_model(model, full_check=True)
        return model

    def _add_constant(self, value: NDArray[np.generic] | float) -> str:
        array = np.float32(value) if isinstance(value, (int, float)) else value
        name = f"constant_{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(np.asarray(array), name))
        return name
