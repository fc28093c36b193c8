"""Constant folding: what depends on no input is computed once, here.

The exporter folds only small values; position tables and index tables of full-size models are left.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx
from onnx import TensorProto, helper, numpy_helper

from tk.export.flow import dependence
from tk.export.precision.formats import low_tensor


def fold_constants(model: onnx.ModelProto) -> None:
    """Replace every node that depends on no input by its value, in place."""
    graph = model.graph
    depends = dependence(graph)
    constant = [
        n for n in graph.node if n.output and not any(depends[name] for name in n.output if name)
    ]
    rest = [n for n in graph.node if n.output and any(depends[name] for name in n.output if name)]
    if all(node.op_type == "Constant" for node in constant):
        return
    made = {name for node in constant if node.op_type != "Constant" for name in node.output}
    read = {name for node in rest for name in node.input} | {v.name for v in graph.output}
    values = _evaluate(model, constant, sorted(made & read))
    keep = [n for n in constant if n.op_type == "Constant"] + rest
    replace_nodes(graph, keep)
    graph.initializer.extend(values)
    drop_unused(graph)


def replace_nodes(graph: onnx.GraphProto, nodes: Iterable[onnx.NodeProto]) -> None:
    """Give a graph these nodes, in this order; they may be its own."""
    copies = []
    for node in nodes:  # those of the graph die with its list
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copies.append(copy)
    del graph.node[:]
    graph.node.extend(copies)


def drop_unused(graph: onnx.GraphProto) -> None:
    """Remove weights and `Constant` nodes that nobody reads, and descriptions of what is gone."""
    read = {name for node in graph.node for name in node.input} | {v.name for v in graph.output}
    for index in reversed(range(len(graph.initializer))):
        if graph.initializer[index].name not in read:
            del graph.initializer[index]
    for index in reversed(range(len(graph.node))):
        node = graph.node[index]
        if node.op_type == "Constant" and node.output[0] not in read:
            del graph.node[index]
    alive = {name for node in graph.node for name in node.output}
    for index in reversed(range(len(graph.value_info))):
        if graph.value_info[index].name not in alive:
            del graph.value_info[index]


def _evaluate(
    model: onnx.ModelProto, nodes: list[onnx.NodeProto], wanted: list[str]
) -> list[onnx.TensorProto]:
    """Run nodes that need no input in ONNX Runtime.

    numpy has no bfloat16, so such values leave the session as float32, which holds each of them
    exactly, and are written as bfloat16 again.
    """
    import onnxruntime as ort

    if not wanted:
        return []
    read = {name for node in nodes for name in node.input}
    weights = [weight for weight in model.graph.initializer if weight.name in read]
    halves = _bfloat16(model, nodes, wanted, weights)
    names = {name: f"{name}__float" if name in halves else name for name in wanted}
    casts = [
        helper.make_node("Cast", [name], [names[name]], to=TensorProto.FLOAT) for name in halves
    ]
    outputs = [helper.make_empty_tensor_value_info(name) for name in names.values()]
    graph = helper.make_graph([*nodes, *casts], "constants", [], outputs, weights)
    part = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(
        part.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    values = session.run(list(names.values()), {})
    return [
        low_tensor(value, name, "bf16") if name in halves else numpy_helper.from_array(value, name)
        for name, value in zip(wanted, values, strict=True)
    ]


def _bfloat16(
    model: onnx.ModelProto,
    nodes: list[onnx.NodeProto],
    wanted: list[str],
    weights: list[onnx.TensorProto],
) -> list[str]:
    """Those of some values that are bfloat16."""
    outputs = [helper.make_empty_tensor_value_info(name) for name in wanted]
    graph = helper.make_graph(nodes, "constants", [], outputs, weights)
    part = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    inferred = onnx.shape_inference.infer_shapes(part).graph
    types = {
        value.name: value.type.tensor_type.elem_type
        for value in (*inferred.value_info, *inferred.output)
    }
    return [name for name in wanted if types.get(name) == TensorProto.BFLOAT16]
