"""`tk bench models`: every engine of a small bundle beside PyTorch, on the CPU."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.benchmarks import trio
from typer.testing import CliRunner

from tk.benchmarks.cli import COMMANDS
from tk.benchmarks.engines import Engine, ModelsOptions, batch_of
from tk.benchmarks.models import _inputs, bench_models
from tk.benchmarks.models_report import markdown, table
from tk.export.sources.registry import open_source
from tk.export.write import write_bundle
from tk.runtime.backends.base import Arrays, Session
from tk.runtime.bundle import Bundle
from tk.runtime.errors import EnvironmentLacks, TkError
from tk.runtime.manifest import Part, TensorSpec


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of random weights, and the bundle of the segmenter: two parts, the second of boxes."""
    folder = tmp_path_factory.mktemp("models")
    trio.write_images(folder / "images")
    trio.write_runs(folder / "runs")
    for name in ("segmenter", "embedder"):
        model = open_source(folder / "runs" / name, 4)
        write_bundle(model, folder / "bundles" / name, folder / "images")
    return folder


@pytest.fixture(scope="module")
def results(world: Path) -> dict[str, Any]:
    arguments = [
        *("models", str(world / "out"), "--bundle", str(world / "bundles/segmenter")),
        *("--source", str(world / "runs/segmenter"), "--no-compile", "--device", "cpu"),
        *("--repeats", "3", "--batches", "1", "--batches", "2", "--threads", "1"),
    ]
    answer = CliRunner().invoke(COMMANDS["bench"], arguments, catch_exceptions=False)
    assert answer.exit_code == 0 and "Part `decoder`" in answer.output
    found: dict[str, Any] = json.loads((world / "out/results.json").read_text())
    return found


def test_bench__every_part_on_every_engine(world: Path, results: dict[str, Any]) -> None:
    engines: dict[str, set[str]] = {part: set() for part in ("encoder", "decoder")}
    for row in results["rows"]:
        engines[row["part"]].add(row["engine"])
        assert row["latency"]["1"]["n"] == row["latency"]["2"]["n"] == 3
        assert row["opened"] + row["first_call"] > 0 and row["gpu"] == {}
    wanted = {"PyTorch, eager", "fp32 on onnxruntime-cpu", "fp32 on openvino-cpu"}
    assert engines == {"encoder": wanted, "decoder": wanted}
    raw = results["runs"]["decoder"]["2"]["fp32 on onnxruntime-cpu"]
    assert len(raw["wall"]) == len(raw["cpu"]) == 3 and raw["gpu"] == []
    (judged,) = [p for p in results["parity"] if p["engine"] == "fp32 on onnxruntime-cpu"]
    assert judged["passed"] and judged["measures"]["decoder"][0].startswith("logits mask_iou 1 ")
    page = (world / "out/results.md").read_text()
    assert results["options"]["bundle"] == results["options"]["source"] == "segmenter"
    assert page.startswith("# segmenter on every engine") and str(world) not in json.dumps(results)
    assert "decoding and letterboxing are not in it" in page and "nothing clipped" in page


def test_bench__without_pytorch(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tk.benchmarks.models_torch", None)
    options = ModelsOptions(bundle=world / "bundles/embedder", device="cpu", repeats=2)
    found = bench_models(world / "alone", options)
    assert {row["engine"] for row in found["rows"]} == {
        "fp32 on onnxruntime-cpu",
        "fp32 on openvino-cpu",
    }
    assert [row["latency"].keys() for row in found["rows"]] == [{"1", "4"}] * 2


def test_inputs__a_probe_of_more_rows_than_a_call_takes(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As TensorRT has it: a batch above the largest is an error."""
    seen: list[int] = []
    run = Session.run

    def strict(self: Session, inputs: Arrays) -> Arrays:
        sizes = {
            len(inputs[spec.name])
            for spec in self.part.inputs
            if spec.shape[:1] == (self.part.batch_axis,)
        }
        assert max(sizes) <= self.part.max_batch
        seen.extend(sizes)
        return run(self, inputs)

    monkeypatch.setattr(Session, "run", strict)
    for name in ("embedder", "segmenter"):
        bundle = world / "bundles" / name
        options = ModelsOptions(bundle=bundle, device="cpu", repeats=2, batches=(4,))
        with np.load(bundle / "probe.npz") as probe:
            largest = max(len(probe[key]) for key in probe.files if key.startswith("input/"))
        assert (
            _inputs(Bundle.open(bundle), options).keys()
            == Bundle.open(bundle).manifest.parts.keys()
        )
        assert name == "segmenter" or largest > 4, "or this shows nothing"
    assert seen


def test_bench__another_model_is_refused(world: Path) -> None:
    options = ModelsOptions(
        bundle=world / "bundles/segmenter", source=str(world / "runs/embedder"), device="cpu"
    )
    with pytest.raises(TkError, match="is not what bundle segmenter was made from"):
        bench_models(world / "other", options)
    assert not (world / "other").exists()


def test_bench__nothing_of_it_runs_there(world: Path) -> None:
    options = ModelsOptions(bundle=world / "bundles/embedder", device="cuda")
    with pytest.raises(TkError, match="nothing proved for part 'model' with device cuda"):
        bench_models(world / "gpu", options)
    assert not (world / "gpu").exists()


def test_bench__an_engine_that_fails_is_left_out(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise EnvironmentLacks("not enough memory")

    monkeypatch.setattr("tk.runtime.backends.openvino.session.open_session", fail)
    options = ModelsOptions(
        bundle=world / "bundles/embedder", device="cpu", repeats=2, batches=(1, 99)
    )
    found = bench_models(world / "failed", options)
    assert {row["engine"] for row in found["rows"]} == {"fp32 on onnxruntime-cpu"}
    text = "; ".join(found["left_out"])
    assert "part model takes 4 rows at most, not 99" in text
    assert "part model, fp32 on openvino-cpu: not enough memory" in text


def test_bench__not_into_the_bundle(world: Path) -> None:
    bundle = world / "bundles/embedder"
    with pytest.raises(TkError, match="lies in the bundle"):
        bench_models(bundle / "out", ModelsOptions(bundle=bundle))


@pytest.mark.slow
def test_bench__compiled(world: Path) -> None:
    options = ModelsOptions(
        bundle=world / "bundles/embedder",
        source=str(world / "runs/embedder"),
        device="cpu",
        batches=(1,),
        repeats=2,
    )
    found = bench_models(world / "compiled", options)
    names = {row["engine"] for row in found["rows"]}
    if shutil.which("g++") or shutil.which("clang++"):
        assert "PyTorch, compiled" in names and found["left_out"] == []
    else:
        assert "PyTorch, compiled:" in found["left_out"][0]


def test_batch__rows_of_the_batch_axis_and_no_others() -> None:
    part = Part(
        (TensorSpec("image", "float32", (1, 2)), TensorSpec("boxes", "float32", ("N", 4))),
        (TensorSpec("iou", "float32", ("N",)),),
        8,
    )
    inputs: Arrays = {"image": np.ones((1, 2)), "boxes": np.arange(12.0).reshape(3, 4)}
    found = batch_of(part, inputs, 4, 2)
    assert found["image"] is inputs["image"]
    assert found["boxes"][:, 0].tolist() == [8.0, 0.0, 4.0, 8.0]


def row(engine: str, seconds: float, gpu: float | None = None) -> dict[str, Any]:
    times = {"n": 3, "p50": seconds, "p99": 2 * seconds}
    return {
        "part": "model",
        "engine": engine,
        "bytes": 3_000_000,
        "opened": 1.0,
        "first_call": 0.5,
        "latency": {"1": times},
        "gpu": {} if gpu is None else {"1": {"p50": gpu}},
    }


def test_table__fastest_first_compared_with_pytorch_and_gpu_times_apart() -> None:
    rows = [
        row("PyTorch, eager", 0.02),
        row("fp16 on tensorrt", 0.002, 0.0005),
        row("fp32 on tensorrt", 0.1),
    ]
    parity = [
        {
            "engine": "fp16 on tensorrt",
            "skipped": "",
            "measures": {"model": ["embedding cosine 0.9999"]},
        }
    ]
    lines = table({"rows": rows, "parity": parity})
    assert "b1 GPU alone" in lines[2]
    assert lines[4] == (
        "| fp16 on tensorrt | 3.0 | 1.50 s | 2.00 ms / 4.00 ms | 500 us | 10.00 | "
        "embedding cosine 0.9999 |"
    )
    assert lines[6].endswith("| 0.20 | not in the bundle |")
    assert lines[5].endswith("| 20.0 ms / 40.0 ms |  | 1.00 |  |")


def test_markdown__says_what_was_not_timed(results: dict[str, Any]) -> None:
    left_out = ["part model: PyTorch, compiled: no C++ compiler"]
    skipped = [{"engine": "fp16 on tensorrt", "skipped": "no GPU", "measures": {}}]
    page = markdown({**results, "left_out": left_out, "parity": skipped})
    assert "- left out: part model: PyTorch, compiled: no C++ compiler" in page
    assert "- not compared: fp16 on tensorrt, as a whole model: no GPU" in page


def test_engine__of_a_gpu_tells_times_of_its_own() -> None:
    from tk.benchmarks.models import _time

    part = Part((TensorSpec("x", "float32", ("B", 2)),), (TensorSpec("y", "float32", ("B",)),), 4)
    engine = Engine("e", "fp16", lambda inputs: None, lambda inputs, count: [0.25] * count)
    options = ModelsOptions(bundle=Path(), batches=(1, 2, 8), repeats=2)
    rows, samples = _time(part, "model", [engine], {"x": np.zeros((3, 2))}, options)
    assert rows[0]["gpu"] == {n: {"p50": 0.25, "p90": 0.25, "p99": 0.25} for n in ("1", "2")}
    assert samples["2"]["e"]["gpu"] == [0.25] * 2
