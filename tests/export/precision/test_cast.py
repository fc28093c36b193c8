"""The caster, against ONNX Runtime in float32, the reference evaluator, and its own promises."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator
from tests.benchmarks import trio
from tests.export.grounding.models import picture
from tests.export.precision.graphs import (
    LOW,
    Arrays,
    check_cast,
    graph,
    kind_of,
    matrix,
    run,
    run_low,
    types,
    with_weights,
)

from tk.export.graph import to_onnx
from tk.export.lint import lint
from tk.export.model import ExportModel
from tk.export.precision.cast import cast_graph, float32_nodes
from tk.export.precision.formats import Precision, low_tensor
from tk.export.precision.keep import default_keep
from tk.export.sources.registry import open_source
from tk.runtime.boxes import iou_matrix
from tk.runtime.errors import CheckFailed
from tk.runtime.parity.rows import compare
from tk.runtime.preprocess import fit

X: Arrays = {"x": np.random.default_rng(5).normal(size=(3, 8)).astype(np.float32)}


def weight_types(cast: onnx.ModelProto) -> dict[str, int]:
    return {weight.name: weight.data_type for weight in cast.graph.initializer}


@pytest.mark.parametrize("keep", [(), ("n_a",), ("n_b",), ("n_a", "n_b"), ("n_y",)])
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_shared_weight__is_written_once_per_precision(
    precision: Precision, keep: tuple[str, ...]
) -> None:
    body = "a = MatMul (x, w) b = MatMul (a, w) y = MatMul (b, w)"
    model = with_weights(graph(body), matrix("w"))
    before = model.SerializeToString()
    cast = cast_graph(model, precision, keep)
    assert model.SerializeToString() == before
    check_cast(model, cast)
    in_low = {"n_a", "n_b", "n_y"} - set(keep)
    assert (TensorProto.FLOAT in weight_types(cast).values()) == bool(keep)
    assert bool(LOW & set(weight_types(cast).values())) == bool(in_low)
    assert {n for n in ("n_a", "n_b", "n_y") if kind_of(cast, n[2:]) == "low"} == in_low
    again = cast_graph(model, precision, keep)
    assert again.SerializeToString(deterministic=True) == cast.SerializeToString(deterministic=True)
    atol = 0.01 if precision == "fp16" else 0.1
    found = run_low(cast, X, precision)["y"]
    np.testing.assert_allclose(found, run(model, X)["y"], atol=atol)


def test_value_with_many_readers__is_cast_once() -> None:
    body = """a = MatMul (x, w) s = Softmax (a) p = Exp (a) q = Log (p) b = MatMul (s, w)
    c = MatMul (s, w) d = Add (b, c) e = Add (d, q) y = MatMul (e, w)"""
    model = with_weights(graph(body), matrix("w"))
    cast = cast_graph(model, "fp16", ())
    check_cast(model, cast)  # a to float32; s, q and x to fp16; y to float32
    assert sum(node.op_type == "Cast" for node in cast.graph.node) == 5


def test_output_that_is_read__keeps_its_name_in_float32() -> None:
    outputs = "float[B,8] a, float[B,8] y, float[B,8] x2"
    body = "a = MatMul (x, w) r = Relu (a) y = MatMul (r, w) x2 = Identity (x)"
    model = with_weights(graph(body, outputs=outputs), matrix("w"))
    cast = cast_graph(model, "fp16", ())
    check_cast(model, cast)
    readers = [n for n in cast.graph.node if "a" in n.input]
    assert not readers and types(cast)["a_fp16"] == TensorProto.FLOAT16
    found, expected = run_low(cast, X), run(model, X)
    np.testing.assert_array_equal(found["x2"], expected["x2"])
    np.testing.assert_allclose(found["y"], expected["y"], atol=0.01)


def test_moves__carry_float32_between_float32() -> None:
    body = """k = Constant <value_ints = [0, 4, 2]> ()
    s = Softmax (x) r = Reshape (s, k) m = Relu (r) p = Exp (m)
    f = Constant <value_ints = [0, 8]> () t = Reshape (p, f)
    a = MatMul (t, w) u = Reshape (a, k) v = Reshape (u, f) y = MatMul (v, w)"""
    model = with_weights(graph(body), matrix("w"))
    cast = cast_graph(model, "fp16", ())
    check_cast(model, cast)
    kinds = {name: kind_of(cast, name) for name in "srmptuv"}
    assert kinds == dict.fromkeys("srmp", "float32") | dict.fromkeys("tuv", "low")


def test_stretch_without_work__stays_float32() -> None:
    body = "s = Softmax (x) h = Add (s, x) y = Softmax (h)"
    model = with_weights(graph(body))
    cast = cast_graph(model, "fp16", ())
    assert cast.graph.node == model.graph.node
    assert float32_nodes(model, "fp16", ()) == ("n_s", "n_h", "n_y")


RETYPED = {
    "Cast of booleans": "b = IsNaN (x) m = Cast <to = 1> (b) t = Add (a, m)",
    "ConstantOfShape": "s = Shape (a) m = ConstantOfShape <value = float[1] {2.0}> (s) "
    "t = Add (a, m)",
    "ConstantOfShape of zeros": "s = Shape (a) m = ConstantOfShape (s) t = Add (a, m)",
    "Constant": "m = Constant <value_float = 0.5> () t = Mul (a, m)",
    "Constant list": "m = Constant <value_floats = [1.0,2.0,3.0,4.0,5.0,6.0,7.0,8.0]> () "
    "t = Mul (a, m)",
    "Cast to float32 of float32": "m = Cast <to = 1> (a) t = Relu (m)",
    "Cast to double": "m = Cast <to = 11> (a) n = Cast <to = 1> (m) t = Relu (n)",
    "Clip without minimum": "m = Constant <value_float = 0.5> () t = Clip (a, , m)",
    "Split": "m, n = Split <axis = 1, num_outputs = 2> (a) t = Concat <axis = 1> (n, m)",
}


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("case", RETYPED)
def test_types_in_attributes(case: str, precision: Precision) -> None:
    body = f"a = MatMul (x, w) {RETYPED[case]} y = MatMul (t, w)"
    model = with_weights(graph(body), matrix("w"))
    cast = cast_graph(model, precision, ())
    check_cast(model, cast)
    laid_out = "OfShape" in case
    if laid_out or "Constant" not in case:
        lacks_kernel = precision == "bf16" and "Clip" in case
        assert kind_of(cast, "m") == ("float32" if laid_out or lacks_kernel else "low")
    found = run_low(cast, X, precision)
    atol = 0.01 if precision == "fp16" else 0.1
    np.testing.assert_allclose(found["y"], run(model, X)["y"], atol=atol)


@pytest.mark.parametrize("mode", ["linear", "nearest"])
def test_resizes_with_one_scales_constant(mode: str) -> None:
    """The trap of public converters: they cast the shared scales twice, under one name."""
    body = f"""a = Conv (x, w) b = Resize <mode = "{mode}"> (a, , scales) c = Conv (b, w)
    d = Resize <mode = "{mode}"> (c, , scales) y = Conv (d, w)"""
    model = graph(body, "float[B,1,4,4] x", "float[B,1,16,16] y")
    scales = numpy_helper.from_array(np.asarray([1, 1, 2, 2], np.float32), "scales")
    kernel = numpy_helper.from_array(np.full((1, 1, 1, 1), 0.7, np.float32), "w")
    with_weights(model, scales, kernel)
    cast = cast_graph(model, "fp16", default_keep(model, "fp16"))
    check_cast(model, cast)
    low, high = TensorProto.FLOAT16, TensorProto.FLOAT
    assert weight_types(cast) == {"scales": high, "w": high, "w_fp16": low}  # the head is kept
    assert kind_of(cast, "b") == ("low" if mode == "nearest" else "float32")
    feed: Arrays = {"x": np.random.default_rng(0).normal(size=(2, 1, 4, 4)).astype(np.float32)}
    np.testing.assert_allclose(run_low(cast, feed)["y"], run(model, feed)["y"], atol=0.01)


def test_bf16__only_where_the_opset_has_it() -> None:
    """Convolutions of bfloat16 came with opset 22: at 18 they stay float32."""
    model = graph(
        "a = Conv (x, w) r = Relu (a) y = Conv (r, w)", "float[B,1,4,4] x", "float[B,1,4,4] y"
    )
    with_weights(model, numpy_helper.from_array(np.ones((1, 1, 1, 1), np.float32), "w"))
    assert float32_nodes(model, "bf16", ()) == ("n_a", "n_r", "n_y")
    assert float32_nodes(model, "fp16", ()) == ()


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_emulation__equals_the_reference_evaluator(precision: Precision) -> None:
    """onnx's own evaluator computes in the low precision; one step of it is the tolerance."""
    body = "a = MatMul (x, w) b = Add (a, x) s = Softmax (b) c = Mul (s, b) y = MatMul (c, w)"
    model = with_weights(graph(body), matrix("w"))
    cast = cast_graph(model, precision, ())
    expected = next(iter(ReferenceEvaluator(cast).run(None, X)))
    emulated = run_low(cast, X, precision)["y"]
    step = 2.0**-10 if precision == "fp16" else 2.0**-7
    largest = np.abs(emulated).max()
    np.testing.assert_allclose(np.asarray(expected, np.float32), emulated, atol=4 * step * largest)
    exact = run(model, X)["y"]
    assert 0 < np.abs(emulated - exact).max() < 8 * step * largest
    low = ml_dtypes.bfloat16 if precision == "bf16" else np.float16
    np.testing.assert_array_equal(emulated, emulated.astype(low).astype(np.float32))


def test_low_tensor__rounds_as_numpy_and_ml_dtypes() -> None:
    random = np.random.default_rng(1)
    bits = random.integers(0, 2**32, 20_000, dtype=np.uint32)
    special = np.asarray([0, -0.0, np.inf, -np.inf, np.nan, 65504, 65519, 1e-8, 3e38], np.float32)
    values = np.concatenate([bits.view(np.float32), special])
    with np.errstate(over="ignore", invalid="ignore"):
        half = values.astype(np.float16)
        brain = values.astype(ml_dtypes.bfloat16)
    found = numpy_helper.to_array(low_tensor(values, "t", "fp16"))
    np.testing.assert_array_equal(found, half)
    found = np.frombuffer(low_tensor(values, "t", "bf16").raw_data, ml_dtypes.bfloat16)
    np.testing.assert_array_equal(found.astype(np.float32), brain.astype(np.float32))


def test_control_flow__is_refused_by_name() -> None:
    body = """y = If (c) <then_branch = t () => (float[B,8] u) { u = Identity (x) },
    else_branch = e () => (float[B,8] v) { v = Neg (x) }>"""
    model = with_weights(graph(body, "float[B,8] x, bool c"))
    with pytest.raises(CheckFailed, match=r"n_y \(If"):
        cast_graph(model, "fp16", ())


def test_names_that_are_taken() -> None:
    body = "a = MatMul (x, w) x_fp16 = Relu (a) y = MatMul (x_fp16, w)"
    model = with_weights(graph(body), matrix("w"))
    cast = cast_graph(model, "fp16", ("n_y",))
    check_cast(model, cast)
    np.testing.assert_allclose(run_low(cast, X)["y"], run(model, X)["y"], atol=0.01)


# Whole models.


def cast_part(
    model: ExportModel, part: str, feed: Arrays, opset: int
) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """A part in float32, and cast to fp16 with its default keep-list; bf16 is checked too."""
    spec = model.parts[part].spec
    float32 = onnx.load_model_from_string(to_onnx(model.parts[part], feed, {}, opset).data)
    made: dict[str, onnx.ModelProto] = {}
    for precision in ("bf16", "fp16"):
        cast = cast_graph(float32, precision, default_keep(float32, precision))
        check_cast(float32, cast)
        if precision == "fp16":
            assert list(lint(cast, spec, opset)) == []
        made[precision] = cast
    return float32, made["fp16"]


def is_equal(task: str, part: str, expected: Arrays, found: Arrays) -> bool:
    """Cosine 0.9999, overlap of boxes and masks 0.99, difference of scores 0.002."""
    limits = {"cosine": 0.9999, "box_iou": 0.99, "mask_iou": 0.99}
    return all(
        measure.value >= limits[measure.metric]
        if measure.metric in limits
        else measure.value <= 0.002
        for measure in compare(task, part, expected, found, "fp32")
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    trio.write_runs(folder)
    return folder


@pytest.mark.parametrize(
    ("task", "part", "opset"),
    [("embedder", "model", 18), ("detector", "model", 17), ("segmenter", "decoder", 18)],
)
def test_compact_models(task: str, part: str, opset: int, runs: Path) -> None:
    model = open_source(runs / task, 3)
    canvases = np.stack([fit(model.image, picture(90 + 9 * i, 120, i))[0] for i in range(2)])
    feed = model.parts[part].feed(canvases, 2)
    float32, cast = cast_part(model, part, feed, opset)
    expected = run(float32, feed)
    assert is_equal(task, part, expected, run_low(cast, feed))
    assert is_equal(task, part, expected, run(cast, feed))  # as ONNX Runtime runs it
    weights = [w.data_type for w in cast.graph.initializer if len(w.dims) == 4]
    assert weights.count(TensorProto.FLOAT16) >= len(weights) - 2  # the heads are float32
    if task == "detector":
        # Scores that were rounded tie with their neighbours: each would be a peak.
        bare = cast_graph(float32, "fp16", ())
        assert not is_equal(task, part, expected, run_low(bare, feed))


@pytest.mark.slow
@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_sam2(part: str, tmp_path: Path) -> None:
    from tests.export.sam2 import small

    small.small_model().save_pretrained(tmp_path / "sam2")
    model = open_source(tmp_path / "sam2", 3)
    canvases = np.stack([fit(model.image, one)[0] for one in small.pictures(2)])
    feed = model.parts[part].feed(canvases, 2)
    float32, cast = cast_part(model, part, feed, 18)
    assert is_equal("segmenter", part, run(float32, feed), run_low(cast, feed))


@pytest.mark.slow
def test_grounding_dino(tmp_path: Path) -> None:
    """Of thousands of places with random scores near to each other, some others are chosen."""
    from tests.export.grounding.models import CANVAS, small_config, write_model

    config = small_config("mm-grounding-dino", encoder_layers=1)
    config.backbone_config.depths = [1, 1, 1, 1]
    folder = write_model(tmp_path / "m", "mm-grounding-dino", config, same_queries=True)
    model = open_source(folder, 2, size=CANVAS, prompt="wrench . red pliers")
    canvases = np.stack([fit(model.image, picture(200, 260 - 10 * i, i))[0] for i in range(2)])
    feed = model.parts["model"].feed(canvases, 2)
    float32, cast = cast_part(model, "model", feed, 18)
    expected, found = run(float32, feed), run_low(cast, feed)
    for row in range(2):
        nearest = iou_matrix(
            np.asarray(expected["boxes"][row], np.float32),
            np.asarray(found["boxes"][row], np.float32),
        )
        assert np.median(nearest.max(axis=1)) >= 0.98
        assert (nearest.max(axis=1) >= 0.9).mean() >= 0.8
