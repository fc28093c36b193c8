"""Sizes are read from floats and whole: all that every TensorRT reads rightly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto
from tests.export.small_models import EMBEDDING, IMAGE, SIDE
from torch import Tensor, nn

from tk.export.graph import to_onnx
from tk.export.model import ExportPart
from tk.export.sizes import plain_sizes
from tk.runtime.manifest import Part

TEXT = """<ir_version: 9, opset_import: ["" : 18]>
g (uint8[B,4] image, uint8[B,2] other) => (float[N] out) {
    n = Shape MARKS (image)
    m = Size (other)
    x = Cast <to = 1> (image)
    again = Cast <to = 6> (image)
    y = Cast <to = 1> (other)
    sum = Add (n, m)
    out = Cast <to = 1> (sum)
}"""
MARKS = "<start = 0, end = 1>"


def readers(graph: onnx.GraphProto, name: str) -> set[str]:
    return {node.op_type for node in graph.node if name in node.input}


def test_sizes__are_read_from_the_cast_and_are_equal() -> None:
    model = onnx.parser.parse_model(TEXT.replace("MARKS", MARKS))
    feed = {"image": np.zeros((3, 4), np.uint8), "other": np.zeros((3, 2), np.uint8)}
    before = run(model, feed)
    plain_sizes(model.graph)
    onnx.checker.check_model(model, full_check=True)
    assert readers(model.graph, "image") == readers(model.graph, "other") == {"Cast"}
    np.testing.assert_array_equal(run(model, feed), before)


@pytest.mark.parametrize("marks", ["start = 1", "start = -2, end = -1", "start = 0, end = 9", ""])
def test_sizes__a_part_of_a_shape_is_a_slice(marks: str) -> None:
    attributes = f"<{marks}>" if marks else ""
    model = onnx.parser.parse_model(f"""<ir_version: 9, opset_import: ["" : 18]>
    g (float[A,B,4] x) => (int64[N] out) {{ out = Shape {attributes} (x) }}""")
    feed = {"x": np.zeros((2, 3, 4), np.float32)}
    before = run(model, feed)
    assert plain_sizes(model.graph) == bool(marks)
    onnx.checker.check_model(model, full_check=True)
    assert not any(node.attribute for node in model.graph.node if node.op_type == "Shape")
    np.testing.assert_array_equal(run(model, feed), before)


def test_sizes__names_that_are_taken() -> None:
    model = onnx.parser.parse_model("""<ir_version: 9, opset_import: ["" : 18]>
    g (float[A,4] x) => (int64[1] out) <int64[1] out_start = {5}> {
        s = Shape <end = 1> (x)
        out_whole = Add (s, out_start)
        out = Identity (out_whole)
        s_start = Neg (out_start)
    }""")
    before = run(model, {"x": np.zeros((2, 4), np.float32)})
    assert plain_sizes(model.graph)
    onnx.checker.check_model(model, full_check=True)
    np.testing.assert_array_equal(run(model, {"x": np.zeros((2, 4), np.float32)}), before)


def test_sizes__a_graph_without_them_stays_as_it_is() -> None:
    model = onnx.parser.parse_model(TEXT.replace("uint8", "int32").replace("MARKS", ""))
    data = model.SerializeToString()
    assert not plain_sizes(model.graph)
    assert model.SerializeToString() == data


def run(model: onnx.ModelProto, feed: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, feed)[0])


class Token(nn.Module):
    """Lays a token out over the batch, whose size the exporter reads from the picture."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 8))

    def forward(self, image: Tensor) -> Tensor:
        token = self.token.expand(image.shape[0], -1)
        return token + image.float().flatten(1)[:, :8]


@pytest.mark.parametrize("opset", [17, 18])
def test_to_onnx__pictures_go_into_a_cast_and_nowhere_else(opset: int) -> None:
    part = ExportPart(Token(), Part((IMAGE,), (EMBEDDING,), 4), lambda canvases, batch: {})
    image: NDArray[np.generic] = np.zeros((2, SIDE, SIDE, 3), np.uint8)
    graph = onnx.load_model_from_string(to_onnx(part, {"image": image}, {}, opset).data).graph
    assert graph.input[0].type.tensor_type.elem_type == TensorProto.UINT8
    assert readers(graph, "image") == {"Cast"}
    sizes = [node for node in graph.node if node.op_type == "Shape"]
    assert sizes and not any(node.attribute for node in sizes)
