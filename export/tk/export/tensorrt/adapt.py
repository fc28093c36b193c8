"""The graph that a parser of TensorRT gets, where it is not the one that ships.

Graphs ship as ONNX means them. What single versions read otherwise is changed in memory, for the
build alone; the plan is judged like any other.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tk.export.fold import replace_nodes
from tk.export.lowering import constants_of
from tk.export.sizes import plain_sizes


def adapt(model: onnx.ModelProto, *, weak: bool) -> bool:
    """Change a graph in place for the parser that will read it.

    Every version: sizes as all versions read them, for graphs of an older tk. Weakly typed (8.6):
    int8 weights become float32 ones with a QuantizeLinear behind them, since its network takes no
    int8 constants; and free axes of uint8 inputs no longer share a name with others, since its
    parser compares such axes by reading the shape of the input, which must not be uint8.

    Args:
        model: with its weights inside, but for those in a file beside it.
        weak: for TensorRT 8.6.

    Returns:
        Whether anything was changed.
    """
    changed = plain_sizes(model.graph)
    if weak:
        changed = _quantize_weights(model.graph) or changed
        changed = _part_axes(model.graph) or changed
    return changed


def _quantize_weights(graph: onnx.GraphProto) -> bool:
    """`int8 weight -> DequantizeLinear` becomes `float32 weight -> Quantize- -> Dequantize-`."""
    constants = constants_of(graph)
    nodes: list[onnx.NodeProto] = []
    found = False
    for node in graph.node:
        weight = constants.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if (
            weight is not None
            and weight.data_type == TensorProto.INT8
            and _is_even(node, constants)
        ):
            found = True
            nodes.append(_quantizer(graph, node, weight, constants))
            node.input[0] = nodes[-1].output[0]
        nodes.append(node)
    if found:
        replace_nodes(graph, nodes)
    return found


def _is_even(node: onnx.NodeProto, constants: dict[str, onnx.TensorProto]) -> bool:
    """Whether a DequantizeLinear has a zero point of zeros, as all of ours; no TensorRT reads
    others."""
    point = constants.get(node.input[2]) if len(node.input) > 2 else None
    return point is not None and not np.any(numpy_helper.to_array(point))


def _quantizer(
    graph: onnx.GraphProto,
    node: onnx.NodeProto,
    weight: onnx.TensorProto,
    constants: dict[str, onnx.TensorProto],
) -> onnx.NodeProto:
    """Adds the float32 weight; rounding it gives the int8 one again, for it is a multiple."""
    scale = numpy_helper.to_array(constants[node.input[1]])
    values = numpy_helper.to_array(weight).astype(np.float32)
    axes = {a.name: a.i for a in node.attribute}
    if scale.ndim:
        form = [1] * values.ndim
        form[axes.get("axis", 1)] = scale.size
        scale = scale.reshape(form)
    name = f"{node.output[0]}_float"
    graph.initializer.append(numpy_helper.from_array(values * scale.astype(np.float32), name))
    return helper.make_node(
        "QuantizeLinear",
        [name, *node.input[1:]],
        [f"{node.output[0]}_int8"],
        name=f"{node.output[0]}_quantize",
        **axes,
    )


def _part_axes(graph: onnx.GraphProto) -> bool:
    """Give free axes of uint8 inputs that others share names of their own."""
    axes = [
        (value, axis)
        for value in graph.input
        for axis in value.type.tensor_type.shape.dim
        if axis.HasField("dim_param")
    ]
    count = Counter(axis.dim_param for _, axis in axes)
    changed = False
    for value, axis in axes:
        if value.type.tensor_type.elem_type == TensorProto.UINT8 and count[axis.dim_param] > 1:
            axis.dim_param = f"{axis.dim_param}_of_{value.name}"
            changed = True
    return changed
