"""Cast an ONNX graph to fp16 or bf16, so that its precision is in the file and not in a flag."""

from __future__ import annotations

from collections.abc import Collection

import onnx
from onnx import TensorProto, helper, numpy_helper

from tk.export.precision.flowview import FlowView, Slots, name_of, view
from tk.export.precision.formats import ONNX_TYPE, Precision, low_tensor
from tk.export.precision.keep import must_keep
from tk.export.precision.sides import READS_ANY, Side, assign_sides, makes_float
from tk.export.shapes import skeleton
from tk.runtime.errors import CheckFailed


def cast_graph(
    model: onnx.ModelProto, precision: Precision, keep: Collection[str]
) -> onnx.ModelProto:
    """Say a float32 graph in a lower precision.

    Inputs and outputs of the graph keep their types. Names of nodes and of the values that they
    give stay, but for outputs of the graph: what gave `y` gives `y_fp16`, and a Cast gives `y`.

    Args:
        model: of opset 17 or 18, weights inside; it is not changed.
        precision: of the arithmetic that is not kept.
        keep: names of nodes that stay float32 (`tk.export.precision.keep.default_keep` and more);
            what `must_keep` names stays float32 always.

    Returns:
        A graph that passes the checker; equal calls give equal bytes.

    Raises:
        CheckFailed: control flow, functions, or a value of unknown type.
    """
    flow = view(model)
    writer = _Writer(flow, precision, {*keep, *must_keep(flow, precision)})
    graph = helper.make_graph(
        writer.write(),
        model.graph.name or "graph",
        list(model.graph.input),
        list(model.graph.output),
        writer.weights(model.graph),
        doc_string=model.graph.doc_string or None,
        value_info=writer.described(model.graph),
    )
    graph.sparse_initializer.extend(model.graph.sparse_initializer)
    cast = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    cast.producer_name, cast.producer_version = model.producer_name, model.producer_version
    cast.metadata_props.extend(model.metadata_props)
    try:
        onnx.checker.check_model(skeleton(cast), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        text = " ".join(str(error).split())[:300]
        raise CheckFailed(f"the graph cannot be said in {precision}: {text}") from error
    return cast


def float32_nodes(
    model: onnx.ModelProto, precision: Precision, keep: Collection[str]
) -> tuple[str, ...]:
    """Names of the nodes that `cast_graph` leaves in float32, in order.

    For engines without typed graphs (TensorRT 8.6), which are told layer by layer.
    """
    flow = view(model)
    sides, _ = assign_sides(flow, precision, {*keep, *must_keep(flow, precision)})
    return tuple(
        name_of(node) for node, side in zip(flow.nodes, sides, strict=True) if side is Side.FLOAT32
    )


class _Writer:
    """Writes the nodes of the new graph; one Cast at most per value and type."""

    def __init__(self, flow: FlowView, precision: Precision, keep: Collection[str]) -> None:
        self.flow, self.precision = flow, precision
        self.type = ONNX_TYPE[precision]
        self.sides, self.slots = assign_sides(flow, precision, keep)
        self.made_low = {
            flow.nodes[index].output[place]
            for index, own in self.slots.items()
            for place in own.outputs
            if flow.nodes[index].output[place]
        }
        self.read_low, self.read_float = self._reads()
        taken = {*flow.types, *flow.maker, *flow.inputs}
        self._names = _Names(taken | {node.name for node in flow.nodes})
        self.low: dict[str, str] = {}
        self.high: dict[str, str] = {}
        for name in flow.types:
            self._name_both(name)

    def _reads(self) -> tuple[set[str], set[str]]:
        """Values that are read in low precision, and in float32."""
        low: set[str] = set()
        high = set(self.flow.outputs)
        for index, node in enumerate(self.flow.nodes):
            for place, name in enumerate(node.input):
                if self.flow.is_float(name):
                    (low if self._reads_low(index, place) else high).add(name)
        return low, high

    def _reads_low(self, index: int, place: int) -> bool:
        node = self.flow.nodes[index]
        if node.op_type in READS_ANY or node.op_type == "Cast":
            return node.input[place] in self.made_low  # whatever there is
        own = self.slots.get(index)
        return own is not None and place in own.inputs

    def _name_both(self, name: str) -> None:
        """Choose the names of a value in both precisions; its own goes to how it is made."""
        is_low = name in self.made_low and name not in self.flow.outputs
        constant = name in self.flow.constants and name not in self.read_float
        if (is_low or constant) and name in self.read_low | self.made_low:
            self.low[name] = name
            if name in self.read_float:
                self.high[name] = self._names.new(f"{name}_fp32")
        else:
            self.high[name] = name
            if name in self.read_low | self.made_low:
                self.low[name] = self._names.new(f"{name}_{self.precision}")

    def write(self) -> list[onnx.NodeProto]:
        """All nodes, each followed by the casts of what it gives."""
        nodes = [cast for name in self.flow.inputs for cast in self._casts(name)]
        for index, node in enumerate(self.flow.nodes):
            if node.op_type == "Constant" and self.flow.is_float(node.output[0]):
                nodes += self._constant(node)
                continue
            nodes.append(self._node(index, node))
            nodes += [cast for name in node.output if name for cast in self._casts(name)]
        return nodes

    def _casts(self, name: str) -> list[onnx.NodeProto]:
        if name in self.made_low:
            if name not in self.read_float:
                return []
            return [self._cast(name, self.low[name], self.high[name], TensorProto.FLOAT, "fp32")]
        if name not in self.read_low or not self.flow.is_float(name):
            return []
        return [self._cast(name, self.high[name], self.low[name], self.type, self.precision)]

    def _cast(self, name: str, source: str, target: str, kind: int, word: str) -> onnx.NodeProto:
        own = self._names.new(f"{name}_to_{word}")
        return helper.make_node("Cast", [source], [target], own, to=kind)

    def _node(self, index: int, node: onnx.NodeProto) -> onnx.NodeProto:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        for place, name in enumerate(node.input):
            if self.flow.is_float(name):
                copy.input[place] = (self.low if self._reads_low(index, place) else self.high)[name]
        own = self.slots.get(index, Slots(frozenset(), frozenset()))
        for place in own.outputs:
            if node.output[place]:
                copy.output[place] = self.low[node.output[place]]
        if 0 in own.outputs and makes_float(node):
            next(a for a in copy.attribute if a.name == "to").i = self.type
        return copy

    def _constant(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        name = node.output[0]
        if name not in self.read_low:
            return [node]
        value = numpy_helper.to_array(self.flow.constants[name])
        tensor = low_tensor(value, "value", self.precision)
        own = node.name if name not in self.read_float else self._names.new(self.low[name])
        low = helper.make_node("Constant", [], [self.low[name]], own, value=tensor)
        return [low] if name not in self.read_float else [node, low]

    def weights(self, graph: onnx.GraphProto) -> list[onnx.TensorProto]:
        """Weights, in the precisions in which they are read."""
        written = []
        for weight in graph.initializer:
            is_read_low = weight.name in self.read_low and weight.name in self.flow.constants
            if not is_read_low or weight.name in self.read_float:
                written.append(weight)
            if is_read_low:
                value = numpy_helper.to_array(weight)
                written.append(low_tensor(value, self.low[weight.name], self.precision))
        return written

    def described(self, graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
        """What the graph says of its inner values, with their new types and names."""
        found: dict[str, onnx.ValueInfoProto] = {}
        for value in graph.value_info:
            if not self.flow.is_float(value.name):
                found[value.name] = value
        for value in (*graph.value_info, *graph.input, *graph.output):
            if self.flow.is_float(value.name):
                found |= {version.name: version for version in self._versions(value)}
        return list(found.values())

    def _versions(self, value: onnx.ValueInfoProto) -> list[onnx.ValueInfoProto]:
        versions = []
        for names, kind in ((self.high, TensorProto.FLOAT), (self.low, self.type)):
            own = names.get(value.name)
            if own is None or own in self.flow.inputs or own in self.flow.outputs:
                continue
            copy = onnx.ValueInfoProto()
            copy.CopyFrom(value)
            copy.name, copy.type.tensor_type.elem_type = own, kind
            versions.append(copy)
        return versions


class _Names:
    """Gives names that nothing else has."""

    def __init__(self, taken: set[str]) -> None:
        self.taken = taken

    def new(self, wanted: str) -> str:
        """The wanted name, or the nearest free one."""
        while wanted in self.taken:
            wanted += "_"
        self.taken.add(wanted)
        return wanted
