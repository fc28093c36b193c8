"""Shapes of every value of a graph, once its free axes have a size."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable

import numpy as np
import onnx
from onnx import helper, numpy_helper

from tk.export.flow import SHAPE_READERS
from tk.export.fold import fold_constants

SMALL = 1024
"""Elements: weights above this are left out of a skeleton. Sizes, axes and pads are smaller."""

Shapes = dict[str, tuple[int, ...] | None]
"""Value -> its shape, None when some axis is unknown."""


def skeleton(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which large weights are inputs: small enough to check and infer, however large.

    protobuf refuses to copy or check more than 2 GB, and shapes do not depend on large weights.
    """
    graph = model.graph
    large = [weight for weight in graph.initializer if _elements(weight) > SMALL]
    names = {weight.name for weight in large}
    light = helper.make_graph(
        list(graph.node),
        graph.name or "graph",
        [
            *graph.input,
            *(helper.make_tensor_value_info(w.name, w.data_type, list(w.dims)) for w in large),
        ],
        list(graph.output),
        [weight for weight in graph.initializer if weight.name not in names],
        value_info=list(graph.value_info),
    )
    copy = helper.make_model(light, opset_imports=model.opset_import, ir_version=model.ir_version)
    copy.functions.extend(model.functions)
    return copy


def _elements(weight: onnx.TensorProto) -> int:
    return math.prod(weight.dims)


def bound_shapes(light: onnx.ModelProto, size: int) -> tuple[onnx.GraphProto, Shapes]:
    """Infer all shapes with every free axis of the inputs set to one size.

    Args:
        light: a skeleton.
        size: of the free axes.

    Returns:
        The graph at that size, without the nodes that only compute sizes, and the shape of every
        value of it. What the exporter wrote down as an expression of the free axes (`4*B`) counts
        where inference gives up.
    """
    bound = onnx.ModelProto()
    bound.CopyFrom(light)
    free = _bind_inputs(bound.graph, size)
    noted = {}
    for value in [*bound.graph.value_info, *bound.graph.output]:
        noted[value.name] = _bind(value, free)
    for value in bound.graph.output:
        value.type.tensor_type.ClearField("shape")  # else inference repeats what was promised
    while True:
        inferred = onnx.shape_inference.infer_shapes(bound, data_prop=True).graph
        shapes: Shapes = {weight.name: tuple(weight.dims) for weight in inferred.initializer}
        for value in [*inferred.input, *inferred.value_info, *inferred.output]:
            own = _shape(value)
            shapes[value.name] = noted.get(value.name) if own is None else own
        if not _settle_sizes(bound.graph, shapes):
            return bound.graph, shapes
        fold_constants(bound)


def _bind_inputs(graph: onnx.GraphProto, size: int) -> dict[str, int]:
    free: dict[str, int] = {}
    for value in graph.input:
        for axis in value.type.tensor_type.shape.dim:
            if not axis.HasField("dim_value"):
                free[axis.dim_param] = size
                axis.dim_value = size
    return free


def _bind(value: onnx.ValueInfoProto, free: dict[str, int]) -> tuple[int, ...] | None:
    for axis in value.type.tensor_type.shape.dim:
        if axis.HasField("dim_param"):
            number = _evaluate(axis.dim_param, free)
            axis.Clear() if number is None else setattr(axis, "dim_value", number)
    return _shape(value)


def _settle_sizes(graph: onnx.GraphProto, shapes: Shapes) -> bool:
    """Turn `Shape` and `Size` of known values into constants; whether there was one."""
    settled = False
    for node in graph.node:
        known = shapes.get(node.input[0]) if node.op_type in SHAPE_READERS else None
        if known is None:
            continue
        marks = {a.name: a.i for a in node.attribute}
        part = known[marks.get("start", 0) : marks.get("end", len(known))]
        array = np.asarray(part if node.op_type == "Shape" else math.prod(known), np.int64)
        constant = helper.make_node(
            "Constant", [], [node.output[0]], value=numpy_helper.from_array(array)
        )
        node.CopyFrom(constant)
        settled = True
    return settled


def _shape(value: onnx.ValueInfoProto) -> tuple[int, ...] | None:
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    known = all(axis.HasField("dim_value") for axis in tensor.shape.dim)
    return tuple(axis.dim_value for axis in tensor.shape.dim) if known else None


_OPERATORS: dict[type, Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}


def _evaluate(text: str, free: dict[str, int]) -> int | None:
    """Value of an expression like `4*B + 1`, None when it names anything but the free axes."""

    def value(node: ast.expr) -> int:
        if isinstance(node, ast.Constant) and isinstance(node.value, int):
            return node.value
        if isinstance(node, ast.Name):
            return free[node.id]
        if isinstance(node, ast.BinOp):
            return _OPERATORS[type(node.op)](value(node.left), value(node.right))
        raise KeyError(text)

    try:
        return value(ast.parse(text, mode="eval").body)
    except (KeyError, SyntaxError, ZeroDivisionError):
        return None
