"""Export on small modules: the happy path, the lint, and a gate that really says no."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from tests.export.small_models import small_model
from torch import Tensor, nn

from tk.export.gate import Reference
from tk.export.model import ExportModel, ExportPart, repeat_rows
from tk.export.pictures import load_canvases
from tk.export.write import write_bundle
from tk.runtime.backends.base import Arrays
from tk.runtime.bundle import Bundle
from tk.runtime.errors import CheckFailed, TkError
from tk.runtime.files import read_json
from tk.runtime.heads.embedder import Embedder
from tk.runtime.manifest import Part, TensorSpec
from tk.runtime.preprocess import ImageSpec
from tk.runtime.verify import verify

IMAGE = TensorSpec("image", "uint8", ("B", 16, 16, 3))


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
            return super().forward(image.float() // 128 * 128)
        return super().forward(image)


class Mixing(Net):
    """Rows of a batch influence each other."""

    def forward(self, image: Tensor) -> Tensor:
        rows = self.layer(image.float().flatten(1) / 255 - 0.5)
        return nn.functional.normalize(rows + rows.mean(dim=0, keepdim=True))


def model(net: nn.Module, folder: Path) -> ExportModel:
    return small_model(net, folder, side=16)


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

    assert lines[0] == "1 images could not be read and were passed by: broken.jpg"
    assert lines[1].startswith("fp32: ") and "FAILED" not in lines[1]
    assert all(line.startswith("ok") for line in lines[2:])
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


def test_write__other_files_and_a_model_folder_are_hashed(images: Path, tmp_path: Path) -> None:
    folder = tmp_path / "hub-model"
    folder.mkdir()
    for name, text in (("config.json", "{}"), ("a.safetensors", "w"), ("README.md", "read")):
        (folder / name).write_text(text)
    own = replace(model(Net(), tmp_path), checkpoint=folder, files={"tokenizer.json": b"{}"})
    write_bundle(own, tmp_path / "b", images)
    bundle = Bundle.open(tmp_path / "b")
    source = bundle.manifest.source
    assert source["file"] == "hub-model" and set(source["files"]) == {
        "config.json",
        "a.safetensors",
    }
    assert source["files"]["a.safetensors"] == hashlib.sha256(b"w").hexdigest()
    assert bundle.manifest.files["tokenizer.json"] == hashlib.sha256(b"{}").hexdigest()
    (folder / "a.safetensors").write_text("other weights")
    write_bundle(own, tmp_path / "c", images)
    assert Bundle.open(tmp_path / "c").manifest.source["sha256"] != source["sha256"]
    (tmp_path / "b" / "tokenizer.json").write_text("changed")
    with pytest.raises(CheckFailed, match=r"tokenizer\.json was changed"):
        Bundle.open(tmp_path / "b")


class Words(nn.Module):
    """Text side of a detector: one row per prompt."""

    def forward(self, ids: Tensor) -> Tensor:
        return ids.float() * 0.5 + 1


class Finder(nn.Module):
    """Picture side: boxes and scores of a picture, under one prompt."""

    def forward(self, image: Tensor, features: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        grey = image.float().mean(dim=(1, 2))[:, None] / 255
        corner = torch.cat([grey[..., :2] * 5, grey[..., :2] * 5 + 6], dim=-1)
        return corner, (grey[..., :1] * features * mask.float()[:, None]).sigmoid()


def with_prompt(folder: Path, largest: int) -> ExportModel:
    """A detector whose text is a part: one prompt for all pictures of a batch."""

    def ids(rows: int) -> NDArray[np.int32]:
        return np.arange(rows * 3, dtype=np.int32).reshape(rows, 3)

    def feed(canvases: NDArray[np.uint8], batch: int) -> Arrays:
        features = (ids(1) * 0.5 + 1).astype(np.float32)
        return {
            "image": repeat_rows(canvases, batch),
            "features": features[:, None],
            "mask": np.ones((1, 3), np.bool_),
        }

    words = Part(
        (TensorSpec("ids", "int32", ("N", 1, 3)),),
        (TensorSpec("features", "float32", ("N", 1, 3)),),
        largest,
    )
    finder = Part(
        (
            IMAGE,
            TensorSpec("features", "float32", (1, 1, 3)),
            TensorSpec("mask", "bool", (1, 3)),
        ),
        (
            TensorSpec("boxes", "float32", ("B", 1, 4)),
            TensorSpec("token_scores", "float32", ("B", 1, 3)),
        ),
        largest,
    )
    return replace(
        model(Net(), folder),
        task="detector",
        crop=None,
        parts={
            "text": ExportPart(Words(), words, lambda c, batch: {"ids": ids(batch)[:, None]}),
            "model": ExportPart(Finder(), finder, feed),
        },
    )


def test_write__a_part_that_takes_one_prompt_is_proved_and_verified(
    images: Path, tmp_path: Path
) -> None:
    lines = write_bundle(with_prompt(tmp_path, 3), tmp_path / "b", images)
    assert any("token_scores" in line and "batch invariance" in line for line in lines)
    with np.load(tmp_path / "b" / "probe.npz") as probe:
        assert set(probe.files) == {
            *("input/image", "input/ids", "input/mask"),
            *("output/model/boxes", "output/model/token_scores"),
        }
        assert len(probe["input/ids"]) == 1 and len(probe["input/image"]) == 2
    _, rows = verify(tmp_path / "b")
    assert rows and all(row.passed for row in rows)


def test_write__largest_batch_of_one_is_all_that_is_proved_and_probed(
    images: Path, tmp_path: Path
) -> None:
    """A plan of TensorRT takes no more rows than it was built for."""
    write_bundle(with_prompt(tmp_path, 1), tmp_path / "b", images)
    figures = read_json(tmp_path / "b" / "parity.json")["figures"]
    assert {f["batch"] for f in figures if f["test"] != "all images"} == {1}
    with np.load(tmp_path / "b" / "probe.npz") as probe:
        assert {len(probe[name]) for name in probe.files} == {1}
    assert all(row.passed for row in verify(tmp_path / "b")[1])


def test_gate__a_prompt_of_one_row_does_not_make_the_pictures_one(tmp_path: Path) -> None:
    parts = with_prompt(tmp_path, 3).parts
    assert not parts["model"].spec.one_picture and not parts["text"].spec.one_picture
    canvases = np.arange(7, dtype=np.uint8)[:, None, None, None].repeat(16, 1).repeat(16, 2)
    canvases = canvases.repeat(3, 3)
    reference = Reference(with_prompt(tmp_path, 3), "model", canvases, thorough=True)
    seen = [int(v) for c in reference._cases if c.fresh for v in c.inputs["image"][:, 0, 0, 0]]
    assert seen == [*range(7)], "each picture once"


@pytest.mark.parametrize(("net", "figure"), [(Unequal, "parity"), (Mixing, "batch invariance")])
def test_gate__says_no_and_keeps_nothing(
    net: type[Net], figure: str, images: Path, tmp_path: Path
) -> None:
    with pytest.raises(CheckFailed, match="nothing was kept") as caught:
        write_bundle(model(net(), tmp_path), tmp_path / "b", images)
    assert figure in caught.value.found and "FAIL" in caught.value.found
    assert {file.name for file in tmp_path.iterdir()} == {"net.pth", ".b.lock"}


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
