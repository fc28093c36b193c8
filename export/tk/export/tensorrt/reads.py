"""Would the ONNX parser of some TensorRT read a graph? Told from its documentation, without a GPU.

It finds what a build would refuse later on another machine: a newer opset, an operator or a type
that this version does not read, an attribute that it ignores. It proves nothing about answers: that
is the gate's work.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache

import numpy as np
import onnx
from onnx import TensorProto, defs, numpy_helper

from tk.export.flow import label
from tk.export.precision.flowview import FlowView, attribute_int, attribute_text, view
from tk.export.tensorrt.documented import newest_opset, reads_part_of_shape, types_read

CONSTANT_INPUTS: Mapping[str, tuple[int, ...]] = {
    "CumSum": (1,),
    "OneHot": (1,),
    "Slice": (3,),
    "Squeeze": (1,),
    "Unsqueeze": (1,),
    **dict.fromkeys(
        "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd "
        "ReduceSum ReduceSumSquare".split(),
        (1,),
    ),
}
"""Operator -> inputs that the parser must know when it reads: axes and depths."""

RESIZES = {
    "mode": {"nearest", "linear"},
    "coordinate_transformation_mode": {
        "half_pixel", "pytorch_half_pixel", "tf_half_pixel_for_nn", "asymmetric", "align_corners",
    },
    "nearest_mode": {"floor", "ceil", "round_prefer_floor", "round_prefer_ceil"},
    "keep_aspect_ratio_policy": {"stretch"},
}  # fmt: skip
"""Attribute of Resize -> values that are read."""

FIRST_INPUT = frozenset({"DequantizeLinear", "NonMaxSuppression", "QuantizeLinear"})
"""Operators whose result shares its type with another input than the data."""

BY_RESULT = frozenset({"Cast", "CastLike", "ConstantOfShape"})
"""Operators whose result has a type of its own, which counts."""

MOST_RANKS = 3840
"""Elements that TopK may give."""


def complaints(model: onnx.ModelProto, version: str) -> Iterator[str]:
    """Yield one sentence for each place of a graph that a TensorRT is not documented to read.

    Args:
        model: of standard operators, without control flow.
        version: of TensorRT, such as `8.6` or `10.3.0`.

    Raises:
        CheckFailed: control flow, functions, or a value whose type cannot be told.
    """
    flow = view(model)
    newest = newest_opset(version)
    if flow.opset > newest:
        yield f"opset {flow.opset}; this TensorRT reads up to {newest}"
    for node in flow.nodes:
        own = node.domain in ("", "ai.onnx")
        read = types_read(node.op_type, version) if own else frozenset[str]()
        if not read:
            yield f"node {label(node)} is an operator that it does not read"
            continue
        for name in sorted(set(_data(node, flow)) - read):
            yield f"node {label(node)} works on {name}; it is read with {', '.join(sorted(read))}"
        yield from (f"node {label(node)} {what}" for what in _limits(node, flow))
        if node.op_type == "Shape" and node.attribute and not reads_part_of_shape(version):
            yield f"node {label(node)} has start or end; this TensorRT takes the whole shape"


def _data(node: onnx.NodeProto, flow: FlowView) -> Iterator[str]:
    """Types of the data of an operator: sizes, indices and conditions have types of their own."""
    places = _data_places(node.op_type, flow.opset)
    names = [name for place, name in enumerate(node.input) if places is None or place in places]
    if node.op_type in BY_RESULT:
        names = [*names, *node.output]
    for name in names:
        if name in flow.types:
            yield TensorProto.DataType.Name(flow.types[name])


@cache
def _data_places(operator: str, opset: int) -> frozenset[int] | None:
    """Inputs that share the type of the result, else the first input; None for all (variadic)."""
    if operator in FIRST_INPUT:
        return frozenset({0})
    if operator == "ConstantOfShape":  # its input is a size
        return frozenset()
    schema = defs.get_schema(operator, opset)
    if any(i.option == defs.OpSchema.FormalParameterOption.Variadic for i in schema.inputs):
        return None
    result = schema.outputs[0].type_str
    same = {place for place, i in enumerate(schema.inputs) if i.type_str == result}
    return frozenset(same or {0})


def _limits(node: onnx.NodeProto, flow: FlowView) -> Iterator[str]:
    """What the documentation says beside types."""
    for place in CONSTANT_INPUTS.get(node.op_type, ()):
        if (
            place < len(node.input)
            and node.input[place]
            and node.input[place] not in flow.constants
        ):
            yield f"has an input ({node.input[place]}) that must be constant"
    check = _CHECKS.get(node.op_type)
    if check is not None:
        yield from check(node, flow)


def _resize(node: onnx.NodeProto, _: FlowView) -> Iterator[str]:
    for name, known in RESIZES.items():
        if (found := attribute_text(node, name, "")) and found not in known:
            yield f"has {name} {found!r}; it is read with {', '.join(sorted(known))}"
    if attribute_int(node, "antialias"):
        yield "has antialias, which is not read"


def _top_k(node: onnx.NodeProto, flow: FlowView) -> Iterator[str]:
    if not attribute_int(node, "sorted", 1):
        yield "is not sorted, which is not read"
    count = flow.constants.get(node.input[1])
    if count is not None and int(numpy_helper.to_array(count).max()) > MOST_RANKS:
        yield f"ranks more than {MOST_RANKS} elements"


def _zero_point(node: onnx.NodeProto, flow: FlowView) -> Iterator[str]:
    if len(node.input) < 3 or not node.input[2]:
        return
    point = flow.constants.get(node.input[2])
    if point is None or np.any(numpy_helper.to_array(point)):
        yield "has a zero point that is not a constant zero"


def _pool(node: onnx.NodeProto, _: FlowView) -> Iterator[str]:
    if len([name for name in node.output if name]) > 1:
        yield "gives indices, which is not read"
    if any(step != 1 for a in node.attribute if a.name == "dilations" for step in a.ints):
        yield "has dilations, which are not read"


def _first_output(node: onnx.NodeProto, _: FlowView) -> Iterator[str]:
    if len([name for name in node.output if name]) > 1:
        yield "gives more than its first output, which is not read"


def _scatter(node: onnx.NodeProto, _: FlowView) -> Iterator[str]:
    if (found := attribute_text(node, "reduction", "none")) != "none":
        yield f"has reduction {found!r}, which is not read"


_CHECKS = {
    "AveragePool": _pool,
    "DequantizeLinear": _zero_point,
    "LayerNormalization": _first_output,
    "MaxPool": _pool,
    "QuantizeLinear": _zero_point,
    "Resize": _resize,
    "ScatterND": _scatter,
    "TopK": _top_k,
}
