"""Opset 18 -> 17: every operator that changed, against ONNX Runtime on the graph of opset 18."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnxruntime as ort
import pytest
import timm
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tk.export.graph import to_onnx
from tk.export.lint import lint
from tk.export.lower import RULES, lower
from tk.export.model import ExportPart
from tk.runtime.errors import CheckFailed, TkError
from tk.runtime.manifest import Part, TensorSpec


def model(body: str, out: str = "float[B,C,H,W]") -> onnx.ModelProto:
    """`x` (B, 6, 8, 10) and `n` (B, 6) int64; `body` makes `y`."""
    text = f"""<ir_version: 9, opset_import: ["" : 18]>
    g (float[B,6,8,10] x, int64[B,6] n) => ({out} y) {{ {body} }}"""
    return onnx.parser.parse_model(text)


def run(graph: onnx.ModelProto, inputs: dict[str, NDArray[np.generic]]) -> NDArray[np.float32]:
    session = ort.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, inputs)[0])


def inputs(batch: int) -> dict[str, NDArray[np.generic]]:
    random = np.random.default_rng(batch)
    return {
        "x": random.normal(size=(batch, 6, 8, 10)).astype(np.float32),
        "n": random.integers(0, 6, (batch, 6)),
    }


def ints(name: str, *values: int) -> str:
    return f"{name} = Constant <value_ints = [{', '.join(map(str, values))}]> ()\n"


AXES = ints("axes", 2, 3)
REDUCTIONS = sorted(name for name in RULES if name.startswith("Reduce"))

CASES: list[tuple[str, str]] = [
    *((f"{name} axes", f"{AXES} p = Abs (x) \n y = {name} (p, axes)") for name in REDUCTIONS),
    *((f"{name} whole", f"p = Abs (x) \n y = {name} (p)") for name in REDUCTIONS),
    ("ReduceMean nothing", "y = ReduceMean <noop_with_empty_axes = 1> (x)"),
    ("Split even", "y, z = Split <axis = 1, num_outputs = 2> (x)"),
    ("Split uneven", "z, w, u, y = Split <axis = 3, num_outputs = 4> (x)"),
    ("Split sizes", ints("s", 2, 4) + "z, y = Split <axis = 1> (x, s)"),
    ("Split negative", "z, y = Split <axis = -1, num_outputs = 2> (x)"),
    ("Pad all", ints("p", 0, 1, 0, 2, 0, 0, 3, 1) + "y = Pad (x, p)"),
    (
        "Pad axes",
        ints("p", 1, 2, 0, 3) + AXES + "v = Constant <value_float = 7.0> ()\n"
        "y = Pad (x, p, v, axes)",
    ),
    (
        "Pad reflect",
        ints("p", 1, 2, 0, 3) + ints("a", -2, -1) + 'y = Pad <mode="reflect"> (x, p, , a)',
    ),
    (
        "Resize scales of axes",
        "s = Constant <value_floats = [2.0, 0.5]> ()\n"
        'y = Resize <axes = [2, 3], mode = "linear"> (x, , s)',
    ),
    (
        "Resize sizes of axes, free batch",
        ints("s", 16, 15) + 'y = Resize <axes = [2, 3], mode = "nearest"> (x, , , s)',
    ),
    (
        "Resize scales",
        "s = Constant <value_floats = [1.0, 1.0, 1.5, 2.0]> ()\n"
        'y = Resize <mode = "cubic", antialias = 0> (x, , s)',
    ),
    (
        "ScatterElements add",
        "f = Identity (x) \n c = Cast <to = 1> (n) \n"
        'y = ScatterElements <axis = 1, reduction = "add"> (c, n, c)',
    ),
    ("Mish", "y = Mish (x)"),
    ("LpPool", "y = LpPool <kernel_shape = [2, 2], dilations = [1, 1], ceil_mode = 0> (x)"),
    (
        "GroupNormalization",
        "s = Constant <value_floats = [2.0, 3.0]> ()\n"
        "b = Constant <value_floats = [0.5, -1.0]> ()\n"
        "y = GroupNormalization <num_groups = 2, epsilon = 0.01> (x, s, b)",
    ),
    ("CenterCropPad both", ints("s", 5, 13) + "y = CenterCropPad <axes = [2, 3]> (x, s)"),
    ("CenterCropPad even", ints("s", 11, 6) + "y = CenterCropPad <axes = [2, 3]> (x, s)"),
]


@pytest.mark.parametrize(("name", "body"), CASES, ids=[name for name, _ in CASES])
def test_lower__computes_the_same(name: str, body: str) -> None:
    out = "float[B,A]" if "Scatter" in name else "float[B,C,H,W]"
    graph = model(body, out)
    lowered = lower(graph)
    assert lowered.opset_import[0].version == 17
    for batch in (1, 3):
        expected, found = run(graph, inputs(batch)), run(lowered, inputs(batch))
        assert expected.shape == found.shape
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("y = BitwiseNot (n)", ("gives y", "BitwiseNot", "no such operator")),
        ('y = ScatterElements <reduction = "max"> (x, n, x)', ("ScatterElements", "'max'")),
        (
            "s = Constant <value_floats = [0.5, 0.5]> ()\n"
            'y = Resize <axes = [2, 3], mode = "linear", antialias = 1> (x, , s)',
            ("Resize", "antialiases"),
        ),
        (
            ints("s", 7, 7)
            + 'y = Resize <axes=[2,3], keep_aspect_ratio_policy="not_larger"> (x,,,s)',
            ("Resize", "aspect ratio"),
        ),
        ("d = Shape (n) \n y = ReduceMax (x, d)", ("ReduceMax", "axes are not constant")),
        ("z, y = Split <axis = 0, num_outputs = 2> (x)", ("gives z, y", "Split", "free axis")),
        (
            "y = LpPool <kernel_shape = [2, 2], dilations = [2, 1]> (x)",
            ("LpPool", "dilations"),
        ),
        ("y = ReduceL2 <noop_with_empty_axes = 1> (x)", ("ReduceL2", "reduces no axis")),
    ],
)
def test_lower__what_17_cannot_say_names_the_node(body: str, words: tuple[str, ...]) -> None:
    with pytest.raises(CheckFailed) as caught:
        lower(model(body))
    assert all(word in caught.value.what for word in words), caught.value.what


def test_lower__only_from_18() -> None:
    graph = model("y = Identity (x)")
    graph.opset_import[0].version = 20
    with pytest.raises(CheckFailed, match="only opset 18"):
        lower(graph)


def test_rules__cover_what_opset_18_changed() -> None:
    changed = {
        schema.name
        for schema in onnx.defs.get_all_schemas_with_history()
        if schema.since_version == 18 and schema.domain == ""
    }
    without = {name for name in changed if re.match("Bitwise|Col2Im|Optional", name)}
    assert changed - without == set(RULES)


class Timm(nn.Module):
    """A backbone as the exporter sees ours: uint8 canvas in."""

    def __init__(self, name: str, side: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        size: dict[str, Any] = {"img_size": side} if "vit" in name else {}
        self.network = timm.create_model(name, num_classes=0, **size)

    def forward(self, image: Tensor) -> Tensor:
        out: Tensor = self.network((image.float() / 127.5 - 1).permute(0, 3, 1, 2))
        return out


@pytest.mark.parametrize(
    "name",
    [
        "test_vit",
        "test_convnext",
        pytest.param("vit_tiny_patch16_dinov3_qkvb", marks=pytest.mark.slow),
    ],
)
def test_lower__timm_backbones_equal_18_and_pytorch(name: str) -> None:
    side = 64
    network = Timm(name, side).eval()
    pictures = np.random.default_rng(0).integers(0, 256, (3, side, side, 3), np.uint8)
    with torch.inference_mode():
        expected = network(torch.from_numpy(pictures)).numpy()
    spec = Part(
        (TensorSpec("image", "uint8", ("B", side, side, 3)),),
        (TensorSpec("embedding", "float32", ("B", expected.shape[1])),),
        3,
    )
    part = ExportPart(network, spec, lambda canvases, batch: {"image": canvases})
    graph = onnx.load_from_string(to_onnx(part, {"image": pictures[:2]}, {"k": "v"}, 18).data)
    lowered = lower(graph)
    assert list(lint(lowered, spec, 17)) == []
    assert [{p.key: p.value for p in g.metadata_props} for g in (graph, lowered)] == [
        {"k": "v"}
    ] * 2
    found = run(lowered, {"image": pictures})
    np.testing.assert_allclose(found, expected, atol=2e-5 * np.abs(expected).max())
    np.testing.assert_array_equal(found, run(graph, {"image": pictures}))


def test_to_onnx__another_opset_is_an_error() -> None:
    spec = Part((TensorSpec("x", "float32", ("B", 4)),), (TensorSpec("y", "float32", ("B", 4)),), 2)
    part = ExportPart(nn.Linear(4, 4), spec, lambda canvases, batch: {})
    with pytest.raises(TkError, match="opset 16"):
        to_onnx(part, {}, {}, 16)
