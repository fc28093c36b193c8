"""Reading precisions from the engine inspector's JSON, in the dialects of 8.6, 10 and 11."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.export.tensorrt.tables import VERSIONS
from tests.export.tensorrt.world import half_json, world_maker

from tk.export.tensorrt.inspect import Found, check_found, inspect, read_inspector
from tk.runtime.errors import CheckFailed, TkError

NO_TYPE = "N/A due to dynamic shapes"


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
        (layer("Row major linear FP16 format", LayerType="NoOp", Name="/Cast_1"), ""),
        (layer("Half", LayerType="MyelinReformat", Name="/Cast"), ""),
        (layer(NO_TYPE, Weights={"Type": "Int8", "Count": 13824}), "int8"),
        (layer(NO_TYPE, TacticName="sm80_xmma_fprop_implicit_gemm_i8f32_i8i32_f32_nchw"), "int8"),
        (layer("Float", TacticName="turing_h1688cudnn_256x64_ldg8_relu_exp_small_nhwc"), "fp16"),
        (layer("Float", TacticName="sm80_xmma_fprop_implicit_gemm_f32f32_tf32f32_f32"), "fp32"),
        (layer("Float", TacticName="sm50_xmma_cublas_gemvx_f32f32_f32_f32_tn_n_int32"), "fp32"),
        (layer("Int8", LayerType="kgen", TacticName="__myl_CastMul_0x70d1"), ""),
        (layer("Half", LayerType="kgen", TacticName="__myl_AddMul_0x70d1"), "fp16"),
        (layer("Int8", LayerType="gemm", TacticName="sm80_xmma_gemm_x"), "int8"),
        (layer("Half", "Datatype", Inputs=[{"Datatype": "Half", "Format": NO_TYPE}]), "fp16"),
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


def test_inspector__layers_that_tell_nothing_are_counted() -> None:
    silent, block = layer(NO_TYPE, LayerType="PointWiseV2"), layer(NO_TYPE, LayerType="Myelin")
    found = read_inspector(layers(silent, silent, block, layer("Int32"), layer("Half")))
    assert found == Found({"fp16": 1}, opaque=1, silent=2)


def test_inspector__control_characters_of_8_6_are_read() -> None:
    text = layers(layer("Half", Metadata="[ONNX Layer: a]#[ONNX Layer: b]")).replace("#", "\x1e")
    assert read_inspector(text).layers == {"fp16": 1}


@pytest.mark.parametrize("version", VERSIONS)
def test_inspect__asks_at_the_shapes_that_the_plan_was_tuned_for(
    monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    """Without a context with shapes, a plan of free axes shows no types."""
    world = world_maker(monkeypatch)(version)
    engine = world.trt.Runtime(None).deserialize_cuda_engine(b"PLAN")
    assert inspect(world.trt, engine).layers == {"fp16": 1, "fp32": 1}
    assert world.fake.called("set_input_shape") == [("image", (16, 4))]


def test_inspect__without_a_context_too(monkeypatch: pytest.MonkeyPatch) -> None:
    world = world_maker(monkeypatch)("10.13", contexts=1, shares_profile=False)
    engine = world.trt.Runtime(None).deserialize_cuda_engine(b"PLAN")
    assert inspect(world.trt, engine).layers == {"fp16": 1, "fp32": 1}


MANY = 100 << 20
"""Bytes of float32 weights."""


@pytest.mark.parametrize(
    ("found", "precision", "part", "met"),
    [
        (Found({"fp16": 3, "fp32": 7}), "fp16", 1.0, True),
        (Found({"fp32": 10}), "fp16", 1.0, False),
        (Found({"fp32": 10}), "fp16", 0.5, False),
        (Found({"fp32": 1}, opaque=1), "fp16", 0.52, True),
        (Found({"fp32": 1}, opaque=1), "fp16", 1.01, False),
        (Found({"fp32": 1}, opaque=1), "int8", 0.5, None),
        (Found({"fp32": 1}, opaque=1), "int8", 0.3, True),
        (Found({}, opaque=1), "fp16", 0.8, None),
        (Found({"fp16": 1}, opaque=1), "fp16", 0.99, None),
        (Found({"fp16": 9}, silent=3), "fp16", 0.99, True),
        (Found({}, silent=3), "fp16", 0.8, None),
        (Found({"fp32": 9}), "fp32", 1.0, True),
        (Found({"fp32": 9}, opaque=2, silent=3), "fp32", 1.0, True),
        (Found({"fp32": 9, "fp16": 1}), "fp32", 1.0, False),
        (Found({"fp16": 9}), "int8", 1.0, False),
        (Found({"int8": 1, "fp16": 9}), "int8", 1.0, True),
        (Found({}), "bf16", 1.0, False),
    ],
)
def test_check__request_met_or_error_or_cannot_be_told(
    found: Found, precision: str, part: float, met: bool | None
) -> None:
    if met is False:
        with pytest.raises(CheckFailed, match=precision):
            check_found(found, precision, int(part * MANY), MANY, "m")
    else:
        said = check_found(found, precision, int(part * MANY), MANY, "m")
        assert ("may run in float32" in said) == (met is None)


def test_check__size_of_a_small_plan_proves_nothing() -> None:
    assert check_found(Found({"fp32": 1}, opaque=1), "fp16", 2 << 20, 1 << 20, "m")
