"""Where a training of SAM-2 starts: random weights, a folder or a model of the hub."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from transformers import Sam2Config as LibraryConfig
from transformers import Sam2Model

from tk.runtime.errors import TkError
from tk.runtime.files import read_json
from tk.train.pretrained.hub import fetch, is_hub_id
from tk.train.pretrained.load import load_pretrained, result_folder
from tk.train.sam2.config import SMALL
from tk.train.sam2.model import Normalisation
from tk.train.sam2.small import small_config, small_model

SMALL_SIDE = 384
"""Side of the canvas of a small model, pixels, unless another is asked for."""

ACCEPTED = "small, a Hugging Face folder of SAM-2, or a hub id such as facebook/sam2.1-hiera-tiny"
MODEL_TYPES = ("sam2", "sam2_video")


def open_model(given: str, size: int) -> tuple[Sam2Model, Normalisation]:
    """Open what `--model` names.

    Args:
        given: see `ACCEPTED`; a run folder stands for its result.
        size: side of the canvas, pixels; 0: the model's own.

    Raises:
        TkError: nothing there, another kind of model, or weights that are not whole.
        EnvironmentLacks: a hub id that is not on this machine, and no network.
    """
    if given == SMALL:
        return small_model(
            checked_side(size or SMALL_SIDE, small_config(SMALL_SIDE))
        ), Normalisation()
    path = Path(given)
    if path.is_dir():
        return _open_folder(result_folder(path), size)
    if path.is_file():
        raise _is_a_file(path)
    if is_hub_id(given):
        return _open_folder(fetch(given), size)
    raise TkError(f"--model {given} does not exist", expected=ACCEPTED)


def _is_a_file(path: Path) -> TkError:
    if path.suffix == ".safetensors":
        fix = f"give the folder: --model {path.parent}"
    else:
        # The converter belongs to export, on which training does not stand.
        call = f"load_original(Path('{path}'), '')[0].save_pretrained('{path.stem}')"
        fix = (
            f'make a folder of an original .pt first: python -c "from pathlib import Path; '
            f'from tk.export.sources.sam2 import load_original; {call}", then --model {path.stem}'
        )
    return TkError(f"training cannot start from the file {path.name}", expected=ACCEPTED, fix=fix)


def _open_folder(folder: Path, size: int) -> tuple[Sam2Model, Normalisation]:
    if not (folder / "config.json").is_file():
        raise TkError(f"{folder} has no config.json", expected=ACCEPTED)
    config: Any = read_json(folder / "config.json")
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind not in MODEL_TYPES:
        raise TkError(
            f"{folder} is not a folder of SAM-2",
            expected="model_type " + " or ".join(MODEL_TYPES),
            found=f"model_type {kind!r}",
        )
    return _load(folder, size), _normalisation(folder)


def checked_side(side: int, config: Any) -> int:
    """`side`, if windows and pooling of the configured model tile a canvas of it.

    Raises:
        TkError: they do not.
    """
    backbone = config.vision_config.backbone_config
    pools = 2**backbone.num_query_pool_stages
    step = backbone.patch_stride[0] * math.lcm(backbone.window_size_per_stage[0], pools)
    if side % step:
        raise TkError(
            "SAM-2 cannot take a canvas of this size",
            expected=f"a multiple of {step} pixels",
            found=str(side),
            fix=f"--size {max(1, round(side / step)) * step}",
        )
    return side


def _resized(folder: Path, size: int) -> Any:
    """Configuration of the folder's model, for a canvas of `size`; 0 leaves it."""
    config: Any = LibraryConfig.from_pretrained(folder, local_files_only=True)
    if size:
        checked_side(size, config)
        config.prompt_encoder_config.image_size = size
        config.vision_config.backbone_feature_sizes = [[size // s] * 2 for s in (4, 8, 16)]
        config.vision_config.backbone_config.image_size = [size, size]
    return config


def _load(folder: Path, size: int) -> Sam2Model:
    config = _resized(folder, size)
    found: Sam2Model = load_pretrained(Sam2Model, folder, config=config)
    return found


def _normalisation(folder: Path) -> Normalisation:
    """As the folder's image processor states it."""
    for name in ("preprocessor_config.json", "processor_config.json"):
        value: Any = read_json(folder / name) if (folder / name).is_file() else {}
        value = value.get("image_processor", value)
        if "image_mean" in value and "image_std" in value:
            return Normalisation(tuple(value["image_mean"]), tuple(value["image_std"]))
    return Normalisation()
