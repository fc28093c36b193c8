"""`tk bench int8` on a small embedder: figures in closed form, a table that can be read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tests.export.small_models import Mlp, small_model, write_images
from typer.testing import CliRunner

from tk.benchmarks.cli import COMMANDS
from tk.benchmarks.int8 import Int8Options, bench_int8
from tk.benchmarks.int8_report import table
from tk.export.request import Request
from tk.export.write import write_bundle
from tk.runtime.bundle import Bundle
from tk.runtime.errors import TkError


def row(precision: str, backend: str, cpu: float) -> dict[str, object]:
    times = {"n": 3, "p50": cpu, "cpu_p50": cpu}
    return {
        "precision": precision,
        "backend": backend,
        "bytes": 2_000_000,
        "latency": {"1": times},
        "recall_at_1": {"value": 0.5, "low": 0.25, "high": 0.75},
        "same_neighbour": 1.0,
        "cosine": {"mean": 1.0, "min": 0.99},
    }


def test_table__fastest_first_and_compared_with_float32() -> None:
    lines = table(
        {"rows": [row("fp32", "onnxruntime-cpu", 0.03), row("int8", "openvino-cpu", 0.01)]}
    )
    assert lines[2].startswith("| int8, openvino-cpu | 2.0 | 10.0 | 10.0 | 3.00 | 0.500 (0.250 to")
    assert "| 30.0 | 30.0 | 1.00 |" in lines[3]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("int8")
    for kind in ("gallery", "queries"):
        for name in ("a", "b"):
            write_images(folder / kind / name / "cropped", 20)
    images = write_images(folder / "images", 34)
    request = Request(precisions=("int8",))
    write_bundle(small_model(Mlp(), folder), folder / "b", images, request=request)
    arguments = [
        *("int8", str(folder / "out"), "--bundle", str(folder / "b")),
        *("--gallery", str(folder / "gallery"), "--queries", str(folder / "queries")),
        *("--repeats", "2", "--batches", "1", "--limit", "10"),
    ]
    answer = CliRunner().invoke(COMMANDS["bench"], arguments, catch_exceptions=False)
    assert answer.exit_code == 0 and "int8, onnxruntime-cpu" in answer.output
    return folder / "out"


def test_bench__all_pairs_are_timed_and_scored(results: Path) -> None:
    found = json.loads((results / "results.json").read_text())
    pairs = {(r["precision"], r["backend"]) for r in found["rows"]}
    assert {("fp32", "onnxruntime-cpu"), ("int8", "onnxruntime-cpu")} <= pairs
    for r in found["rows"]:
        assert r["latency"]["1"]["n"] == 2 and r["latency"]["1"]["p50"] > 0
        # Both classes hold the same pictures: a query finds one of two equals.
        assert 0 <= r["recall_at_1"]["low"] <= r["recall_at_1"]["value"] <= 1
    reference = next(r for r in found["rows"] if r["precision"] == "fp32")
    assert reference["same_neighbour"] == 1.0
    np.testing.assert_allclose(reference["cosine"]["min"], 1.0, atol=1e-4)
    assert "95 %" in (results / "results.md").read_text()


def test_bench__what_is_wrong_is_said_before_anything_is_timed(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = results.parent
    options = Int8Options(
        bundle=folder / "b", gallery=folder / "gallery", queries=folder / "queries", repeats=1
    )
    with pytest.raises(TkError, match="already"):
        bench_int8(results, options)
    pairs = Bundle.pairs
    monkeypatch.setattr(
        Bundle, "pairs", lambda *a: [p for p in pairs(*a) if p.artifact.precision == "int8"]
    )
    with pytest.raises(TkError, match="no float32 graph that passed"):
        bench_int8(tmp_path / "out", options)
