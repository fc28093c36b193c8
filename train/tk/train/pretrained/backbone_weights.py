"""A backbone's weights from a local file: nothing in it is executed, nothing may be missing.

What can be read: files of timm (also of another image size), DINO-style files with their prefixes,
Meta's own DINOv2 and DINOv3 files, and checkpoints of tk. Names and position
embeddings are converted by timm's own functions, those that `pretrained=True` goes through.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import pickle
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import safetensors
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tk.runtime.errors import TkError
from tk.train.run.checkpoint import (
    FORMAT,
    config_of,
    load_checkpoint,
    result_weights,
    why_unreadable,
)

State = dict[str, Tensor]

WITH_BACKBONE = ("embedder", "encoder", "classifier")
"""Tasks of checkpoints of tk with a timm backbone in them, beside `ssl`."""

_WRAPPERS = (
    *("teacher", "state_dict_ema", "model_ema", "state_dict"),
    *("model", "module", "backbone", "encoder"),
)
"""Keys under which files keep the weights; the average of a run goes before its last step."""

_PREFIXES = ("_orig_mod.", "module.", "model.", "teacher.", "backbone.", "encoder.")


def load_backbone(backbone: nn.Module, path: Path) -> None:
    """Fill a timm model from a .pth, .pt or .safetensors file; a classifier is left out.

    Raises:
        TkError: the file cannot be read safely, or a tensor is missing, misshapen or one too many.
    """
    content = _read(path)
    if content.get("format") == FORMAT:
        content = _of_checkpoint(path)
    stated = sorted(set(_model_names(content)))
    own = backbone.state_dict()
    state = _without_prefixes(_unwrapped(content, path), own)
    converted = _converted(backbone, state, path)
    if problem := _misfit(backbone, own, state, converted):
        raise _refusal(backbone, path, problem, stated)
    backbone.load_state_dict({name: converted[name] for name in own})
    resampled = [k for k in own if k in state and state[k].shape != own[k].shape]
    if resampled:
        text = ", ".join(f"{k} {_shape(state[k])} -> {_shape(own[k])}" for k in resampled[:3])
        print(f"{path.name}: {len(resampled)} tensors resampled: {text}", file=sys.stderr)


def _read(path: Path) -> dict[str, Any]:
    """Whatever the file holds, as a dict."""
    if not path.is_file():
        raise TkError(f"there is no weights file {path}")
    try:
        if path.suffix == ".safetensors":
            with safetensors.safe_open(path, "pt") as file:
                metadata = file.metadata()
            return {"state_dict": load_file(path), "metadata": metadata}
        # Checkpoints of timm's own training script hold such a plain record of options.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises six kinds for damaged files, safetensors its own
        if isinstance(error, pickle.UnpicklingError) and zipfile.is_zipfile(path):
            raise TkError(
                f"{path} holds Python objects, which would have to be executed to be read",
                expected="tensors and plain values only",
                fix="save model.state_dict() instead of the model, or make a .safetensors file",
            ) from None
        reason = why_unreadable(error)
        raise TkError(
            f"{path} holds no weights that can be loaded safely: damaged, or another kind of file",
            expected=".pth or .pt written by torch.save, or .safetensors",
            found=reason,
        ) from None
    if not isinstance(content, dict):
        raise TkError(f"{path} holds no weights", found=f"a {type(content).__name__}")
    return content


def _of_checkpoint(path: Path) -> dict[str, Any]:
    """The backbone in a checkpoint of ours; the head is another's."""
    state = load_checkpoint(path)
    if state["task"] == "ssl":  # the teacher of `tk train ssl`, beside the token of hidden patches
        own = {name.removeprefix("vit."): value for name, value in state["model"].items()}
        return {"model": {name: own[name] for name in own if name != "mask_token"}}
    if state["task"] not in WITH_BACKBONE:
        raise TkError(
            f"{path} is for another task",
            expected=", ".join(WITH_BACKBONE),
            found=str(state["task"]),
        )
    metadata = {"model_id": config_of(state)["model_id"]}
    return {"model": result_weights(state, "model"), "metadata": metadata}


def _model_names(value: Any) -> Iterator[str]:
    """Names of timm models anywhere in what is stored beside the tensors."""
    if isinstance(value, argparse.Namespace):
        value = vars(value)
    if isinstance(value, dict):
        for inner in value.values():
            yield from _model_names(inner)
    elif isinstance(value, str) and len(value) < 100:
        name = value.rpartition("/")[2]  # `timm/resnet18.a1_in1k`, as the hub calls it
        if timm.is_model(name.partition(".")[0]):
            yield name


def _unwrapped(content: dict[str, Any], path: Path) -> State:
    while name := next((key for key in _WRAPPERS if isinstance(content.get(key), dict)), None):
        content = content[name]
    state = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if not state:
        raise TkError(
            f"{path} holds no weights",
            expected=f"tensors by name, or a dict of them under {', '.join(_WRAPPERS)}",
            found=", ".join(str(key) for key in list(content)[:8]) or "nothing",
        )
    return state


def _without_prefixes(state: State, own: State) -> State:
    """Keep what a wrapper holds and drop its name: `teacher.backbone.norm.bias` -> `norm.bias`."""
    wrappers = [p for p in _PREFIXES if not any(name.startswith(p) for name in own)]
    while prefix := next((p for p in wrappers if any(name.startswith(p) for name in state)), None):
        state = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    return state


def _converted(backbone: nn.Module, state: State, path: Path) -> State:
    """Names and position embeddings as this model has them, by timm's function for its family."""
    convert = _filter_of(backbone)
    if convert is None:
        return state
    try:
        # The one for DINOv3 prints a line for every block.
        with contextlib.redirect_stdout(io.StringIO()):
            return convert(dict(state), backbone)
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise TkError(
            f"timm cannot convert {path} for {_architecture(backbone)}",
            found=f"{type(error).__name__}: {error}"[:300],
            fix="give weights of the same --model_id",
        ) from None


def _filter_of(backbone: nn.Module) -> Callable[[State, nn.Module], State] | None:
    module = sys.modules[timm.models.model_entrypoint(_architecture(backbone)).__module__]
    found: Callable[[State, nn.Module], State] | None
    found = getattr(module, "checkpoint_filter_fn", None)
    return found


def _architecture(backbone: Any) -> str:
    return str(backbone.pretrained_cfg["architecture"])


def _misfit(backbone: nn.Module, own: State, state: State, converted: State) -> str:
    """Say what does not fit; empty if all does."""
    missing = [k for k in own if k not in converted]
    wrong = [k for k in own if k in converted and converted[k].shape != own[k].shape]
    shapes = [f"{k} {_shape(converted[k])} for {_shape(own[k])}" for k in wrong]
    extra = list(_extra(backbone, own, state, converted))
    return ", ".join(
        f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for what, names in (("missing", missing), ("misshapen", shapes), ("too many", extra))
        if names
    )


def _extra(backbone: nn.Module, own: State, state: State, converted: State) -> Iterator[str]:
    """Tensors that the file's network computes with and ours would silently do without.

    Whole modules that ours lacks (classifiers, projection heads, decoders) are none.
    """
    classifier = getattr(backbone, "pretrained_cfg", {}).get("classifier") or ()
    heads = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    modules = {name.partition(".")[0] for name, _ in backbone.named_parameters() if "." in name}
    buffers = {name for name, _ in backbone.named_buffers()}
    for name, value in converted.items():
        if name in own or name in buffers or name.startswith(tuple(f"{head}." for head in heads)):
            continue
        if name.partition(".")[0] in modules and bool(value.any()):
            yield name
    for name, value in state.items():
        # timm drops the biases of DINOv3 for models without them: in Meta's own files they are 0.
        gone = name not in converted and name.replace("qkv.bias", "q_bias") not in converted
        if name.endswith("attn.qkv.bias") and gone and bool(value.any()):
            yield name


def _refusal(backbone: nn.Module, path: Path, problem: str, stated: list[str]) -> TkError:
    model = _architecture(backbone)
    others = [name for name in stated if name.partition(".")[0] != model]
    fix = "give weights of the same --model_id"
    if others:
        fix = f"--model_id {' or '.join(others)}: the file says that it is of this model"
    return TkError(
        f"{path} does not fit the backbone {model}",
        expected=f"{len(backbone.state_dict())} tensors",
        found=problem,
        fix=fix,
    )


def _shape(tensor: Tensor) -> str:
    return "x".join(str(size) for size in tensor.shape) or "scalar"
