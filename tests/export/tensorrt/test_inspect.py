"""Reading precisions from the engine inspector's JSON, in the dialects of 8.6, 10 and 11."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.export.tensorrt.tables import VERSIONS
from tests.export.tensorrt.world import half_json

from tk.export.tensorrt.inspect import Found, check_found, read_inspector
from tk.runtime.errors import CheckFailed, TkError


def layers(*entries: dict[str, Any]) -> str:
    return json.dumps({"Layers": list(entries)})


def layer(word: str, key: str = "Format/Datatype", **more: Any) -> dict[str, Any]:
    return {"Name": "n", "LayerType": "Cask", "Inputs": [{"Name": "x", key: word}], **more}


@pytest.mark.parametrize("version", VERSIONS)
def test_inspector__three_dialects_agree(version: str) -> None:
    found = read_inspector(half_json(version, ("Half", "Float")))
    assert found.layers == {"fp16": 1, "fp32": 1} and found.share("fp16") == 0.5


@pytest.mark.parametrize(
    ("entry", "precision"),
    [
        (layer("Row major linear FP32"), "fp32"),
        (layer("Channel major FP16 format where channel % 8 == 0"), "fp16"),
        (layer("Half"), "fp16"),
        (layer("BFloat16"), "bf16"),
        (layer("Thirty-two wide channel vectorized row major Int8 format"), "int8"),
        (layer("Float", "Datatype"), "fp32"),
        (layer("Half", "DataType"), "fp16"),
        (layer("Float", Weights={"Type": "Half", "Count": 9}), "fp16"),
        (layer("Float", TacticName="sm90_xmma_gemm_f16f16_f16f32_f32_tn_n"), "fp16"),
        (layer("Half", TacticName="sm72_xmma_fprop_i8i8_i8i32_f32"), "int8"),
        (layer("Int32"), ""),
        (layer("Bool"), ""),
        (layer("Half", LayerType="Reformat"), ""),
        (layer("Half", LayerType="NoOp", Name="Reformatting CopyNode for x"), ""),
    ],
)
def test_inspector__one_layer(entry: dict[str, Any], precision: str) -> None:
    assert read_inspector(layers(entry)).layers == ({precision: 1} if precision else {})


@pytest.mark.parametrize("text", ["", "no json", "[]", "{}", '{"Layers": ["conv1", "conv2"]}'])
def test_inspector__nothing_to_read_is_an_error(text: str) -> None:
    with pytest.raises(TkError, match="engine inspector"):
        read_inspector(text)


def test_inspector__fused_block_is_opaque() -> None:
    entry = layer("Float", Name="{ForeignNode[/conv.../norm]}", LayerType="Myelin")
    assert read_inspector(layers(entry)).opaque == 1


@pytest.mark.parametrize(
    ("found", "precision", "plan_bytes", "met"),
    [
        (Found({"fp16": 3, "fp32": 7}, 0), "fp16", 100, True),
        (Found({"fp32": 10}, 0), "fp16", 100, False),
        (Found({"fp32": 10}, 0), "fp16", 50, False),
        (Found({"fp32": 1}, 1), "fp16", 52, True),
        (Found({"fp32": 1}, 1), "fp16", 101, False),
        (Found({"fp32": 9}, 0), "fp32", 100, True),
        (Found({"fp32": 9, "fp16": 1}, 0), "fp32", 100, False),
        (Found({"fp16": 9}, 0), "int8", 100, False),
        (Found({"int8": 1, "fp16": 9}, 0), "int8", 100, True),
        (Found({}, 0), "bf16", 100, False),
    ],
)
def test_check__request_met_or_error(
    found: Found, precision: str, plan_bytes: int, met: bool
) -> None:
    if met:
        check_found(found, precision, plan_bytes, 100, "m")
    else:
        with pytest.raises(CheckFailed, match=precision):
            check_found(found, precision, plan_bytes, 100, "m")
