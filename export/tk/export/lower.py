"""Opset 18 -> 17, node by node, for engines as old as TensorRT 8.6.

The version converter of onnx fails on graphs of the dynamo exporter. What opset 17 cannot say is an
error that names the node, never a graph that means something else.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import defs, helper

from tk.export.fold import drop_unused
from tk.export.lowering import (
    FROM,
    TO,
    Lowering,
    attributes_of,
    constants_of,
    fixed_shapes,
    refused,
    same_node,
)
from tk.export.shapes import skeleton
from tk.runtime.errors import CheckFailed

Rule = Callable[[onnx.NodeProto, Lowering], list[onnx.NodeProto]]


def lower(model: onnx.ModelProto) -> onnx.ModelProto:
    """Say a graph in opset 17.

    Args:
        model: of opset 18, without control flow; it is not changed.

    Returns:
        A graph that passes the checker of opset 17 and computes the same.

    Raises:
        CheckFailed: a node means something that opset 17 cannot say.
    """
    written = {entry.domain: entry.version for entry in model.opset_import}.get("", 0)
    if written != FROM:
        raise CheckFailed(f"only opset {FROM} is lowered to {TO}", found=f"opset {written}")
    lowering = Lowering(constants_of(model.graph), fixed_shapes(model), [])
    nodes = [new for node in model.graph.node for new in _lower_node(node, lowering)]
    graph = helper.make_graph(
        nodes,
        model.graph.name,
        list(model.graph.input),
        list(model.graph.output),
        [*model.graph.initializer, *lowering.added],
        value_info=list(model.graph.value_info),
    )
    drop_unused(graph)
    lowered = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", TO)], ir_version=min(model.ir_version, 8)
    )
    lowered.metadata_props.extend(model.metadata_props)
    onnx.checker.check_model(skeleton(lowered), full_check=True)
    return lowered


def _lower_node(node: onnx.NodeProto, lowering: Lowering) -> list[onnx.NodeProto]:
    try:
        since = defs.get_schema(node.op_type, FROM, node.domain).since_version
    except defs.SchemaError:
        raise refused(node, f"opset {FROM} has no such operator") from None
    if since <= TO:
        return [node]
    if node.op_type not in RULES:
        raise refused(node, f"opset {TO} has no such operator")
    return RULES[node.op_type](node, lowering)


def _reduce(node: onnx.NodeProto, lowering: Lowering) -> list[onnx.NodeProto]:
    """`axes` was an attribute; no axes meant all of them."""
    attributes = attributes_of(node)
    nothing = attributes.pop("noop_with_empty_axes", 0)
    axes = lowering.array(node, 1, "axes")
    if axes is not None and axes.size:
        attributes["axes"] = axes.reshape(-1).tolist()
    elif nothing:
        if node.op_type not in ("ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd"):
            raise refused(node, "it reduces no axis but transforms every value")
        return [helper.make_node("Identity", [node.input[0]], list(node.output), node.name)]
    return [same_node(node, [node.input[0]], attributes)]


def _split(node: onnx.NodeProto, lowering: Lowering) -> list[onnx.NodeProto]:
    """`num_outputs` becomes the sizes themselves: equal ones and a smaller last one."""
    attributes = attributes_of(node)
    count = attributes.pop("num_outputs", None)
    if count is None:
        return [same_node(node, list(node.input), attributes)]
    size = lowering.shape(node)[attributes.get("axis", 0)]
    if size is None:
        raise refused(node, "it splits a free axis")
    piece = math.ceil(size / count)
    sizes = [piece] * (count - 1) + [size - piece * (count - 1)]
    name = lowering.constant(node, "split", np.asarray(sizes, np.int64))
    return [same_node(node, [node.input[0], name], attributes)]


def _pad(node: onnx.NodeProto, lowering: Lowering) -> list[onnx.NodeProto]:
    """`axes` spread over all axes."""
    axes = lowering.array(node, 3, "axes")
    inputs = list(node.input[:3])
    if axes is not None:
        pads = lowering.required(node, 1, "pads")
        rank = lowering.rank(node)
        full = np.zeros((2, rank), np.int64)
        full[:, axes] = pads.reshape(2, -1)
        inputs[1] = lowering.constant(node, "pads", full.reshape(-1))
    return [same_node(node, inputs, attributes_of(node))]


def _resize(node: onnx.NodeProto, lowering: Lowering) -> list[onnx.NodeProto]:
    """Without antialiasing and aspect ratio policies it is the Resize of opset 13."""
    attributes = attributes_of(node)
    if attributes.pop("antialias", 0):
        raise refused(node, "it antialiases")
    policy = attributes.pop("keep_aspect_ratio_policy", b"stretch")
    if policy != b"stretch":
        raise refused(node, f"it keeps the aspect ratio ({policy.decode()})")
    axes = attributes.pop("axes", None)
    inputs = [*node.input, "", "", ""][:4]
    if axes is not None:
        _spread_resize(node, lowering, list(axes), inputs)
    return [same_node(node, inputs, attributes)]


def _spread_resize(
    node: onnx.NodeProto, lowering: Lowering, axes: list[int], inputs: list[str]
) -> None:
    """Say region, scales and sizes of some axes for all axes, in `inputs`."""
    rank = lowering.rank(node)
    region = lowering.array(node, 1, "region")
    if region is not None and region.size:
        full = np.concatenate([np.zeros(rank), np.ones(rank)]).astype(region.dtype).reshape(2, rank)
        full[:, axes] = region.reshape(2, -1)
        inputs[1] = lowering.constant(node, "region", full.reshape(-1))
    scales = lowering.array(node, 2, "scales")
    if scales is not None and scales.size:
        spread = np.ones(rank, np.float32)
        spread[axes] = scales
        inputs[2] = lowering.constant(node, "scales", spread)
    sizes = lowering.array(node, 3, "sizes")
    if sizes is not None and sizes.size:
        shape = lowering.shape(node)
        if any(size is None for axis, size in enumerate(shape) if axis not in axes):
            # A free axis has no size to write down: the same as scales, where they are exact.
            inputs[2], inputs[3] = _scales_for(node, lowering, shape, axes, sizes), ""
        else:
            whole = np.asarray(shape, np.int64)
            whole[axes] = sizes
            inputs[3] = lowering.constant(node, "sizes", whole)


def _scales_for(
    node: onnx.NodeProto,
    lowering: Lowering,
    shape: tuple[int | None, ...],
    axes: list[int],
    sizes: NDArray[Any],
) -> str:
    scales = np.ones(len(shape), np.float32)
    for axis, size in zip(axes, sizes.tolist(), strict=True):
        old = shape[axis]
        if old is None or math.floor(old * np.float32(size / old)) != size:
            raise refused(node, f"no scale gives exactly {size} on axis {axis}")
        scales[axis] = size / old
    return lowering.constant(node, "scales", scales)


def _scatter(node: onnx.NodeProto, lowering: Lowering) -> list[onnx.NodeProto]:
    """Opset 16 knows `add` and `mul`; `max` and `min` came with 18."""
    reduction = attributes_of(node).get("reduction", b"none").decode()
    if reduction not in ("none", "add", "mul"):
        raise refused(node, f"its reduction is {reduction!r}")
    return [node]


def _lp_pool(node: onnx.NodeProto, lowering: Lowering) -> list[onnx.NodeProto]:
    attributes = attributes_of(node)
    dilations, ceiling = attributes.pop("dilations", []), attributes.pop("ceil_mode", 0)
    if ceiling or any(step != 1 for step in dilations):
        raise refused(node, "it pools with dilations or rounds sizes up")
    return [same_node(node, list(node.input), attributes)]


def _mish(node: onnx.NodeProto, lowering: Lowering) -> list[onnx.NodeProto]:
    """x * tanh(softplus(x)), as the standard defines it."""
    x, y = node.input[0], node.output[0]
    return [
        helper.make_node("Softplus", [x], [f"{y}_softplus"], f"{node.name}_softplus"),
        helper.make_node("Tanh", [f"{y}_softplus"], [f"{y}_tanh"], f"{node.name}_tanh"),
        helper.make_node("Mul", [x, f"{y}_tanh"], [y], node.name),
    ]


def _group_norm(node: onnx.NodeProto, lowering: Lowering) -> list[onnx.NodeProto]:
    """Groups laid out as channels: there it is an InstanceNormalization."""
    attributes = attributes_of(node)
    y, groups = node.output[0], attributes["num_groups"]
    form = lowering.constant(node, "groups", np.asarray([0, groups, -1], np.int64))
    return [
        helper.make_node("Shape", [node.input[0]], [f"{y}_shape"], f"{node.name}_shape"),
        helper.make_node("Reshape", [node.input[0], form], [f"{y}_in"], f"{node.name}_in"),
        helper.make_node(
            "InstanceNormalization",
            [f"{y}_in", *node.input[1:]],
            [f"{y}_normal"],
            node.name,
            epsilon=attributes.get("epsilon", 1e-5),
        ),
        helper.make_node("Reshape", [f"{y}_normal", f"{y}_shape"], [y], f"{node.name}_out"),
    ]


def _crop_or_pad(node: onnx.NodeProto, lowering: Lowering) -> list[onnx.NodeProto]:
    """A Slice that takes the middle, then a Pad that puts it in the middle of zeros."""
    shape = lowering.shape(node)
    axes = attributes_of(node).get("axes", list(range(len(shape))))
    sizes = lowering.required(node, 1, "sizes")
    starts, ends = [], []
    pads = np.zeros((2, len(shape)), np.int64)
    for axis, size in zip(axes, sizes.tolist(), strict=True):
        old = shape[axis]
        if old is None:
            raise refused(node, "it crops a free axis")
        start = max(0, (old - size) // 2)
        starts.append(start)
        ends.append(start + min(old, size))
        missing = max(0, size - old)
        pads[:, axis] = missing // 2, missing - missing // 2
    inputs = [
        lowering.constant(node, what, np.asarray(value, np.int64))
        for what, value in (("starts", starts), ("ends", ends), ("axes", axes))
    ]
    y = node.output[0]
    padding = lowering.constant(node, "pads", pads.reshape(-1))
    return [
        helper.make_node("Slice", [node.input[0], *inputs], [f"{y}_crop"], f"{node.name}_crop"),
        helper.make_node("Pad", [f"{y}_crop", padding], [y], node.name),
    ]


RULES: dict[str, Rule] = {
    **dict.fromkeys(
        (
            *("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax"),
            *("ReduceMean", "ReduceMin", "ReduceProd", "ReduceSumSquare"),
        ),
        _reduce,
    ),
    "Split": _split,
    "Pad": _pad,
    "Resize": _resize,
    "ScatterElements": _scatter,
    "ScatterND": _scatter,
    "LpPool": _lp_pool,
    "Mish": _mish,
    "GroupNormalization": _group_norm,
    "CenterCropPad": _crop_or_pad,
}
"""Operators that changed with opset 18; BitwiseAnd, Col2Im and the like have no equal in 17."""
