"""OpenVINO gives what ONNX Runtime gives, on the tiny bundles and on an exported network."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx.parser
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from tests import tiny_bundles

from tk.runtime.backends.base import Arrays
from tk.runtime.backends.onnxrt import session as onnxrt
from tk.runtime.backends.openvino import session as openvino
from tk.runtime.backends.openvino.outside import names_files
from tk.runtime.errors import EnvironmentLacks, TkError
from tk.runtime.manifest import Part, TensorSpec

needs_openvino = pytest.mark.skipif(bool(openvino.missing()), reason=openvino.missing())
TINY = [(task, name) for task, parts in tiny_bundles.PARTS.items() for name in parts]


def tiny(task: str, name: str) -> tuple[bytes, Part]:
    text, part = tiny_bundles.PARTS[task][name]
    return onnx.parser.parse_model(text).SerializeToString(), part


def floats(array: NDArray[Any]) -> NDArray[np.float64]:
    return np.asarray(array, np.float64)


def feed(part: Part, size: int) -> Arrays:
    """Bright blobs and boxes for any tiny part."""
    pictures = np.stack([tiny_bundles.blob((250, 9 * i, 9)) for i in range(size)])
    known: Arrays = {
        "image": pictures,
        "features": pictures[:1].max(axis=3).astype(np.float32) - 128,
        "boxes": np.tile(np.asarray([[10, 10, 40, 30]], np.float32), (size, 1)),
    }
    return {spec.name: known[spec.name] for spec in part.inputs}


@needs_openvino
@pytest.mark.parametrize(("task", "name"), TINY)
def test_run__equal_to_onnx_runtime_at_every_batch(task: str, name: str) -> None:
    data, part = tiny(task, name)
    ours = openvino.open_session(data, name, "fp32", part, 1)
    theirs = onnxrt.open_session(data, name, "fp32", part, 1)
    assert ours.backend == "openvino-cpu"
    for size in (2, 1, 3):  # one session, its free axis changes both ways
        inputs = feed(part, size)
        expected, found = theirs.run(inputs), ours.run(inputs)
        assert list(found) == list(expected)
        for key, value in expected.items():
            assert found[key].dtype == value.dtype
            np.testing.assert_allclose(floats(found[key]), floats(value), rtol=1e-5, atol=1e-5)


@needs_openvino
def test_run__results_belong_to_the_caller() -> None:
    data, part = tiny("embedder", "model")
    with openvino.open_session(data, "m", "fp32", part, 1) as session:
        image = feed(part, 2)["image"]
        first = session.run({"image": image})["embedding"]
        before = first.copy()
        session.run({"image": np.asarray(255 - np.asarray(image, np.uint8), np.uint8)})
        np.testing.assert_array_equal(first, before)
        strided = np.asarray(image)[:, ::-1]
        assert not strided.flags.c_contiguous
        again = session.run({"image": strided})["embedding"]
        np.testing.assert_allclose(floats(again), floats(before), rtol=1e-5)


def product(k: int = 512) -> tuple[bytes, Part, NDArray[np.float32]]:
    """A matrix product whose result tells float32 from bfloat16."""
    weight = np.random.default_rng(0).normal(size=(k, 32)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", k])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["B", 32])],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    part = Part(
        (TensorSpec("x", "float32", ("B", k)),), (TensorSpec("y", "float32", ("B", 32)),), 4
    )
    return model.SerializeToString(), part, weight


@needs_openvino
def test_run__float32_is_computed_in_float32() -> None:
    data, part, weight = product()
    x = np.random.default_rng(1).normal(size=(4, 512)).astype(np.float32)
    exact = x.astype(np.float64) @ weight.astype(np.float64)
    found = openvino.open_session(data, "m", "fp32", part, 1).run({"x": x})["y"]
    assert np.abs(floats(found) - exact).max() < 1e-4  # bfloat16 is off by about 0.2 here


@needs_openvino
def test_run__half_precision_is_never_computed_in_bfloat16() -> None:
    data, part, weight = product()
    x = np.random.default_rng(1).normal(size=(4, 512)).astype(np.float32)
    exact = x.astype(np.float64) @ weight.astype(np.float64)
    session = openvino.open_session(data, "m", "fp16", part, 1)
    assert np.abs(floats(session.run({"x": x})["y"]) - exact).max() < 0.08
    compiled = session._request.get_compiled_model()  # type: ignore[attr-defined]
    taken = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    assert taken in ("f16", "f32"), "OpenVINO said yes to another precision"


@pytest.mark.parametrize(
    ("able", "precision", "hint"),
    [
        (["FP32", "BF16", "INT8"], "fp16", "f32"),
        (["FP32", "BF16", "FP16"], "fp16", "f16"),
        (["FP32", "BF16"], "bf16", "bf16"),
        (["FP32"], "bf16", "f32"),
        (["FP32", "BF16", "FP16"], "fp32", "f32"),
        (["FP32", "BF16", "INT8"], "int8", "f32"),
    ],
)
def test_arithmetic__what_the_file_says_where_the_processor_can(
    able: list[str], precision: str, hint: str
) -> None:
    class Core:
        def get_property(self, device: str, name: str) -> list[str]:
            assert (device, name) == ("CPU", "OPTIMIZATION_CAPABILITIES")
            return able

    assert openvino._arithmetic(Core(), precision) == hint


@needs_openvino
def test_open_session__threads_and_closing() -> None:
    data, part, _ = product()
    session = openvino.open_session(data, "m", "fp32", part, 2)
    compiled = session._request.get_compiled_model()  # type: ignore[attr-defined]
    assert compiled.get_property("INFERENCE_NUM_THREADS") == 2
    session.close()
    with pytest.raises(TkError, match="closed"):
        session.run({"x": np.zeros((1, 512), np.float32)})


@needs_openvino
def test_run__wrong_shape_is_the_same_error_as_elsewhere() -> None:
    data, part, _ = product()
    session = openvino.open_session(data, "m", "fp32", part, 1)
    with pytest.raises(TkError, match="input 'x' does not fit"):
        session.run({"x": np.zeros((1, 511), np.float32)})


BROKEN = """
<ir_version: 9, opset_import: ["" : 18]>
g (float[2,3] x) => (float[2,4] y) {
    shape = Constant<value_ints = [4, 2]> ()
    y = Reshape (x, shape)
}"""


@needs_openvino
@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"no graph", "no ONNX file"),
        (b"", "refuses broken.onnx"),
        (onnx.parser.parse_model(BROKEN).SerializeToString(), "refuses broken.onnx"),
        (tiny("embedder", "model")[0], "no input 'x'"),
    ],
    ids=["bytes", "nothing", "reshape", "names"],
)
def test_open_session__graph_that_it_refuses(data: bytes, words: str) -> None:
    part = Part((TensorSpec("x", "float32", (2, 3)),), (TensorSpec("y", "float32", (2, 4)),), 1)
    with pytest.raises(TkError) as raised:
        openvino.open_session(data, "broken.onnx", "fp32", part, 1)
    assert words in str(raised.value)
    assert "src/" not in str(raised.value)  # OpenVINO's own source lines help nobody


@needs_openvino
def test_open_session__weights_beside_the_graph() -> None:
    data, part, _ = product()
    with pytest.raises(TkError, match="beside the graph"):
        openvino.open_session(data, "m.onnx", "fp32", part, 1, {"m.onnx.data": b"1"})


EXTERNAL = onnx.TensorProto(
    name="w", data_type=1, dims=[512, 32], data_location=onnx.TensorProto.EXTERNAL
)


def place(kind: str) -> onnx.ModelProto:
    """The product, its weight said to lie in another file, in one of the places for tensors."""
    model = onnx.load_model_from_string(product(512)[0])
    named = onnx.TensorProto()
    named.CopyFrom(EXTERNAL)
    named.external_data.add(key="location", value="secret.bin")
    if kind == "weight":
        model.graph.initializer[0].CopyFrom(named)
    elif kind == "constant":
        model.graph.node.insert(0, helper.make_node("Constant", [], ["v"], value=named))
    elif kind == "sparse":
        model.graph.sparse_initializer.add().values.CopyFrom(named)
    elif kind == "branch":
        inner = helper.make_graph([], "inner", [], [], [named])
        model.graph.node.append(
            helper.make_node("If", ["c"], ["v"], then_branch=inner, else_branch=inner)
        )
    elif kind == "function":
        model.functions.add(name="f").node.append(
            helper.make_node("Constant", [], ["v"], value=named)
        )
    elif kind == "unplaced":
        model.graph.initializer[0].CopyFrom(EXTERNAL)
    return model


@needs_openvino
@pytest.mark.parametrize("kind", ["weight", "constant", "sparse", "branch", "function", "unplaced"])
def test_open_session__graph_that_names_a_file(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    np.ones((512, 32), np.float32).tofile("secret.bin")  # OpenVINO itself would read it
    with pytest.raises(TkError, match="beside the graph"):
        openvino.open_session(place(kind).SerializeToString(), "m", "fp32", product()[1], 1)
    assert not names_files(place("none").SerializeToString())


@pytest.mark.parametrize("data", [b"no graph", b"\x3a\xff", b"\xff" * 20, b"\x3b"])
def test_names_files__bytes_that_are_no_graph(data: bytes) -> None:
    with pytest.raises(TkError, match="no ONNX file"):
        names_files(data)


def test_open_session__not_installed() -> None:
    code = (
        "import sys; sys.modules['openvino'] = None\n"
        "from tk.runtime.backends.openvino import session\n"
        "from tk.runtime.errors import EnvironmentLacks\n"
        "import importlib.util as u\n"
        "u.find_spec = lambda name: None\n"
        "try: session.open_session(b'', 'm', 'fp32', None, 1)\n"
        "except EnvironmentLacks as error: print(error)"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    assert "pip install 'tk-vision[openvino]'" in done.stdout
    assert issubclass(EnvironmentLacks, TkError)


@needs_openvino
def test_openvino__reports_its_use_to_nobody() -> None:
    """Importing it by itself sends an event; imported by us, no telemetry is even loaded."""
    code = (
        "import sys\n"
        "from tk.runtime.backends.openvino import session\n"
        "session._core()\n"
        "print(sorted(name for name in sys.modules if 'openvino_telemetry' in name))\n"
        "from openvino.tools.ovc import telemetry\n"
        "print(type(telemetry).__module__)"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout.splitlines() == ["[]", "openvino.tools.ovc.telemetry_stub"]
