"""The real back ends on a real GPU; skipped with a reason where one of them is missing."""

from __future__ import annotations

import shutil
from pathlib import Path

import faiss
import numpy as np
import onnx.parser
import pytest
from tests import tiny_bundles
from tests.runtime.gallery.pictures import unit

from tk.runtime.backends.onnxrt import session as onnxrt
from tk.runtime.backends.onnxrt_cuda import session as onnxrt_cuda
from tk.runtime.backends.tensorrt import library
from tk.runtime.bundle import Bundle
from tk.runtime.gallery.gallery import MODES, SearchMode
from tk.runtime.gallery.prototypes import make_gallery
from tk.runtime.gallery.search import PrototypeSearch
from tk.runtime.verify import record, verify

pytestmark = pytest.mark.gpu
NO_CUDA, NO_TENSORRT = onnxrt_cuda.missing(), library.missing()
COLORS = ((255, 9, 9), (9, 255, 9), (9, 9, 255))


def pictures(rows: int) -> np.ndarray:  # type: ignore[type-arg]
    return np.stack([tiny_bundles.blob(COLORS[row % 3]) for row in range(rows)])


@pytest.mark.skipif(bool(NO_CUDA), reason=NO_CUDA)
def test_onnxruntime__same_answers_on_gpu_and_cpu() -> None:
    data = onnx.parser.parse_model(tiny_bundles.EMBEDDER).SerializeToString()
    part = tiny_bundles.PARTS["embedder"]["model"][1]
    with (
        onnxrt_cuda.open_session(data, "m", "fp32", part, 1) as there,
        onnxrt.open_session(data, "m", "fp32", part, 1) as here,
    ):
        both = (there, here)
        for rows in (1, 3, 3, 2):
            inputs = {"image": pictures(rows)}
            found, expected = (np.asarray(s.run(inputs)["embedding"], np.float32) for s in both)
            np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.skipif(bool(NO_CUDA), reason=NO_CUDA)
def test_verify__records_the_gpu(tiny_world: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_world / "bundles" / "embedder", tmp_path / "embedder"))
    added = record(*verify(folder, device="cuda"))
    assert added == ["model.fp32.onnx on onnxruntime-cuda"]
    with Bundle.open(folder).session() as session:
        assert session.backend == "onnxruntime-cuda"


@pytest.mark.skipif(not faiss.get_num_gpus(), reason="FAISS sees no GPU")
@pytest.mark.parametrize("mode", MODES)
def test_faiss__same_answers_on_gpu_and_cpu(mode: SearchMode) -> None:
    random = np.random.default_rng(0)
    labels = np.arange(5000) % 50
    rows = unit(random.normal(size=(5000, 384)))
    gallery = make_gallery(tuple(map(str, range(50))), rows, labels, sub_prototypes=3)
    queries = unit(random.normal(size=(64, 384)))
    there, here = PrototypeSearch(gallery, mode), PrototypeSearch(gallery, mode, "cpu")
    assert there.place == "FAISS on GPU 0"
    np.testing.assert_allclose(there.similarity(queries), here.similarity(queries), atol=1e-5)


@pytest.mark.skipif(bool(NO_TENSORRT), reason=NO_TENSORRT)
def test_plan__built_from_the_graph_of_a_bundle(tiny_world: Path, tmp_path: Path) -> None:
    from tk.export.tensorrt.add import add_plans
    from tk.export.tensorrt.options import BuildOptions

    folder = Path(shutil.copytree(tiny_world / "bundles" / "embedder", tmp_path / "embedder"))
    assert add_plans(folder, ["fp32"], BuildOptions()).files
    opened = Bundle.open(folder)
    with opened.session(backend="tensorrt") as there, opened.session(device="cpu") as here:
        both = (there, here)
        for rows in (3, 1, 3, 3, 3):
            inputs = {"image": pictures(rows)}
            found, expected = (np.asarray(s.run(inputs)["embedding"], np.float32) for s in both)
            np.testing.assert_allclose(found, expected, atol=1e-5)
