"""What each value of a graph depends on: nothing, the shapes of the inputs, or their content."""

from __future__ import annotations

from enum import IntEnum

import onnx


class Depends(IntEnum):
    """Strongest dependence of a value on the graph's inputs."""

    NOTHING = 0
    SHAPE = 1
    CONTENT = 2


RANDOM = frozenset({"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"})
SHAPE_READERS = frozenset({"Shape", "Size"})


def dependence(graph: onnx.GraphProto) -> dict[str, Depends]:
    """Value name -> what it depends on; nodes are in topological order, as ONNX demands.

    Sub-graphs count as reading whatever they could read: lint refuses them anyway.
    """
    known: dict[str, Depends] = {"": Depends.NOTHING}
    known |= {weight.name: Depends.NOTHING for weight in graph.initializer}
    known |= {weight.values.name: Depends.NOTHING for weight in graph.sparse_initializer}
    for value in graph.input:
        known.setdefault(value.name, Depends.CONTENT)
    for node in graph.node:
        own = max((known.get(name, Depends.CONTENT) for name in node.input), default=Depends(0))
        if node.op_type in RANDOM or any(a.HasField("g") for a in node.attribute):
            own = Depends.CONTENT
        if node.op_type in SHAPE_READERS and own is Depends.CONTENT:
            own = Depends.SHAPE
        known |= {name: own for name in node.output}
    return known


def label(node: onnx.NodeProto) -> str:
    """Name a node for a person; many writers leave the name empty."""
    return f"{node.name or '(no name)'} ({node.op_type}, gives {', '.join(node.output)})"
