"""`tk bench table` on a tiny run of `tk train distill`, and its tables on known times."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.tiny_runs import BACKBONE, write_tiny_run
from typer.testing import CliRunner

from tk.benchmarks.cli import COMMANDS
from tk.benchmarks.table import read_rows
from tk.benchmarks.table_report import PIXELS_HEADER, head_cells, notes, pixel_cells
from tk.runtime.bundle import Bundle
from tk.runtime.errors import TkError
from tk.runtime.files import read_json, write_json
from tk.runtime.preprocess import ImageSpec
from tk.train.backbone import ImageEncoder
from tk.train.classifier.checkpoint import Architecture, save_classifier
from tk.train.classifier.heads import LINEAR, count_parameters, make_head
from tk.train.classifier.model import ImageClassifier
from tk.train.distill.results import Figure, Row
from tk.train.distill.tables import HEADER

SHOWN = ("teacher", "student", "student_no_kd")


def add_student(run: Path) -> None:
    """An image model as `--student` leaves it; and only some of the heads, to save time."""
    torch.manual_seed(0)
    encoder = ImageEncoder("test_resnet", 32)
    head = make_head(LINEAR, encoder.feature_size, 4)
    model = ImageClassifier(encoder, head).eval()
    results = read_json(run / "results.json")
    save_classifier(
        run / "student" / "checkpoint_best.pth",
        model,
        Architecture("image", "test_resnet", 32, encoder.feature_size),
        classes=tuple(results["classes"]),
        image_spec=ImageSpec(32, 32),
        config={},
    )
    rows = {row["name"]: row for row in results["rows"]}
    student = {
        **rows["teacher"],
        "name": "image_student",
        "title": "test_resnet from Pixels",
        "kind": "chain",
        "checkpoint": "student/checkpoint_best.pth",
        "backbone": "",
        "parameters": count_parameters(model),
    }
    results["rows"] = [*(rows[name] for name in SHOWN), student]
    write_json(run / "results.json", results)


def bench(run: Path) -> Any:
    arguments = ["table", str(run), "--samples", "12", "--seconds", "0"]
    return CliRunner().invoke(COMMANDS["bench"], arguments, catch_exceptions=False)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with its table, and `said.txt` and `log.txt` of the command."""
    folder = write_tiny_run(tmp_path_factory.mktemp("table"), random_floor=False)
    add_student(folder)
    answer = bench(folder)
    assert answer.exit_code == 0
    (folder / "said.txt").write_text(answer.stdout, "utf-8")
    (folder / "log.txt").write_text(answer.stderr, "utf-8")
    return folder


def table(text: str) -> list[dict[str, str]]:
    lines = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line] for line in lines]
    return [dict(zip(cells[0], line, strict=True)) for line in cells[2:]]


def test_table__seed_columns_counts_and_compression(run: Path) -> None:
    rows = table((run / "table_heads.md").read_text("utf-8"))
    assert tuple(rows[0])[:6] == HEADER[:6]
    assert [row["Parameters"] for row in rows] == ["57796", "26852", "26852"]
    assert [row["Compression"] for row in rows] == ["—", "2.2x", "2.2x"]
    assert all(row["Inference Time"].split()[1] in ("ns", "us", "ms", "s") for row in rows)
    assert (run / "table_heads.png").read_bytes().startswith(b"\x89PNG")
    said = (run / "said.txt").read_text("utf-8")
    assert "Heads alone, from a feature:" in said and "From pixels:" in said


def test_table__chains_count_the_backbone_and_are_measured_once(run: Path) -> None:
    rows = table((run / "table_pixels.md").read_text("utf-8"))
    assert [row["Network"] for row in rows] == [
        f"{BACKBONE} at 32 + 384-128-64-4",
        f"{BACKBONE} at 32 + 384-64-32-4",
        f"{BACKBONE} at 32 + 384-64-32-4",
        f"test_resnet at 32 + {ImageEncoder('test_resnet', 32).feature_size}-4",
    ]
    trunk = count_parameters(ImageEncoder(BACKBONE, 32))
    assert [int(row["Parameters"]) - trunk for row in rows[:3]] == [57796, 26852, 26852]
    found = read_json(run / "latency.json")
    assert found["chains"]["student_no_kd"]["same_as"] == "student"
    assert set(found["figures"]["pixels"]["1"]) == {"teacher", "student", "image_student"}
    assert set(found["figures"]["heads"]["32"]) == set(SHOWN)
    assert Bundle.open(run / "bundles/chains/image_student").manifest.settings["input"] == "image"


def test_table__figures_follow_from_the_raw_samples(run: Path) -> None:
    found = read_json(run / "latency.json")
    with open(run / "table_pixels.csv", encoding="utf-8", newline="") as file:
        written = {row["name"]: row for row in csv.DictReader(file)}
    for kind in ("heads", "pixels"):
        for batch in ("1", "32"):
            for name, figures in found["figures"][kind][batch].items():
                wall = found["runs"][kind][batch][name]["wall"]
                assert len(wall) == figures["n"] == 10 and min(wall) > 0
                for share in (50, 99):
                    expected = np.percentile(wall, share)
                    assert figures[f"p{share}"] == pytest.approx(expected)
                    if kind == "pixels":
                        said = float(written[name][f"batch_{batch}_p{share}"])
                        assert said == pytest.approx(expected)


def test_table__exports_only_what_changed(run: Path, tmp_path: Path) -> None:
    assert (run / "log.txt").read_text("utf-8").count("export bundles/") == 6
    copy = shutil.copytree(run.parent, tmp_path / "moved") / "run"
    results = read_json(copy / "results.json")
    other = copy / results["rows"][0]["checkpoint"]
    seeds = sorted(other.parent.glob("*.pth"))
    shutil.copy(next(path for path in seeds if path != other), other)
    (copy / "bundles/heads/student/model.fp32.onnx").write_bytes(b"damaged")
    log = bench(copy).stderr
    again = [line for line in log.splitlines() if line.startswith("export ")]
    assert again == [
        "export bundles/heads/teacher",
        "export bundles/heads/student",
        "export bundles/chains/teacher",
    ]


def test_table__runs_that_are_not_finished(run: Path, tmp_path: Path) -> None:
    with pytest.raises(TkError, match=r"holds no results\.json"):
        bench(tmp_path)
    write_json(tmp_path / "results.json", {"rows": [{"name": "x"}]})
    with pytest.raises(TkError, match="not what tk train distill writes"):
        bench(tmp_path)
    results = read_json(run / "results.json")
    results["rows"][0]["checkpoint"] = "models/gone.pth"
    write_json(tmp_path / "results.json", results)
    shutil.copy(run / "class_info.json", tmp_path)
    with pytest.raises(TkError, match=r"gone\.pth does not exist"):
        bench(tmp_path)


def row_of(name: str, kind: str, parameters: int) -> Row:
    figure = Figure(0.9, 0.8, 0.95, (0.9, 0.9), "seeds")
    return Row(name, name.title(), kind, "", "", parameters, figure, figure, figure, None, None)


def known(p50: float) -> dict[str, Any]:
    keys = ("p50", "p90", "p95", "p99", "mean", "mad", "cpu_p50")
    return {**dict.fromkeys(keys, p50), "n": 7, "cv": 0.5, "warm_up": 20, "stable": p50 < 0.5}


def known_results() -> dict[str, Any]:
    chains = {
        "teacher": {"network": "t", "parameters": 1000, "mflops": 9.0, "same_as": "teacher"},
        "tiny": {"network": "t", "parameters": 800, "mflops": 9.0, "same_as": "teacher"},
        "net": {"network": "n", "parameters": 50, "mflops": 1.25, "same_as": "net"},
    }
    pixels = {"1": {"teacher": known(0.08), "net": known(0.002)}}
    pixels["32"] = {"teacher": known(1.6), "net": known(0.064)}
    heads = {
        "1": {"teacher": known(20e-6), "tiny": known(10e-6)},
        "32": {"teacher": known(64e-6), "tiny": known(32e-6)},
    }
    return {
        "figures": {"heads": heads, "pixels": pixels, "decode": {"1": {"decode": known(1e-3)}}},
        "chains": chains,
        "stages": {"heads": "h", "pixels": "p"},
        "options": {"threads": 1},
        "crops": {"width": 224, "height": 224, "held": 64},
        "environment": {
            "load_average": [1.0], "load_average_after": [2.0], "versions": {}, "cpu": "c",
            "cores": 2, "time": "t",
        },
    }  # fmt: skip


def test_cells__known_times() -> None:
    rows = [row_of("teacher", "head", 300), row_of("tiny", "head", 100), row_of("net", "chain", 50)]
    results = known_results()
    teacher, tiny = head_cells(rows, results)
    assert teacher[3] == "20.0 us" and tiny[3] == "10.0 us" and tiny[-1] == "2.0x"
    assert tiny[-2] == "1000000"  # 32 features in 32 us
    found = [dict(zip(PIXELS_HEADER, line, strict=True)) for line in pixel_cells(rows, results)]
    assert [line["Inference Time"] for line in found] == ["80.0 ms", "80.0 ms", "2.00 ms"]
    assert [line["Speed-Up"] for line in found] == ["1.0x", "1.0x", "40.0x"]
    assert [line["Compression"] for line in found] == ["—", "1.2x", "20.0x"]
    assert [line["Images/s"] for line in found] == ["20.0", "20.0", "500"]
    said = " ".join(notes("pixels", results))
    assert "NOT stable after the warm-up: teacher" in said and "tiny as teacher" in said
    assert "decoding one takes 1.00 ms more" in said and "MIND" not in said


def test_cells__a_busy_machine_is_said() -> None:
    """Wall time is 20 times CPU time for one model: 40 times faster by one, twice by the other."""
    results = known_results()
    results["figures"]["pixels"]["1"]["teacher"]["cpu_p50"] = 0.004
    rows = [row_of("teacher", "head", 300), row_of("net", "chain", 50)]
    found = [dict(zip(PIXELS_HEADER, line, strict=True)) for line in pixel_cells(rows, results)]
    assert (found[1]["Speed-Up"], found[1]["Speed-Up, CPU"]) == ("40.0x", "2.0x")
    assert "up to 20.0 times its CPU time" in " ".join(notes("pixels", results))
    results["options"]["threads"] = 2  # CPU time is then of both
    assert "MIND" not in " ".join(notes("pixels", results))


def test_rows__are_those_of_the_pipeline(run: Path) -> None:
    rows = read_rows(run)
    content = json.loads((run / "results.json").read_text("utf-8"))
    assert [row.name for row in rows] == [row["name"] for row in content["rows"]]
    assert rows[1].accuracy.seeds == tuple(content["rows"][1]["accuracy"]["seeds"])
