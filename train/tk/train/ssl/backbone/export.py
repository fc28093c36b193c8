"""A pre-trained backbone in a file of its own, and back: `file::PATH:slt_vitsmall_patch16`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tk.runtime.errors import TkError
from tk.runtime.files import atomic_path, write_json
from tk.train.run.checkpoint import why_unreadable
from tk.train.ssl.backbone.base import Backbone
from tk.train.ssl.backbone.finite import check_finite
from tk.train.ssl.backbone.timm import make_timm
from tk.train.ssl.backbone.vit import NAME, make_vit

KIND = "file::"

FORMAT = "tk-backbone"
"""`metadata.format` of such a file."""


def export_backbone(path: Path, backbone: Backbone, shape: dict[str, Any], about: Any) -> None:
    """Write the weights under timm's names, and what they are for; a `.json` beside repeats that.

    Args:
        shape: what `build` needs: `image_size`, and `model` of timm or the own transformer's
            `patch_size`, `embed_dim`, `depth`, `num_heads`, `mlp_ratio`.
        about: anything else that is plain JSON.
    """
    metadata = {"format": FORMAT, "name": NAME, "backbone": shape, **about}
    state = {
        name: value.detach().cpu().clone() for name, value in backbone.vit.state_dict().items()
    }
    # Given a path, torch would put its name into the archive, and that is another each time.
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        torch.save({"model": state, "metadata": json.loads(json.dumps(metadata))}, file)
    write_json(path.with_suffix(path.suffix + ".json"), metadata)


def build(shape: dict[str, Any]) -> Backbone:
    """A backbone without weights of the shape that a file states."""
    if shape.get("model"):
        return make_timm(shape["model"], shape["image_size"])
    return make_vit(
        shape["image_size"],
        shape["patch_size"],
        shape["embed_dim"],
        shape["depth"],
        shape["num_heads"],
        mlp_ratio=shape["mlp_ratio"],
    )


def load_dinov2_backbone(spec: str) -> nn.Module:
    """Load what `tk train ssl --export-backbone` wrote.

    Args:
        spec: `file::PATH:slt_vitsmall_patch16`; PATH may hold ":". The file's metadata say what
            shape the transformer has, and whether it is another model of timm.

    Returns:
        timm's transformer in eval mode: (B, 3, H, W) normalised pictures -> (B, D) class tokens.

    Raises:
        TkError: another spec, no such file, or tensors that do not fit or are not finite.
    """
    path_text, _, name = spec.removeprefix(KIND).rpartition(":")
    if not spec.startswith(KIND) or not path_text or name != NAME:
        raise TkError(
            "this is no specification of a backbone", expected=f"file::PATH:{NAME}", found=spec
        )
    vit: nn.Module = read_backbone(Path(path_text))[0].vit
    return vit


def read_backbone(path: Path) -> tuple[Backbone, dict[str, Any]]:
    """Build the backbone of a file of `export_backbone` again.

    Returns:
        backbone in eval mode, and the file's metadata.

    Raises:
        TkError: no such file, or tensors that do not fit its metadata or are not finite.
    """
    content = _read(path)
    backbone = build(content["metadata"]["backbone"])
    try:
        backbone.vit.load_state_dict(content["model"])
    except RuntimeError as error:
        raise TkError(
            f"the weights in {path} do not fit their own metadata",
            found=" ".join(str(error).split())[:300],
        ) from None
    check_finite(backbone, path)
    return backbone.eval(), content["metadata"]


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise TkError(f"there is no backbone file {path}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises six kinds for damaged files
        raise TkError(f"{path} cannot be read as a backbone", found=why_unreadable(error)) from None
    if not (isinstance(content, dict) and "backbone" in content.get("metadata", {})):
        raise TkError(f"{path} is not a file of --export-backbone")
    found: dict[str, Any] = content
    return found
