"""Weights in a file beside the graph: the same model, every byte hashed, no other file read."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx.external_data_helper import load_external_data_for_model
from PIL import Image
from tests.export.test_write import Net, model

from tk.export.pictures import load_canvases
from tk.export.weights import ALIGNMENT, take_out, weight_bytes
from tk.export.write import write_bundle
from tk.runtime.bundle import MANIFEST, Bundle
from tk.runtime.errors import CheckFailed, TkError
from tk.runtime.files import sha256_file, write_json
from tk.runtime.heads.embedder import Embedder
from tk.runtime.preprocess import ImageSpec
from tk.runtime.verify import verify

GRAPH, DATA = "model.fp32.onnx", "model.fp32.onnx.data"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`images`, and one model as `inside` and as `outside`: weights in the graph, or beside it."""
    root = tmp_path_factory.mktemp("weights")
    (root / "images").mkdir()
    random = np.random.default_rng(0)
    for index in range(3):
        picture = random.integers(0, 256, (20, 30 + index, 3), np.uint8)
        Image.fromarray(picture).save(root / "images" / f"{index}.png")
    write_bundle(model(Net(), root), root / "inside", root / "images")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tk.export.weights.LARGEST", 20_000)  # the layer has 24576 bytes
        lines = write_bundle(model(Net(), root), root / "outside", root / "images")
    assert not any(line.startswith("FAIL") for line in lines)
    return root


@pytest.fixture
def bundle(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(made / "outside", tmp_path / "outside"))


def test_outside__is_the_same_model(made: Path) -> None:
    inside, outside = Bundle.open(made / "inside"), Bundle.open(made / "outside")
    assert not (made / "inside" / DATA).exists() and (made / "outside" / DATA).is_file()
    (artifact,) = outside.manifest.artifacts
    assert artifact.weights == DATA and set(outside.manifest.files) >= {DATA}
    sizes = [(made / "outside" / name).stat().st_size for name in (GRAPH, DATA)]
    assert artifact.bytes == sum(sizes) and sizes[0] < 10_000 < sizes[1]
    canvases = load_canvases(made / "images", ImageSpec(16, 16))
    found = Embedder(outside).embed(list(canvases))
    same = Embedder(inside, backend="onnxruntime").embed(list(canvases))
    np.testing.assert_array_equal(found, same)
    with torch.inference_mode():
        np.testing.assert_allclose(found, Net()(torch.from_numpy(canvases)), atol=1e-5)
    _, rows = verify(made / "outside")
    assert [row.backend for row in rows if row.passed and row.measures] == ["onnxruntime-cpu"]
    onnx.checker.check_model(str(made / "outside" / GRAPH))  # with the file beside it


def test_outside__identity_follows_the_weights(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tk.export.weights.LARGEST", 20_000)
    other = Net()
    with torch.no_grad():
        other.layer.weight += 0.01
    write_bundle(model(other, tmp_path), tmp_path / "b", made / "images")
    graphs = [(folder / GRAPH).read_bytes() for folder in (made / "outside", tmp_path / "b")]
    assert graphs[0] == graphs[1]
    assert Bundle.open(made / "outside").sha256 != Bundle.open(tmp_path / "b").sha256


def test_outside__a_changed_byte_is_refused(bundle: Path) -> None:
    opened = Bundle.open(bundle)
    data = bytearray((bundle / DATA).read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / DATA).write_bytes(bytes(data))
    with pytest.raises(CheckFailed, match=r"model\.fp32\.onnx\.data was changed"):
        Bundle.open(bundle)
    with pytest.raises(CheckFailed, match=r"model\.fp32\.onnx\.data was changed"):
        opened.session()
    (bundle / DATA).unlink()
    with pytest.raises(CheckFailed, match=r"model\.fp32\.onnx\.data is missing"):
        Bundle.open(bundle)


def test_outside__weights_without_a_hash_are_refused(bundle: Path) -> None:
    manifest = Bundle.open(bundle).manifest
    files = {name: value for name, value in manifest.files.items() if name != DATA}
    write_json(bundle / MANIFEST, replace(manifest, files=files).to_json())
    with pytest.raises(CheckFailed, match="no hash of"):
        Bundle.open(bundle).session()


def _rename(bundle: Path, location: str, *, stated: str) -> Bundle:
    """Let the graph name another file for its weights, and the manifest `stated`."""
    graph = onnx.load(bundle / GRAPH, load_external_data=False)
    for weight in graph.graph.initializer:
        for entry in weight.external_data:
            entry.value = location if entry.key == "location" else entry.value
    (bundle / GRAPH).write_bytes(graph.SerializeToString())
    manifest = Bundle.open(bundle.parent / "intact").manifest
    artifact = replace(
        manifest.artifacts[0],
        sha256=sha256_file(bundle / GRAPH),
        facts={"opset": 18, **({"weights": stated} if stated else {})},
    )
    changed = replace(manifest, artifacts=(artifact,))
    write_json(bundle / MANIFEST, changed.to_json())
    return Bundle.open(bundle)


@pytest.mark.parametrize("stated", [DATA, ""])
@pytest.mark.parametrize("where", ["beside", "above", "absolute"])
def test_outside__no_file_but_the_stated_one_is_read(
    where: str, stated: str, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(bundle, tmp_path / "intact")
    monkeypatch.chdir(bundle)  # where ONNX Runtime looks for files of a graph from memory
    shutil.copy(bundle / DATA, tmp_path / "secret.data")
    shutil.copy(bundle / DATA, bundle / "secret.data")
    secret = str(tmp_path / "secret.data")
    location = {"beside": "secret.data", "above": "../secret.data", "absolute": secret}[where]
    opened = _rename(bundle, location, stated=stated)
    with pytest.raises(TkError, match="refuses outside"):
        opened.session()


def test_take_out__nothing_is_lost() -> None:
    random = np.random.default_rng(0)
    arrays = [random.random(shape).astype(np.float32) for shape in ((300,), (3,), (7, 111), (999,))]
    weights = [onnx.numpy_helper.from_array(a, f"w{i}") for i, a in enumerate(arrays)]
    graph = onnx.helper.make_graph([], "g", [], [], weights)
    whole = onnx.helper.make_model(graph)
    assert weight_bytes(whole) == sum(a.nbytes for a in arrays)
    data = take_out(whole, "w.data")
    places = [{e.key: e.value for e in w.external_data} for w in whole.graph.initializer]
    assert [bool(place) for place in places] == [True, False, True, True]
    assert all(int(place["offset"]) % ALIGNMENT == 0 for place in places if place)
    assert weight_bytes(whole) == arrays[1].nbytes
    for place, array in zip(places, arrays, strict=True):
        if place:
            start = int(place["offset"])
            assert data[start : start + int(place["length"])] == array.tobytes()


def test_take_out__is_read_back_by_onnx(made: Path) -> None:
    graph = onnx.load(made / "outside" / GRAPH, load_external_data=False)
    load_external_data_for_model(graph, str(made / "outside"))
    own = {w.name: onnx.numpy_helper.to_array(w) for w in graph.graph.initializer}
    whole = onnx.load(made / "inside" / GRAPH)
    for weight in whole.graph.initializer:
        np.testing.assert_array_equal(own[weight.name], onnx.numpy_helper.to_array(weight))
