"""Lint on small graphs that break one promise each, and on good ones."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import helper, numpy_helper

from tk.export.fold import fold_constants
from tk.export.lint import lint
from tk.runtime.manifest import Part, TensorSpec

IMAGE = TensorSpec("image", "uint8", ("B", 16, 16, 3))
SPEC = Part((IMAGE,), (TensorSpec("out", "float32", ("B", 8)),), max_batch=4)

GOOD = """<ir_version: 9, opset_import: ["" : 18]>
g (uint8[B,16,16,3] image) => (float[B,8] out) <float[768,8] w = {ZEROS}> {
    x = Cast <to = 1> (image)
    f = Flatten (x)
    y = MatMul (f, w)
    BODY
}""".replace("ZEROS", ", ".join(["0.0"] * 768 * 8))


def graph(body: str, opset: int = 18, extra: str = "") -> onnx.ModelProto:
    """Image -> cast `x` (B, 16, 16, 3) and `y` (B, 8); `body` makes `out`."""
    text = GOOD.replace("BODY", body).replace(": 18", f": {opset}")
    text = text.replace("uint8[B,16,16,3] image)", "uint8[B,16,16,3] image" + extra + ")")
    return onnx.parser.parse_model(text)


def problems(model: onnx.ModelProto, opset: int = 18) -> str:
    return "\n".join(lint(model, SPEC, opset))


LAYER_NORM = """
    last = Constant <value_ints = [-1]> ()
    mean = ReduceMean (y, last)
    centred = Sub (y, mean)
    {square}
    variance = ReduceMean (square, last)
    tiny = Constant <value_float = 0.00001> ()
    safe = Add (variance, tiny)
    root = {root}
    out = Div (centred, root)
"""
POWER = "two = Constant <value_float = 2.0> ()\n square = Pow (centred, two)"
TIMES = "square = Mul (centred, centred)"

BATCH_TABLE = """
    n = Shape <start = 0, end = 1> (x)
    eight = Constant <value_ints = [8]> ()
    wide = Concat <axis = 0> (n, eight)
    ones = ConstantOfShape <value = float[1] {1.0}> (wide)
    AXIS
"""


@pytest.mark.parametrize(
    "body",
    [
        "out = Identity (y)",
        # The batch size, read behind the first Cast, lays a constant out over the batch.
        BATCH_TABLE.replace("AXIS", "out = Add (y, ones)"),
        # Rows of a batch picked by integers, as adaptive pooling is exported.
        """n = Shape <start = 0, end = 1> (x)
        none = Constant <value_ints = [0]> ()
        length = Squeeze (n, none)
        zero = Constant <value_int = 0> ()
        one = Constant <value_int = 1> ()
        rows = Range (zero, length, one)
        out = Gather <axis = 0> (y, rows)""",
        # Centred, not normalised: no LayerNormalization was meant.
        """last = Constant <value_ints = [-1]> ()
        mean = ReduceMean (y, last)
        out = Sub (y, mean)""",
    ],
)
def test_lint__good_graphs_pass(body: str) -> None:
    assert problems(graph(body)) == ""


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (
            """dims = Shape (y)
            ones = Constant <value_ints = [1, 1]> ()
            scale = Constant <value_float = 2.0> ()
            two = ConstantOfShape (ones)
            z = Mul (two, scale)
            out = Add (y, z)""",
            ("ConstantOfShape", "depends on no input"),
        ),
        (
            BATCH_TABLE.replace(
                "AXIS",
                """axis = Constant <value_int = 1> ()
                places = CumSum (ones, axis)
                table = Sin (places)
                out = Add (y, table)""",
            ),
            ("Sin", "gives table", "computes a table"),
        ),
        (
            LAYER_NORM.format(square=POWER, root="Sqrt (safe)"),
            ("Sub, gives centred", "taken apart"),
        ),
        (
            LAYER_NORM.format(square=TIMES, root="Sqrt (safe)"),
            ("Sub, gives centred", "taken apart"),
        ),
        (
            """z = NonZero (y)
            row = Constant <value_ints = [0]> ()
            picked = Gather <axis = 0> (z, row)
            low = Cast <to = 1> (picked)
            sum = ReduceMax (low)
            out = Add (y, sum)""",
            ("NonZero", "shape that depends on the content"),
        ),
        (
            BATCH_TABLE.replace("(x)", "(image)").replace("AXIS", "out = Add (y, ones)"),
            ("Shape, gives n", "reads the uint8 input image", "only a Cast"),
        ),
        (
            """form = Constant <value_ints = [2, 8]> ()
            out = Reshape (y, form)""",
            ("output out is (2, 8) for a batch of 3", "baked in"),
        ),
    ],
)
def test_lint__names_the_node_that_breaks_a_promise(body: str, words: tuple[str, ...]) -> None:
    found = problems(graph(body))
    assert all(word in found for word in words), found


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("[B,16,16,3]", "[2,16,16,3]", "image is"),
        ("[B,16,16,3]", "[B,h,16,3]", "image is"),
        ("[B,8] out", "[B,8] out, float[B,16,16,3] x", "does not declare"),
    ],
)
def test_lint__interface(old: str, new: str, problem: str) -> None:
    text = GOOD.replace("BODY", "out = Identity (y)")
    assert problem in problems(onnx.parser.parse_model(text.replace(old, new)))


def test_lint__opset_as_written_not_as_asked() -> None:
    model = graph("out = Identity (y)")
    assert "opset 18 was written, 17 was asked for" in problems(model, 17)
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    assert "another domain: com.microsoft" in problems(model)


def test_lint__control_flow_also_in_branches() -> None:
    body = """out = If (c) <
        then_branch = a () => (float[B,8] p) { p = Identity (y) },
        else_branch = b () => (float[B,8] q) { q = If (c) <
            then_branch = d () => (float[B,8] r) { r = Neg (y) },
            else_branch = e () => (float[B,8] s) { s = Abs (y) }
        > }
    >"""
    found = problems(graph(body, extra=", bool c"))
    assert "(If, gives out) is control flow" in found and "(If, gives q)" in found


def sample(opset: int, mode: str) -> onnx.ModelProto:
    body = f"""z = Constant <value = float[1,2,2,2] {{0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0}}> ()
    one = Constant <value_ints = [1, 1, 1, 8]> ()
    last = Constant <value_ints = [0]> ()
    four = Unsqueeze (y, axes)
    n = Shape <start = 0, end = 1> (x)
    rest = Constant <value_ints = [1, 8, 2]> ()
    form = Concat <axis = 0> (n, rest)
    grid = Expand (centre, form)
    s = GridSample <mode = "{mode}"> (four, grid)
    flat = Constant <value_ints = [-1, 8]> ()
    out = Reshape (s, flat)"""
    text = GOOD.replace("BODY", body).replace(": 18", f": {opset}")
    return onnx.parser.parse_model(
        text.replace(
            "<float[768,8]",
            "<int64[2] axes = {1, 2}, float[1,1,1,2] centre = {0.0, 0.0}, float[768,8]",
        )
    )


@pytest.mark.parametrize(
    ("opset", "mode", "words"),
    [
        (18, "bilinear", ""),
        (18, "linear", "mode 'linear', which opset 18 does not know"),
        (20, "linear", "GridSample of opset 20, below 20 is needed"),
    ],
)
def test_lint__grid_sample(opset: int, mode: str, words: str) -> None:
    model = sample(opset, mode)
    fold_constants(model)
    found = problems(model, opset)
    assert words in found if words else found == ""


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_lint__weights_must_be_finite(value: float) -> None:
    model = graph("two = Constant <value = float[1] {2.0}> ()\n out = Add (y, two)")
    assert problems(model) == ""
    constant = next(node for node in model.graph.node if node.output[0] == "two")
    constant.attribute[0].t.CopyFrom(numpy_helper.from_array(np.asarray([value], np.float32)))
    assert "weight two has values that are not finite" in problems(model)
    weights = numpy_helper.from_array(np.full((768, 8), value, np.float32), "w")
    model.graph.initializer[0].CopyFrom(weights)
    assert "weight w has values that are not finite" in problems(model)


def test_lint__checker_first() -> None:
    model = graph("out = Identity (y)")
    model.graph.node[-1].op_type = "NoSuchOperator"
    assert "the ONNX checker refuses it" in problems(model)


def test_fold__what_depends_on_no_input_becomes_a_weight() -> None:
    body = """dims = Constant <value_ints = [1, 8]> ()
    ones = ConstantOfShape <value = float[1] {1.0}> (dims)
    axis = Constant <value_int = 1> ()
    places = CumSum (ones, axis)
    table = Sin (places)
    out = Add (y, table)"""
    model = graph(body)
    assert "depends on no input" in problems(model)
    fold_constants(model)
    assert problems(model) == ""
    assert [node.op_type for node in model.graph.node] == ["Cast", "Flatten", "MatMul", "Add"]
    weights = {weight.name: numpy_helper.to_array(weight) for weight in model.graph.initializer}
    np.testing.assert_allclose(weights["table"], np.sin(np.arange(1, 9))[None], atol=1e-6)
    assert set(weights) == {"w", "table"}
