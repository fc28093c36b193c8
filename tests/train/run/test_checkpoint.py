from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tk.runtime.errors import TkError
from tk.runtime.preprocess import CropSpec, ImageSpec, spec_to_json
from tk.train.run.checkpoint import (
    classes_of,
    crop_spec_of,
    image_spec_of,
    load_checkpoint,
    save_checkpoint,
)
from tk.train.run.rng import rng_state, set_rng_state


def state(**changes: Any) -> dict[str, Any]:
    spec = json.dumps(spec_to_json(ImageSpec(4, 6, "stretch", "center", "linear", 0)))
    crop = '{"margin": 0.2, "background": "mask", "fill": [1, 2, 3]}'
    values: dict[str, Any] = dict(task="toy", config="{}", classes='["клещи"]', image_spec=spec)
    values |= dict(crop_spec=crop, step=3, epoch=0, model={"w": torch.arange(5.0)})
    return values | changes


def test_checkpoint__round_trip(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    save_checkpoint(path, state())
    loaded = load_checkpoint(path, "toy")
    assert torch.equal(loaded["model"]["w"], torch.arange(5.0))
    assert classes_of(loaded) == ("клещи",)
    assert image_spec_of(loaded) == ImageSpec(4, 6, "stretch", "center", "linear", 0)
    assert crop_spec_of(loaded) == CropSpec(0.2, "mask", (1, 2, 3))
    assert crop_spec_of(state(crop_spec="")) is None


def test_checkpoint__equal_states_give_equal_bytes(tmp_path: Path) -> None:
    """Steps of tk train distill are skipped by the hash of such files."""
    for name in ("a.pth", "other.pth"):
        save_checkpoint(tmp_path / name, state())
    assert (tmp_path / "a.pth").read_bytes() == (tmp_path / "other.pth").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pth", "other.pth"]


def write_truncated(path: Path) -> None:
    save_checkpoint(path, state())
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: None, "does not exist"),
        (write_truncated, "cannot be read"),
        (lambda path: path.write_bytes(b""), "cannot be read"),
        (lambda path: path.write_text("hello"), "cannot be read"),
        (lambda path: torch.save(torch.nn.Linear(1, 1), path), "cannot be read"),
        (lambda path: torch.save({"model": {}}, path), "not a checkpoint of tk"),
        (
            lambda path: torch.save({"format": "tk-checkpoint", "version": 9}, path),
            "another version",
        ),
        (
            lambda path: torch.save({"format": "tk-checkpoint", "version": 2}, path),
            "no task, config",
        ),
        (lambda path: save_checkpoint(path, state(task="other")), "another task"),
    ],
)
def test_checkpoint__bad_file_is_explained(tmp_path: Path, write: Any, message: str) -> None:
    path = tmp_path / "a.pth"
    write(path)
    with pytest.raises(TkError, match=message):
        load_checkpoint(path, "toy")


def test_checkpoint__failed_write_keeps_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    save_checkpoint(path, state())
    with pytest.raises(TypeError, match="float64"):
        save_checkpoint(path, state(step=np.float64(1)))
    assert load_checkpoint(path)["step"] == 3 and list(tmp_path.iterdir()) == [path]


def test_rng_state__repeats_all_generators(tmp_path: Path) -> None:
    def draw() -> list[float]:
        return [float(torch.rand(1)), float(np.random.randn()), random.gauss(0, 1)]

    draw()  # leaves a cached second gauss value, which is state too
    save_checkpoint(tmp_path / "a.pth", state(rng=rng_state()))
    first = draw()
    draw()
    set_rng_state(load_checkpoint(tmp_path / "a.pth")["rng"])
    assert draw() == first


def test_load__a_file_of_another_kind_is_not_advised_to_be_trusted(tmp_path: Path) -> None:
    (tmp_path / "notes.pth").write_text("#!/bin/sh\necho hello\n")
    with pytest.raises(TkError, match="cannot be read as a checkpoint") as caught:
        load_checkpoint(tmp_path / "notes.pth")
    assert "weights_only" not in str(caught.value)
    assert "tensors and plain values" in str(caught.value)
