"""Export on small modules: the happy path, the lint, and a gate that really says no."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from tk.export.graph import lint
from tk.export.model import ExportModel, ExportPart, repeat_rows
from tk.export.write import load_canvases, write_bundle
from tk.runtime.backends.base import Arrays
from tk.runtime.bundle import Bundle
from tk.runtime.errors import CheckFailed, TkError
from tk.runtime.heads.embedder import Embedder
from tk.runtime.manifest import Part, TensorSpec
from tk.runtime.preprocess import CropSpec, ImageSpec
from tk.runtime.verify import verify

IMAGE = TensorSpec("image", "uint8", ("B", 16, 16, 3))
EMBEDDING = TensorSpec("embedding", "float32", ("B", 8))
SPEC = Part((IMAGE,), (EMBEDDING,), max_batch=5)


class Net(nn.Module):
    """A small honest embedder."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(16 * 16 * 3, 8)

    def forward(self, image: Tensor) -> Tensor:
        return nn.functional.normalize(self.layer(image.float().flatten(1) / 255 - 0.5))


class Unequal(Net):
    """Becomes another function when exported."""

    def forward(self, image: Tensor) -> Tensor:
        if torch.onnx.is_in_onnx_export():
            return super().forward(image // 128 * 128)
        return super().forward(image)


class Mixing(Net):
    """Rows of a batch influence each other."""

    def forward(self, image: Tensor) -> Tensor:
        rows = self.layer(image.float().flatten(1) / 255 - 0.5)
        return nn.functional.normalize(rows + rows.mean(dim=0, keepdim=True))


def model(net: nn.Module, folder: Path) -> ExportModel:
    def feed(canvases: NDArray[np.uint8], batch: int) -> Arrays:
        return {"image": repeat_rows(canvases, batch)}

    checkpoint = folder / "net.pth"
    torch.save(net.state_dict(), checkpoint)
    return ExportModel(
        task="embedder",
        parts={"model": ExportPart(net.eval(), SPEC, feed)},
        image=ImageSpec(16, 16),
        crop=CropSpec(),
        classes=(),
        settings={},
        source={},
        licence="none",
        checkpoint=checkpoint,
    )


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for index in range(6):
        picture = random.integers(0, 256, (20 + index, 30, 3), np.uint8)
        Image.fromarray(picture).save(folder / f"{index}.png")
    (folder / "broken.jpg").write_text("no picture")
    return folder


def test_write__bundle_is_complete_and_runs(images: Path, tmp_path: Path) -> None:
    lines = write_bundle(model(Net(), tmp_path), tmp_path / "b", images)

    assert all(line.startswith("ok") for line in lines)
    assert any("batch invariance" in line and "[2, 5]" in line for line in lines)
    names = {file.name for file in (tmp_path / "b").iterdir()}
    assert names == {"manifest.json", "model.fp32.onnx", "parity.json", "probe.npz"}
    _, rows = verify(tmp_path / "b")
    assert all(row.passed for row in rows)
    graph = onnx.load(tmp_path / "b" / "model.fp32.onnx")
    assert {p.key for p in graph.metadata_props} >= {"tk.task", "tk.image", "tk.crop"}
    assert graph.opset_import[0].version == 18
    readers = {node.op_type for node in graph.graph.node if "image" in node.input}
    assert readers <= {"Cast", "Shape"}
    embedder = Embedder(Bundle.open(tmp_path / "b"))
    canvases = load_canvases(images, ImageSpec(16, 16))
    with torch.inference_mode():
        expected = Net()(torch.from_numpy(canvases)).numpy()
    np.testing.assert_allclose(embedder.embed(list(canvases)), expected, atol=1e-5)


def test_write__no_path_of_this_machine_in_the_bundle(images: Path, tmp_path: Path) -> None:
    write_bundle(model(Net(), tmp_path), tmp_path / "b", images)
    for file in (tmp_path / "b").iterdir():
        assert str(tmp_path).encode() not in file.read_bytes()
        assert str(Path.home()).encode() + b"/" not in file.read_bytes()


@pytest.mark.parametrize(("net", "figure"), [(Unequal, "parity"), (Mixing, "batch invariance")])
def test_gate__says_no_and_keeps_nothing(
    net: type[Net], figure: str, images: Path, tmp_path: Path
) -> None:
    with pytest.raises(CheckFailed, match="nothing was kept") as caught:
        write_bundle(model(net(), tmp_path), tmp_path / "b", images)
    assert figure in caught.value.found and "FAIL" in caught.value.found
    assert {file.name for file in tmp_path.iterdir()} == {"net.pth"}


def test_write__existing_bundle_survives_a_failed_export(images: Path, tmp_path: Path) -> None:
    write_bundle(model(Net(), tmp_path), tmp_path / "b", images)
    before = (tmp_path / "b" / "manifest.json").read_bytes()
    with pytest.raises(TkError, match="exists already"):
        write_bundle(model(Net(), tmp_path), tmp_path / "b", images)
    with pytest.raises(CheckFailed):
        write_bundle(model(Unequal(), tmp_path), tmp_path / "b", images, overwrite=True)
    assert (tmp_path / "b" / "manifest.json").read_bytes() == before


def test_gate__needs_real_images(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jpg").write_text("no picture")
    with pytest.raises(TkError, match="no readable image"):
        load_canvases(tmp_path / "in", ImageSpec(16, 16))


GOOD = """<ir_version: 9, opset_import: ["" : 18]>
g (uint8[B,16,16,3] image) => (float[B,8] embedding) {
    x = Cast<to = 1> (image)
    f = Flatten (x)
    shape = Constant<value_ints = [768, 8]> ()
    w = ConstantOfShape (shape)
    embedding = MatMul (f, w)
}"""


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("", "", ""),
        (": 18", ": 20", "opset 20 was written, 18 was asked for"),
        ("[B,16,16,3]", "[2,16,16,3]", "image is"),
        ("[B,16,16,3]", "[B,h,16,3]", "image is"),
        ("uint8[B,16,16,3] image", "float[B,16,16,3] image", "image is"),
        ("embedding", "vector", "embedding is None"),
    ],
)
def test_lint__names_the_broken_promise(old: str, new: str, problem: str) -> None:
    problems = list(lint(onnx.parser.parse_model(GOOD.replace(old, new)), SPEC))
    assert (problem in " ".join(problems)) if problem else problems == []


def test_lint__control_flow_is_named() -> None:
    text = """<ir_version: 9, opset_import: ["" : 18]>
    g (uint8[B,16,16,3] image, bool c) => (float[B,8] embedding) {
        x = Cast<to = 1> (image)
        f = Flatten (x)
        s = Constant<value_ints = [768, 8]> ()
        w = ConstantOfShape (s)
        y = MatMul (f, w)
        embedding = If (c) <
            then_branch = a () => (float[B,8] p) { p = Identity (y) },
            else_branch = b () => (float[B,8] q) { q = Neg (y) }
        >
    }"""
    problems = list(lint(onnx.parser.parse_model(text), SPEC))
    assert any("control flow (If)" in problem for problem in problems)


def test_lint__weights_must_be_finite() -> None:
    graph = onnx.parser.parse_model(GOOD)
    weights = np.full((768, 8), np.nan, np.float32)
    graph.graph.initializer.append(onnx.numpy_helper.from_array(weights, "spare"))
    assert any("not finite" in problem for problem in lint(graph, SPEC))
