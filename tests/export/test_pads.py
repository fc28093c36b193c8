"""Pads of nothing are left out; what they were read by reads what they read."""

from __future__ import annotations

import onnx
import onnx.parser
import pytest

from tk.export.pads import drop_empty_pads


def nodes(pads: str, body: str = "y = Relu (b)") -> list[tuple[str, list[str]]]:
    model = onnx.parser.parse_model(f"""<ir_version: 9, opset_import: ["" : 18]>
    g (float[B,4] x) => (float[N,M] y) <int64[4] none = {{0,0,0,0}}, int64[4] some = {{0,1,0,0}}> {{
        a = Pad (x, {pads})
        b = Pad (a, {pads})
        {body}
    }}""")
    drop_empty_pads(model.graph)
    onnx.checker.check_model(model, full_check=True)
    return [(node.op_type, list(node.input)) for node in model.graph.node]


def test_pads__a_chain_of_empty_ones_goes() -> None:
    assert nodes("none") == [("Relu", ["x"])]


@pytest.mark.parametrize("body", ["y = Relu (b)", "y = Neg (b)"])
def test_pads__others_stay(body: str) -> None:
    assert [kind for kind, _ in nodes("some", body)] == ["Pad", "Pad", body[4:8].strip()]


def test_pads__an_output_keeps_its_name() -> None:
    assert nodes("none", "y = Pad (b, none)") == [("Pad", ["x", "none"])]
