"""What the rules of `lower` look at and say: constants, shapes, refusals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from tk.export.flow import label
from tk.export.shapes import bound_shapes, skeleton
from tk.runtime.errors import CheckFailed

FROM, TO = 18, 17


@dataclass
class Lowering:
    """What the rules for single operators look at.

    Attributes:
        constants: value name -> tensor, for values known now.
        fixed: value name -> shape with None for free axes.
        added: new weights so far.
    """

    constants: dict[str, onnx.TensorProto]
    fixed: dict[str, tuple[int | None, ...]]
    added: list[onnx.TensorProto]

    def array(self, node: onnx.NodeProto, index: int, what: str) -> NDArray[Any] | None:
        """Constant input of a node; None when it is left out."""
        name = node.input[index] if index < len(node.input) else ""
        if not name:
            return None
        if name not in self.constants:
            raise refused(node, f"its {what} are not constant")
        return numpy_helper.to_array(self.constants[name])

    def required(self, node: onnx.NodeProto, index: int, what: str) -> NDArray[Any]:
        """Constant input of a node that cannot do without it."""
        value = self.array(node, index, what)
        if value is None:
            raise refused(node, f"it has no {what}")
        return value

    def rank(self, node: onnx.NodeProto) -> int:
        """Number of axes of the first input."""
        return len(self.shape(node))

    def shape(self, node: onnx.NodeProto) -> tuple[int | None, ...]:
        """Shape of the first input; None for a free axis."""
        known = self.fixed.get(node.input[0])
        if known is None:
            raise refused(node, "the shape of its input is not known")
        return known

    def constant(self, node: onnx.NodeProto, what: str, value: NDArray[Any]) -> str:
        """Add a weight and give its name."""
        name = f"{node.output[0]}_{what}_17"
        self.added.append(numpy_helper.from_array(value, name))
        return name


def constants_of(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    """Weights and `Constant` nodes by the name of their value."""
    known = {weight.name: weight for weight in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            known.update(zip(node.output, _constant_value(node), strict=False))
    return known


def _constant_value(node: onnx.NodeProto) -> list[onnx.TensorProto]:
    for attribute in node.attribute:
        value = helper.get_attribute_value(attribute)
        if attribute.name == "value":
            return [value]
        if attribute.name in ("value_int", "value_ints"):
            return [numpy_helper.from_array(np.asarray(value, np.int64))]
        if attribute.name in ("value_float", "value_floats"):
            return [numpy_helper.from_array(np.asarray(value, np.float32))]
    return []


def fixed_shapes(model: onnx.ModelProto) -> dict[str, tuple[int | None, ...]]:
    """Shapes that hold for any batch: what two sizes of the free axes agree on."""
    light = skeleton(model)
    (_, two), (_, three) = bound_shapes(light, 2), bound_shapes(light, 3)
    fixed: dict[str, tuple[int | None, ...]] = {}
    for name, shape in two.items():
        other = three.get(name)
        if shape is not None and other is not None and len(shape) == len(other):
            fixed[name] = tuple(a if a == b else None for a, b in zip(shape, other, strict=True))
    return fixed


def refused(node: onnx.NodeProto, why: str) -> CheckFailed:
    """The error of a node that opset 17 cannot say."""
    return CheckFailed(
        f"node {label(node)} cannot be lowered from opset {FROM} to {TO}: {why}",
        fix="export with --opset 18, or change the model so that it does without this operator",
    )


def attributes_of(node: onnx.NodeProto) -> dict[str, Any]:
    """Attributes by name, as Python values."""
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def same_node(
    node: onnx.NodeProto, inputs: list[str], attributes: dict[str, Any]
) -> onnx.NodeProto:
    """The node with other inputs and attributes."""
    while inputs and not inputs[-1]:
        inputs = inputs[:-1]
    return helper.make_node(node.op_type, inputs, list(node.output), node.name, **attributes)
