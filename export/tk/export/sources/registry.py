"""What `tk export` can read: task -> module with `open_source(source, max_batch)`."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any

from tk.export.model import ExportModel
from tk.export.sources.source import Source
from tk.runtime.bundle import MANIFEST
from tk.runtime.errors import TkError
from tk.runtime.files import read_json
from tk.train.pretrained.hub import fetch, is_hub_id, licence_of
from tk.train.pretrained.load import RESULT

SOURCES: dict[str, str] = {
    "detector": "tk.export.sources.detector",
    "segmenter": "tk.export.sources.segmenter",
    "embedder": "tk.export.sources.embedder",
    "classifier": "tk.export.sources.classifier",
    "backbone": "tk.export.sources.backbone",
    "grounding-dino": "tk.export.sources.grounding_dino",
    "sam2": "tk.export.sources.sam2",
}
"""Task -> module. Also the task in a checkpoint of `tk train`."""

MODEL_TYPES: dict[str, str] = {
    "grounding-dino": "grounding-dino",
    "mm-grounding-dino": "grounding-dino",
    "sam2": "sam2",
    "sam2_video": "sam2",
}
"""`model_type` in config.json -> task."""

OPTIONS: dict[str, tuple[str, ...]] = {
    "size": ("grounding-dino", "sam2"),
    "bake": ("grounding-dino",),
    "sam2-cfg": ("sam2",),
    "backbone": ("classifier",),
}
"""Option -> tasks that it means something for."""

TRAINING = "training.json"
"""What a training says of such a folder beside the library's files."""

CHECKPOINTS = ("checkpoint_best.pth", "checkpoint_last.pth")

HEADS = "models"
"""Folder of the heads in a run of `tk train distill`."""

ENCODER = "encoder"
"""Task of a checkpoint that holds a backbone alone."""

ACCEPTED = (
    "a run folder or checkpoint of tk train, or its --export-backbone file; "
    "a Hugging Face folder, .safetensors file with "
    f"config.json beside it, or hub id (ORGANISATION/MODEL) of {', '.join(MODEL_TYPES)}; "
    "tk/grounding-dino-tools or tk/sam2-tools, which come with tk; "
    "an original SAM-2 .pt file (--sam2-cfg names its configuration)"
)


def open_source(
    source: Path | str,
    max_batch: int,
    *,
    size: tuple[int, int] | None = None,
    prompt: str = "",
    sam2_cfg: str = "",
    backbone: Path | None = None,
) -> ExportModel:
    """Open what the user named.

    Args:
        source: see `ACCEPTED`.
        max_batch: largest number of pictures per call that will be proved.
        size, prompt, sam2_cfg, backbone: see `Source`.

    Raises:
        TkError: nothing there, nothing that can be exported, or an option that does not apply.
        EnvironmentLacks: a hub id, and no network.
    """
    found = find_source(str(source), sam2_cfg=sam2_cfg)
    options = {"size": size, "bake": prompt, "sam2-cfg": sam2_cfg, "backbone": backbone}
    for option, value in options.items():
        if value and found.task not in OPTIONS[option]:
            raise TkError(
                f"--{option} means nothing for {source}",
                expected=f"a model of {' or '.join(OPTIONS[option])}",
                found=found.task,
            )
    wanted = replace(
        found, size=size or found.size, prompt=prompt, sam2_cfg=sam2_cfg, backbone=backbone
    )
    model: ExportModel = importlib.import_module(SOURCES[found.task]).open_source(wanted, max_batch)
    return model


def find_source(given: str, *, sam2_cfg: str = "") -> Source:
    """Find a model on disk, in the hub's cache or on the hub, and say of which task it is.

    Raises:
        TkError: as `open_source`.
    """
    path = Path(given)
    name = path.resolve().name  # the rest of a path is nobody else's business
    if path.is_dir():
        return _folder(path, name)
    if path.is_file():
        return _file(path, name, sam2_cfg)
    if is_hub_id(given):
        return _folder(fetch(given), given)
    raise TkError(f"{given} does not exist", expected=ACCEPTED)


def _folder(path: Path, called: str) -> Source:
    for name in CHECKPOINTS:
        if (path / name).is_file():
            return _checkpoint(path / name, called)
    if (path / HEADS / "teacher").is_dir():
        raise TkError(
            f"{path} is a run of tk train distill, which holds many models",
            expected="one of them: a head, a head with --backbone, or a student's folder",
            fix=f"tk export {path / HEADS / 'student' / 'seed0.pth'} OUT "
            f"--backbone {path / 'backbone.pth'} --images DIR; "
            f"or all of them: tk bench table {path}",
        )
    if (path / "config.json").is_file():
        task, canvas = _task_of(path), _trained_canvas(path)
        return Source(path, task, canvas, name=called, licence=licence_of(path))
    if (path / MANIFEST).is_file():
        raise TkError(
            f"{path} is a bundle already: tk export reads checkpoints",
            expected=ACCEPTED,
            fix=f"for TensorRT plans of its graphs: tk plan {path}; for another precision: "
            f"tk export CHECKPOINT {path} --images DIR --precision …",
        )
    raise TkError(
        f"{path} holds nothing that can be exported",
        expected=ACCEPTED,
        found=f"a folder without {', '.join(CHECKPOINTS)} or config.json",
    )


def _file(path: Path, called: str, sam2_cfg: str) -> Source:
    if path.suffix == ".safetensors":
        if not (path.parent / "config.json").is_file():
            raise TkError(
                f"{path} has no config.json beside it, so its architecture is not known",
                fix=f"put the config.json of the model into {path.parent}",
            )
        return Source(path, _task_of(path.parent), name=called, licence=licence_of(path.parent))
    if sam2_cfg:
        return Source(path, "sam2", name=called, licence=licence_of(path.parent))
    return _checkpoint(path, called)


def _task_of(folder: Path) -> str:
    config: Any = read_json(folder / "config.json")
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind not in MODEL_TYPES:
        raise TkError(
            f"{folder / 'config.json'} is of a model that tk export does not know",
            expected="model_type " + ", ".join(MODEL_TYPES),
            found=f"model_type {kind!r}",
        )
    return MODEL_TYPES[kind]


def _checkpoint(path: Path, called: str) -> Source:
    from tk.train.run.checkpoint import load_checkpoint

    try:
        task = str(load_checkpoint(path)["task"])
    except TkError as error:
        content = _plain_content(path)
        if _is_backbone(content):
            return Source(path, "backbone", name=called, licence=licence_of(path.parent))
        if _is_original_sam2(content):
            return Source(path, "sam2", name=called, licence=licence_of(path.parent))
        raise TkError(
            error.what, expected=error.expected or ACCEPTED, found=error.found, fix=error.fix
        ) from None
    if task == ENCODER:
        raise TkError(
            f"{path} is a backbone alone: it has features, but no classes",
            fix=f"export a head on it: tk export HEAD.pth OUT --backbone {path} --images DIR",
        )
    if task not in SOURCES:
        raise TkError(f"cannot export a checkpoint of task {task!r}", expected=", ".join(SOURCES))
    if task in MODEL_TYPES.values():
        return _trained_model(path, task, called)
    return Source(path, task, name=called)


def _trained_model(checkpoint: Path, task: str, called: str) -> Source:
    """The Hugging Face folder that a run of a library's model leaves when it is finished."""
    folder = checkpoint.parent / RESULT
    if not (folder / "config.json").is_file():
        raise TkError(
            f"the run {called} has no {RESULT}/ to export: it is not finished",
            expected=f"{RESULT}/config.json, which the end of a training writes",
            fix="go on with it: the same tk train command with --resume last",
        )
    canvas = _trained_canvas(folder)
    return Source(folder, task, canvas, name=called, licence=licence_of(folder))


def _trained_canvas(folder: Path) -> tuple[int, int] | None:
    """Canvas that a training of tk notes in the folder it leaves."""
    facts: Any = read_json(folder / TRAINING) if (folder / TRAINING).is_file() else {}
    side = facts.get("size") if isinstance(facts, dict) else None
    return (int(side), int(side)) if side else None


def _plain_content(path: Path) -> dict[str, Any]:
    """What a file of PyTorch holds; nothing, if it is another kind of file."""
    import torch

    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception:  # torch raises six kinds, all of which mean that this is something else
        return {}
    return state if isinstance(state, dict) else {}


def _is_backbone(content: dict[str, Any]) -> bool:
    from tk.train.ssl.backbone.export import FORMAT

    metadata = content.get("metadata")
    return isinstance(metadata, dict) and metadata.get("format") == FORMAT


def _is_original_sam2(content: dict[str, Any]) -> bool:
    weights = content.get("model", content)
    return isinstance(weights, dict) and any("image_encoder.trunk" in str(key) for key in weights)
