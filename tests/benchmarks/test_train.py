"""`tk bench train`: how figures are made, what is refused, and the whole command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tk.benchmarks.cli import COMMANDS
from tk.benchmarks.train import TrainBenchOptions, bench_train
from tk.benchmarks.train_summary import summarise_quality, summarise_speed
from tk.runtime.errors import TkError
from tk.runtime.metrics.intervals import wilson


def run_of(
    whole: list[float], views: int, right: int = 5, model_id: str = "resnet", seed: int = 0
) -> dict[str, Any]:
    """A run whose training takes half of each epoch and validation a quarter."""
    return {
        "model_id": model_id,
        "weights": "random",
        "views": views,
        "seed": seed,
        "build_s": 30.0 if views else 0.0,
        "disk_bytes": 1000 * views,
        "feature_size": 7,
        "epochs": [{"whole": s, "train": s / 2, "evaluate": s / 4} for s in whole],
        "quality": {"accuracy": [right, 10], "recall_at_1": [right - 1, 8]},
    }


def test_summarise_speed__medians_without_the_first_epoch() -> None:
    speed = summarise_speed([run_of([99, 10, 12, 20], 0), run_of([50, 0.2, 0.1, 0.4], 4)])
    rows = {row["part"]: row for row in speed["rows"]}
    assert rows["whole"] == {"part": "whole", "off_s": 12, "on_s": 0.2, "ratio": pytest.approx(60)}
    assert rows["train"]["off_s"] == 6 and rows["evaluate"]["on_s"] == 0.05
    assert speed["whole_ratio_range"] == pytest.approx([10 / 0.4, 20 / 0.1])
    assert speed["pays_after"] == pytest.approx(30 / 11.8)
    assert (speed["epochs_timed"], speed["disk_bytes"], speed["build_s"]) == (3, 4000, 30.0)


def test_summarise_speed__kept_features_that_never_pay() -> None:
    assert summarise_speed([run_of([1, 1, 1], 0), run_of([1, 2, 2], 1)])["pays_after"] is None


def test_summarise_quality__adds_up_seeds() -> None:
    runs = [
        *(run_of([1], 0, 9, seed=0), run_of([1], 4, 8, seed=0)),
        *(run_of([1], 0, 7, seed=1), run_of([1], 4, 10, seed=1)),
        run_of([1], 0, 3, "vit"),
    ]
    rows = summarise_quality(runs)
    assert [(row["model_id"], row["views"], row["seeds"]) for row in rows] == [
        ("resnet", 0, 2), ("resnet", 4, 2), ("vit", 0, 1),
    ]  # fmt: skip
    first = rows[0]["accuracy"]
    assert (first["right"], first["asked"], first["share"]) == (16, 20, 0.8)
    assert first["interval"] == pytest.approx(wilson(16, 20))
    assert first["by_seed"] == [0.9, 0.7]
    assert rows[0]["recall_at_1"]["share"] == 14 / 16


def test_bench_train__too_few_epochs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TkError, match="after the first"):
        bench_train(tmp_path / "out", TrainBenchOptions(epochs=2))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_bench_train__whole_command(tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = [
        *("train", str(out), "--images", "16", "--model_id", "test_resnet", "--img_size", "32"),
        *("--views", "3", "--epochs", "3", "--accuracy_epochs", "3", "--accuracy_views", "3"),
        *("--accuracy_views", "1", "--warm_epochs", "2", "--seeds", "2", "--batch_size", "8"),
        *("--threads", "1", "--device", "cpu", "--accuracy_size", "32"),
        *("--warm_images", "16"),
    ]
    run = CliRunner().invoke(COMMANDS["bench"], arguments)
    assert run.exit_code == 0, (run.output, run.exception)
    assert "whole epoch" in run.output and "3 views kept" in run.output

    results = json.loads((out / "results.json").read_bytes())
    assert str(tmp_path) not in (out / "results.json").read_text(encoding="utf-8")
    speed, crops = results["speed"], results["crops"]
    assert all(row["on_s"] > 0 and row["off_s"] > 0 for row in speed["rows"])
    kept = crops["train"] * 3 + crops["val"] + crops["test"]
    numbers = kept * speed["feature_size"] * 4
    assert numbers < speed["disk_bytes"] <= numbers + 3 * 128
    assert speed["build_s"] > 0

    runs = results["runs"]
    assert [(r["views"], r["seed"]) for r in runs[:2]] == [(0, 0), (3, 0)]
    assert [(r["views"], r["seed"]) for r in runs[2:]] == [
        (0, 0), (3, 0), (1, 0), (0, 1), (3, 1), (1, 1),
    ]  # fmt: skip
    assert all(len(r["epochs"]) == 3 for r in runs)
    for run_ in runs:
        for epoch in run_["epochs"]:
            assert epoch["whole"] >= epoch["train"] + epoch["evaluate"] > 0
    # As many views as epochs: the very same canvases, so the very same answers but for rounding.
    held_out = crops["val"] + crops["test"]
    for name in ("accuracy", "recall_at_1"):
        fresh, same = (r["quality"][name] for r in runs[2:4])
        assert fresh[1] == same[1] <= held_out
        assert abs(fresh[0] - same[0]) <= 1
    text = (out / "results.md").read_text(encoding="utf-8")
    assert "| whole epoch |" in text and "| test_resnet, trained | 1 views kept |" in text

    again = CliRunner().invoke(COMMANDS["bench"], arguments)
    assert isinstance(again.exception, TkError) and "exists already" in str(again.exception)
