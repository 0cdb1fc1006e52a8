"""Edits of ONNX graphs after tracing."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import AttributeProto, TensorProto, helper, numpy_helper

_REDUCED = (TensorProto.FLOAT16, TensorProto.BFLOAT16)


def widen_to_float32(source: Path, target: Path) -> None:
    """Write a copy of a reduced-precision graph that computes in float32 from the same rounded weights.

    ONNX Runtime has no bfloat16 arithmetic on the CPU. Weights are stored unchanged and converted where they are
    used, so that the copy takes no memory of its own.

    Args:
        source: the ONNX file; external data stays where it is.
        target: file to write, in the same folder.
    """
    model = onnx.load(source, load_external_data=False)
    graph = model.graph
    conversions = []
    for stored in graph.initializer:
        if stored.data_type in _REDUCED:
            name, stored.name = stored.name, f"{stored.name}/stored"
            conversions.append(helper.make_node("Cast", [stored.name], [name], to=TensorProto.FLOAT))
    for node in graph.node:
        for attribute in node.attribute:
            _widen_attribute(node.op_type, attribute)
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type in _REDUCED:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    nodes = list(graph.node)
    del graph.node[:], graph.value_info[:]  # types of inner values are inferred again
    graph.node.extend([*conversions, *nodes])
    onnx.save(model, target)


def _widen_attribute(operator: str, attribute: AttributeProto) -> None:
    if operator == "Cast" and attribute.name == "to" and attribute.i in _REDUCED:
        attribute.i = TensorProto.FLOAT
    elif attribute.type == AttributeProto.TENSOR and attribute.t.data_type in _REDUCED:
        values = numpy_helper.to_array(attribute.t).astype("float32")
        attribute.t.CopyFrom(numpy_helper.from_array(values, attribute.t.name))


def uses_bfloat16(path: Path) -> bool:
    """Return whether any weight of an ONNX file is stored as bfloat16."""
    model = onnx.load(path, load_external_data=False)
    return any(stored.data_type == TensorProto.BFLOAT16 for stored in model.graph.initializer)
