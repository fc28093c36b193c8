"""Small graphs, and what is asked of every cast graph."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto

from tk.export.precision.emulate import emulate
from tk.export.precision.formats import Precision

Arrays = dict[str, NDArray[Any]]
LOW = {TensorProto.FLOAT16, TensorProto.BFLOAT16}


def graph(body: str, inputs: str = "float[B,8] x", outputs: str = "float[B,8] y") -> Any:
    """A graph of opset 18; `body` is ONNX text."""
    text = f"""<ir_version: 8, opset_import: ["" : 18]> g ({inputs}) => ({outputs}) {{ {body} }}"""
    return onnx.parser.parse_model(text)


def named(model: onnx.ModelProto) -> onnx.ModelProto:
    """Name each node after what it gives."""
    for node in model.graph.node:
        node.name = f"n_{node.output[0]}"
    return model


def matrix(name: str, rows: int = 8, columns: int = 8, seed: int = 0) -> onnx.TensorProto:
    values = np.random.default_rng(seed).normal(size=(rows, columns)) / rows**0.5
    return onnx.numpy_helper.from_array(values.astype(np.float32), name)


def with_weights(model: onnx.ModelProto, *weights: onnx.TensorProto) -> onnx.ModelProto:
    """Add weights and names."""
    model.graph.initializer.extend(weights)
    return named(model)


def run(model: onnx.ModelProto, feed: Arrays) -> Arrays:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, feed), strict=True))


def run_low(cast: onnx.ModelProto, feed: Arrays, precision: Precision = "fp16") -> Arrays:
    """Run a cast graph with every value rounded.

    ONNX Runtime itself keeps float32 between operators that it has no fp16 kernels for, so on a CPU
    nothing overflows; and bfloat16 it does not run at all.
    """
    return run(emulate(cast, precision), feed)


def types(model: onnx.ModelProto) -> dict[str, int]:
    """Value -> element type."""
    inferred = onnx.shape_inference.infer_shapes(model).graph
    known = {weight.name: weight.data_type for weight in inferred.initializer}
    for value in (*inferred.input, *inferred.value_info, *inferred.output):
        known[value.name] = value.type.tensor_type.elem_type
    return known


def check_cast(model: onnx.ModelProto, cast: onnx.ModelProto) -> None:
    """Checker; interface; names; one Cast per value and type; none that another takes back."""
    onnx.checker.check_model(cast, full_check=True)
    assert list(cast.graph.input) == list(model.graph.input)
    assert list(cast.graph.output) == list(model.graph.output)
    assert cast.opset_import == model.opset_import
    made = Counter(name for node in cast.graph.node for name in node.output if name)
    made.update(weight.name for weight in cast.graph.initializer)
    assert max(made.values(), default=0) <= 1
    names = [node.name for node in cast.graph.node if node.name]
    assert len(names) == len(set(names))
    old = [n.name for n in model.graph.node if n.op_type != "Constant"]
    assert [name for name in names if name in set(old)] == old
    known = types(cast)
    casts: set[tuple[str, int]] = set()
    rounded: set[str] = set()
    for node in cast.graph.node:
        if node.op_type != "Cast":
            continue
        target = next(a.i for a in node.attribute if a.name == "to")
        assert (node.input[0], target) not in casts
        casts.add((node.input[0], target))
        source = known[node.input[0]]
        assert source != target or node.name in old
        if node.name not in old and (target in LOW or source in LOW):
            assert node.input[0] not in rounded
            rounded.add(node.output[0])
    declared = {value.name: value.type.tensor_type.elem_type for value in cast.graph.value_info}
    assert declared.items() <= known.items()


def kind_of(cast: onnx.ModelProto, name: str) -> str:
    """Operator's input type: `low` or `float32`, of the node that gives `name` in the old graph."""
    known = types(cast)
    node = next(n for n in cast.graph.node if n.name == f"n_{name}")
    return "low" if any(known.get(i) in LOW for i in (*node.input, *node.output)) else "float32"
