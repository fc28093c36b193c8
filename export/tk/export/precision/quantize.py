"""Explicit int8: QuantizeLinear/DequantizeLinear pairs in the graph, symmetric, as TensorRT needs.

Activations have one scale per tensor, weights one per output channel; zero points are 0, biases and
outputs stay float32. Each engine then fuses the pairs with the nodes around them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from tk.export.fold import drop_unused
from tk.export.precision.calibrate import Range
from tk.export.precision.quantize_plan import (
    DEFAULT,
    Rules,
    Site,
    Weight,
    conv_outputs,
    plan_sites,
    read_by,
    siblings,
)
from tk.export.precision.quantize_weight import channel_scales, round_to_int8, scale_of
from tk.export.shapes import skeleton
from tk.runtime.errors import CheckFailed, TkError


def quantize_graph(
    model: onnx.ModelProto,
    ranges: Mapping[str, Range],
    keep: Collection[str] = (),
    rules: Rules = DEFAULT,
) -> onnx.ModelProto:
    """Put Q/DQ pairs into a float32 graph.

    Args:
        model: opset 13 to 18, weights inside, constants folded; it is not changed.
        ranges: of the values that `activations(model, keep, rules)` lists; more do no harm.
        keep: names of nodes that stay in float.
        rules: what else is quantised or not.

    Returns:
        The int8 graph: same inputs, outputs and metadata. Equal arguments give equal bytes.

    Raises:
        TkError: a range is missing or not finite, or `keep` names no node.
        CheckFailed: nothing is left to quantise, or the graph does not pass the ONNX checker.
    """
    sites = {site.index: site for site in plan_sites(model, keep, rules)}
    if not sites:
        raise CheckFailed("no node of the graph is left to be int8", fix="keep fewer in float")
    read = set(read_by(model.graph, sites.values()))
    outputs = conv_outputs(model.graph, sites.values()) if rules.conv_outputs else {}
    groups = siblings(model.graph, sites.values())
    writer = _Writer(model.graph, ranges)
    for value in model.graph.input:
        if value.name in read:
            writer.pair(value.name, value.name)
    for index, node in enumerate(model.graph.node):
        if index in groups:
            group = [model.graph.node[other] for other in groups[index]]
            if index == groups[index][0]:
                writer.merged(group, [sites[other] for other in groups[index]])
        else:
            writer.node(node, sites.get(index))
        for name in node.output:
            if name in read or name in outputs:
                writer.pair(name, outputs.get(name, name), everyone=name in outputs)
    return _finished(model, writer)


class _Writer:
    """Nodes and weights of the graph to be, in order.

    Attributes:
        pairs: value -> what its Q/DQ pair gives.
        replaced: the same for values that all nodes read through the pair, not only int8 ones.
    """

    def __init__(self, graph: onnx.GraphProto, ranges: Mapping[str, Range]) -> None:
        self.ranges = ranges
        self.floats = {tensor.name: tensor for tensor in graph.initializer}
        self.taken = {value for node in graph.node for value in (*node.output, node.name)}
        self.taken |= {value.name for value in (*graph.input, *graph.initializer)}
        self.nodes: list[onnx.NodeProto] = []
        self.added: list[onnx.TensorProto] = []
        self.pairs: dict[str, str] = {}
        self.replaced: dict[str, str] = {}
        self.scales: dict[str, np.float32] = {}
        self.weights: dict[tuple[str, int, bytes], str] = {}
        self.zero = self.constant("int8_zero", np.zeros((), np.int8))

    def name(self, wanted: str) -> str:
        """A name that the graph does not use yet."""
        free, count = wanted, 1
        while free in self.taken:
            free, count = f"{wanted}_{count}", count + 1
        self.taken.add(free)
        return free

    def constant(self, wanted: str, value: NDArray[np.generic]) -> str:
        """Add a weight; gives its name."""
        name = self.name(wanted)
        self.added.append(numpy_helper.from_array(value, name))
        return name

    def add(self, op: str, inputs: list[str], wanted: str, **marks: Any) -> str:
        """Add a node; gives the name of its output."""
        output = self.name(wanted)
        name = self.name(f"{output}_{op}")
        self.nodes.append(helper.make_node(op, inputs, [output], name, **marks))
        return output

    def pair(self, value: str, measured: str, *, everyone: bool = False) -> None:
        """Quantise and dequantise a value with the range of `measured`."""
        if measured not in self.ranges:
            raise TkError(f"value {measured!r} has no range", fix="calibrate it first")
        low, high = self.ranges[measured]
        if not (np.isfinite([low, high]).all() and low <= high):
            raise TkError(f"the range of value {measured!r} is no range", found=f"{low} … {high}")
        scale = scale_of(low, high)
        constant = self.constant(f"{value}_scale", np.asarray(scale))
        steps = self.add("QuantizeLinear", [value, constant, self.zero], f"{value}_int8")
        back = self.add("DequantizeLinear", [steps, constant, self.zero], f"{value}_back")
        self.pairs[value], self.scales[value] = back, scale
        if everyone:
            self.replaced[value] = back

    def node(self, node: onnx.NodeProto, site: Site | None) -> None:
        """Copy a node; an int8 one reads through the pairs."""
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        for position, name in enumerate(node.input):
            copy.input[position] = self.replaced.get(name, name)
        if site is not None:
            copy.input[0] = self.pairs[node.input[0]]
            copy.input[1] = self.weight(site.weight, self.scales[node.input[0]])
        if site is not None and node.op_type == "Gemm" and len(node.input) > 2 and node.input[2]:
            self.split(copy)
        else:
            self.nodes.append(copy)

    def split(self, gemm: onnx.NodeProto) -> None:
        """Add the bias of a Gemm apart: with a float bias inside, engines have no int8 kernel."""
        bias, output = gemm.input.pop(), gemm.output[0]
        gemm.output[0] = self.name(f"{output}_product")
        name = self.name(f"{output}_bias_Add")
        self.nodes += [gemm, helper.make_node("Add", [gemm.output[0], bias], [output], name)]

    def merged(self, nodes: list[onnx.NodeProto], sites: list[Site]) -> None:
        """One MatMul for all that read one value, and a Split of what it gives."""
        arrays = [self.array(site.weight.name) for site in sites]
        name = nodes[0].input[1] + "_merged"
        weight = self.stored(name, np.concatenate(arrays, axis=1), 1)
        product = self.add("MatMul", [self.pairs[nodes[0].input[0]], weight], f"{name}_product")
        sizes = np.asarray([array.shape[1] for array in arrays], np.int64)
        outputs = [node.output[0] for node in nodes]
        inputs = [product, self.constant(f"{name}_sizes", sizes)]
        label = self.name(f"{product}_Split")
        self.nodes.append(helper.make_node("Split", inputs, outputs, label, axis=-1))

    def weight(self, weight: Weight, activation: np.float32) -> str:
        """Store a weight as int8 with its DequantizeLinear, once; gives the float value's name."""
        bias = self.array(weight.bias) if weight.bias else None
        return self.stored(weight.name, self.array(weight.name), weight.axis, bias, activation)

    def array(self, name: str) -> NDArray[np.float32]:
        """A float weight of the graph."""
        return np.asarray(numpy_helper.to_array(self.floats[name]), np.float32)

    def stored(
        self,
        name: str,
        array: NDArray[np.float32],
        axis: int,
        bias: NDArray[np.float32] | None = None,
        activation: np.float32 | float = 1.0,
    ) -> str:
        """As `weight`, for an array; `bias` and `activation` as of `channel_scales`."""
        scales = channel_scales(array, axis, bias, activation)
        key = (name, axis, scales.tobytes())
        if key not in self.weights:
            inputs = [
                self.constant(f"{name}_int8", round_to_int8(array, scales, axis)),
                self.constant(f"{name}_scale", scales),
                self.constant(f"{name}_zero", np.zeros(len(scales), np.int8)),
            ]
            self.weights[key] = self.add("DequantizeLinear", inputs, f"{name}_back", axis=axis)
        return self.weights[key]


def _finished(model: onnx.ModelProto, writer: _Writer) -> onnx.ModelProto:
    graph = helper.make_graph(
        writer.nodes,
        model.graph.name or "graph",
        list(model.graph.input),
        list(model.graph.output),
        [*model.graph.initializer, *writer.added],
        value_info=list(model.graph.value_info),
    )
    drop_unused(graph)
    made = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    made.metadata_props.extend(model.metadata_props)
    made.producer_name, made.producer_version = model.producer_name, model.producer_version
    made.functions.extend(model.functions)
    try:
        onnx.checker.check_model(skeleton(made), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise CheckFailed(
            f"the int8 graph does not pass the ONNX checker: {' '.join(str(error).split())[:300]}"
        ) from error
    return made
