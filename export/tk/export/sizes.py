"""Read sizes as every TensorRT reads them: from floats, and whole.

A uint8 input goes into a Cast and into nothing else, not even into Shape (NVIDIA/TensorRT#3985; its
table of the Shape operator has no uint8), but the exporter reads the batch size from the first
input that has it, which is the picture. And the parsers of 8.6 and 9 ignore `start` and `end` of
Shape (onnx-tensorrt, builtin_op_importers.cpp): they give the whole shape where one size was meant.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tk.export.flow import SHAPE_READERS
from tk.export.fold import replace_nodes

LAST = np.iinfo(np.int64).max


def plain_sizes(graph: onnx.GraphProto) -> bool:
    """Let sizes of uint8 inputs be read from their Cast, and parts of shapes be sliced, in place.

    An input that no Cast reads stays as it is: lint names it.

    Returns:
        Whether there was anything to change.
    """
    moved = _read_from_floats(graph)
    return _read_whole(graph) or moved


def pictures_of(graph: onnx.GraphProto) -> set[str]:
    """Names of the uint8 inputs."""
    return {
        value.name for value in graph.input if value.type.tensor_type.elem_type == TensorProto.UINT8
    }


def _read_from_floats(graph: onnx.GraphProto) -> bool:
    pictures = pictures_of(graph)
    casts: dict[str, onnx.NodeProto] = {}
    for node in graph.node:
        if node.op_type == "Cast" and node.input[0] in pictures:
            casts.setdefault(node.input[0], node)
    readers = [
        node for node in graph.node if node.op_type in SHAPE_READERS and node.input[0] in casts
    ]
    if not readers:
        return False
    needed = [casts[name] for name in dict.fromkeys(node.input[0] for node in readers)]
    for node in readers:
        node.input[0] = casts[node.input[0]].output[0]
    first = {node.output[0] for node in needed}
    replace_nodes(graph, [*needed, *(n for n in graph.node if n.output[0] not in first)])
    return True


def _read_whole(graph: onnx.GraphProto) -> bool:
    """`Shape <start, end>` becomes Shape and Slice."""
    nodes: list[onnx.NodeProto] = []
    taken = {name for node in graph.node for name in (*node.input, *node.output)}
    taken |= {weight.name for weight in graph.initializer}
    found = False
    for node in graph.node:
        nodes.append(node)
        if node.op_type != "Shape" or not node.attribute:
            continue
        found = True
        marks = {a.name: a.i for a in node.attribute}
        out = node.output[0]
        whole, *ends = (_unused(f"{out}_{word}", taken) for word in ("whole", "start", "end"))
        bounds = (marks.get("start", 0), marks.get("end", LAST))
        for name, bound in zip(ends, bounds, strict=True):
            graph.initializer.append(numpy_helper.from_array(np.asarray([bound], np.int64), name))
        del node.attribute[:]
        node.output[0] = whole
        nodes.append(helper.make_node("Slice", [whole, *ends], [out], name=f"{out}_slice"))
    if found:
        replace_nodes(graph, nodes)
    return found


def _unused(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    taken.add(name)
    return name
