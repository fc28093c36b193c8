"""Default keep-lists: what is on them, what is not, and what they save."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
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
from tk.export.precision.flowview import view
from tk.export.precision.formats import Precision
from tk.export.precision.keep import default_keep, must_keep

LAST = "i1 = Constant <value_ints = [1]> ()\n"

KEPT: dict[str, tuple[str, str, str]] = {
    # body; nodes on the list; nodes that are not
    "score head": (
        "a = MatMul (x, w) b = Relu (a) c = MatMul (b, w) y = Sigmoid (c)",
        "y c",
        "a b",
    ),
    "gate inside": (
        "a = MatMul (x, w) s = Sigmoid (a) g = Mul (a, s) y = MatMul (g, w)",
        "",
        "sga",
    ),
    "box decoding": (
        """a = MatMul (x, w) l = Log (x) d = Add (a, l) s = Sigmoid (d)
        k = Constant <value_float = 224.0> () y = Mul (s, k)""",
        "l d s y a",
        "",
    ),
    "unit length": (
        LAST
        + """a = MatMul (x, w) q = Mul (a, a) n = ReduceSum (q, i1)
        e = Constant <value_float = 1e-12> ()
        m = Max (n, e) r = Sqrt (m) u = Div (a, r) y = MatMul (u, w)""",
        "q n m r u y",
        "a",
    ),
    "LayerNormalization in pieces": (
        LAST
        + """a = MatMul (x, w) m = ReduceMean (a, i1) c = Sub (a, m) q = Mul (c, c)
        v = ReduceMean (q, i1) e = Constant <value_float = 0.001> () t = Add (v, e) r = Sqrt (t)
        d = Div (c, r) y = MatMul (d, w)""",
        "m c q v t r d y",
        "a",
    ),
    "position table": (
        """k = Constant <value_float = 100.0> () a = MatMul (x, w) p = Mul (a, k) s = Sin (p)
        y = MatMul (s, w)""",
        "a p s y",
        "",
    ),
    "ranks": (
        """k = Constant <value_ints = [8]> () a = MatMul (x, w) c = Mul (a, x)
        t, i = TopK (c, k) y = MatMul (t, w)""",
        "a c t y",
        "",
    ),
    "comparison": (
        "a = MatMul (x, w) h = Tanh (a) b = Greater (h, x) c = Where (b, a, x) y = MatMul (c, w)",
        "a h b y",
        "c",
    ),
    "softmax": ("a = MatMul (x, w) s = Softmax (a) y = MatMul (s, w)", "s y", "a"),
    "epsilon": (
        """e = Constant <value_float = 1e-06> () a = MatMul (x, w) b = Add (a, e) r = Neg (b)
        y = MatMul (r, w)""",
        "b y",
        "a r",
    ),
    "residual stream": (
        """a = MatMul (x, w) r0 = Add (x, a) b = MatMul (r0, w) r1 = Add (r0, b)
        c = MatMul (r1, w) r2 = Add (r1, c) d = MatMul (r2, w) r3 = Add (r2, d)
        e = MatMul (r3, w) r4 = Add (r3, e) f = MatMul (r4, w) y = Add (r4, f)""",
        "y f r4 e r3 d r2 c",
        "r0 a",
    ),
}


@pytest.mark.parametrize("case", KEPT)
def test_default_keep(case: str) -> None:
    body, kept, free = KEPT[case]
    model = with_weights(graph(body), matrix("w"))
    names = default_keep(model, "fp16")
    assert {f"n_{name}" for name in kept.split()} <= names.keys()
    assert not {f"n_{name}" for name in free.split()} & names.keys()
    assert all(names.values()) and list(names) == [
        n.name for n in model.graph.node if n.name in names
    ]
    check_cast(model, cast_graph(model, "fp16", names))


def test_pixels__are_normalised_in_float32() -> None:
    model = graph(
        """p = Cast <to = 1> (image) t = Transpose <perm = [0, 3, 1, 2]> (p) s = Sub (t, mean)
        d = Div (s, std) c = Conv (d, k) r = Relu (c) y = Conv (r, one)""",
        "uint8[B,4,4,3] image",
        "float[B,1,4,4] y",
    )
    arrays = {
        "mean": np.full((3, 1, 1), 123.675),
        "std": np.full((3, 1, 1), 58.395),
        "k": np.full((1, 3, 1, 1), 0.3),
        "one": np.full((1, 1, 1, 1), 1.7),
    }
    weights = [numpy_helper.from_array(v.astype(np.float32), n) for n, v in arrays.items()]
    model = with_weights(model, *weights)
    for precision in ("fp16", "bf16"):
        kept = default_keep(model, precision)
        assert [n for n, why in kept.items() if "pixels" in why] == ["n_p", "n_s", "n_d"]
    # The transposition between them is in float32 too.
    names = float32_nodes(model, "fp16", default_keep(model, "fp16"))
    assert names == ("n_p", "n_t", "n_s", "n_d", "n_y")


def test_coordinates__back_to_the_layer_that_gives_them() -> None:
    model = graph(
        """a = MatMul (x, w) o = Mul (a, scale) g0 = Add (o, base) g1 = Reshape (g0, form)
        s = GridSample (v, g1) m = MatMul (s, w8) y = MatMul (m, w8)""",
        "float[B,8] x, float[B,1,8,8] v",
        "float[B,1,2,8] y",
    )
    model.graph.initializer.append(numpy_helper.from_array(np.asarray([-1, 2, 8, 2]), "form"))
    small = [numpy_helper.from_array(np.float32(0.1) * np.ones(32, np.float32), "base")]
    small += [numpy_helper.from_array(np.asarray(0.05, np.float32), "scale")]
    model = with_weights(model, matrix("w", 8, 32), matrix("w8"), *small)
    kept = default_keep(model, "fp16")
    assert set(kept) == {"n_a", "n_o", "n_g0", "n_s", "n_y"}
    assert "coordinates of n_s" in kept["n_g0"]
    cast = cast_graph(model, "fp16", kept)
    check_cast(model, cast)
    # The move between coordinates and sampler carries float32: nothing is rounded from `a` on.
    assert set(float32_nodes(model, "fp16", kept)) == {*kept, "n_g1"}


MASKED = """a = MatMul (x, w) m = Where (gone, least, nought) b = Add (a, m) s = Softmax (b)
y = MatMul (s, w)"""


def masked(least: float) -> onnx.ModelProto:
    model = graph(MASKED, "float[B,8] x, bool[B,8] gone")
    values = {"least": least, "nought": 0.0}
    weights = [numpy_helper.from_array(np.asarray(v, np.float32), n) for n, v in values.items()]
    return with_weights(model, matrix("w"), *weights)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_float32_minimum_in_a_mask(precision: Precision) -> None:
    """A row that is masked as a whole: finite in float32, NaN once the minimum becomes -inf."""
    model = masked(float(np.finfo(np.float32).min))
    feed: Arrays = {"x": np.ones((2, 8), np.float32), "gone": np.ones((2, 8), bool)}
    feed["gone"][1, 3:] = False
    kept = default_keep(model, precision)
    # float32's minimum is beyond bfloat16 too: rounding to the nearest makes it -inf.
    assert {"n_m", "n_b", "n_s"} <= kept.keys()
    assert "overflows" in kept["n_m"] and "carries" in kept["n_b"]
    assert np.isnan(run_low(cast_graph(model, precision, ()), feed, precision)["y"][0]).all()
    found = run_low(cast_graph(model, precision, kept), feed, precision)["y"]
    np.testing.assert_allclose(found, run(model, feed)["y"], atol=0.1)


@pytest.mark.parametrize("least", [-np.inf, -10_000.0])
def test_masks_that_half_precision_holds(least: float) -> None:
    model = masked(least)
    assert set(default_keep(model, "fp16")) == {"n_s", "n_y"}
    feed: Arrays = {"x": np.ones((1, 8), np.float32), "gone": np.arange(8)[None] % 2 == 0}
    found = run_low(cast_graph(model, "fp16", ()), feed)["y"]
    np.testing.assert_allclose(found, run(model, feed)["y"], atol=0.01)


def test_must_keep__holds_without_being_asked() -> None:
    body = """big = Constant <value_float = 70000.0> () a = MatMul (x, w) c = Div (a, big)
    n = LayerNormalization (c, one, one) y = MatMul (n, w)"""
    one = numpy_helper.from_array(np.ones(8, np.float32), "one")
    model = with_weights(graph(body), matrix("w"), one)
    reasons = must_keep(view(model), "fp16")
    assert set(reasons) == {"n_c", "n_n"} and "7e+04 overflows" in reasons["n_c"]
    assert set(must_keep(view(model), "bf16")) == {"n_n"}
    assert float32_nodes(model, "fp16", ()) == ("n_c", "n_n")


def test_nodes_without_names__are_known_by_their_value() -> None:
    model = graph("a = MatMul (x, w) s = Softmax (a) y = MatMul (s, w)")
    model.graph.initializer.append(matrix("w"))
    assert set(default_keep(model, "fp16")) == {"s", "y"}
    assert float32_nodes(model, "fp16", ("a",)) == ("a", "s")
