from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tk.runtime.images import read_image
from tk.train.embedder.report.style import LeftOut
from tk.train.ssl.plots import draw_curves, write_curves


def records(steps: int = 60) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        found.append(
            {
                "step": step,
                "loss": 7 - step / 20,
                "dino_loss": 5 - step / 20,
                "ibot_loss": 2.0,
                "teacher_entropy": 3 - step / 40,
                "entropy_of_mean": 4.0,
            }
        )
        if step % 20 == 0:
            figures = {"knn": 0.5 + step / 200, "linear": 0.8, "rank_me": 10.0 + step}
            found.append({"step": step, "event": "eval", **figures})
    return [*found, {"step": 40, "event": "best", "metric": "knn", "value": 0.7}]


def labels(axes: Any) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_curves__hold_what_was_recorded() -> None:
    floors = {"raw_pixels": {"knn_1": 0.98, "knn_20": 0.967, "linear": 0.972}}
    loss, entropy, rank, probes = draw_curves(records(), 256, floors).axes
    assert labels(loss) == ["DINO", "iBOT", "ln 256: nothing learned", "best"]
    assert labels(entropy)[:2] == ["of an answer", "of the mean answer"]
    assert list(rank.lines[0].get_ydata()) == [30, 50, 70]  # type: ignore[arg-type]
    assert labels(probes) == [
        *("kNN-20", "linear", "kNN-20, raw pixels", "linear, raw pixels", "best")
    ]
    assert [line.get_ydata()[0] for line in probes.lines[2:4]] == [0.967, 0.972]  # type: ignore[index]


def test_curves__a_run_without_labels_says_what_is_missing() -> None:
    bare: list[dict[str, Any]] = [{"step": 1, "loss": 5.0}, {"step": 2, "loss": None}]
    loss, entropy, rank, probes = draw_curves(bare, 256).axes
    assert labels(loss) == ["loss", "ln 256: nothing learned"]
    for axes in (entropy, rank, probes):
        assert [text.get_text() for text in axes.texts] == ["not recorded"]
        assert not axes.lines


def test_curves__are_a_png_that_does_not_change(tmp_path: Path) -> None:
    path = write_curves(tmp_path, records(), 256)
    assert path.name == "curves.png"
    image, first = read_image(path), path.read_bytes()
    assert image.shape[0] > 400
    assert image.min() < 100  # not blank
    write_curves(tmp_path, records(), 256)
    assert path.read_bytes() == first


def test_curves__nothing_recorded_is_said() -> None:
    with pytest.raises(LeftOut, match="no step and no evaluation"):
        draw_curves([{"event": "start", "step": 0}], 256)
