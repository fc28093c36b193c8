"""Leave out Pads of nothing.

A window that fits gets one all the same (Hiera in SAM-2): a copy at each run, and in bfloat16 an
operator that ONNX Runtime has no CUDA kernel for.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from tk.export.fold import drop_unused, replace_nodes
from tk.export.lowering import constants_of


def drop_empty_pads(graph: onnx.GraphProto) -> None:
    """Remove every Pad of constant zeros, in place; one that gives an output stays."""
    constants = constants_of(graph)
    outputs = {value.name for value in graph.output}
    same: dict[str, str] = {}
    kept = []
    for node in graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = same.get(name, name)
        if _is_empty(node, constants) and node.output[0] not in outputs:
            same[node.output[0]] = node.input[0]
        else:
            kept.append(node)
    if not same:
        return
    replace_nodes(graph, kept)
    drop_unused(graph)


def _is_empty(node: onnx.NodeProto, constants: dict[str, onnx.TensorProto]) -> bool:
    if node.op_type != "Pad":
        return False
    amounts = constants.get(node.input[1])
    return amounts is not None and not np.any(numpy_helper.to_array(amounts))
