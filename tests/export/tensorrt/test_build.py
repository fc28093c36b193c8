"""The TensorRT builder against stand-ins made from the real bindings' API: no GPU is needed."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests.export.tensorrt.tables import VERSIONS
from tests.export.tensorrt.world import PART, Layer, World, half_json, world_maker

from tk.export.tensorrt import flags, timing_cache
from tk.export.tensorrt.build import Plan, build_plan, plan_file
from tk.export.tensorrt.known_bad import TABLE, check_known_bad
from tk.export.tensorrt.options import BuildOptions
from tk.export.tensorrt.precision import check_gpu, graph_precision
from tk.export.tensorrt.traits import find_traits
from tk.runtime.backends.tensorrt.gpu import Gpu
from tk.runtime.backends.tensorrt.session import refusal
from tk.runtime.errors import CheckFailed, EnvironmentLacks, TkError
from tk.runtime.machine import platform_name
from tk.runtime.manifest import Part, TensorSpec

Make = Callable[..., World]
TINY = Gpu("Tiny", (5, 0), 1 << 30, (12, 0))


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Make:
    return world_maker(monkeypatch)


def write_graph(folder: Path, precision: str) -> Path:
    """A graph whose weights have the type of a precision; only its types are looked at."""
    kinds = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
    weight = numpy_helper.from_array(np.ones((4, 4), np.float32), "w")
    if precision in kinds:
        weight = helper.make_tensor("w", kinds[precision], (4, 4), [1.0] * 16)
    op = "QuantizeLinear" if precision == "int8" else "MatMul"
    node = helper.make_node(op, ["x", "w"], ["y"], name="node")
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["B", 4]) for n in "xy"]
    graph = helper.make_graph([node], "g", ends[:1], ends[1:], [weight])
    file = folder / f"model.{precision}.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), file)
    return file


def graph_for(version: str, precision: str) -> str:
    """Precision of the graph that a version builds from."""
    return precision if version != "8.6" or precision == "int8" else "fp32"


def build(world: World, folder: Path, precision: str = "fp16", **options: Any) -> Plan:
    chosen = BuildOptions(precision=precision, **{"max_batch": 16, **options})
    graph = write_graph(folder, graph_for(world.version, precision))
    return build_plan(graph, PART, "model", chosen)


@pytest.mark.parametrize("version", VERSIONS)
def test_build__plan_and_facts(make: Make, tmp_path: Path, version: str) -> None:
    world = make(version)
    plan = build(world, tmp_path, opt_batch=8)
    facts = plan.artifact.facts
    assert plan.data == b"PLAN" and plan.artifact.bytes == 4 and plan.artifact.kind == "plan"
    numbers = ".".join(world.trt.__version__.split(".")[:2])
    assert plan.artifact.file == f"plans/model.fp16.trt{numbers}-sm90.plan"
    assert facts["batch"] == [1, 8, 16] and facts["found"] == {"fp16": 0.5, "fp32": 0.5}
    assert facts["typing"] == ("weak" if version == "8.6" else "strong")
    assert facts["platform"] == platform_name()
    assert refusal(facts) == "", "what a build writes, the session of this machine accepts"


@pytest.mark.parametrize(
    ("version", "flag_values"),
    [("8.6", 1 << 0), ("10.3", (1 << 0) | (1 << 1)), ("10.13", 3), ("11.0", 1), ("11.4", 1)],
)
def test_build__network_flags(make: Make, tmp_path: Path, version: str, flag_values: int) -> None:
    world = make(version)
    build(world, tmp_path)
    assert world.network.creation == flag_values


@pytest.mark.parametrize("version", VERSIONS)
def test_build__profile_of_every_input(make: Make, tmp_path: Path, version: str) -> None:
    world = make(version)
    build(world, tmp_path, opt_batch=4, max_batch=9)
    assert world.fake.called("set_shape") == [("image", (1, 4), (4, 4), (9, 4))]


@pytest.mark.parametrize("version", VERSIONS)
def test_build__profile_of_a_prompt_is_not_the_batch(
    make: Make, tmp_path: Path, version: str
) -> None:
    """A prompt of more tokens than pictures in a batch: every prompt runs on one plan."""
    world = make(version)
    inputs = (TensorSpec("image", "float32", ("B", 4)), TensorSpec("text", "float32", (1, "T", 4)))
    part = Part(inputs, (TensorSpec("boxes", "float32", ("B", 4)),), 16, {"T": 256})
    graph = write_graph(tmp_path, graph_for(version, "fp16"))
    build_plan(graph, part, "model", BuildOptions(precision="fp16", max_batch=16))
    assert world.fake.called("set_shape") == [
        ("image", (1, 4), (16, 4), (16, 4)),
        ("text", (1, 1, 4), (1, 32, 4), (1, 256, 4)),
    ]
    with pytest.raises(TkError, match="how large axis 'T'"):
        build_plan(graph, replace(part, limits={}), "model", BuildOptions(precision="fp16"))


@pytest.mark.parametrize("version", VERSIONS)
def test_build__settings(make: Make, tmp_path: Path, version: str) -> None:
    world = make(version)
    build(world, tmp_path, workspace=1 << 20, level=5, hardware="ampere", version_compatible=True)
    config, trt = world.config, world.trt
    assert world.fake.called("set_memory_pool_limit") == [(trt.MemoryPoolType.WORKSPACE, 1 << 20)]
    assert config.builder_optimization_level == 5
    assert config.hardware_compatibility_level == trt.HardwareCompatibilityLevel.AMPERE_PLUS
    assert config.profiling_verbosity == trt.ProfilingVerbosity.DETAILED
    wanted = {"VERSION_COMPATIBLE", "EXCLUDE_LEAN_RUNTIME"}
    assert config.set_flags == wanted | ({"FP16"} if version == "8.6" else set())
    shared = hasattr(trt.PreviewFeature, "PROFILE_SHARING_0806")
    assert bool(world.fake.called("set_preview_feature")) == shared


@pytest.mark.parametrize(
    ("version", "fits"),
    [("8.6", False), ("10.3", False), ("10.13", True), ("11.4", True)],
)
def test_build__plan_for_all_gpus_of_a_kind(
    make: Make, tmp_path: Path, version: str, fits: bool
) -> None:
    world = make(version)
    if fits:
        build(world, tmp_path, hardware="same")
        level = world.trt.HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY
        assert world.config.hardware_compatibility_level == level
    else:
        with pytest.raises(TkError, match="none, ampere"):
            build(world, tmp_path, hardware="same")


def test_build__without_cudnn_and_cublas(make: Make, tmp_path: Path) -> None:
    world = make("8.6")
    build(world, tmp_path, own_tactics=True)
    assert world.fake.called("set_tactic_sources") == [((1 << 3) | (1 << 4),)]
    names = {args[0].name for args in world.fake.called("set_preview_feature")}
    assert "DISABLE_EXTERNAL_TACTIC_SOURCES_FOR_CORE_0805" in names


@pytest.mark.parametrize("tf32", [False, True])
def test_build__tf32_is_off_unless_asked_for(make: Make, tmp_path: Path, tf32: bool) -> None:
    world = make("10.13", inspector=half_json("10.13", ("Float", "Float")))
    build(world, tmp_path, "fp32", tf32=tf32)
    assert [args[0].name for args in world.fake.called("clear_flag")] == ["TF32"] * (not tf32)


def test_build__8_6_keeps_layers_in_float32(make: Make, tmp_path: Path) -> None:
    world = make("8.6", layers=[Layer("(Unnamed Layer* 0) [ElementWise]", "y")])
    plan = build(world, tmp_path, keep=("node",))
    assert {"FP16", "OBEY_PRECISION_CONSTRAINTS"} <= world.config.set_flags
    (layer,) = world.network.layers
    assert layer.__dict__["precision"] == layer.__dict__["bound"] == world.trt.DataType.FLOAT
    assert plan.warnings == []


def test_build__8_6_prefers_what_it_cannot_obey(make: Make, tmp_path: Path) -> None:
    world = make("8.6", layers=[Layer("node", "y")], obeys=False)
    with pytest.warns(RuntimeWarning, match="told to prefer them; the parity gate decides"):
        plan = build(world, tmp_path, keep=("node",))
    assert "PREFER_PRECISION_CONSTRAINTS" in world.config.set_flags
    assert "OBEY_PRECISION_CONSTRAINTS" not in world.config.set_flags
    assert len(plan.warnings) == 1
    with pytest.warns(RuntimeWarning), pytest.raises(TkError, match="built no plan"):
        build(make("8.6", builds=False), tmp_path, keep=("node",))


def test_build__8_6_node_to_keep_is_no_layer(make: Make, tmp_path: Path) -> None:
    with pytest.warns(RuntimeWarning, match="no layer of 1 of 1 nodes.*: nowhere; the parity gate"):
        plan = build(make("8.6"), tmp_path, keep=("nowhere",))
    assert len(plan.warnings) == 1, "the parity report holds it"


@pytest.mark.parametrize(
    ("version", "precision", "graph", "keep", "said"),
    [
        ("10.3", "fp16", "fp32", (), "needs a graph in fp16"),
        ("11.4", "fp16", "fp32", (), "needs a graph in fp16"),
        ("11.4", "int8", "fp16", (), "needs a graph in int8"),
        ("11.4", "fp32", "fp16", (), "needs a graph in fp32"),
        ("10.13", "fp16", "fp16", ("norm",), "cannot keep single layers"),
        ("8.6", "fp16", "fp16", (), "from a graph in fp32"),
        ("8.6", "int8", "fp32", (), "from a graph in int8"),
        ("8.6", "bf16", "fp32", (), "no bfloat16"),
    ],
)
def test_build__never_silently_another_precision(
    make: Make, tmp_path: Path, version: str, precision: str, graph: str, keep: Any, said: str
) -> None:
    world = make(version)
    options = BuildOptions(precision=precision, keep=keep)
    with pytest.raises(TkError, match=said):
        build_plan(write_graph(tmp_path, graph), PART, "model", options)
    assert world.fake.called("build_serialized_network") == []


@pytest.mark.parametrize("version", VERSIONS)
def test_build__plan_of_another_precision_is_refused(
    make: Make, tmp_path: Path, version: str
) -> None:
    world = make(version, inspector=half_json(version, ("Float", "Float")))
    with pytest.raises(CheckFailed, match="did not build") as caught:
        build(world, tmp_path)
    assert "2 fp32" in str(caught.value)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8"])
def test_precision__of_a_graph(tmp_path: Path, precision: str) -> None:
    assert graph_precision(onnx.load(write_graph(tmp_path, precision))) == precision


def test_precision__gpu_that_does_not_compute_in_it() -> None:
    check_gpu("fp32", TINY)
    with pytest.raises(EnvironmentLacks, match=r"capability 8\.0"):
        check_gpu("bf16", TINY)


def test_build__no_plan_tells_tensorrts_words(make: Make, tmp_path: Path) -> None:
    said = [("WARNING", "slow"), ("INFO", "chatter"), ("ERROR", "no tactic for node 3")]
    with pytest.raises(TkError, match="no tactic for node 3") as caught:
        build(make("10.3", builds=False, log=said), tmp_path)
    assert "chatter" not in str(caught.value) and "slow" not in str(caught.value)


def test_build__gpu_memory_too_small(make: Make, tmp_path: Path) -> None:
    said = [("ERROR", "[virtualMemoryBuffer.cpp] OutOfMemory (requested size was 8589934592)")]
    with pytest.raises(EnvironmentLacks) as caught:
        build(make("11.4", builds=False, log=said), tmp_path)
    text = str(caught.value)
    assert "1,024 MiB free of 1,024 MiB" in text and "8589934592" in text and "batch 16" in text


def test_build__graph_that_tensorrt_cannot_read(make: Make, tmp_path: Path) -> None:
    with pytest.raises(TkError, match="node 7: LayerNormalization is unknown"):
        build(make("8.6", parser_errors=["LayerNormalization is unknown"]), tmp_path)


@pytest.mark.parametrize("version", VERSIONS)
def test_build__plugins_are_known_before_the_graph_is_read(
    make: Make, tmp_path: Path, version: str
) -> None:
    """RoiAlign is a plugin; unknown, it stops the parser."""
    world = make(version)
    build(world, tmp_path)
    names = [name for _, name, _ in world.fake.calls]
    assert names.index("init_libnvinfer_plugins") < names.index("parse_from_file")
    world.fake.plugins = False
    with pytest.raises(TkError, match="does not load its plugins"):
        build(world, tmp_path)


def test_build__version_compatible_with_a_plugin_is_refused(make: Make, tmp_path: Path) -> None:
    make("10.13")
    file = write_graph(tmp_path, "fp16")
    model = onnx.load(file)
    model.graph.node[0].op_type = "RoiAlign"
    onnx.save(model, file)
    options = BuildOptions(precision="fp16", version_compatible=True)
    with pytest.raises(TkError, match="cannot hold RoiAlign"):
        build_plan(file, PART, "model", options)


def test_build__8_6_gets_a_graph_that_it_reads(make: Make, tmp_path: Path) -> None:
    """The parts of shapes, which its parser would take for whole ones; the file stays."""
    world = make("8.6")
    file = write_graph(tmp_path, "fp32")
    model = onnx.load(file)
    model.graph.node.append(helper.make_node("Shape", ["x"], ["n"], start=0, end=1))
    onnx.save(model, file)
    data = file.read_bytes()
    build_plan(file, PART, "model", BuildOptions(precision="fp16"))
    (parsed,) = world.parsed
    assert [node.op_type for node in parsed.graph.node] == ["MatMul", "Shape", "Slice"]
    assert file.read_bytes() == data and world.fake.called("parse")[0][1] == str(file)


def test_build__no_builder(make: Make, tmp_path: Path) -> None:
    world = make("8.6")

    def fail(*_: Any) -> None:
        raise TypeError("factory function returned nullptr")

    world.fake.behaviour[("Builder", "__init__")] = fail
    with pytest.raises(TkError, match="no builder"):
        build(world, tmp_path)


def test_build__int64_on_8_6(make: Make, tmp_path: Path) -> None:
    make("8.6")
    part = Part((TensorSpec("ids", "int64", ("B", 4)),), PART.outputs, 4)
    with pytest.raises(TkError, match="no int64"):
        build_plan(write_graph(tmp_path, "fp32"), part, "text", BuildOptions())


@pytest.mark.parametrize("version", ["8.6", "10.3", "11.4"])
def test_build__ctrl_c_leaves_no_plan(make: Make, tmp_path: Path, version: str) -> None:
    world = make(version, during=lambda: os.kill(os.getpid(), signal.SIGINT))
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        build(world, tmp_path)
    assert signal.getsignal(signal.SIGINT) == before


def test_build__progress(make: Make, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    build(make("10.13", phases=5), tmp_path)
    assert "build plans/model.fp16.trt10.13-sm90.plan: 100/100" in capfd.readouterr().err


@pytest.mark.parametrize("version", VERSIONS)
def test_build__timing_cache_grows(make: Make, tmp_path: Path, version: str) -> None:
    world = make(version)
    cache = tmp_path / "cache"
    for _ in range(2):
        build(world, tmp_path, cache=cache)
    (file,) = cache.glob("*.timing")
    assert file.name == f"trt{world.trt.__version__}-nvidia-h200-sm90.timing"
    assert file.read_bytes() == b"++|+", "the second build continued the first, then merged"


def test_timing_cache__a_broken_one_is_started_anew(make: Make, tmp_path: Path) -> None:
    world = make("10.3")
    file = timing_cache.cache_file(
        tmp_path, world.trt.__version__, Gpu("NVIDIA H200", (9, 0), 1, (12, 0))
    )
    file.write_bytes(b"broken")
    build(world, tmp_path, cache=tmp_path)
    assert file.read_bytes() == b"+"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"precision": "fp15"}, "fp32, fp16"),
        ({"max_batch": 4, "opt_batch": 8}, "never sees"),
        ({"max_batch": 0}, "never sees"),
        ({"level": 6}, "0 to 5"),
    ],
)
def test_options__nonsense(options: dict[str, Any], said: str) -> None:
    with pytest.raises(TkError, match=said):
        BuildOptions(**options)


def test_flags__unknown_hardware_word(make: Make) -> None:
    world = make("11.4")
    with pytest.raises(TkError, match="none, same, ampere"):
        flags.set_hardware(world.trt, world.fake.new("IBuilderConfig"), "all")


@pytest.mark.parametrize(
    ("version", "traits", "refused", "warned"),
    [
        ("10.2.0", set(), True, False),
        ("10.2.1", set(), False, False),
        ("10.3.0", {"dinov3"}, False, True),
        ("10.4.0.26", {"dinov3"}, False, True),
        ("10.5.0", {"dinov3"}, False, False),
        ("10.3.0", {"sam2"}, False, False),
        ("10.13.3.9", {"gridsample", "gridsample-20"}, True, False),
        ("10.13.3.9", {"gridsample"}, False, False),
        ("8.6.1", {"grounding-dino", "fp16"}, False, True),
        ("11.4.0", {"gridsample", "mixed"}, False, True),
    ],
)
def test_known_bad__pairs(version: str, traits: set[str], refused: bool, warned: bool) -> None:
    if refused:
        with pytest.raises(TkError, match="known to build"):
            check_known_bad(version, traits, "m")
    elif warned:
        with pytest.warns(RuntimeWarning, match="the parity gate decides"):
            assert len(check_known_bad(version, traits, "m")) == 1
    else:
        assert check_known_bad(version, traits, "m") == []


def test_known_bad__every_row_tells_where() -> None:
    assert all("#" in row.thread and row.reason for row in TABLE)


def test_traits__of_a_graph(tmp_path: Path) -> None:
    graph = onnx.load(write_graph(tmp_path, "fp16"))
    graph.graph.node.append(helper.make_node("GridSample", ["y", "y"], ["z"]))
    options = BuildOptions(precision="fp16", max_batch=4)
    source = {"model": "vit_small_patch16_dinov3"}
    found = find_traits(graph, source, options, Gpu("Tiny", (12, 0), 1, (12, 8)))
    assert found == {"fp16", "sm120", "dinov3", "gridsample", "mixed", "batch"}
    graph.opset_import[0].version = 20
    assert "gridsample-20" in find_traits(graph, {}, options, TINY)


def test_plan_file__name() -> None:
    assert plan_file("model", "int8", "8.6.1", TINY) == "plans/model.int8.trt8.6-sm50.plan"
