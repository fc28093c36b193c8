"""Which nodes run in low precision: the arithmetic that may, and what only moves values with it."""

from __future__ import annotations

from collections.abc import Collection
from enum import Enum

import onnx
from onnx import TensorProto

from tk.export.precision.flowview import (
    FlowView,
    Slots,
    attribute_int,
    attribute_text,
    low_slots,
    name_of,
)
from tk.export.precision.formats import Precision

EXACT = frozenset(
    "Abs Clip Concat DepthToSpace Dropout Expand Flatten Gather GatherElements GatherND Identity "
    "Max MaxPool Min Neg Pad ReduceMax ReduceMin Relu Reshape Slice SpaceToDepth Split Squeeze "
    "Tile Transpose Trilu Unsqueeze Where".split()
)
"""Operators that only move or choose values: they lose nothing at any precision, so they run in the
one that their neighbours have."""

WORK = frozenset(
    "Conv ConvInteger ConvTranspose DeformConv Einsum GRU Gemm LSTM MatMul RNN".split()
)
"""Operators that low precision makes faster by themselves. A stretch of low precision without one
would only be casts and rounding."""

READS_ANY = frozenset({"Shape", "Size"})
"""Operators for which the type of their input is the same."""

SCATTERS = frozenset({"ScatterElements", "ScatterND"})


class Side(Enum):
    """Where a node stands."""

    FLOAT32 = "float32"
    LOW = "low"
    EITHER = "either"
    NO_FLOAT = "no float"


def is_exact(node: onnx.NodeProto) -> bool:
    """Whether a node computes nothing that could be rounded."""
    if node.op_type in SCATTERS:
        return attribute_text(node, "reduction", "none") == "none"
    if node.op_type == "Resize":
        return attribute_text(node, "mode", "nearest") == "nearest"
    return node.op_type in EXACT or makes_float(node)


def makes_float(node: onnx.NodeProto) -> bool:
    """Whether a node is a Cast to float32, which can as well cast to the low precision."""
    return node.op_type == "Cast" and attribute_int(node, "to") == TensorProto.FLOAT


def assign_sides(
    flow: FlowView, precision: Precision, keep: Collection[str]
) -> tuple[list[Side], dict[int, Slots]]:
    """Say for each node in which precision it runs.

    A node that only moves values runs in float32 where it carries a float32 result to a node that
    wants float32 (so nothing is rounded on the way), in low precision everywhere else.

    Args:
        flow: the graph.
        precision: the low one.
        keep: names of nodes that stay float32.

    Returns:
        One side per node, and what changes its type in the nodes of the low side.
    """
    slots: dict[int, Slots] = {}
    sides = []
    for index, node in enumerate(flow.nodes):
        side, own = _first_side(node, flow, precision, keep)
        sides.append(side)
        if own is not None:
            slots[index] = own
    fed = _fed_by_float32(flow, sides)
    wanted = _wanted_in_float32(flow, sides, slots)
    for index, node in enumerate(flow.nodes):
        if sides[index] is Side.EITHER:
            both = any(n in fed for n in node.output) and any(n in wanted for n in node.output)
            sides[index] = Side.FLOAT32 if both else Side.LOW
    for index in _idle(flow, sides):
        sides[index] = Side.FLOAT32
    return sides, {index: own for index, own in slots.items() if sides[index] is Side.LOW}


def _first_side(
    node: onnx.NodeProto, flow: FlowView, precision: Precision, keep: Collection[str]
) -> tuple[Side, Slots | None]:
    if not any(flow.is_float(name) for name in (*node.input, *node.output)):
        return Side.NO_FLOAT, None
    if node.op_type in (*READS_ANY, "Constant"):
        return Side.NO_FLOAT, None
    if node.op_type == "Cast" and not makes_float(node):
        return Side.NO_FLOAT, None  # to integers, booleans or double: reads what there is
    own = low_slots(node, flow, precision)
    if own is not None and makes_float(node):
        own = Slots(frozenset(), own.outputs)  # it reads whatever there is
    if own is None or name_of(node) in keep:
        return Side.FLOAT32, None
    if all(name in flow.fixed for name in node.output):
        return Side.FLOAT32, None  # a constant laid out over the batch: its readers cast it
    return (Side.EITHER if is_exact(node) else Side.LOW), own


def _idle(flow: FlowView, sides: list[Side]) -> set[int]:
    """Nodes of all stretches of low precision in which no node does work."""
    low = {index for index, side in enumerate(sides) if side is Side.LOW}
    idle: set[int] = set()
    while low:
        stretch: set[int] = set()
        todo = [min(low)]
        while todo:
            index = todo.pop()
            if index not in low:
                continue
            low.discard(index)
            stretch.add(index)
            node = flow.nodes[index]
            todo += [reader for name in node.output for reader, _ in flow.readers.get(name, [])]
            todo += [flow.maker[name] for name in node.input if name in flow.maker]
        if not any(flow.nodes[index].op_type in WORK for index in stretch):
            idle |= stretch
    return idle


def _fed_by_float32(flow: FlowView, sides: list[Side]) -> set[str]:
    """Values that hold what was computed in float32, or what is exact by itself."""
    fed = {name for name in flow.inputs if flow.is_float(name)}
    for index, node in enumerate(flow.nodes):
        if sides[index] is Side.EITHER:
            computed = flow.computed(node)  # none: it picks from a constant, or casts an integer
            is_fed = not computed or any(name in fed for name in computed)
        else:
            is_fed = sides[index] is Side.FLOAT32
        if is_fed:
            fed.update(name for name in node.output if flow.is_float(name))
    return fed


def _wanted_in_float32(flow: FlowView, sides: list[Side], slots: dict[int, Slots]) -> set[str]:
    """Values that some node down the way reads in float32."""
    wanted = {name for name in flow.outputs if flow.is_float(name)}
    for index in reversed(range(len(flow.nodes))):
        node, side = flow.nodes[index], sides[index]
        passes = side is Side.EITHER and any(name in wanted for name in node.output)
        for place, name in enumerate(node.input):
            if not flow.is_float(name) or node.op_type in READS_ANY:
                continue
            is_fixed = side is Side.LOW and place not in slots[index].inputs
            if passes or side in (Side.FLOAT32, Side.NO_FLOAT) or is_fixed:
                wanted.add(name)
    return wanted
