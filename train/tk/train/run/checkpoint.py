"""Checkpoints: flat dicts of tensors, numbers and strings that load with `weights_only=True`."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tk.runtime.errors import EnvironmentLacks, TkError
from tk.runtime.files import atomic_path
from tk.runtime.preprocess import CropSpec, ImageSpec, spec_from_json

FORMAT = "tk-checkpoint"
VERSION = 2
KEYS = ("task", "config", "classes", "image_spec", "crop_spec", "step", "epoch", "model")
"""Keys of every checkpoint beside `format` and `version`; `tk.train.run.trainer` adds the rest."""


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint, whole or not at all; equal states give equal bytes.

    Args:
        state: the keys of `KEYS` and any others; values are tensors, numbers, strings, None, and
            dicts, lists or tuples of these.
    """
    full = {"format": FORMAT, "version": VERSION, **state}
    _check_plain(full, "state")
    try:
        # Given a path, torch would put its name into the archive, and that is another each time.
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            torch.save(full, file)
    except RuntimeError as error:  # what torch makes of a write that failed
        if "DataLoader" in str(error):  # raised wherever the main process happens to be
            raise
        kept = f"; {path.name} is the previous one" if path.exists() else ""
        raise EnvironmentLacks(
            f"{path} could not be written{kept}",
            found=f"{shutil.disk_usage(path.parent).free / 1e6:.0f} MB free on that disk: {error}",
            fix="make room, then go on: tk train distill with the same command, others with "
            "--resume last",
        ) from None


def load_checkpoint(path: Path, task: str | None = None) -> dict[str, Any]:
    """Read a checkpoint to the CPU; nothing in it is executed.

    Args:
        task: what the checkpoint must be for (`detector`, ...); None takes any.

    Raises:
        TkError: missing, truncated, foreign or newer file, or another task.
    """
    if not path.is_file():
        raise TkError(f"checkpoint {path} does not exist")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises six kinds, all of which mean the same here
        raise TkError(
            f"{path} cannot be read as a checkpoint: truncated, or not written by tk train",
            found=why_unreadable(error),
            fix="use another checkpoint of the run (checkpoint_last.pth, checkpoint_best.pth)",
        ) from None
    _check_format(path, state, task)
    checked: dict[str, Any] = state
    return checked


def why_unreadable(error: Exception) -> str:
    """One line on why `torch.load(weights_only=True)` refused a file.

    Torch's own words for a foreign file advise to load it without that safety: they are left out.
    """
    if isinstance(error, pickle.UnpicklingError):
        return "something else than tensors and plain values written by torch.save"
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _check_format(path: Path, state: Any, task: str | None) -> None:
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise TkError(f"{path} is not a checkpoint of tk", expected=f"format {FORMAT!r}")
    if state.get("version") != VERSION:
        raise TkError(
            f"{path} was written by another version of tk",
            expected=f"checkpoint version {VERSION}",
            found=str(state.get("version")),
        )
    if missing := [key for key in KEYS if key not in state]:
        raise TkError(f"{path} is not a whole checkpoint", found="no " + ", ".join(missing))
    if task is not None and state["task"] != task:
        raise TkError(f"{path} is for another task", expected=task, found=str(state["task"]))


def _check_plain(value: Any, where: str) -> None:
    """Refuse at once what `torch.load(weights_only=True)` would refuse later."""
    if isinstance(value, dict):
        for key, inner in value.items():
            _check_plain(inner, f"{where}[{key!r}]")
    elif type(value) in (list, tuple):
        for inner in value:
            _check_plain(inner, where)
    elif not (
        value is None or isinstance(value, torch.Tensor) or type(value) in (bool, int, float, str)
    ):
        raise TypeError(f"{where} is a {type(value).__name__}, which a checkpoint cannot hold")


def load_weights(model: nn.Module, state: dict[str, Any], path: Path) -> None:
    """Put the weights of a checkpoint into a model: their moving average, if the run kept one.

    Raises:
        TkError: they are of another architecture (another version of tk wrote them).
    """
    try:
        model.load_state_dict(result_weights(state, "model"))
    except RuntimeError as error:
        raise TkError(
            f"the weights in {path} do not fit the {state['task']} of this version of tk",
            found=" ".join(str(error).split())[:300],
            fix="train again, or use the version of tk that wrote the checkpoint",
        ) from None


def result_weights(state: dict[str, Any], part: str) -> dict[str, torch.Tensor]:
    """State dict of a part of the training (see `TrainTask.parts`) as results should use it."""
    weights = dict(state["model"] if part == "model" else state["others"][part])
    prefix = f"{part}."
    for name, value in (state.get("average") or {}).items():
        if name.startswith(prefix):
            weights[name[len(prefix) :]] = value
    return weights


def config_of(state: dict[str, Any]) -> dict[str, Any]:
    """The resolved configuration the checkpoint was trained with."""
    config: dict[str, Any] = json.loads(state["config"])
    return config


def classes_of(state: dict[str, Any]) -> tuple[str, ...]:
    """Class names, in the order of the model's outputs."""
    return tuple(json.loads(state["classes"]))


def image_spec_of(state: dict[str, Any]) -> ImageSpec:
    """How a picture becomes the model's input."""
    return spec_from_json(ImageSpec, json.loads(state["image_spec"]))


def crop_spec_of(state: dict[str, Any]) -> CropSpec | None:
    """How an object is cut out, for models that look at crops."""
    text = state["crop_spec"]
    return spec_from_json(CropSpec, json.loads(text)) if text else None
