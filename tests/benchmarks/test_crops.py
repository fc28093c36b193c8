"""`tk bench crops`: how figures are made, what is refused, and the whole command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from tk.benchmarks import crops
from tk.benchmarks.cli import COMMANDS
from tk.benchmarks.crops import CropsBenchOptions, bench_crops, summarise
from tk.benchmarks.crops_report import table
from tk.runtime.errors import EnvironmentLacks, TkError

CPU = {
    "decode": [0.001, 0.001, 0.001],
    "crops": [0.002, 0.003, 0.001],
    "normalise": [0.001, 0.001, 0.001],
    "lightly": [0.012, 0.012, 0.012],
}


def test_summarise__ratios_are_taken_repeat_by_repeat() -> None:
    found = summarise(CPU)
    assert found["rows"]["tk"] == {
        "min_ms": pytest.approx(2), "median_ms": pytest.approx(3), "max_ms": pytest.approx(4),
        "per_second": pytest.approx(1000 / 3),
    }  # fmt: skip
    assert found["ratios"] == {
        "same_output": pytest.approx({"min": 3, "median": 4, "max": 6}),
        "crops_only": pytest.approx({"min": 4, "median": 6, "max": 12}),
        "with_decode": pytest.approx({"min": 13 / 5, "median": 13 / 4, "max": 13 / 3}),
    }


def test_bench_crops__too_few_repeats_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TkError, match=r"--repeats 5 or more"):
        bench_crops(tmp_path / "out", CropsBenchOptions(repeats=4))


def test_bench_crops__without_lightly_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crops, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentLacks, match=r"no lightly(.|\n)*pip install"):
        bench_crops(tmp_path / "out", CropsBenchOptions())
    assert not (tmp_path / "out").exists()


def test_bench_crops__whole_command(tmp_path: Path) -> None:
    pytest.importorskip("lightly", reason="lightly is not installed")
    photos = tmp_path / "photos"
    photos.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    cv2.imwrite(str(photos / "a.jpg"), noise)
    threads = cv2.getNumThreads(), torch.get_num_threads()
    out = tmp_path / "out"
    command = [str(out), "--images", str(photos), "--repeats", "5", "--local-crops", "1"]
    result = CliRunner().invoke(COMMANDS["bench"], ["crops", *command])
    assert result.exit_code == 0, result.output
    assert (cv2.getNumThreads(), torch.get_num_threads()) == threads
    written: dict[str, Any] = json.loads((out / "results.json").read_text())
    (group,) = written["groups"]
    assert (group["name"], group["pictures"], group["mean_pixels"]) == ("photos", 1, 10800)
    for clock in ("cpu", "wall"):
        assert {len(values) for values in group["samples"][clock].values()} == {5}
    assert str(tmp_path) not in json.dumps(written)
    page = (out / "results.md").read_text()
    for text in ("JPEG decoding", "same output", "crops alone", "lightly 1.6"):
        assert text in page
    assert "\n".join(table(written)) in result.output
    again = CliRunner().invoke(COMMANDS["bench"], ["crops", *command])
    assert isinstance(again.exception, TkError)


def test_bench_crops__generated_scenes_are_the_default() -> None:
    groups = dict(crops._pictures(CropsBenchOptions(limit=2, sizes=(256,))))
    (files,) = groups.values()
    assert len(files) == 2
    assert all(data.startswith(b"\xff\xd8") for data in files)
