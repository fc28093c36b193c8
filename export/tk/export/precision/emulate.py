"""What a cast graph computes, on engines that lack kernels of its precision.

ONNX Runtime has next to no bfloat16 on the CPU. Here every value of low precision is a float32 that
was rounded to it and back. Sums inside an operator are float32, as tensor cores add them; an engine
that adds in the low precision itself is not emulated.
"""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper, numpy_helper

from tk.export.precision.flowview import attribute_int
from tk.export.precision.formats import ONNX_TYPE, Precision
from tk.export.precision.sides import is_exact
from tk.export.shapes import skeleton

_RAW = "__unrounded"


def emulate(model: onnx.ModelProto, precision: Precision) -> onnx.ModelProto:
    """Say a cast graph in float32 with rounding.

    Args:
        model: of `cast_graph`; it is not changed.
        precision: that it was cast to.

    Returns:
        A graph with the same inputs and outputs that any float32 engine runs.
    """
    low = ONNX_TYPE[precision]
    inferred = onnx.shape_inference.infer_shapes(skeleton(model)).graph
    is_low = {v.name for v in inferred.value_info if v.type.tensor_type.elem_type == low}
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        _widen_attributes(copy, low)
        nodes.append(copy)
        # What only moves rounded values gives rounded values; an exact Cast does round.
        if is_exact(node) or node.op_type == "Constant":
            continue
        for place, name in enumerate(node.output):
            if name in is_low:
                copy.output[place] = name + _RAW
                nodes += _rounding(name, low)
    graph = helper.make_graph(
        nodes,
        model.graph.name,
        list(model.graph.input),
        list(model.graph.output),
        [_widened(weight, low) for weight in model.graph.initializer],
    )
    return helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)


def _rounding(name: str, low: int) -> list[onnx.NodeProto]:
    short = name + "__rounded"
    return [
        helper.make_node("Cast", [name + _RAW], [short], short, to=low),
        helper.make_node("Cast", [short], [name], name + "__widened", to=TensorProto.FLOAT),
    ]


def _widen_attributes(node: onnx.NodeProto, low: int) -> None:
    for attribute in node.attribute:
        if attribute.HasField("t"):
            attribute.t.CopyFrom(_widened(attribute.t, low))
    if node.op_type == "Cast" and attribute_int(node, "to") == low:
        next(a for a in node.attribute if a.name == "to").i = TensorProto.FLOAT


def _widened(tensor: onnx.TensorProto, low: int) -> onnx.TensorProto:
    """The same numbers as float32."""
    if tensor.data_type != low:
        return tensor
    values = numpy_helper.to_array(tensor).astype("float32")
    return numpy_helper.from_array(values, tensor.name)
