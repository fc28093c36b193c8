"""`tk export --precision`: what passes ships, what fails is mixed with float32 or refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from tests.export.small_models import Cancelling, Mlp, small_model, write_images
from torch import Tensor, nn

from tk.export import existing
from tk.export.fold import fold_constants
from tk.export.gate import Judgement, Verdict
from tk.export.pictures import load_pictures
from tk.export.precision.emulated_session import EMULATED
from tk.export.reach import sum_up
from tk.export.request import PRECISIONS, Request, words
from tk.export.tensorrt.check import check_bundle
from tk.export.write import write_bundle
from tk.runtime.bundle import Bundle
from tk.runtime.errors import CheckFailed, EnvironmentLacks, TkError
from tk.runtime.files import locked
from tk.runtime.parity.limits import THRESHOLDS, Measure
from tk.runtime.preprocess import ImageSpec
from tk.runtime.verify import verify

ALL = Request(precisions=PRECISIONS)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images") / "in", 70, broken=2)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, images: Path) -> tuple[Path, list[str]]:
    folder = tmp_path_factory.mktemp("whole")
    return folder / "b", write_bundle(small_model(Mlp(), folder), folder / "b", images, request=ALL)


def parity(bundle: Path) -> Any:
    return json.loads((bundle / "parity.json").read_text())


def test_precisions__all_of_them_in_one_bundle(whole: tuple[Path, list[str]]) -> None:
    bundle, lines = whole
    files = {artifact.file for artifact in Bundle.open(bundle).manifest.artifacts}
    assert files == {f"model.{precision}.onnx" for precision in PRECISIONS}
    for precision in PRECISIONS:
        assert any(line.startswith(f"{precision}: ") and " MB; passed on" in line for line in lines)
    report = parity(bundle)
    judged = {(row["file"], row["backend"]): row["passed"] for row in report["verdicts"]}
    assert judged["model.fp16.onnx", EMULATED] and judged["model.bf16.onnx", EMULATED]
    assert judged["model.int8.onnx", "onnxruntime-cpu"]
    assert ("model.int8.onnx", EMULATED) not in judged
    assert report["broken_images"] == ["broken0.jpg", "broken1.jpg"]
    assert report["calibration"] == {
        "method": "percentile",
        "images": 38,
        "shared_with_gate": False,
    }
    tests = {(f["file"], f["test"], f["batch"]) for f in report["figures"]}
    assert ("model.int8.onnx", "batch invariance", 5) in tests
    assert ("model.bf16.onnx", "batch invariance", 5) in tests
    near = [f for f in report["figures"] if f["test"] == "all images"]
    assert {(f["metric"], f["batch"]) for f in near} == {
        ("neighbours_kept", 32),
        ("same_neighbour", 32),
    }
    assert {f["file"] for f in near} == files and all(f["passed"] for f in near)
    assert any("int8.onnx: embedding on onnxruntime-cpu, all images, " in text for text in lines)
    with np.load(bundle / "probe.npz") as probe:  # so that `tk verify` sees neighbours too
        assert (
            len(probe["input/image"]) == 16 > Bundle.open(bundle).manifest.parts["model"].max_batch
        )
    (row,) = [
        r for r in verify(bundle, precision="int8", backend="onnxruntime")[1] if not r.skipped
    ]
    assert {m.metric for m in row.measures["model"]} >= {"neighbours_kept"} and row.passed


def test_precisions__the_files_hold_what_their_names_say(whole: tuple[Path, list[str]]) -> None:
    bundle, _ = whole
    types = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16, "int8": TensorProto.INT8}
    for precision, kind in types.items():
        graph = onnx.load(bundle / f"model.{precision}.onnx").graph
        assert kind in {weight.data_type for weight in graph.initializer}, precision
        ends = {v.type.tensor_type.elem_type for v in graph.output}
        assert ends == {TensorProto.FLOAT}


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_precisions__a_session_answers_like_pytorch(
    precision: str, whole: tuple[Path, list[str]], images: Path
) -> None:
    bundle, _ = whole
    canvases = load_pictures(images, ImageSpec(8, 8)).gate
    with torch.inference_mode():
        expected = Mlp().eval()(torch.from_numpy(canvases)).numpy()
    with Bundle.open(bundle).session(precision=precision) as session:
        found = session.run({"image": canvases[:5]})["embedding"]
    assert (expected[:5] * found).sum(1).min() > THRESHOLDS[precision]["cosine"]


def test_gate__int8_that_moves_neighbours_fails_at_a_good_cosine(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(THRESHOLDS["int8"], "neighbours_kept", 1.5)
    monkeypatch.setitem(THRESHOLDS["int8"], "cosine", 0.9)
    request = Request(precisions=("int8",), fallback=False)
    with pytest.raises(CheckFailed, match="does not reach int8") as caught:
        write_bundle(small_model(Mlp(), tmp_path), tmp_path / "b", images, request=request)
    assert "neighbours_kept" in caught.value.found and "cosine" not in caught.value.found


def test_precisions__opset_17_at_every_one(images: Path, tmp_path: Path) -> None:
    write_bundle(small_model(Mlp(), tmp_path), tmp_path / "b", images, opset=17, request=ALL)
    for precision in PRECISIONS:
        graph = onnx.load(tmp_path / "b" / f"model.{precision}.onnx")
        assert graph.opset_import[0].version == 17
    refused = {o.precision: o.refused for o in check_bundle(tmp_path / "b", (), "8.6")}
    assert [name for name, why in refused.items() if why] == ["bf16"], refused
    assert "no bfloat16" in refused["bf16"][0]


@pytest.mark.parametrize("version", ["10.3", "10.16", "11.4"])
def test_precisions__newer_tensorrt_reads_every_one(
    whole: tuple[Path, list[str]], version: str
) -> None:
    outlooks = check_bundle(whole[0], (), version)
    assert [(o.precision, o.refused) for o in outlooks] == [(name, []) for name in PRECISIONS]


def test_search__keeps_the_block_that_half_precision_breaks(images: Path, tmp_path: Path) -> None:
    request = Request(precisions=("fp16",))
    lines = write_bundle(
        small_model(Cancelling(), tmp_path), tmp_path / "b", images, request=request
    )
    text = "\n".join(lines)
    assert "failed at first (embedding cosine" in text and "kept in float32" in text
    search = parity(tmp_path / "b")["precisions"]["fp16"]["model"]["search"]
    assert not search["tried"][0]["passed"] and search["settled"]
    graph = onnx.load(tmp_path / "b" / "model.fp32.onnx").graph
    kept = {name for block in search["kept"] for name in block["nodes"]}
    products = [node for node in graph.node if node.name in kept and node.op_type == "Gemm"]
    weights = {w.name: numpy_helper.to_array(w) for w in graph.initializer}
    large = [node for node in products if np.abs(weights[node.input[1]]).max() > 10]
    assert len(large) == 2, "the two products that cancel stay in float32"
    low = onnx.load(tmp_path / "b" / "model.fp16.onnx").graph
    halves = [w for w in low.initializer if w.data_type == TensorProto.FLOAT16 and len(w.dims) == 2]
    assert len(halves) >= 4, "the other blocks are fp16"
    assert {a.precision for a in Bundle.open(tmp_path / "b").manifest.artifacts} == {
        "fp32",
        "fp16",
    }


def test_search__no_fallback_makes_the_first_failure_an_error(images: Path, tmp_path: Path) -> None:
    request = Request(precisions=("fp16",), fallback=False)
    with pytest.raises(CheckFailed, match="does not reach fp16, and --no-fallback") as caught:
        write_bundle(small_model(Cancelling(), tmp_path), tmp_path / "b", images, request=request)
    assert "FAIL model.fp16.onnx: embedding on emulated" in caught.value.found
    assert not (tmp_path / "b").exists()


def test_search__int8_that_cannot_work_keeps_nothing(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(THRESHOLDS["int8"], "cosine", 1.5)
    with pytest.raises(CheckFailed, match=r"does not reach int8, and no mixture .* passed"):
        write_bundle(
            small_model(Mlp(), tmp_path),
            tmp_path / "b",
            images,
            request=Request(precisions=("int8",), builds=6),
        )
    assert not (tmp_path / "b").exists()


class Flat(nn.Module):
    """Nothing but a scaled picture: no precision has anything to do."""

    def forward(self, image: Tensor) -> Tensor:
        return nn.functional.normalize(image.float().flatten(1)[:, :8] + 1)


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8"])
def test_precisions__nothing_to_lower_is_said(precision: str, images: Path, tmp_path: Path) -> None:
    with pytest.raises(TkError, match=f"nothing|anything to compute in {precision}"):
        write_bundle(
            small_model(Flat(), tmp_path),
            tmp_path / "b",
            images,
            request=Request(precisions=(precision,)),
        )


class Convolutions(nn.Module):
    """As the compact detector and segmenter: no product of matrices anywhere."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            *(nn.Sequential(nn.Conv2d(a, 8, 3, padding=1), nn.ReLU()) for a in (3, 8, 8, 8)),
            nn.Conv2d(8, 8, 1),
        )

    def forward(self, image: Tensor) -> Tensor:
        x = self.layers(image.float().permute(0, 3, 1, 2) / 255 - 0.5)
        return nn.functional.normalize(x.mean((2, 3)))


def test_precisions__convolutions_have_no_bfloat16_yet(images: Path, tmp_path: Path) -> None:
    model = small_model(Convolutions(), tmp_path)
    with pytest.raises(TkError, match="anything to compute in bf16") as caught:
        write_bundle(model, tmp_path / "b", images, request=Request(precisions=("bf16",)))
    assert "Conv, which ONNX knows in bfloat16 from opset 22 on" in caught.value.found
    assert "fp16 and int8 can hold" in caught.value.fix and not (tmp_path / "b").exists()
    write_bundle(model, tmp_path / "b", images, request=Request(precisions=("fp16",)))
    verdicts = Bundle.open(tmp_path / "b").verdicts
    assert all(passed for (file, _), passed in verdicts.items() if file == "model.fp16.onnx")


@pytest.mark.parametrize(("good", "broken"), [(31, 0), (20, 30)])
def test_int8__too_few_readable_images(good: int, broken: int, tmp_path: Path) -> None:
    folder = write_images(tmp_path / "in", good, broken)
    with pytest.raises(TkError, match="at least 32 readable images") as caught:
        load_pictures(folder, ImageSpec(8, 8), 64)
    assert f"{good} of {good + broken}" in caught.value.found
    assert ("broken0.jpg" in caught.value.found) == bool(broken)


def test_pictures__judged_and_measured_apart_when_there_are_enough(tmp_path: Path) -> None:
    few = load_pictures(write_images(tmp_path / "few", 40), ImageSpec(8, 8), 64)
    assert few.shared and len(few.gate) == 32 and len(few.calibration) == 40
    assert "are among the 40" in few.lines()[0]
    many = load_pictures(write_images(tmp_path / "many", 90, 3), ImageSpec(8, 8), 64)
    assert not many.shared and len(many.gate) == 32 and len(many.calibration) == 58
    gate = {canvas.tobytes() for canvas in many.gate}
    assert not gate & {canvas.tobytes() for canvas in many.calibration}
    assert len(many.broken) == 3 and "3 images could not be read" in many.lines()[0]


def verdict(backend: str, value: float) -> Verdict:
    return Verdict("f", backend, "model", "parity", 1, Measure("y", "cosine", value, 0.9))


@pytest.mark.parametrize(
    ("values", "passed"),
    [
        ({"onnxruntime-cpu": 1.0}, True),
        ({"onnxruntime-cpu": 0.5}, False),
        ({"onnxruntime-cpu": 0.5, "openvino-cpu": 1.0}, True),  # a pair that passed is enough
        ({"onnxruntime-cpu": 1.0, EMULATED: 0.5}, False),  # the CPU hides what an engine rounds
        ({"onnxruntime-cpu": 0.5, EMULATED: 1.0}, False),
        ({EMULATED: 1.0}, True),  # no back end here computes in it
        ({"openvino-cpu": 0.5, EMULATED: 1.0}, True),  # it takes no heed of what is kept in float32
        ({"openvino-cpu": 1.0, EMULATED: 0.5}, False),
        ({"openvino-cpu": 0.5}, False),
        ({EMULATED: float("nan")}, False),
        ({}, False),
    ],
)
def test_sum_up__which_failures_are_fatal(values: dict[str, float], passed: bool) -> None:
    judgement = Judgement([verdict(name, value) for name, value in values.items()])
    assert sum_up(judgement, plan=False).passed is passed


def test_sum_up__a_plan_has_to_pass_by_itself() -> None:
    good = Judgement([verdict("onnxruntime-cpu", 1.0), verdict("tensorrt", 1.0)])
    bad = Judgement([verdict("onnxruntime-cpu", 1.0), verdict("tensorrt", 0.1)])
    assert sum_up(good, plan=True).passed and not sum_up(bad, plan=True).passed
    assert not sum_up(Judgement([verdict("onnxruntime-cpu", 1.0)]), plan=True).passed


def test_add__a_precision_to_a_bundle(images: Path, tmp_path: Path) -> None:
    model = small_model(Mlp(), tmp_path)
    write_bundle(model, tmp_path / "b", images)
    first = Bundle.open(tmp_path / "b")
    lines = write_bundle(model, tmp_path / "b", images, request=Request(precisions=("fp16",)))
    both = Bundle.open(tmp_path / "b")
    assert {a.precision for a in both.manifest.artifacts} == {"fp32", "fp16"}
    assert both.sha256 == first.sha256 and not any(line.startswith("fp32") for line in lines)
    assert first.verdicts.items() < both.verdicts.items()
    with pytest.raises(TkError, match="exists already and holds fp16, fp32"):
        write_bundle(model, tmp_path / "b", images, request=Request(precisions=("fp16",)))
    with pytest.raises(TkError, match="cannot be added to: another opset"):
        write_bundle(model, tmp_path / "b", images, opset=17, request=Request(precisions=("bf16",)))
    other = small_model(Cancelling(), tmp_path)
    with pytest.raises(TkError, match="cannot be added to: another checkpoint"):
        write_bundle(other, tmp_path / "b", images, request=Request(precisions=("bf16",)))


def test_add__a_failure_leaves_the_bundle_as_it_was(images: Path, tmp_path: Path) -> None:
    model = small_model(Cancelling(), tmp_path)
    write_bundle(model, tmp_path / "b", images)
    before = {file.name: file.read_bytes() for file in (tmp_path / "b").iterdir()}
    request = Request(precisions=("fp16",), fallback=False)
    with pytest.raises(CheckFailed):
        write_bundle(model, tmp_path / "b", images, request=request)
    assert {file.name: file.read_bytes() for file in (tmp_path / "b").iterdir()} == before
    assert {p.name for p in tmp_path.iterdir()} == {"b", "net.pth", ".b.lock"}


def test_lock__a_second_export_is_told(images: Path, tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from tk.runtime.files import locked\n"
        "with locked(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "b")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(TkError, match="another tk export is writing"):
            write_bundle(small_model(Mlp(), tmp_path), tmp_path / "b", images)
        other.kill()
    with locked(tmp_path / "b", busy="still held"):
        pass


def test_leftovers__of_a_killed_export_go_and_an_old_bundle_comes_back(tmp_path: Path) -> None:
    for name in (".b.abcdefgh.tmp", ".b.abcd_123.old", ".b.short.tmp", ".other.abcdefgh.tmp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.fp32.onnx").write_text(name)
    existing.clear_leftovers(tmp_path / "b")
    (tmp_path / "current").symlink_to("b")
    (tmp_path / ".b.abcdefgh.tmp").mkdir()
    existing.clear_leftovers(tmp_path / "current")
    (tmp_path / "current").unlink()
    assert {path.name for path in tmp_path.iterdir()} == {
        "b",
        ".b.short.tmp",
        ".other.abcdefgh.tmp",
    }
    assert (tmp_path / "b" / "model.fp32.onnx").read_text() == ".b.abcd_123.old"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("fp16", ("fp32", "fp16")),
        ("int8, FP16,int8", ("fp32", "fp16", "int8")),
    ],
)
def test_words__float32_is_always_there(text: str, found: tuple[str, ...]) -> None:
    assert words("--precision", text, PRECISIONS) == found


@pytest.mark.parametrize("text", ["", " , ", "fp8", "fp16;int8"])
def test_words__refuses_others(text: str) -> None:
    with pytest.raises(TkError, match="--precision"):
        words("--precision", text, PRECISIONS)


def test_tensorrt__lacking_is_said_before_any_work(tmp_path: Path) -> None:
    request = Request(targets=("tensorrt",))
    with pytest.raises(EnvironmentLacks, match="--to tensorrt cannot build plans") as caught:
        write_bundle(small_model(Mlp(), tmp_path), tmp_path / "b", tmp_path, request=request)
    assert caught.value.found and not (tmp_path / ".b.lock").exists()


def test_refused__a_precision_that_a_back_end_cannot_run_names_both(
    whole: tuple[Path, list[str]],
) -> None:
    bundle, lines = whole
    refusals = parity(bundle)["refusals"]
    judged = {(row["file"], row["backend"]) for row in parity(bundle)["verdicts"]}
    for row in refusals:
        assert (row["file"], row["backend"]) not in judged
        assert f"  {row['backend']} does not run {row['file']}: {row['why']}" in lines
    bf16 = ("model.bf16.onnx", "onnxruntime-cpu")
    assert bf16 in judged or bf16 in {(row["file"], row["backend"]) for row in refusals}


def test_fold__bfloat16_constants() -> None:
    """What ONNX Runtime cannot hand to numpy is the same number all the same."""
    values = np.asarray([1.0, 2.5, 1 / 3, -7e20], np.float32)
    nodes = [
        helper.make_node("Cast", ["w"], ["half"], "c", to=TensorProto.BFLOAT16),
        helper.make_node("Cast", ["x"], ["x16"], "d", to=TensorProto.BFLOAT16),
        helper.make_node("Add", ["x16", "half"], ["y16"], "a"),
        helper.make_node("Cast", ["y16"], ["y"], "e", to=TensorProto.FLOAT),
    ]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [4]) for n in "xy"]
    graph = helper.make_graph(
        nodes, "g", ends[:1], ends[1:], [numpy_helper.from_array(values, "w")]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    fold_constants(model)
    onnx.checker.check_model(model, full_check=True)
    (weight,) = model.graph.initializer
    assert weight.name == "half" and weight.data_type == TensorProto.BFLOAT16
    expected = torch.from_numpy(values).to(torch.bfloat16).float().numpy()
    np.testing.assert_array_equal(numpy_helper.to_array(weight).astype(np.float32), expected)
