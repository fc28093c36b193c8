"""What TensorRT is documented to read, and what is said of a graph that it would not."""

from __future__ import annotations

import onnx
import onnx.parser
import pytest

from tk.export.tensorrt.documented import is_strong, newest_opset, types_read
from tk.export.tensorrt.reads import complaints


@pytest.mark.parametrize(
    ("operator", "version", "types"),
    [
        ("GridSample", "8.6.1", {"FLOAT", "FLOAT16"}),
        ("GridSample", "11.4", {"FLOAT", "FLOAT16"}),
        ("MatMul", "8.6", {"FLOAT", "FLOAT16"}),
        ("MatMul", "10.3.0", {"FLOAT", "FLOAT16", "BFLOAT16"}),
        ("Add", "8.6", {"FLOAT", "FLOAT16", "INT32", "INT64"}),
        ("Clip", "10.13", {"FLOAT", "FLOAT16", "BFLOAT16"}),
        ("CastLike", "8.6", set()),
        ("Mish", "10.13", set()),
        ("Mish", "10.16", {"FLOAT", "FLOAT16"}),
        ("Unique", "11.4", set()),
    ],
)
def test_documented__types(operator: str, version: str, types: set[str]) -> None:
    assert types_read(operator, version) == types


def test_documented__opsets_and_types_by_version() -> None:
    assert [newest_opset(v) for v in ("8.6", "10.3", "10.15.1", "11.4")] == [17, 19, 24, 24]
    assert [is_strong(v) for v in ("8.6.1", "10.0", "11.4")] == [False, True, True]


def said(body: str, version: str, opset: int = 17, out: str = "float[B,4]") -> str:
    text = f"""<ir_version: 9, opset_import: ["" : {opset}]>
    g (float[B,4] x, int64[B,4] n, float[B,3,8,8] p) => ({out} y) {{ {body} }}"""
    return "\n".join(complaints(onnx.parser.parse_model(text), version))


@pytest.mark.parametrize("version", ["8.6", "10.3", "10.16", "11.4"])
@pytest.mark.parametrize(
    ("body", "out"),
    [
        ("y = Relu (x)", "float[B,4]"),
        ("y = Mul (n, n)", "int64[B,4]"),
        ("y = Less (n, n)", "bool[B,4]"),
        ("c = Less (x, x)\n y = Where (c, n, n)", "int64[B,4]"),
        ("y = Cast <to = 7> (x)", "int64[B,4]"),
        ("y = ArgMax <axis = 1> (x)", "int64[B,1]"),
        ("y = Concat <axis = 0> (x, x, x)", "float[N,4]"),
        ("k = Constant <value_ints = [2]> ()\n y, i = TopK (x, k)", "float[B,2]"),
        ("y = MaxPool <kernel_shape = [2,2]> (p)", "float[B,3,7,7]"),
        ("y = Shape (n)", "int64[2]"),
        ("s = Shape (x)\n y = ConstantOfShape (s)", "float[B,4]"),
        (
            """b = Constant <value = float[1,2,4] {0,0,1,1,0,0,2,2}> ()
            c = Constant <value = float[1,1,2] {0.5,0.25}> ()
            m = Constant <value_ints = [1]> ()
            y = NonMaxSuppression (b, c, m)""",
            "int64[N,3]",
        ),
    ],
)
def test_reads__what_is_read(body: str, out: str, version: str) -> None:
    assert said(body, version, out=out) == ""


@pytest.mark.parametrize(
    ("body", "version", "words"),
    [
        ("y = Mish (x)", "10.13", ("Mish, gives y", "an operator that it does not read")),
        ("z = Clip (n)\n y = Cast <to = 1> (z)", "10.16", ("Clip", "works on INT64")),
        ("b = Cast <to = 16> (x)\n y = Cast <to = 1> (b)", "8.6", ("works on BFLOAT16",)),
        ("k = Shape <start = 1> (p)\n y, i = TopK <sorted = 0> (x, k)", "11.4", ("not sorted",)),
        (
            "k = Constant <value_ints = [4000]> ()\n y, i = TopK (x, k)",
            "10.3",
            ("more than 3840",),
        ),
        ("y, i = MaxPool <kernel_shape = [2,2]> (p)", "10.3", ("gives indices",)),
        ("y = MaxPool <kernel_shape = [2,2], dilations = [2,2]> (p)", "10.3", ("dilations",)),
        ("a = Cast <to = 7> (n)\n y = ReduceSum (x, a)", "8.6", ("(a) that must be constant",)),
        (
            """r = Constant <value_floats = [1.0, 1.0, 2.0, 2.0]> ()
            y = Resize <mode = "cubic"> (p, , r)""",
            "10.16",
            ("mode 'cubic'", "linear, nearest"),
        ),
        (
            """s = Constant <value_float = 0.5> ()
            z = Constant <value = int8 {3}> ()
            q = QuantizeLinear (x, s, z)
            y = DequantizeLinear (q, s, z)""",
            "10.3",
            ("QuantizeLinear", "zero point that is not"),
        ),
        (
            """g = Constant <value_floats = [1.0, 1.0, 1.0, 1.0]> ()
            y, mean = LayerNormalization (x, g)""",
            "10.3",
            ("more than its first output",),
        ),
        ("s = Shape <start = 0, end = 1> (x)\n y = Expand (x, s)", "8.6", ("takes the whole",)),
    ],
)
def test_reads__names_the_node_and_what_is_wrong(
    body: str, version: str, words: tuple[str, ...]
) -> None:
    opset = 18 if "Mish" in body else 17
    found = said(body, version, opset)
    assert all(word in found for word in words), found


def test_reads__a_newer_opset() -> None:
    assert said("y = Relu (x)", "8.6", 18) == "opset 18; this TensorRT reads up to 17"
    assert said("y = Relu (x)", "10.3", 18) == ""
