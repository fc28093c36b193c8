"""Which layers of TensorRT 8.6 a node became, on layers as its parser names them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import onnx
import onnx.parser
import pytest
from tests.export.tensorrt.world import Layer, World, world_maker

from tk.export.tensorrt.bind import bind_to_float, layers_of

GRAPH = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["" : 17]>
g (uint8[B,8] image) => (float[B,8] out, bool[B,8] less)
  <float[8] g = {1,1,1,1,1,1,1,1}, float[8,8] w, float most = {3}> {
    [cast] x = Cast <to = 1> (image)
    [norm] n = LayerNormalization (x, g)
    [mul] m = Mul (n, n)
    [mul_1] m1 = Mul (m, n)
    [gemm] e = Gemm (m1, w, g)
    [clip] c = Clip (e, , most)
    [l2] l = ReduceL2 <keepdims = 1> (c)
    [less] less = LessOrEqual (c, most)
    [shape] s = Shape (c)
    [view] v = Reshape (c, s)
    [out] out = Div (v, l)
}""").graph


def unnamed(index: int, kind: str) -> str:
    return f"(Unnamed Layer* {index}) [{kind}]"


def parsed() -> Iterator[Layer]:
    """What builtin_op_importers.cpp of 8.6 makes of the graph."""
    yield Layer("cast", "x", reads="UINT8", type="CAST")
    yield Layer("g", "(Unnamed Layer* 1) [Constant]_output", type="CONSTANT")
    yield Layer(unnamed(2, "Normalization"), "n", type="NORMALIZATION")
    yield Layer("mul", "m")
    yield Layer("mul_1", "m1")
    yield Layer("w", "(Unnamed Layer* 5) [Constant]_output", type="CONSTANT")
    yield Layer("gemm", "(Unnamed Layer* 6) [Matrix Multiply]_output", type="MATRIX_MULTIPLY")
    yield Layer(unnamed(7, "ElementWise"), "e")
    yield Layer(unnamed(8, "ElementWise"), "c")
    yield Layer(unnamed(9, "ElementWise"), "(Unnamed Layer* 9) [ElementWise]_output")
    yield Layer("l2", "(Unnamed Layer* 10) [Reduce]_output", type="REDUCE")
    yield Layer("l2_31", "l", type="UNARY")
    yield Layer("less", "less_1", kind="BOOL")
    yield Layer("less_32", "less_2", kind="BOOL")
    yield Layer("less_33", "less", kind="BOOL", reads="BOOL")
    yield Layer("shape", "s", kind="INT32", type="SHAPE")
    yield Layer("view", "v", type="SHUFFLE")
    yield Layer("out", "out")


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> tuple[World, Any]:
    world = world_maker(monkeypatch)("8.6", layers=list(parsed()))
    made = world.trt.Builder(None).create_network(0)
    world.trt.OnnxParser(made, None)
    return world, made


def bound(network: Any) -> set[str]:
    return {layer.name for layer in network.layers if "precision" in layer.__dict__}


Network = tuple[World, Any]
Case = Callable[..., None]


@pytest.mark.parametrize(
    ("keep", "layers"),
    [
        (("norm",), set()),  # it computes in float32 anyhow
        (("view",), set()),
        (("mul",), {"mul"}),
        (("gemm",), {"gemm", unnamed(7, "ElementWise")}),
        (("clip",), {unnamed(8, "ElementWise")}),
        (("l2",), {unnamed(9, "ElementWise"), "l2", "l2_31"}),
        (("less",), {"less", "less_32"}),
        (("shape",), set()),
        (("cast", "out"), {"cast", "out"}),
    ],
)
def test_bind__all_layers_of_a_node_and_no_others(
    network: Network, keep: tuple[str, ...], layers: set[str]
) -> None:
    world, made = network
    assert bind_to_float(world.trt, made, GRAPH, keep) == []
    assert bound(made) == layers
    for layer in made.layers:
        float_out = layer.output.dtype == world.trt.DataType.FLOAT
        assert ("bound" in layer.__dict__) == (layer.name in layers and float_out)


def test_bind__says_what_computes_and_was_not_found(network: Network) -> None:
    world, made = network
    made.layers[:] = [layer for layer in made.layers if layer.name not in ("mul_1", "view")]
    made.__dict__["num_layers"] = len(made.layers)
    keep = ("mul_1", "view", "nowhere", "mul")
    assert bind_to_float(world.trt, made, GRAPH, keep) == ["mul_1", "nowhere"]
    assert bound(made) == {"mul"}


def test_layers_of__names_every_node_in_order(network: Network) -> None:
    _, made = network
    assert [name for name, _ in layers_of(made, GRAPH)] == [node.name for node in GRAPH.node]
