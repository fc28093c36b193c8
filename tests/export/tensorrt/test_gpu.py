"""The real TensorRT on a real GPU; skipped with a reason where one of them is missing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from tk.export.tensorrt.build import Plan, build_plan
from tk.export.tensorrt.flags import can_be_strong
from tk.export.tensorrt.options import BuildOptions
from tk.runtime.backends.tensorrt import library
from tk.runtime.backends.tensorrt.cuda import DeviceMemory, PinnedMemory, Stream, Timer
from tk.runtime.backends.tensorrt.session import TensorRTSession, open_session
from tk.runtime.manifest import Part, TensorSpec

LACK = library.missing()
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(bool(LACK), reason=LACK)]

WIDE = 64
PART = Part(
    (TensorSpec("image", "uint8", ("B", WIDE)),),
    (TensorSpec("embedding", "float32", ("B", WIDE)),),
    16,
)
WEIGHT = np.random.default_rng(0).normal(size=(WIDE, WIDE)).astype(np.float32) / WIDE


def reference(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """float64 answer of the graph."""
    answer: NDArray[np.float32] = np.maximum(image.astype(np.float64) / 255 @ WEIGHT, 0).astype(
        np.float32
    )
    return answer


def write_graph(folder: Path, precision: str) -> Path:
    """relu(image / 255 @ W), typed as a version that takes the graph's types needs it."""
    half = precision == "fp16" and can_be_strong(library.load())
    kind = TensorProto.FLOAT16 if half else TensorProto.FLOAT
    numpy_kind = np.float16 if half else np.float32
    nodes = [
        helper.make_node("Cast", ["image"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["x", "scale"], ["s"]),
        helper.make_node("Cast", ["s"], ["h"], to=kind),
        helper.make_node("MatMul", ["h", "w"], ["m"]),
        helper.make_node("Relu", ["m"], ["r"]),
        helper.make_node("Cast", ["r"], ["embedding"], to=TensorProto.FLOAT),
    ]
    weights = [
        numpy_helper.from_array(np.float32(1 / 255).reshape(1), "scale"),
        numpy_helper.from_array(WEIGHT.astype(numpy_kind), "w"),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["B", WIDE])
    out = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["B", WIDE])
    graph = helper.make_graph(nodes, "tiny", [image], [out], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.checker.check_model(model)
    file = folder / f"model.{precision}.onnx"
    onnx.save(model, file)
    return file


def build(folder: Path, precision: str) -> Plan:
    options = BuildOptions(precision=precision, max_batch=16, cache=folder / "cache")
    return build_plan(write_graph(folder, precision), PART, "model", options)


@pytest.mark.parametrize(("precision", "error"), [("fp32", 1e-5), ("fp16", 5e-3)])
def test_gpu__build_and_run(tmp_path: Path, precision: str, error: float) -> None:
    plan = build(tmp_path, precision)
    assert list((tmp_path / "cache").glob("*.timing"))
    facts = plan.artifact.facts
    images = np.random.default_rng(1).integers(0, 256, (16, WIDE), dtype=np.uint8)
    with open_session(plan.data, "m", precision, PART, 0, facts=facts) as session:
        for rows in (1, 16, 3, 3, 3, 3, 16, 16, 1, 3):
            found = session.run({"image": images[:rows]})["embedding"]
            difference = found.astype(np.float64) - reference(images[:rows])
            assert np.abs(difference).max() < error


def test_gpu__graphs_on_and_off_are_equal(tmp_path: Path) -> None:
    plan = build(tmp_path, "fp32")
    trt = library.load()
    images = np.random.default_rng(2).integers(0, 256, (8, WIDE), dtype=np.uint8)
    on = TensorRTSession(trt, plan.data, "on", "fp32", PART)
    off = TensorRTSession(trt, plan.data, "off", "fp32", PART, graphs=False)
    with on, off:
        for shift in range(6):
            image = np.roll(images, shift, axis=0)
            first, second = (s.run({"image": image})["embedding"] for s in (on, off))
            np.testing.assert_array_equal(first, second)
        assert on.graph_count == 1 and off.graph_count == 0
        assert all(seconds > 0 for seconds in on.gpu_seconds({"image": images}, 5))


def test_gpu__a_plan_cut_short_is_refused(tmp_path: Path) -> None:
    from tk.runtime.errors import TkError

    plan = build(tmp_path, "fp32")
    short = plan.data[: len(plan.data) // 2]
    with pytest.raises(TkError, match="cannot load"):
        open_session(short, "m", "fp32", PART, 0, facts=plan.artifact.facts)


def test_gpu__memory_goes_there_and_back() -> None:
    host, device, stream = PinnedMemory(64), DeviceMemory(64, "a test"), Stream()
    host.view("int32", (16,))[...] = np.arange(16)
    with Timer() as timer:
        timer.mark(0, stream)
        stream.to_device(host.address, device.address, 64)
        stream.wait()
        host.view("int32", (16,))[...] = 0
        stream.to_host(device.address, host.address, 64)
        timer.mark(1, stream)
        assert timer.seconds() > 0
    np.testing.assert_array_equal(host.view("int32", (16,)), np.arange(16))
    for item in (host, device, stream):
        item.close()
