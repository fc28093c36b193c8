from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tk.benchmarks import ssl
from tk.benchmarks.ssl import SslBenchOptions, bench_ssl, parse_runs
from tk.benchmarks.ssl_report import table
from tk.runtime.errors import TkError


def test_parse_runs__names_and_seeds() -> None:
    assert parse_runs(["dino=3", "none=1"]) == {"dino": 3, "none": 1}
    for text in ("dino", "dino=0", "dino=x", "simclr=1"):
        with pytest.raises(TkError, match="names no runs"):
            parse_runs([text])


def test_bench_ssl__runs_are_kept_and_summed_up(tmp_path: Path, monkeypatch: Any) -> None:
    tiny: dict[str, Any] = dict(vit_depth=1, vit_embed_dim=16, vit_num_heads=1, aug_local_crops=1)
    monkeypatch.setattr(ssl, "RECIPE", ssl.RECIPE | tiny)
    options = SslBenchOptions(tmp_path / "work", {"dino": 2, "none": 1}, epochs=4)
    assert bench_ssl(tmp_path / "out", options, only="dino-1") == {}
    spent = (tmp_path / "work" / "dino-1.json").read_bytes()
    results = bench_ssl(tmp_path / "out", options)
    assert (tmp_path / "work" / "dino-1.json").read_bytes() == spent
    written = json.loads((tmp_path / "out" / "results.json").read_text())
    assert written["variants"] == results["variants"] and written["runs"] == results["runs"]
    dino, none = results["variants"]
    assert (dino["seeds"], dino["steps"], none["steps"]) == (2, 88, 22)
    assert dino["knn"]["mean"] == pytest.approx(sum(dino["knn"]["by_seed"]) / 2)
    assert set(results["floors"]) == {"raw_pixels", "untrained"}
    assert len(table(results)) == 5
    text = (tmp_path / "out" / "results.md").read_text("utf-8")
    assert "| raw pixels | 0 | 96.7 |" in text and "dino-1" in text
    with pytest.raises(TkError, match="no run 'dino-7'"):
        bench_ssl(tmp_path / "out2", options, only="dino-7")
