"""`--to tensorrt` from model to bundle, on a pretended machine whose TensorRT computes `2 x`.

In uint8, so pictures are dark.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
import torch._dynamo  # before the pretended CUDA, which it would ask
from tests.export.small_models import small_model, write_images
from tests.export.tensorrt.world import World, half_json
from torch import Tensor, nn

from tk.export.existing import Existing
from tk.export.model import ExportModel
from tk.export.pictures import load_pictures
from tk.export.produce import Producer
from tk.export.request import Request
from tk.export.tensorrt.options import BuildOptions
from tk.export.write import write_bundle
from tk.runtime.backends.tensorrt import library
from tk.runtime.backends.tensorrt.gpu import Gpu
from tk.runtime.bundle import Bundle
from tk.runtime.errors import CheckFailed, EnvironmentLacks
from tk.runtime.manifest import Part

FLOAT = ("Float", "Float")


class Twice(nn.Module):
    """`factor * x` of the first pixels, by five products: what the pretended engine computes."""

    def __init__(self, factor: float = 2.0) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(12, 12, bias=False) for _ in range(5))
        with torch.no_grad():
            for index, parameter in enumerate(self.layers.parameters()):
                parameter.copy_(torch.eye(12) * (factor if index == 2 else 1.0))

    def forward(self, image: Tensor) -> Tensor:
        x = image.float().flatten(1)
        for layer in self.layers:
            x = layer(x)
        return x


def pretended(monkeypatch: pytest.MonkeyPatch, version: str, **values: Any) -> World:
    world = World(version)
    world.spec = {
        "image": (True, "UINT8", (-1, 2, 2, 3)),
        "embedding": (False, "FLOAT", (-1, 12)),
    }
    world.high, world.width = 4, 12
    for name, value in values.items():
        setattr(world, name, value)
    world.install(monkeypatch)
    return world


@pytest.fixture
def model(tmp_path: Path) -> Callable[[nn.Module], ExportModel]:
    return lambda net: small_model(net, tmp_path, largest=4, side=2, width=12)


def words_of(world: World) -> None:
    """Let the inspector say what the last parsed graph asks for."""
    parse = world.fake.behaviour["OnnxParser", "parse_from_file"]

    def remember(parser: Any, file: str) -> Any:
        half = ".fp16." in file
        world.inspector = half_json(world.version, ("Half", "Float") if half else FLOAT)
        return parse(parser, file)

    world.fake.behaviour["OnnxParser", "parse_from_file"] = remember


@pytest.mark.parametrize("version", ["10.13", "11.4"])
def test_plans__lie_beside_the_graphs_with_their_facts(
    version: str,
    model: Callable[[nn.Module], ExportModel],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words_of(pretended(monkeypatch, version))
    images = write_images(tmp_path / "in", 8, side=2, brightest=120)
    request = Request(precisions=("fp16",), targets=("tensorrt",))
    lines = write_bundle(model(Twice()), tmp_path / "b", images, request=request)
    bundle = Bundle.open(tmp_path / "b")
    plans = {a.precision: a for a in bundle.manifest.artifacts if a.kind == "plan"}
    assert set(plans) == {"fp32", "fp16"}
    for precision, artifact in plans.items():
        assert artifact.file == f"plans/model.{precision}.trt{version}-sm90.plan"
        assert artifact.facts["graph"] == f"model.{precision}.onnx"
        assert artifact.facts["batch"] == [1, 4, 4] and artifact.facts["typing"] == "strong"
        assert bundle.verdicts[artifact.file, "tensorrt"]
    assert "fp16" in plans["fp16"].facts["found"] and "fp16" not in plans["fp32"].facts["found"]
    assert any(line.startswith("fp16: ") and "tensorrt" in line for line in lines)
    figures = json.loads((tmp_path / "b" / "parity.json").read_text())["figures"]
    tests = {(f["test"], f["batch"]) for f in figures if f["backend"] == "tensorrt"}
    assert {("parity", 4), ("batch invariance", 4)} <= tests


def test_plans__another_precision_than_asked_is_an_error(
    model: Callable[[nn.Module], ExportModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = pretended(monkeypatch, "10.13")
    world.inspector = half_json("10.13", FLOAT)
    images = write_images(tmp_path / "in", 8, side=2, brightest=120)
    request = Request(precisions=("fp16",), targets=("tensorrt",))
    with pytest.raises(CheckFailed, match=r"did not build .*fp16.* in fp16"):
        write_bundle(model(Twice()), tmp_path / "b", images, request=request)
    assert not (tmp_path / "b").exists()


def test_plans__wrong_answers_keep_nothing(
    model: Callable[[nn.Module], ExportModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words_of(pretended(monkeypatch, "10.13"))
    images = write_images(tmp_path / "in", 8, side=2, brightest=120)
    net = Twice()
    with torch.no_grad():
        next(net.layers.parameters()).copy_(torch.eye(12).flip(0))
    with pytest.raises(CheckFailed, match=r"fp32.*plan does not give the answers"):
        write_bundle(
            model(net), tmp_path / "b", images, request=Request(targets=("onnx", "tensorrt"))
        )
    assert not (tmp_path / "b").exists()


def test_plans__interrupted_build_leaves_nothing(
    model: Callable[[nn.Module], ExportModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    words_of(pretended(monkeypatch, "10.13", during=interrupt))
    images = write_images(tmp_path / "in", 8, side=2, brightest=120)
    with pytest.raises(KeyboardInterrupt):
        write_bundle(model(Twice()), tmp_path / "b", images, request=Request(targets=("tensorrt",)))
    assert {path.name for path in tmp_path.iterdir()} == {"in", "net.pth", ".b.lock"}


def test_plans__a_gpu_without_the_precision_is_said_before_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretended(monkeypatch, "10.13")
    monkeypatch.setattr(library, "find_gpus", lambda: [Gpu("Old", (7, 5), 1 << 30, (13, 0))])
    with pytest.raises(EnvironmentLacks, match="Old does not compute in bf16"):
        Request(precisions=("bf16",), targets=("tensorrt",)).check_machine()


def test_plans__of_8_6_keep_layers_by_name(
    model: Callable[[nn.Module], ExportModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """8.6 gets the float32 graph and the names of what must stay float32."""
    images = write_images(tmp_path / "in", 8, side=2, brightest=120)
    own = model(Twice())
    write_bundle(own, tmp_path / "b", images, opset=17)
    graphs = Existing(Bundle.open(tmp_path / "b")).graphs()
    pretended(monkeypatch, "8.6")
    seen: list[tuple[str, BuildOptions]] = []

    def build(graph: Path, part: Part, name: str, options: BuildOptions, source: Any) -> Any:
        assert graph.is_file()
        seen.append((graph.name, options))
        raise CheckFailed("enough")

    monkeypatch.setattr("tk.export.tensorrt.build.build_plan", build)
    request = Request(precisions=("fp16",), targets=("tensorrt",))
    producer = Producer(own, load_pictures(images, own.image), 17, request, tmp_path)
    with pytest.raises(CheckFailed, match="enough"):
        producer.lower("fp16", graphs)
    ((graph, options),) = seen
    assert graph == "model.fp32.onnx" and options.precision == "fp16"
    names = {node.name for node in onnx.load_model_from_string(graphs["model"].data).graph.node}
    assert options.keep and set(options.keep) < names
