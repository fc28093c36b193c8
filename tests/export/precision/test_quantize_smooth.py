"""Evening out channels keeps the float function and mends int8 where channels are outliers."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from tk.export.precision.calibrate import calibrate, calibrate_channels
from tk.export.precision.quantize import quantize_graph
from tk.export.precision.quantize_plan import Rules, activations
from tk.export.precision.quantize_smooth import smooth, smoothable

ALL = Rules(heads=True, stems=True)
CHANNELS = 32


def network(*, bias: bool, outside: bool = False, opset: int = 18) -> onnx.ModelProto:
    """LayerNorm with outlier channels -> two products -> sum; `outside`: another reader."""
    random = np.random.default_rng(0)
    gain = np.exp(random.normal(size=CHANNELS)).astype(np.float32)
    gain[[3, 17]] *= 50
    weights = {
        "gain": gain,
        "offset": (gain * random.normal(size=CHANNELS)).astype(np.float32),
        "w1": (random.normal(size=(CHANNELS, 8)) / gain[:, None]).astype(np.float32),
        "w2": (random.normal(size=(CHANNELS, 8)) / gain[:, None]).astype(np.float32),
        "bias": random.normal(size=8).astype(np.float32),
    }
    nodes = [
        helper.make_node("LayerNormalization", ["x", "gain", "offset"], ["n"], "norm"),
        helper.make_node("MatMul", ["n", "w1"], ["p"], "p"),
        helper.make_node("MatMul", ["n", "w2"], ["q"], "q"),
    ]
    if bias:
        nodes.append(helper.make_node("Add", ["p", "bias"], ["pb"], "pb"))
        nodes.append(helper.make_node("Add", ["bias", "q"], ["qb"], "qb"))
        nodes.append(helper.make_node("Mul", ["pb", "qb"], ["y"], "y"))
    else:
        nodes.append(helper.make_node("Mul", ["p", "q"], ["y"], "y"))
    outputs = ["y"]
    if outside:
        nodes.append(helper.make_node("Relu", ["n"], ["z"], "z"))
        outputs.append("z")
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", 4, CHANNELS])],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", 4, None])
            for name in outputs
        ],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def feeds() -> list[dict[str, NDArray[np.float32]]]:
    random = np.random.default_rng(1)
    return [{"x": random.normal(size=(2, 4, CHANNELS)).astype(np.float32)} for _ in range(32)]


def run(model: onnx.ModelProto, feed: Any) -> NDArray[np.float32]:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["y"], feed)[0], np.float32)


def smoothed(model: onnx.ModelProto, strength: float = 0.5) -> onnx.ModelProto:
    names = smoothable(model, (), ALL)
    assert names == ["n"]
    return smooth(model, calibrate_channels(model, feeds(), names, threads=1), (), ALL, strength)


@pytest.mark.parametrize("opset", [17, 18])
@pytest.mark.parametrize("bias", [False, True])
def test_smooth__the_float_function_stays(bias: bool, opset: int) -> None:
    model = network(bias=bias, opset=opset)
    before = model.SerializeToString(deterministic=True)
    made, feed = smoothed(model), feeds()[0]
    onnx.checker.check_model(made, full_check=True)
    np.testing.assert_allclose(run(made, feed), run(model, feed), rtol=2e-4, atol=2e-4)
    assert model.SerializeToString(deterministic=True) == before
    found = {t.name: numpy_helper.to_array(t) for t in made.graph.initializer}
    assert "w1" not in found and "gain" not in found
    assert ("bias" in found) is False


@pytest.mark.parametrize("bias", [False, True])
def test_smooth__int8_error_of_outlier_channels(bias: bool) -> None:
    model, feed = network(bias=bias), feeds()[5]
    errors = []
    for candidate in (model, smoothed(model)):
        ranges = calibrate(candidate, feeds(), activations(candidate, (), ALL), "max", threads=1)
        made = quantize_graph(candidate, ranges, (), ALL)
        errors.append(float(np.abs(run(made, feed) - run(model, feed)).mean()))
    assert errors[1] < 0.2 * errors[0]


def test_smooth__shift_goes_where_a_bias_can_take_it() -> None:
    channels = calibrate_channels(network(bias=True), feeds(), ["n"], threads=1)["n"]
    assert np.abs(channels.mean(axis=0)).max() > 1  # channels are off their middle
    for bias in (True, False):
        made = smoothed(network(bias=bias))
        low, high = calibrate_channels(made, feeds(), ["n"], threads=1)["n"]
        centred = np.abs(low + high).max() < 1e-3 * (high - low).max()
        assert centred == bias


@pytest.mark.parametrize("keep", [("p",), ("q",), ("p", "q")])
def test_smoothable__float_readers_stop_it(keep: tuple[str, ...]) -> None:
    assert smoothable(network(bias=True), keep, ALL) == []


def test_smoothable__reader_outside_the_products() -> None:
    assert smoothable(network(bias=True, outside=True), (), ALL) == []
