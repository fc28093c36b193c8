"""Measured ranges against numpy on all inner values; what they keep; what they save."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper
from tests.export.precision.graphs import (
    Arrays,
    check_cast,
    graph,
    matrix,
    run,
    run_low,
    with_weights,
)

from tk.export.precision.cast import cast_graph, float32_nodes
from tk.export.precision.keep import default_keep
from tk.export.precision.ranges import Range, measure_ranges, range_keep
from tk.export.shapes import skeleton
from tk.runtime.errors import TkError
from tk.runtime.parity.rows import row_cosine

BODY = """k = Constant <value_ints = [0, 2, 4]> () a = MatMul (x, w) r = Reshape (a, k)
t = Transpose (r) e = Exp (t) c = Cast <to = 1> (n) z = Log (c)
i = IsInf (z) q = Relu (a) g = Sqrt (a) u, v = Split <axis = 1, num_outputs = 2> (q)
j = Concat <axis = 1> (v, u) y = Add (j, z)"""


def model_and_feeds() -> tuple[onnx.ModelProto, list[Arrays]]:
    model = with_weights(graph(BODY, "float[B,8] x, int64[B,8] n"), matrix("w"))
    random = np.random.default_rng(0)
    feeds: list[Arrays] = [
        {
            "x": (random.normal(size=(batch, 8)) * scale).astype(np.float32),
            "n": random.integers(0, 9, (batch, 8)),
        }
        for batch, scale in ((2, 1.0), (3, 9.0))
    ]
    return model, feeds


def every_value(
    model: onnx.ModelProto, feeds: list[Arrays]
) -> dict[str, list[NDArray[np.float32]]]:
    """All float32 values of all runs, as outputs of the graph."""
    open_model = onnx.ModelProto()
    open_model.CopyFrom(model)
    inferred = onnx.shape_inference.infer_shapes(skeleton(model)).graph
    known = {v.name for v in model.graph.output}
    for value in inferred.value_info:
        if value.type.tensor_type.elem_type == 1 and value.name not in known:
            open_model.graph.output.append(onnx.helper.make_empty_tensor_value_info(value.name))
    runs = [run(open_model, feed) | {"x": feed["x"]} for feed in feeds]
    return {name: [np.asarray(one[name], np.float32) for one in runs] for name in runs[0]}


@pytest.mark.parametrize("budget", [1, 200, 1 << 30])
def test_ranges__equal_numpy(budget: int) -> None:
    model, feeds = model_and_feeds()
    found = measure_ranges(model.SerializeToString(), iter(feeds), threads=1, budget=budget)
    expected = every_value(model, feeds)
    assert found.keys() == expected.keys()
    kinds = set()
    for name, arrays in expected.items():
        values = np.concatenate([array.reshape(-1) for array in arrays])
        nan, infinite = bool(np.isnan(values).any()), bool(np.isinf(values).any())
        assert (found[name].nan, found[name].infinite) == (nan, infinite), name
        assert found[name].finite == (not nan and not infinite)
        kinds.add((nan, infinite))
        if not nan:
            assert found[name].largest == np.abs(values[np.isfinite(values)]).max(), name
    assert kinds == {(False, False), (True, False), (False, True)}


def test_ranges__need_an_input() -> None:
    model, feeds = model_and_feeds()
    with pytest.raises(TkError, match="at least one input"):
        measure_ranges(model.SerializeToString(), [])
    with pytest.raises(TkError, match="does not run"):
        measure_ranges(model.SerializeToString(), [{"x": feeds[0]["x"]}])


def overflowing() -> tuple[onnx.ModelProto, list[Arrays]]:
    """A product beyond 65504 that is scaled back at once."""
    body = """a = MatMul (x, w) b = MatMul (a, wide) k = Constant <value_float = 0.0001> ()
    c = Mul (b, k) d = MatMul (c, w) y = MatMul (d, w)"""
    wide = numpy_helper.from_array(numpy_helper.to_array(matrix("w", seed=3)) * 9e4, "wide")
    model = with_weights(graph(body), matrix("w"), wide)
    random = np.random.default_rng(2)
    feeds: list[Arrays] = [{"x": random.normal(size=(4, 8)).astype(np.float32)} for _ in range(3)]
    return model, feeds


def test_overflow__is_mended_by_ranges() -> None:
    model, feeds = overflowing()
    default = default_keep(model, "fp16")
    assert "n_b" not in default or "overflows" in default["n_b"]
    weights = numpy_helper.to_array(model.graph.initializer[1])
    assert np.abs(weights).max() > 65504  # so even the weight does not fit
    model.graph.initializer[1].CopyFrom(numpy_helper.from_array(weights / 9, "wide"))
    default = default_keep(model, "fp16")
    expected = [run(model, feed)["y"] for feed in feeds]
    plain = [run_low(cast_graph(model, "fp16", default), feed)["y"] for feed in feeds]
    ranges = measure_ranges(model.SerializeToString(), feeds, threads=1)
    kept = range_keep(model, ranges, "fp16")
    assert ranges["b"].largest > 4094 and set(kept) == {"n_b", "n_c"}
    assert "gives b, up to" in kept["n_b"] and "reads b, up to" in kept["n_c"]
    cast = cast_graph(model, "fp16", {*default, *kept})
    check_cast(model, cast)
    assert set(float32_nodes(model, "fp16", {*default, *kept})) >= {"n_b", "n_c"}
    mended = [run_low(cast, feed)["y"] for feed in feeds]
    assert min(map(row_cosine, expected, mended)) > 0.99999
    assert ranges["b"].largest < 65504 or not np.isfinite(plain).all()


def test_overflow__fails_when_cast() -> None:
    model, feeds = overflowing()
    weights = numpy_helper.to_array(model.graph.initializer[1]) / 4
    model.graph.initializer[1].CopyFrom(numpy_helper.from_array(weights, "wide"))
    feeds = [{"x": feed["x"] * 4} for feed in feeds]
    assert np.abs(weights).max() < 65504
    default = default_keep(model, "fp16")
    expected = run(model, feeds[0])["y"]
    assert not np.isfinite(run_low(cast_graph(model, "fp16", default), feeds[0])["y"]).all()
    ranges = measure_ranges(model.SerializeToString(), feeds, threads=1)
    kept = {**default, **range_keep(model, ranges, "fp16")}
    assert row_cosine(expected, run_low(cast_graph(model, "fp16", kept), feeds[0])["y"]) > 0.99999
    assert not range_keep(model, ranges, "bf16")


def test_tiny_weights__are_kept() -> None:
    weight = matrix("w")
    tiny = numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1e-8), "tiny")
    some = numpy_helper.to_array(weight).copy()
    some[0, 0] = 1e-9  # one number of 64 that vanishes changes nothing
    body = "a = MatMul (x, tiny) b = MatMul (a, some) y = MatMul (b, w)"
    model = with_weights(graph(body), weight, tiny, numpy_helper.from_array(some, "some"))
    kept = range_keep(model, {}, "fp16")
    assert set(kept) == {"n_a"} and "become zero" in kept["n_a"]
    assert not range_keep(model, {}, "bf16")


def test_sums_of_an_average() -> None:
    body = "a = AveragePool <kernel_shape = [4, 4], strides = [4, 4]> (x) y = Relu (a)"
    model = with_weights(graph(body, "float[B,1,4,4] x", "float[B,1,1,1] y"))
    seen = {"x": Range(300.0), "a": Range(300.0), "y": Range(300.0)}
    assert set(range_keep(model, seen, "fp16")) == {"n_a"}  # 16 x 300 > 65504 / 16
    assert not range_keep(model, seen, "fp16", margin=8)


@pytest.mark.parametrize("seen", [Range(1.0, infinite=True), Range(1.0, nan=True)])
def test_values_that_are_not_finite(seen: Range) -> None:
    model = with_weights(graph("a = MatMul (x, w) y = MatMul (a, w)"), matrix("w"))
    kept = range_keep(model, {"a": seen}, "fp16")
    assert set(kept) == {"n_a", "n_y"} and "not finite" in kept["n_y"]
