"""Q/DQ graphs against closed forms, ONNX Runtime's own quantiser and the engines' kernels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from tk.export.precision.calibrate import Range, calibrate
from tk.export.precision.quantize import quantize_graph
from tk.export.precision.quantize_plan import DEFAULT, Rules, activations, plan_sites
from tk.runtime.backends.openvino import session as openvino
from tk.runtime.errors import CheckFailed, TkError
from tk.runtime.manifest import Part, TensorSpec

Floats = NDArray[np.float32]
ALL = Rules(heads=True, stems=True)
PLAIN = Rules(heads=True, stems=True, conv_outputs=False)
RANDOM = np.random.default_rng(0)


def graph(
    nodes: list[onnx.NodeProto],
    weights: dict[str, Floats],
    shape: tuple[int | str, ...],
    opset: int = 18,
) -> onnx.ModelProto:
    for index, node in enumerate(nodes):
        node.name = node.name or f"n{index}"
    body = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    ids = [helper.make_opsetid("", opset)]
    return onnx.shape_inference.infer_shapes(
        helper.make_model(body, opset_imports=ids, ir_version=9)
    )


def run(model: onnx.ModelProto, x: Floats, optimised: Path | None = None) -> Floats:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if optimised:
        options.optimized_model_filepath = str(optimised)
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return np.asarray(session.run(["y"], {"x": x})[0], np.float32)


def normal(*shape: int) -> Floats:
    return RANDOM.normal(size=shape).astype(np.float32)


def int8(values: Floats, axis: int | None) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Closed form: whole steps and scale, per tensor or along an axis."""
    others = tuple(i for i in range(values.ndim) if i != axis) if axis is not None else None
    scale = np.abs(values.astype(np.float64)).max(axis=others, keepdims=True) / 127
    return np.clip(np.rint(values / scale), -127, 127), scale


def convolved(x: NDArray[Any], w: NDArray[Any], groups: int) -> NDArray[Any]:
    """3x3, padding 1, by windows."""
    padded: Any = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    tricks: Any = np.lib.stride_tricks  # its types do not know several axes
    windows = tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    n, c, height, width = x.shape
    split = windows.reshape(n, groups, c // groups, height, width, 3, 3)
    kernels = w.reshape(groups, -1, *w.shape[1:])
    out = np.einsum("ngchwij,gocij->ngohw", split, kernels)
    return np.asarray(out.reshape(n, -1, height, width))


Product = Callable[[NDArray[Any], NDArray[Any]], NDArray[Any]]
SINGLE: dict[str, tuple[onnx.NodeProto, tuple[int, ...], tuple[int, ...], int, Product]] = {
    "conv": (
        helper.make_node("Conv", ["x", "w", "b"], ["y"], pads=[1, 1, 1, 1]),
        (2, 4, 6, 5),
        (8, 4, 3, 3),
        0,
        lambda x, w: convolved(x, w, 1),
    ),
    "depthwise": (
        helper.make_node("Conv", ["x", "w", "b"], ["y"], pads=[1, 1, 1, 1], group=8),
        (2, 8, 6, 5),
        (8, 1, 3, 3),
        0,
        lambda x, w: convolved(x, w, 8),
    ),
    "gemm": (helper.make_node("Gemm", ["x", "w", "b"], ["y"]), (3, 16), (16, 8), 1, np.matmul),
    "gemm_transposed": (
        helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=1),
        (3, 16),
        (8, 16),
        0,
        lambda x, w: x @ w.T,
    ),
    "matmul": (helper.make_node("MatMul", ["x", "w"], ["y"]), (2, 3, 16), (16, 8), 1, np.matmul),
}


@pytest.mark.parametrize("opset", [17, 18])
@pytest.mark.parametrize("kind", SINGLE)
def test_quantize_graph__closed_form(kind: str, opset: int) -> None:
    node, x_shape, w_shape, axis, product = SINGLE[kind]
    x, w, b = normal(*x_shape), normal(*w_shape), normal(8)
    w *= np.moveaxis(np.geomspace(0.01, 10, 8).astype(np.float32)[:, None], 0, -2).reshape(
        [8 if i == axis else 1 for i in range(w.ndim)]
    )  # channels of very different size: one scale for all would be far off
    weights = {"w": w, "b": b} if "b" in node.input else {"w": w}
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    model = graph([copy], weights, ("B", *x_shape[1:]), opset)
    top = float(np.abs(x).max())
    made = quantize_graph(model, {"x": (-top, top)}, (), PLAIN)
    (xq, xs), (wq, ws) = int8(x, None), int8(w, axis)
    channel = [1] * (x.ndim)
    channel[1 if node.op_type == "Conv" else -1] = -1
    expected = product(xq, wq) * xs.reshape(-1)[0] * ws.reshape(channel)
    if "b" in weights:
        expected = expected + b.reshape(channel)
    np.testing.assert_allclose(run(made, x), expected, rtol=1e-4, atol=1e-4)
    stored = {t.name: numpy_helper.to_array(t) for t in made.graph.initializer}
    np.testing.assert_array_equal(stored["w_int8"], wq.astype(np.int8))
    assert stored["w_int8"].dtype == np.int8 and "w" not in stored
    if "b" in weights:
        np.testing.assert_array_equal(stored["b"], b)
    assert made.opset_import[0].version == opset


def network() -> onnx.ModelProto:
    """Conv-Relu-Conv with a shared value, a residual sum, two MatMuls of one value, a Gemm."""
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], "stem", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"], "relu"),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], "middle", pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["r1", "c2"], ["sum"], "residual"),
        helper.make_node("GlobalAveragePool", ["sum"], ["pooled"], "pool"),
        helper.make_node("Flatten", ["pooled"], ["flat"], "flatten"),
        helper.make_node("MatMul", ["flat", "w3"], ["q"], "left"),
        helper.make_node("MatMul", ["flat", "w4"], ["k"], "right"),
        helper.make_node("Transpose", ["k"], ["kt"], "turn", perm=[1, 0]),
        helper.make_node("MatMul", ["q", "kt"], ["scores"], "attention"),
        helper.make_node("MatMul", ["scores", "k"], ["mixed"], "mix"),
        helper.make_node("Gemm", ["mixed", "w5", "b5"], ["y"], "head", transB=1),
    ]
    weights = {
        "w1": normal(8, 3, 3, 3),
        "b1": normal(8),
        "w2": normal(8, 8, 3, 3),
        "b2": normal(8),
        "w3": normal(8, 8),
        "w4": normal(8, 8),
        "w5": normal(4, 8),
        "b5": normal(4),
    }
    return graph(nodes, weights, ("B", 3, 8, 8))


def pictures(count: int = 32) -> list[dict[str, Floats]]:
    random = np.random.default_rng(7)
    return [{"x": random.normal(size=(2, 3, 8, 8)).astype(np.float32)} for _ in range(count)]


def quantised(model: onnx.ModelProto, rules: Rules = DEFAULT, keep: tuple[str, ...] = ()) -> Any:
    ranges = calibrate(model, pictures(), activations(model, keep, rules), "max", threads=1)
    return quantize_graph(model, ranges, keep, rules)


@pytest.mark.parametrize(
    ("rules", "keep", "expected"),
    [
        (DEFAULT, (), {"middle", "left", "right"}),
        (Rules(stems=True), (), {"stem", "middle", "left", "right"}),
        (Rules(heads=True), (), {"middle", "left", "right", "head"}),
        (DEFAULT, ("left", "relu"), {"middle", "right"}),
        (DEFAULT, ("middle",), {"left", "right"}),
    ],
)
def test_plan_sites__rules_and_keep(
    rules: Rules, keep: tuple[str, ...], expected: set[str]
) -> None:
    model = network()
    names = {model.graph.node[site.index].name for site in plan_sites(model, keep, rules)}
    assert names == expected
    made = quantised(model, rules, keep)
    back = {n.output[0] for n in made.graph.node if n.op_type == "DequantizeLinear"}
    through = {n.name for n in made.graph.node if n.name in expected and set(n.input) & back}
    both = {"left", "right"}  # become one node
    assert through == (expected - both if both <= expected else expected)
    for node in made.graph.node:  # what was kept reads its weight in float32
        if node.name in {"stem", "left", "head"} - expected:
            assert node.input[1] in {"w1", "w3", "w5"}


def test_quantize_graph__one_pair_per_tensor_and_zero_points_of_zero() -> None:
    made = quantised(network(), ALL)
    pairs = [n for n in made.graph.node if n.op_type == "QuantizeLinear"]
    assert len({n.input[0] for n in pairs}) == len(pairs)
    assert Counter(n.op_type for n in made.graph.node)["DequantizeLinear"] == len(pairs) + 4
    stored = {t.name: numpy_helper.to_array(t) for t in made.graph.initializer}
    for node in made.graph.node:
        if node.op_type.endswith("QuantizeLinear") or node.op_type == "DequantizeLinear":
            zero = stored[node.input[2]]
            assert zero.dtype == np.int8 and not zero.any()
            assert (stored[node.input[1]] > 0).all()
    float_weights = {n for n, v in stored.items() if v.dtype == np.float32 and v.ndim > 1}
    assert not float_weights
    onnx.checker.check_model(made, full_check=True)


def test_quantize_graph__pair_before_a_relu_changes_no_number() -> None:
    model, x = network(), pictures(1)[0]["x"]
    ranges = calibrate(model, pictures(), activations(model, (), ALL), "max", threads=1)
    assert {"r1", "c2"} <= set(ranges) and "c1" not in ranges
    results = []
    for rules in (ALL, PLAIN):
        made = quantize_graph(model, ranges, (), rules)
        made.graph.output.append(helper.make_empty_tensor_value_info("r1_back"))
        made.graph.output.reverse()
        session = ort.InferenceSession(made.SerializeToString())
        results.append(session.run(["r1_back"], {"x": x})[0])
    np.testing.assert_array_equal(results[0], results[1])


def test_quantize_graph__equal_arguments_equal_bytes_and_the_model_stays() -> None:
    model = network()
    before = model.SerializeToString(deterministic=True)
    first, second = quantised(model), quantised(model)
    assert first.SerializeToString(deterministic=True) == second.SerializeToString(
        deterministic=True
    )
    assert model.SerializeToString(deterministic=True) == before


def test_quantize_graph__same_weights_and_scales_as_onnx_runtime(tmp_path: Path) -> None:
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = iter(pictures())

        def get_next(self) -> Any:
            return next(self.left, None)

    model = network()
    onnx.save(model, tmp_path / "a.onnx")
    quantize_static(
        tmp_path / "a.onnx",
        tmp_path / "b.onnx",
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        op_types_to_quantize=["Conv", "MatMul"],
        calibrate_method=CalibrationMethod.MinMax,
        extra_options={"ActivationSymmetric": True, "WeightSymmetric": True},
    )
    theirs = {
        t.name: numpy_helper.to_array(t) for t in onnx.load(tmp_path / "b.onnx").graph.initializer
    }
    ours = {t.name: numpy_helper.to_array(t) for t in quantised(model, ALL).graph.initializer}
    ours |= {f"w3_{k}": ours[f"w3_merged_{k}"][..., :8] for k in ("scale", "int8")}
    ours |= {f"w4_{k}": ours[f"w3_merged_{k}"][..., 8:] for k in ("scale", "int8")}
    for weight in ("w1", "w2", "w3", "w4"):
        np.testing.assert_allclose(ours[f"{weight}_scale"], theirs[f"{weight}_scale"], rtol=1e-6)
        difference = ours[f"{weight}_int8"].astype(int) - theirs[f"{weight}_quantized"]
        assert np.abs(difference).max() <= 1  # a tie may fall either way
        assert (difference != 0).mean() < 0.01
    for value in ("x", "r1", "flat"):
        np.testing.assert_allclose(ours[f"{value}_scale"], theirs[f"{value}_scale"], rtol=1e-5)


def test_quantize_graph__onnx_runtime_takes_its_int8_kernels(tmp_path: Path) -> None:
    model, x = network(), pictures(1)[0]["x"]
    made = quantised(model, ALL)
    found, expected = run(made, x, tmp_path / "o.onnx"), run(model, x)
    kernels = Counter(node.op_type for node in onnx.load(tmp_path / "o.onnx").graph.node)
    assert kernels["QLinearConv"] == 2
    assert kernels["MatMulIntegerToFloat"] == 1 and kernels["Split"] == 1  # `left` and `right`
    assert kernels["QGemm"] == 1  # needs the bias apart
    assert np.abs(found - expected).max() < 0.15 * np.abs(expected).max()


@pytest.mark.skipif(bool(openvino.missing()), reason=openvino.missing())
def test_quantize_graph__openvino_computes_the_same() -> None:
    made, x = quantised(network()), pictures(1)[0]["x"]
    spec = (TensorSpec("x", "float32", ("B", 3, 8, 8)),), (TensorSpec("y", "float32", ("B", 4)),)
    session = openvino.open_session(made.SerializeToString(), "m", "int8", Part(*spec, 4), 1)
    expected = run(made, x)
    found = np.asarray(session.run({"x": x})["y"], np.float32)
    np.testing.assert_allclose(found, expected, atol=0.05 * float(np.abs(expected).max()))


def test_quantize_graph__dead_channel_with_a_bias_does_not_overflow() -> None:
    """Engines keep biases as int32 of scale (activation * weight): 5 / 1e-12 would not fit."""
    w, b = normal(4, 3, 3, 3), np.asarray([5, 0, 1, 2], np.float32)
    w[0] *= 1e-11
    w[1] = 0
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Conv", ["r", "v"], ["y"]),
    ]
    v = np.eye(4, dtype=np.float32)[..., None, None]
    model = graph(nodes, {"w": w, "b": b, "v": v}, ("B", 3, 5, 5))
    x = normal(1, 3, 5, 5)
    ranges: dict[str, Range] = {"x": (-4, 4), "r": (0, 20), "y": (0, 20)}
    found = run(quantize_graph(model, ranges, (), ALL), x)
    np.testing.assert_allclose(found[:, 0], 5, atol=0.2)
    np.testing.assert_allclose(found[:, 1], 0, atol=0.2)
    np.testing.assert_allclose(found, run(model, x), atol=1.0)


def test_quantize_graph__weight_shared_with_a_float_node_stays_there() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("MatMul", ["a", "w"], ["b"]),
        helper.make_node("Mul", ["b", "w"], ["y"]),
    ]
    model = graph(nodes, {"w": normal(8, 8)}, (8, 8))
    made = quantize_graph(model, {"x": (-4.0, 4.0), "a": (-20.0, 20.0)}, (), ALL)
    names = [t.name for t in made.graph.initializer]
    assert "w" in names and names.count("w_int8") == 1 and "w_int8_1" not in names


@pytest.mark.parametrize(
    "node",
    [
        helper.make_node("Gemm", ["x", "w"], ["y"], transA=1),
        helper.make_node("Gemm", ["x", "w"], ["y"], alpha=0.5),
        helper.make_node("MatMul", ["w", "x"], ["y"]),
        helper.make_node("Add", ["x", "w"], ["y"]),
    ],
    ids=["transA", "alpha", "left", "add"],
)
def test_quantize_graph__forms_without_kernels_stay_float(node: onnx.NodeProto) -> None:
    model = graph([node], {"w": normal(8, 8)}, (8, 8))
    assert activations(model, (), ALL) == []
    with pytest.raises(CheckFailed, match="left to be int8"):
        quantize_graph(model, {}, (), ALL)


@pytest.mark.parametrize(
    ("ranges", "keep", "words"),
    [
        ({}, (), "'x' has no range"),
        ({"x": (-1.0, float("nan"))}, (), "is no range"),
        ({"x": (1.0, -1.0)}, (), "is no range"),
        ({"x": (-1.0, 1.0)}, ("nobody",), "no node 'nobody'"),
    ],
)
def test_quantize_graph__bad_arguments(
    ranges: dict[str, Range], keep: tuple[str, ...], words: str
) -> None:
    model = graph([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": normal(8, 8)}, (8, 8))
    with pytest.raises(TkError, match=words):
        quantize_graph(model, ranges, keep, ALL)


def test_quantize_graph__opset_that_is_not_written() -> None:
    model = graph([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": normal(8, 8)}, (8, 8), 21)
    with pytest.raises(TkError, match="opset 21"):
        quantize_graph(model, {"x": (-1.0, 1.0)}, (), ALL)
