"""Plans added to a bundle without PyTorch, on pretended machines of several TensorRT versions."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from tests.export.tensorrt.world import PART, Layer, World, half_json, world_maker

from tk.cli import run as run_cli
from tk.export.tensorrt.add import add_plans
from tk.export.tensorrt.options import BuildOptions
from tk.runtime.bundle import MANIFEST, PARITY, PROBE, Bundle
from tk.runtime.errors import CheckFailed, EnvironmentLacks, TkError
from tk.runtime.files import read_json, sha256_file, write_json
from tk.runtime.manifest import Artifact, Manifest
from tk.runtime.parity import limits as parity
from tk.runtime.preprocess import ImageSpec

Make = Callable[..., World]
OPTIONS = BuildOptions()


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Make:
    monkeypatch.setitem(parity.THRESHOLDS, "fp16", parity.THRESHOLDS["fp32"])

    return world_maker(monkeypatch)


def graph(kind: int) -> bytes:
    """A graph with weights of a type; the pretended TensorRT looks at nothing else."""
    weight = helper.make_tensor("w", kind, (4, 4), [1.0] * 16)
    nodes = [
        helper.make_node("Cast", ["image"], ["x"], name="cast", to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["x", "w"], ["embedding"], name="product"),
    ]
    ends = [
        helper.make_tensor_value_info("image", TensorProto.UINT8, ["B", 4]),
        helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["B", 4]),
    ]
    made = helper.make_graph(nodes, "g", ends[:1], ends[1:], [weight])
    opsets = [helper.make_opsetid("", 17)]
    data: bytes = helper.make_model(made, opset_imports=opsets).SerializeToString()
    return data


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle with a float32 and an fp16 graph, whose model doubles its input."""
    folder = tmp_path / "embedder"
    folder.mkdir()
    artifacts = []
    for precision, kind in (("fp32", TensorProto.FLOAT), ("fp16", TensorProto.FLOAT16)):
        data, file = graph(kind), f"model.{precision}.onnx"
        (folder / file).write_bytes(data)
        digest = hashlib.sha256(data).hexdigest()
        artifacts.append(Artifact(file, digest, len(data), "model", "onnx", precision))
    image = np.random.default_rng(0).integers(1, 100, (2, 4), dtype=np.uint8)
    answers = {"input/image": image, "output/model/embedding": image.astype(np.float32) * 2}
    np.savez(folder / PROBE, **answers)  # type: ignore[arg-type]
    verdicts = [{"file": "model.fp32.onnx", "backend": "onnxruntime-cpu", "passed": True}]
    write_json(folder / PARITY, {"verdicts": verdicts})
    files = {name: sha256_file(folder / name) for name in (PARITY, PROBE)}
    image_spec = ImageSpec(4, 4)
    manifest = Manifest(
        "embedder", image_spec, None, {"model": PART}, (), {}, {}, {}, "", tuple(artifacts), files
    )
    write_json(folder / MANIFEST, manifest.to_json())
    return folder


def plan_name(world: World, precision: str) -> str:
    numbers = ".".join(world.trt.__version__.split(".")[:2])
    return f"plans/model.{precision}.trt{numbers}-sm90.plan"


@pytest.mark.parametrize("version", ["8.6", "10.3", "10.13", "11.4"])
def test_add__a_plan_that_runs(make: Make, bundle: Path, version: str) -> None:
    world = make(version, layers=[Layer("cast", "x"), Layer("product", "embedding")])
    before = Bundle.open(bundle).sha256

    added = add_plans(bundle, ["fp16"], OPTIONS)

    assert added.files == [plan_name(world, "fp16")]
    opened = Bundle.open(bundle)
    assert opened.sha256 == before, "a plan does not make another model of it"
    assert opened.verdicts[(added.files[0], "tensorrt")]
    with opened.session(backend="tensorrt", precision="fp16") as session:
        found = session.run({"image": np.full((16, 4), 7, np.uint8)})["embedding"]
    assert found.tolist() == [[14.0] * 4] * 16
    # The float32 graph and a list for 8.6, which chooses types itself; the typed graph elsewhere.
    ((path,),) = world.fake.called("parse_from_file")
    assert path.endswith("model.fp32.onnx" if version == "8.6" else "model.fp16.onnx")
    assert world.fake.called("set_shape") == [("image", (1, 4), (16, 4), (16, 4))]


def test_add__all_that_the_bundle_has_graphs_of(make: Make, bundle: Path) -> None:
    manifest = Bundle.open(bundle).manifest
    one = manifest.with_artifacts(list(manifest.artifacts[:1]), manifest.files)
    write_json(bundle / MANIFEST, one.to_json())
    world = make("10.13", inspector=half_json("10.13", ("Float", "Float")))
    added = add_plans(bundle, [], OPTIONS)
    assert added.files == [plan_name(world, "fp32")]
    assert [row.precision for row in added.rows] == ["fp32"]


def test_add__again_replaces_the_plan(make: Make, bundle: Path) -> None:
    make("10.13")
    (file,) = add_plans(bundle, ["fp16"], OPTIONS).files
    assert add_plans(bundle, ["fp16"], OPTIONS).files == [file]
    opened = Bundle.open(bundle)
    assert [a.file for a in opened.manifest.artifacts].count(file) == 1
    opened.session(backend="tensorrt").close()


def test_add__beside_the_plan_of_another_machine(make: Make, bundle: Path) -> None:
    make("10.3")
    (old,) = add_plans(bundle, ["fp16"], OPTIONS).files
    make("11.4")
    (new,) = add_plans(bundle, ["fp16"], OPTIONS).files
    opened = Bundle.open(bundle)
    assert {old, new} <= {a.file for a in opened.manifest.artifacts} and old != new
    with (
        pytest.warns(UserWarning, match="is not used: it was built by TensorRT 10.3"),
        opened.session(backend="tensorrt") as session,
    ):
        assert session.name.endswith(new)


def turn_probe(bundle: Path) -> None:
    """Make every answer of the pretended TensorRT wrong."""
    opened = Bundle.open(bundle)
    with np.load(bundle / PROBE) as archive:
        probe = dict(archive)
    probe["output/model/embedding"] = -probe["output/model/embedding"]
    np.savez(bundle / PROBE, **probe)
    files = {name: sha256_file(bundle / name) for name in opened.manifest.files}
    again = opened.manifest.with_artifacts(list(opened.manifest.artifacts), files)
    write_json(bundle / MANIFEST, again.to_json())


def test_add__wrong_answers_keep_nothing(make: Make, bundle: Path) -> None:
    make("10.13")
    turn_probe(bundle)
    before = (bundle / MANIFEST).read_bytes(), (bundle / PARITY).read_bytes()

    with pytest.raises(CheckFailed, match="nothing was kept") as caught:
        add_plans(bundle, ["fp16"], OPTIONS)

    assert "fp16: model/embedding cosine -1" in caught.value.found
    assert not list((bundle / "plans").iterdir())
    assert ((bundle / MANIFEST).read_bytes(), (bundle / PARITY).read_bytes()) == before


def test_add__a_build_that_fails_leaves_the_old_plan(make: Make, bundle: Path) -> None:
    make("10.13")
    (file,) = add_plans(bundle, ["fp16"], OPTIONS).files
    make("10.13", builds=False)
    with pytest.raises(TkError, match="built no plan"):
        add_plans(bundle, ["fp16"], OPTIONS)
    assert file in {a.file for a in Bundle.open(bundle).manifest.artifacts}


@pytest.mark.parametrize("how", ["wrong answers", "interrupted", "cannot be loaded", "disk full"])
def test_add__a_failure_leaves_the_old_plan(
    make: Make, bundle: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    make("10.13")
    (file,) = add_plans(bundle, ["fp16"], OPTIONS).files
    if how == "wrong answers":
        turn_probe(bundle)
    before = {p: p.read_bytes() for p in bundle.rglob("*") if p.is_file()}
    with monkeypatch.context() as broken:
        if how == "interrupted":
            broken.setattr("tk.export.tensorrt.add.judge", _raise(KeyboardInterrupt()))
        if how == "disk full":
            broken.setattr("tk.export.tensorrt.add.write_bytes", _raise(OSError(28, "no space")))
        make("10.13", loadable=how != "cannot be loaded")
        with pytest.raises((TkError, KeyboardInterrupt, OSError)):
            add_plans(bundle, ["fp16"], OPTIONS)
    assert {p: p.read_bytes() for p in bundle.rglob("*") if p.is_file()} == before
    if how != "wrong answers":
        make("10.13")
        Bundle.open(bundle).session(backend="tensorrt").close()
    assert file in {artifact.file for artifact in Bundle.open(bundle).manifest.artifacts}


def _raise(error: BaseException) -> Callable[..., Any]:
    def stop(*_: Any) -> Any:
        raise error

    return stop


def test_add__interrupted_while_judging(
    make: Make, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make("10.13")
    monkeypatch.setattr("tk.export.tensorrt.add.judge", _raise(KeyboardInterrupt()))
    before = (bundle / MANIFEST).read_bytes()
    with pytest.raises(KeyboardInterrupt):
        add_plans(bundle, ["fp16"], OPTIONS)
    assert not list((bundle / "plans").iterdir())
    assert (bundle / MANIFEST).read_bytes() == before and Bundle.open(bundle)


def test_add__no_such_graph(make: Make, bundle: Path) -> None:
    make("10.13")
    with pytest.raises(TkError, match="no graph in int8") as caught:
        add_plans(bundle, ["int8"], OPTIONS)
    assert caught.value.found == "fp16, fp32" and "--precision int8" in caught.value.fix


def test_add__no_gpu_and_no_onnx(make: Make, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EnvironmentLacks, match="on the machine that runs them") as caught:
        add_plans(bundle, ["fp16"], OPTIONS)
    assert "no NVIDIA GPU" in caught.value.found
    make("10.13")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EnvironmentLacks, match="package onnx") as caught:
        add_plans(bundle, ["fp16"], OPTIONS)
    assert caught.value.fix == "pip install onnx"


def test_cli__builds_and_tells(
    make: Make, bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    world = make("11.4")
    monkeypatch.setattr(sys, "argv", ["tk", "plan", str(bundle), "--precision", "fp16"])
    with pytest.raises(SystemExit) as stopped:
        run_cli()
    text = capsys.readouterr().out
    assert not stopped.value.code and plan_name(world, "fp16") in text
    assert "ok   fp16: model/embedding cosine 1 (" in text
    monkeypatch.setattr(sys, "argv", ["tk", "plan", str(bundle), "--precision", "fp8"])
    with pytest.raises(SystemExit) as stopped:
        run_cli()
    assert stopped.value.code == 2 and "unknown precision" in capsys.readouterr().err


def test_cli__every_option_reaches_the_builder(
    make: Make, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make("11.4")
    options = ["--opt-batch", "4", "--hardware", "ampere", "--version-compatible", "--level", "5"]
    options += ["--tf32", "--timing-cache", str(tmp_path / "timings"), "--workspace", "7"]
    monkeypatch.setattr(sys, "argv", ["tk", "plan", str(bundle), "--precision", "fp16", *options])
    with pytest.raises(SystemExit) as stopped:
        run_cli()
    assert not stopped.value.code
    config, trt = world.config, world.trt
    assert world.fake.called("set_shape") == [("image", (1, 4), (4, 4), (16, 4))]
    assert config.hardware_compatibility_level == trt.HardwareCompatibilityLevel.AMPERE_PLUS
    assert {"VERSION_COMPATIBLE", "EXCLUDE_LEAN_RUNTIME"} <= config.set_flags
    assert config.builder_optimization_level == 5 and not world.fake.called("clear_flag")
    assert world.fake.called("set_memory_pool_limit")[0][1] == 7 << 20
    assert list((tmp_path / "timings").iterdir())


def test_cli__needs_no_pytorch(bundle: Path) -> None:
    code = (
        "import sys\n"
        "class Blocked:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('torch', 'timm', 'transformers', 'onnxruntime'):\n"
        "            raise ModuleNotFoundError(name, name=name)\n"
        "sys.meta_path.insert(0, Blocked())\n"
        "import tk.export.tensorrt.build, tk.export.precision.cast, tk.export.precision.keep\n"
        f"sys.argv[1:] = ['plan', {str(bundle)!r}]\n"
        "from tk.cli import run\n"
        "run()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 3, done.stderr
    assert "plans are built on the machine that runs them" in done.stderr


def test_bundle__is_what_it_says(bundle: Path) -> None:
    """The graphs of these tests have the types that the pretended TensorRT looks for."""
    from tk.export.tensorrt.precision import graph_precision

    for precision in ("fp32", "fp16"):
        assert graph_precision(onnx.load(bundle / f"model.{precision}.onnx")) == precision
    assert read_json(bundle / PARITY)["verdicts"]


def command(patch: pytest.MonkeyPatch, *words: str) -> int:
    """Exit code of a command line."""
    patch.setattr("sys.argv", ["tk", *words])
    with pytest.raises(SystemExit) as caught:
        run_cli()
    return int(caught.value.code or 0)


def test_check__tells_without_a_gpu_what_would_be_read(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(path.name for path in bundle.rglob("*"))
    assert command(monkeypatch, "plan", str(bundle), "--check", "8.6") == 0
    lines = capsys.readouterr().out.splitlines()
    assert "nothing was built" in lines[0]
    assert lines[1] == "ok   model fp32: from model.fp32.onnx, 2 nodes"
    assert lines[2].startswith("ok   model fp16: from model.fp32.onnx, 2 nodes, 2 of them bound")
    assert sorted(path.name for path in bundle.rglob("*")) == before
    assert command(monkeypatch, "plan", str(bundle), "--precision", "fp16", "--check", "11.4") == 0
    assert capsys.readouterr().out.splitlines()[1:] == [
        "ok   model fp16: from model.fp16.onnx, 2 nodes"
    ]


def test_check__what_would_be_refused_is_an_error(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest, artifacts = Bundle.open(bundle).manifest, []
    for artifact in manifest.artifacts:
        model = onnx.load(bundle / artifact.file)
        model.opset_import[0].version = 18
        data = model.SerializeToString()
        (bundle / artifact.file).write_bytes(data)
        digest = hashlib.sha256(data).hexdigest()
        artifacts.append(replace(artifact, sha256=digest, bytes=len(data)))
    write_json(bundle / MANIFEST, manifest.with_artifacts(artifacts, manifest.files).to_json())
    assert command(monkeypatch, "plan", str(bundle), "--check", "8.6") == 1
    caught = capsys.readouterr()
    assert "FAIL model fp32: " in caught.out and "opset 18; this TensorRT reads up to" in caught.out
    assert "--opset 17" in caught.err
    assert command(monkeypatch, "plan", str(bundle), "--check", "10.2") == 1, (
        "a release that is refused whole"
    )
    assert "#24367" in capsys.readouterr().out


@pytest.mark.parametrize("version", ["8.5", "9.2", "12.0", "new", "7"])
def test_check__versions_that_are_not_built_for(
    bundle: Path,
    version: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert command(monkeypatch, "plan", str(bundle), "--check", version) == 2
    assert "8.6, 10 or 11" in capsys.readouterr().err
