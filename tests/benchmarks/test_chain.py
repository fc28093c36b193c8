"""`tk bench chain`: GroundingDINO, SAM-2 and DINOv3 end to end, in miniature."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tk.benchmarks.cli import COMMANDS
from tk.benchmarks.fixed_boxes import fixed_boxes
from tk.runtime.bundle import Bundle


def test_fixed_boxes__lie_in_the_picture_and_are_the_same_each_time() -> None:
    found, again = fixed_boxes(11, 300, 500), fixed_boxes(11, 300, 500)
    assert (found.boxes == again.boxes).all() and found.boxes.shape == (11, 4)
    assert (found.boxes[:, :2] >= 0).all() and (found.boxes[:, 2:] <= [500, 300]).all()
    sides = found.boxes[:, 2:] - found.boxes[:, :2]
    assert (sides >= [0.11 * 500, 0.11 * 300]).all()
    assert (found.scores[:-1] > found.scores[1:]).all()


@pytest.mark.slow
def test_chain__pytorch_and_tk_find_the_same(tmp_path: Path) -> None:
    work = tmp_path / "work"
    given = ["chain", str(tmp_path / "a"), "--work", str(work), "--images", "2", "--small"]
    given += ["--image-size", "640", "--repeats", "1", "--threads", "1", "--boxes", "5"]
    run = CliRunner().invoke(COMMANDS["bench"], [*given, "--json"])

    assert run.exit_code == 0, (run.output, run.exception)
    results = json.loads(run.stdout)
    for own in results["equality"].values():
        assert own["matched_share"] == own["class_agreement"] == 1.0
        assert own["min_mask_iou"] > 0.99
    assert Bundle.open(work / "bundles-small" / "detector").manifest.settings["text"]
    assert 0 < results["summary"]["overhead"] < 1

    # What is there is used again.
    before = (work / "bundles-small" / "detector" / "manifest.json").stat().st_mtime_ns
    given[1] = str(tmp_path / "b")
    run = CliRunner().invoke(COMMANDS["bench"], given)
    assert run.exit_code == 0 and "over batched" in run.output
    assert (work / "bundles-small" / "detector" / "manifest.json").stat().st_mtime_ns == before
