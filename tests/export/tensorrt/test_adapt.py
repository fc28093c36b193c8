"""What TensorRT 8.6 is given instead of the graph that ships computes the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from tk.export.tensorrt.adapt import adapt

IMAGE = np.random.default_rng(0).integers(0, 256, (3, 8), dtype=np.uint8)


def quantized(axis: int | None) -> onnx.ModelProto:
    """image -> Q -> DQ -> MatMul with an int8 weight; scales per column when there is an axis."""
    random = np.random.default_rng(1)
    scale = np.float32(0.013) if axis is None else random.uniform(0.001, 0.9, 5).astype(np.float32)
    zeros = np.zeros(np.shape(scale), np.int8)
    along: dict[str, Any] = {} if axis is None else {"axis": axis}
    nodes = [
        helper.make_node("Cast", ["image"], ["x"], to=1),
        helper.make_node("QuantizeLinear", ["x", "one", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "one", "zero"], ["d"]),
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["wide"], **along),
        helper.make_node("MatMul", ["d", "wide"], ["y"]),
    ]
    weights = {
        "one": np.float32(2.0),
        "zero": np.int8(0),
        "w": random.integers(-127, 128, (8, 5), dtype=np.int8),
        "s": scale,
        "z": zeros,
    }
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("image", 2, ["B", 8])],
        [helper.make_tensor_value_info("y", 1, ["B", 5])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def run(model: onnx.ModelProto, **feed: NDArray[np.generic]) -> NDArray[np.generic]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return np.asarray(session.run(None, feed)[0])


@pytest.mark.parametrize("axis", [None, 1, -1])
def test_adapt__int8_weights_become_float_and_are_rounded_to_the_same(axis: int | None) -> None:
    model = quantized(axis)
    before = run(model, image=IMAGE)
    assert adapt(model, weak=True)
    onnx.checker.check_model(model, full_check=True)
    np.testing.assert_array_equal(run(model, image=IMAGE), before)
    made = {weight.name: weight for weight in model.graph.initializer}
    pairs = [n for n in model.graph.node if n.op_type == "DequantizeLinear"]
    makers = {n.output[0]: n for n in model.graph.node}
    assert all(makers[node.input[0]].op_type == "QuantizeLinear" for node in pairs)
    assert made["wide_float"].data_type == onnx.TensorProto.FLOAT


def test_adapt__newer_ones_read_int8_weights() -> None:
    model = quantized(1)
    data = model.SerializeToString()
    assert not adapt(model, weak=False)
    assert model.SerializeToString() == data


@pytest.mark.parametrize("point", [None, 1])
def test_adapt__other_zero_points_than_zero_stay(point: int | None) -> None:
    """No TensorRT reads them: it says so itself, instead of building from other weights."""
    model = quantized(1)
    (node,) = [n for n in model.graph.node if n.output[0] == "wide"]
    if point is None:
        del node.input[2]
    else:
        (zero,) = [w for w in model.graph.initializer if w.name == "z"]
        zero.CopyFrom(numpy_helper.from_array(np.full(5, point, np.int8), "z"))
    before = run(model, image=IMAGE)
    assert not adapt(model, weak=True)
    np.testing.assert_array_equal(run(model, image=IMAGE), before)


SHARED = """<ir_version: 8, opset_import: ["" : 17]>
g (uint8[B,8] image, float[B,1] valid, float[T] text) => (float[B,8] y) {
    x = Cast <to = 1> (image)
    y = Mul (x, valid)
}"""


def test_adapt__a_picture_shares_no_axis_with_another_input() -> None:
    model = onnx.parser.parse_model(SHARED)
    assert adapt(model, weak=True)
    names = [axis.dim_param for v in model.graph.input for axis in v.type.tensor_type.shape.dim]
    assert [name for name in names if name] == ["B_of_image", "B", "T"]
    assert not adapt(onnx.parser.parse_model(SHARED), weak=False)
    assert not adapt(onnx.parser.parse_model(SHARED.replace("float[B,1]", "float[1,1]")), weak=True)
