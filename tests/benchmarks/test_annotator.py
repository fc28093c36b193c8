"""`tk bench annotator`: what is refused, how figures are made, and the whole command."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from tests import tiny_bundles
from tests.benchmarks import trio
from typer.testing import CliRunner

from tk.benchmarks.cli import COMMANDS
from tk.benchmarks.environment import environment
from tk.benchmarks.sources import source_of
from tk.benchmarks.summary import REFERENCES, SIDES, summarise
from tk.benchmarks.timing import Run, percentile
from tk.runtime.bundle import MANIFEST, Bundle
from tk.runtime.errors import CheckFailed, TkError
from tk.runtime.files import sha256_file, write_json
from tk.train.pretrained.hub import fetch

STAGES = ("decode", "detect", "segment", "embed", "assign", "encode")


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "checkpoint_last.pth").write_bytes(b"last weights")
    (folder / "checkpoint_best.pth").write_bytes(b"best weights")
    return folder


def bundle_of(checkpoint: Path, folder: Path) -> Path:
    """A real bundle that says it was made from `checkpoint`."""
    tiny_bundles.write_tiny_bundle(folder, "detector")
    manifest = Bundle.open(folder).manifest
    source = {"file": checkpoint.name, "sha256": sha256_file(checkpoint)}
    write_json(folder / MANIFEST, replace(manifest, source=source).to_json())
    return folder


@pytest.mark.parametrize("name", ["checkpoint_best.pth", "checkpoint_last.pth"])
def test_source_of__finds_the_one_the_bundle_was_made_from(
    run_folder: Path, tmp_path: Path, name: str
) -> None:
    bundle = bundle_of(run_folder / name, tmp_path / "bundle")
    assert source_of(run_folder, bundle, "detector")[0].name == name


def test_source_of__foreign_checkpoint_is_refused(run_folder: Path, tmp_path: Path) -> None:
    bundle = bundle_of(run_folder / "checkpoint_best.pth", tmp_path / "bundle")
    for file in run_folder.iterdir():
        file.write_bytes(b"trained further")
    with pytest.raises(TkError, match="not made from the checkpoint given"):
        source_of(run_folder, bundle, "detector")


def test_source_of__bundle_without_a_source_is_refused(run_folder: Path, tiny_world: Path) -> None:
    with pytest.raises(TkError, match="not made from the checkpoint given"):
        source_of(run_folder, tiny_world / "bundles" / "detector", "detector")


def test_source_of__a_model_that_comes_with_tk_needs_no_run(tmp_path: Path) -> None:
    folder = fetch("tk/grounding-dino-tools")
    bundle = bundle_of(folder / "model.safetensors", tmp_path / "bundle")
    manifest = Bundle.open(bundle).manifest
    source = {**manifest.source, "name": "tk/grounding-dino-tools"}
    write_json(bundle / MANIFEST, replace(manifest, source=source).to_json())
    assert source_of(tmp_path / "runs" / "detector", bundle, "detector")[0] == folder
    other = {**source, "sha256": "0" * 64}
    write_json(bundle / MANIFEST, replace(manifest, source=other).to_json())
    with pytest.raises(TkError, match="not made from the checkpoint given"):
        source_of(tmp_path / "runs" / "detector", bundle, "detector")


def test_source_of__empty_run_is_refused(tmp_path: Path, tiny_world: Path) -> None:
    with pytest.raises(TkError, match="holds no checkpoint"):
        source_of(tmp_path, tiny_world / "bundles" / "detector", "detector")


def timed(seconds: float, encode: float, engine: float | None = None) -> Run:
    """A pass over two pictures."""
    stages = dict.fromkeys(STAGES, 0.1) | {"encode": encode}
    images = [seconds / 4, seconds * 3 / 4]
    return Run(seconds, stages, images, engine, 5_000_000, 2 * seconds, engine)


def test_summarise__figures_in_closed_form() -> None:
    runs = {
        "sequential": [timed(8.0, 4.0), timed(9.0, 4.0), timed(10.0, 5.0)],
        "batched": [timed(4.0, 0.5), timed(4.0, 0.5), timed(4.0, 0.5)],
        "tk": [timed(2.0, 0.5, 1.0), timed(2.0, 0.5, 1.5), timed(1.0, 0.5, 0.5)],
    }
    summary = summarise(runs, images=2)

    rows = {row["stage"]: row for row in summary["rows"]}
    times = {"sequential_ms": 4500.0, "batched_ms": 2000.0, "tk_ms": 1000.0}
    assert rows["total"] == pytest.approx(
        {"stage": "total", **times, "over_sequential": 4.5, "over_batched": 2.0}
    )
    assert rows["encode"]["over_sequential"] == pytest.approx(8.0)
    assert rows["total without encode"]["sequential_ms"] == pytest.approx(2500.0)
    assert rows["total without encode"]["tk_ms"] == pytest.approx(750.0)
    assert summary["ratio_range"]["sequential"] == pytest.approx((4.0, 10.0))
    assert summary["ratio_range"]["batched"] == pytest.approx((2.0, 4.0))
    assert summary["efficiency"] == pytest.approx(0.5)  # of 0.5, 0.75, 0.5
    assert summary["overhead"] == pytest.approx(0.75)  # of 1 - 1/4, 1 - 1.5/4, 1 - 0.5/2
    assert summary["engine_ms"] == pytest.approx(500.0)
    assert summary["sides"]["tk"]["images_per_second"] == pytest.approx(1.0)
    assert summary["sides"]["tk"]["cpu_ms"] == pytest.approx(2000.0)
    assert summary["sides"]["tk"]["samples"] == 6
    assert summary["sides"]["tk"]["peak_rss_mb"] == pytest.approx(5.0)


def test_percentile__keeps_the_tail() -> None:
    assert percentile([1.0, 2.0, 3.0, 100.0], 50) == 2.5
    assert percentile([1.0, 2.0, 3.0, 100.0], 100) == 100.0


def test_peak_memory__sees_what_was_freed_again() -> None:
    # In a process of its own: a large one may give back memory of earlier tests at any moment.
    code = (
        "from tk.benchmarks.timing import PeakMemory; memory = PeakMemory(); memory.reset()\n"
        "known = memory.above_start() is not None\n"
        "block = bytearray(64 << 20); block[::4096] = b'x' * len(block[::4096]); del block\n"
        "print(memory.above_start() if known else 'unknown')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    if done.stdout.strip() == "unknown":
        pytest.skip("this system does not tell the peak of resident memory")
    assert 60 << 20 < int(done.stdout) < 90 << 20


def test_bench__without_pytorch_says_what_is_missing() -> None:
    # In a process of its own, in which PyTorch cannot be found.
    code = (
        "import sys; from importlib import util; real = util.find_spec\n"
        "util.find_spec = lambda name, *a: None if name == 'torch' else real(name, *a)\n"
        "sys.argv = ['tk', 'bench', 'annotator', 'o', '--images', 'i', '--bundles', 'b',"
        " '--gallery', 'g', '--source', 's']\n"
        "from tk.cli import run; run()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert "no torch" in done.stderr and "Traceback" not in done.stderr


def test_environment__names_machine_and_libraries() -> None:
    facts = environment(2)
    assert facts["threads"] == 2 and facts["cores"] >= 1 and facts["cpu"]
    assert {"torch", "numpy", "onnxruntime"} <= set(facts["versions"])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures, runs with random weights, the bundles that `tk export` makes, a gallery."""
    from tk.export.sources.registry import open_source
    from tk.export.write import write_bundle
    from tk.runtime.heads.embedder import Embedder
    from tk.runtime.images import find_images, read_image

    folder = tmp_path_factory.mktemp("bench")
    trio.write_images(folder / "images")
    trio.write_runs(folder / "runs")
    for task in ("detector", "segmenter", "embedder"):
        model = open_source(folder / "runs" / task, 8)
        write_bundle(model, folder / "bundles" / task, folder / "images")
    embedder = Embedder(Bundle.open(folder / "bundles" / "embedder"))
    pictures = [file for file in find_images(folder / "images") if file.stem != "broken"]
    crops = embedder.embed([read_image(file) for file in pictures])
    trio.write_gallery(folder / "gallery", crops)
    return folder


def arguments(world: Path, out: Path, *more: object) -> list[str]:
    folders = {"images": "images", "bundles": "bundles", "gallery": "gallery", "source": "runs"}
    given = [text for key, name in folders.items() for text in (f"--{key}", str(world / name))]
    return ["annotator", str(out), *given, "--threads", "1", *map(str, more)]


@pytest.mark.slow
def test_bench__all_chains_find_the_same(world: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run = CliRunner().invoke(COMMANDS["bench"], arguments(world, out, "--repeats", 2))

    assert run.exit_code == 0, (run.output, run.exception)
    assert "total without encode" in run.output
    results = json.loads((out / "results.json").read_bytes())
    assert results["problems"] == []
    assert all(results["equality"][side]["matched"] > 10 for side in REFERENCES)
    assert [len(results["runs"][side]) for side in SIDES] == [2, 2, 2]
    assert 0 < results["summary"]["efficiency"] < 1
    assert str(tmp_path) not in (out / "results.json").read_text(encoding="utf-8")
    with open(out / "results.csv", encoding="utf-8", newline="") as file:
        assert [row["stage"] for row in csv.DictReader(file)][: len(STAGES)] == list(STAGES)
    assert (out / "stages.png").stat().st_size > 5000
    assert "| embed |" in (out / "results.md").read_text(encoding="utf-8")

    again = CliRunner().invoke(COMMANDS["bench"], arguments(world, out))
    assert isinstance(again.exception, TkError) and "exists already" in str(again.exception)


@pytest.mark.slow
def test_bench__fixed_boxes_are_the_same_on_all_sides(world: Path, tmp_path: Path) -> None:
    run = CliRunner().invoke(
        COMMANDS["bench"],
        arguments(world, tmp_path / "out", "--repeats", 1, "--fixed-boxes", 7, "--json"),
    )
    assert run.exit_code == 0, (run.output, run.exception)
    for own in json.loads(run.stdout)["equality"].values():
        assert (own["images"], own["reference"], own["candidate"]) == (7, 42, 42)
        assert own["matched_share"] == 1.0


@pytest.mark.slow
def test_bench__nothing_compared_is_a_failed_check(world: Path, tmp_path: Path) -> None:
    broken = world / "images" / "broken.jpg"
    run = CliRunner().invoke(
        COMMANDS["bench"],
        arguments(world, tmp_path / "out", "--images", broken, "--repeats", 1, "--json"),
    )
    assert isinstance(run.exception, CheckFailed)
    assert (tmp_path / "out" / "results.json").is_file()
