"""What the caster knows of a graph: types, who makes a value, who reads it, which are constant."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import onnx
from onnx import TensorProto, defs

from tk.export.flow import Depends, dependence, label
from tk.export.lowering import constants_of
from tk.export.precision.formats import TYPE_NAME, Precision
from tk.export.shapes import skeleton
from tk.runtime.errors import CheckFailed

FIXED_INPUTS: dict[str, frozenset[int]] = {"Resize": frozenset({1, 2})}
"""Inputs that stay float32 at every precision: region and scales are geometry, not signal."""


@dataclass(frozen=True)
class FlowView:
    """One graph, looked at from all sides; nodes are known by their place in it.

    Attributes:
        nodes: in topological order, as ONNX demands.
        types: value -> element type.
        maker: value -> place of the node that gives it.
        readers: value -> (place of a node, place among its inputs), in order.
        constants: value -> tensor, for weights and `Constant` nodes.
        fixed: values that do not depend on the content of any input (on its shape, maybe).
        inputs, outputs: names of the graph's own.
        opset: of the standard operators.
    """

    nodes: list[onnx.NodeProto]
    types: dict[str, int]
    maker: dict[str, int]
    readers: dict[str, list[tuple[int, int]]]
    constants: dict[str, onnx.TensorProto]
    fixed: frozenset[str]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    opset: int

    def is_float(self, name: str) -> bool:
        """Whether a value is float32."""
        return self.types.get(name) == TensorProto.FLOAT

    def computed(self, node: onnx.NodeProto) -> list[str]:
        """Float32 inputs that are no constants."""
        return [n for n in node.input if self.is_float(n) and n not in self.constants]

    def reading(self, name: str) -> Iterator[onnx.NodeProto]:
        """Nodes that read a value."""
        for index, _ in self.readers.get(name, []):
            yield self.nodes[index]

    def making(self, name: str) -> onnx.NodeProto | None:
        """The node that gives a value; None for inputs and weights."""
        return self.nodes[self.maker[name]] if name in self.maker else None


def view(model: onnx.ModelProto) -> FlowView:
    """Look at a graph.

    Args:
        model: with its weights inside, of standard operators.

    Raises:
        CheckFailed: control flow or functions, whose insides cannot be cast, or a value whose type
            cannot be told.
    """
    graph = model.graph
    if model.functions:
        raise CheckFailed("graphs with functions are not cast to another precision")
    maker: dict[str, int] = {}
    readers: dict[str, list[tuple[int, int]]] = {}
    for index, node in enumerate(graph.node):
        if any(a.HasField("g") or a.graphs for a in node.attribute):
            raise CheckFailed(f"node {label(node)} is control flow: it is not cast")
        maker |= {name: index for name in node.output if name}
        for place, name in enumerate(node.input):
            if name:
                readers.setdefault(name, []).append((index, place))
    inputs = tuple(value.name for value in graph.input)
    constants = {k: v for k, v in constants_of(graph).items() if k not in inputs}
    types = _types(model)
    for name, index in maker.items():
        if name not in types and name in readers:
            raise CheckFailed(f"the type of {name}, given by {label(graph.node[index])}, is open")
    return FlowView(
        nodes=list(graph.node),
        types=types,
        maker=maker,
        readers=readers,
        constants=constants,
        fixed=frozenset(n for n, own in dependence(graph).items() if own < Depends.CONTENT),
        inputs=inputs,
        outputs=tuple(value.name for value in graph.output),
        opset={entry.domain: entry.version for entry in model.opset_import}.get("", 0),
    )


def _types(model: onnx.ModelProto) -> dict[str, int]:
    graph = onnx.shape_inference.infer_shapes(skeleton(model)).graph
    types: dict[str, int] = {weight.name: weight.data_type for weight in graph.initializer}
    types |= {name: tensor.data_type for name, tensor in constants_of(model.graph).items()}
    for value in (*graph.value_info, *graph.output, *graph.input):
        types[value.name] = value.type.tensor_type.elem_type
    return types


def name_of(node: onnx.NodeProto) -> str:
    """The name by which keep-lists know a node; writers that leave it empty name the value."""
    return str(node.name or next((name for name in node.output if name), ""))


def attribute_int(node: onnx.NodeProto, name: str, default: int = 0) -> int:
    """An integer attribute."""
    return next((a.i for a in node.attribute if a.name == name), default)


def attribute_text(node: onnx.NodeProto, name: str, default: str = "") -> str:
    """A text attribute."""
    return next((a.s.decode() for a in node.attribute if a.name == name), default)


@dataclass(frozen=True)
class Slots:
    """Float32 inputs and outputs of a node that change their type when it runs in low precision."""

    inputs: frozenset[int]
    outputs: frozenset[int]


def low_slots(node: onnx.NodeProto, flow: FlowView, precision: Precision) -> Slots | None:
    """What changes when a node runs in low precision; None when ONNX does not allow it there.

    Read from the operator's own schema at this opset: bfloat16 convolutions, say, came with 22.
    """
    signature = _signature(node.op_type, node.domain, flow.opset)
    if signature is None:
        return None
    taken = [
        (place, *signature.parameter(place, outputs=False))
        for place, name in enumerate(node.input)
        if flow.is_float(name)
    ]
    given = [
        (place, *signature.parameter(place, outputs=True))
        for place, name in enumerate(node.output)
        if flow.is_float(name)
    ]
    if not taken and not given:
        return None
    _, primary, allowed = min(given or taken)
    low = TYPE_NAME[precision]
    if low not in allowed:
        return None
    fixed = FIXED_INPUTS.get(node.op_type, frozenset())
    return Slots(
        frozenset(place for place, _, types in taken if low in types and place not in fixed),
        # An output of another kind (the mean of LayerNormalization) keeps its own type.
        frozenset(place for place, kind, _ in given if kind == primary),
    )


@dataclass(frozen=True)
class _Signature:
    inputs: tuple[tuple[str, frozenset[str]], ...]
    outputs: tuple[tuple[str, frozenset[str]], ...]

    def parameter(self, place: int, *, outputs: bool) -> tuple[str, frozenset[str]]:
        """Type letter and allowed types; the last parameter may stand for many."""
        own = self.outputs if outputs else self.inputs
        return own[min(place, len(own) - 1)]


@cache
def _signature(kind: str, domain: str, opset: int) -> _Signature | None:
    try:
        schema = defs.get_schema(kind, opset, domain)
    except defs.SchemaError:
        return None
    return _Signature(
        tuple((p.type_str, frozenset(p.types)) for p in schema.inputs),
        tuple((p.type_str, frozenset(p.types)) for p in schema.outputs),
    )
