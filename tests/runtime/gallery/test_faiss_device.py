"""Search on a GPU: same neighbours, nothing silent. The GPU is a stand-in made from FAISS's stubs.

`faiss-cpu` describes the whole library in its `.pyi`, the parts for GPUs too, so the stand-in has
exactly the names of the real one.
"""

from __future__ import annotations

import ast
import gc
import weakref
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import faiss
import numpy as np
import pytest
from numpy.typing import NDArray
from tests.runtime.gallery.pictures import unit

from tk.runtime.backends.tensorrt.gpu import Gpu
from tk.runtime.errors import EnvironmentLacks, TkError
from tk.runtime.gallery import faiss_device
from tk.runtime.gallery import search as search_module
from tk.runtime.gallery.gallery import MODES, Gallery, SearchMode
from tk.runtime.gallery.prototypes import make_gallery
from tk.runtime.gallery.search import PrototypeSearch

GPU = Gpu("NVIDIA L4", (8, 9), 24 << 30, (12, 6))
STUBS = ast.parse((Path(faiss.__file__).parent / "__init__.pyi").read_text())


def fields(name: str) -> set[str]:
    """Attributes and methods that the stubs give a class."""
    (found,) = [n for n in STUBS.body if isinstance(n, ast.ClassDef) and n.name == name]
    attributes = {n.target.id for n in found.body if isinstance(n, ast.AnnAssign)}  # type: ignore[union-attr]
    return attributes | {n.name for n in found.body if isinstance(n, ast.FunctionDef)}


def parameters(name: str) -> list[str]:
    (found,) = [n for n in STUBS.body if isinstance(n, ast.FunctionDef) and n.name == name]
    return [argument.arg for argument in found.args.args]


class Strict:
    """An object with the names of a class of the stubs and no others."""

    kind = ""

    def __init__(self) -> None:
        object.__setattr__(self, "values", {})

    def __setattr__(self, key: str, value: Any) -> None:
        assert key in fields(self.kind), f"{self.kind} has no {key}"
        self.values[key] = value

    def __getattr__(self, key: str) -> Any:
        if key.startswith("__") or key not in fields(self.kind):
            raise AttributeError(key)
        return self.values.get(key, lambda *_: None)


class Resources(Strict):
    kind = "StandardGpuResources"


class Options(Strict):
    kind = "GpuClonerOptions"


class OnGpu:
    """An index on the pretended GPU: it dies with its resources, and orders ties the other way."""

    def __init__(self, resources: Resources, vectors: NDArray[np.float32]) -> None:
        self.resources, self.vectors = weakref.ref(resources), vectors
        self.ntotal, self.d = vectors.shape

    def search(self, queries: NDArray[np.float32], k: int) -> tuple[Any, Any]:
        assert self.resources() is not None, "the resources must outlive the index"
        assert k <= 2048, "a GPU returns no more"
        scores = queries @ self.vectors.T
        order = (self.ntotal - 1 - np.argsort(scores[:, ::-1], axis=1, kind="stable")[:, ::-1])[
            :, :k
        ]
        return np.take_along_axis(scores, order, axis=1), order


class GpuFaiss:
    """FAISS as it is with GPUs.

    Attributes:
        copies: (device, options) of each copy.
        error: raised by the next copy.
        asked: how often the number of GPUs was asked for; where CUDA fails, that ends the process.
    """

    def __init__(self, gpus: int) -> None:
        self.gpus, self.error, self.asked = gpus, "", 0
        self.copies: list[tuple[int, dict[str, Any]]] = []
        self.StandardGpuResources, self.GpuClonerOptions = Resources, Options

    def __getattr__(self, name: str) -> Any:
        return getattr(faiss, name)

    def get_num_gpus(self) -> int:
        self.asked += 1
        return self.gpus

    def index_cpu_to_gpu(self, provider: Any, device: int, index: Any, options: Any = None) -> Any:
        if self.error:
            raise RuntimeError(self.error)
        self.copies.append((device, options.values))
        # A library that loads faiss.contrib.torch_utils makes this a tensor.
        return OnGpu(provider, np.asarray(index.reconstruct_n(0, index.ntotal)))


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> GpuFaiss:
    made = GpuFaiss(2)
    monkeypatch.setattr(search_module, "load_faiss", lambda: made)
    monkeypatch.setattr(faiss_device, "find_gpus", lambda: [GPU] * 2)
    return made


def make(classes: int = 5, rows: int = 50) -> Any:
    random = np.random.default_rng(0)
    labels = random.integers(0, classes, rows)
    labels[:classes] = range(classes)
    names = tuple(f"c{i}" for i in range(classes))
    return make_gallery(names, unit(random.normal(size=(rows, 16))), labels, sub_prototypes=3)


def test_stand_in__has_the_signature_of_the_real_one() -> None:
    assert parameters("index_cpu_to_gpu") == ["provider", "device", "index", "options"]
    assert {"useFloat16", "useFloat16CoarseQuantizer", "use_cuvs"} <= fields("GpuClonerOptions")
    assert "setTempMemory" in fields("StandardGpuResources")
    with pytest.raises(AssertionError, match="no useFloat8"):
        Options().useFloat8 = True
    assert not hasattr(faiss, "StandardGpuResources"), "else the real one should be tested"


@pytest.mark.parametrize("mode", MODES)
def test_search__same_answers_on_gpu_and_cpu(gpu: GpuFaiss, mode: SearchMode) -> None:
    gallery = make()
    queries = unit(np.random.default_rng(1).normal(size=(9, 16)))
    here = PrototypeSearch(gallery, mode, "cpu")
    assert not gpu.copies and here.place == "FAISS on the CPU (as asked)"
    there = PrototypeSearch(gallery, mode)
    gc.collect()
    assert there.place == "FAISS on GPU 0"
    assert {device for device, _ in gpu.copies} == {0}
    np.testing.assert_allclose(there.similarity(queries), here.similarity(queries), atol=1e-6)


def test_search__ties_give_the_same_similarities(gpu: GpuFaiss) -> None:
    rows = np.repeat(unit(np.random.default_rng(0).normal(size=(2, 8))), 3, axis=0)
    gallery = make_gallery(tuple("abcdef"), rows.astype(np.float32), np.arange(6))
    found = PrototypeSearch(gallery).similarity(gallery.stacks)
    expected = PrototypeSearch(gallery, "centroid", "cpu").similarity(gallery.stacks)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_search__exact_and_small_in_memory(gpu: GpuFaiss, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[int] = []
    monkeypatch.setattr(Resources, "setTempMemory", lambda self, size: given.append(size), False)
    PrototypeSearch(make(), "stack", "cuda:1")
    expected = {"useFloat16": False, "useFloat16CoarseQuantizer": False, "use_cuvs": False}
    assert gpu.copies == [(1, expected)] * 5
    assert given == [faiss_device.WORK_BYTES]


def test_search__class_without_references_stays_where_it_is(gpu: GpuFaiss) -> None:
    rows = np.eye(2, 4, dtype=np.float32)
    gallery = Gallery(("a", "b"), rows, rows[:1], np.zeros(1, np.int64))
    found = PrototypeSearch(gallery, "stack").similarity(np.eye(1, 4, dtype=np.float32))
    assert found.tolist() == [[1.0, -1.0]] and len(gpu.copies) == 1


@pytest.mark.parametrize(
    ("gpus", "device", "classes", "words"),
    [
        (0, "auto", 5, "FAISS sees no GPU"),
        (0, "cuda", 5, "FAISS sees no GPU"),
        (2, "cuda:2", 5, "FAISS sees 2 GPUs, none with number 2"),
        (2, "auto", 2049, "2048 neighbours at most, here are 2049 classes"),
    ],
)
def test_search__says_why_it_stays_on_the_cpu(
    gpu: GpuFaiss, gpus: int, device: str, classes: int, words: str
) -> None:
    gpu.gpus = gpus
    gallery = make(classes, classes + 5) if classes < 100 else _wide(classes)
    engine = PrototypeSearch(gallery, "centroid", device)
    assert words in engine.place and not gpu.copies
    assert engine.similarity(gallery.stacks[:1]).shape == (1, classes)


def _wide(classes: int) -> Any:
    rows = unit(np.random.default_rng(0).normal(size=(classes, 4)))
    return make_gallery(tuple(map(str, range(classes))), rows, np.arange(classes))


def test_search__more_classes_than_a_gpu_returns_in_stack_mode(gpu: GpuFaiss) -> None:
    assert PrototypeSearch(_wide(2049), "stack").place == "FAISS on GPU 0"


def test_search__build_for_the_cpu_says_so() -> None:
    assert "build for the CPU" in PrototypeSearch(make()).place


@pytest.mark.parametrize("found", [[], [replace(GPU, name="Tesla P40", capability=(6, 1))]])
def test_search__faiss_is_not_asked_where_that_ends_the_process(
    gpu: GpuFaiss, monkeypatch: pytest.MonkeyPatch, found: list[Gpu]
) -> None:
    monkeypatch.setattr(faiss_device, "find_gpus", lambda: found)
    place = PrototypeSearch(make()).place
    assert ("Tesla P40 is sm61" if found else "sees no GPU") in place and not gpu.copies
    PrototypeSearch(make(), device="cpu")
    assert gpu.asked == len(found)


def test_search__no_memory_left_to_compare(gpu: GpuFaiss, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = PrototypeSearch(make())

    def search(*_: Any) -> Any:
        raise RuntimeError("Error in allocMemory: Exceeded temp memory\n at file.cpp")

    monkeypatch.setattr(OnGpu, "search", search)
    with pytest.raises(EnvironmentLacks, match="no memory left to compare 1 crops") as caught:
        engine.similarity(np.ones((1, 16), np.float32))
    assert caught.value.found == "Error in allocMemory: Exceeded temp memory"


def test_search__references_that_do_not_fit(gpu: GpuFaiss) -> None:
    gpu.error = "Error in virtual void* StandardGpuResourcesImpl: out of memory\n at file.cpp"
    with pytest.raises(EnvironmentLacks, match="do not fit") as caught:
        PrototypeSearch(make(), "centroid")
    assert "5 references" in caught.value.expected and "--device cpu" in caught.value.fix
    assert caught.value.found.endswith("out of memory")


def test_search__no_device(gpu: GpuFaiss) -> None:
    with pytest.raises(TkError, match="is not a device"):
        PrototypeSearch(make(), "centroid", "gpu")


def pretend(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    def version(name: str) -> str:
        if name not in packages:
            raise metadata.PackageNotFoundError(name)
        return "1"

    monkeypatch.setattr("importlib.metadata.version", version)


def test_missing__two_builds_overwrite_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "faiss-cpu", "faiss-gpu")
    with pytest.raises(EnvironmentLacks) as caught:
        PrototypeSearch(make())
    assert "pip uninstall faiss-cpu faiss-gpu" in caught.value.found


def test_missing__none_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EnvironmentLacks) as caught:
        PrototypeSearch(make())
    assert "tk-vision[cpu]" in caught.value.found and "tk-vision[gpu]" in caught.value.found


def test_missing__cuda_libraries_of_the_gpu_build(monkeypatch: pytest.MonkeyPatch) -> None:
    import builtins

    real = builtins.__import__

    def fail(name: str, *rest: Any) -> Any:
        if name == "faiss":
            raise RuntimeError("faiss-gpu needs nvidia-cublas-cu12")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", fail)
    with pytest.raises(EnvironmentLacks, match="nvidia-cublas-cu12") as caught:
        PrototypeSearch(SimpleNamespace(classes=()))  # type: ignore[arg-type]
    assert "faiss-cpu" in caught.value.fix
