"""Where a benchmark may write: never over what it reads, nor over what no benchmark made."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tk.benchmarks.annotator import BenchOptions, bench_annotator
from tk.benchmarks.chain import bench_chain
from tk.benchmarks.crops import CropsBenchOptions, bench_crops
from tk.benchmarks.engines import ModelsOptions
from tk.benchmarks.int8 import Int8Options, bench_int8
from tk.benchmarks.models import bench_models
from tk.benchmarks.ssl import SslBenchOptions, bench_ssl
from tk.benchmarks.train import TrainBenchOptions, bench_train
from tk.runtime.errors import TkError

Bench = Callable[[Path, Path], Any]


def _int8(out: Path, data: Path) -> Any:
    options = Int8Options(bundle=data / "b", gallery=data / "g", queries=data)
    return bench_int8(out, options, overwrite=True)


def _annotator(out: Path, data: Path) -> Any:
    options = BenchOptions(data, data / "b", data / "g", data / "runs")
    return bench_annotator(out, options, overwrite=True)


BENCHES: dict[str, Bench] = {
    "annotator": _annotator,
    "int8": _int8,
    "models": lambda out, data: bench_models(out, ModelsOptions(bundle=data), overwrite=True),
    "crops": lambda out, data: bench_crops(out, CropsBenchOptions(images=data), overwrite=True),
    "train": lambda out, data: bench_train(out, TrainBenchOptions(data=data), overwrite=True),
    "ssl": lambda out, data: bench_ssl(out, SslBenchOptions(data, {"dino": 1}), overwrite=True),
    "chain": lambda out, data: bench_chain(out, data, small=True, overwrite=True),
}


@pytest.mark.parametrize("name", BENCHES)
def test_bench__refuses_to_replace_what_it_reads(name: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "data").mkdir(parents=True)
    (out / "results.md").write_text("of an older benchmark")
    with pytest.raises(TkError, match="holds the input"):
        BENCHES[name](out, out / "data")
    assert (out / "data").is_dir()


@pytest.mark.parametrize("name", BENCHES)
def test_bench__refuses_to_replace_a_run(name: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "results.json").write_text("{}")  # trainings write one, too
    with pytest.raises(TkError, match="not replaced"):
        BENCHES[name](run, tmp_path / "data")


@pytest.mark.parametrize(
    "name", ["report", "int8_report", "crops_report", "train_report", "ssl_report"]
)
def test_write_results__refuses_to_replace_a_run(name: str, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text("{}")
    report = importlib.import_module(f"tk.benchmarks.{name}")
    with pytest.raises(TkError, match="not replaced"):
        report.write_results(tmp_path, {}, overwrite=True)
