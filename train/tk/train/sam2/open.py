"""Where a training of SAM-2 starts: random weights, a folder or a model of the hub."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from logging import CRITICAL
from pathlib import Path
from typing import Any

import torch
from transformers import Sam2Config as LibraryConfig
from transformers import Sam2Model

from tk.runtime.errors import EnvironmentLacks, TkError
from tk.runtime.files import read_json
from tk.train.sam2.config import SMALL
from tk.train.sam2.model import Normalisation
from tk.train.sam2.small import small_config, small_model

SMALL_SIDE = 256
"""Side of the canvas of a small model, pixels, unless another is asked for."""

ACCEPTED = "small, a Hugging Face folder of SAM-2, or a hub id such as facebook/sam2.1-hiera-tiny"
MODEL_TYPES = ("sam2", "sam2_video")
MODEL_FOLDER = "model"
"""Where a run keeps the folder of its result."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


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
        folder = path / MODEL_FOLDER
        return _open_folder(folder if (folder / "config.json").is_file() else path, size)
    if path.is_file():
        raise _is_a_file(path)
    if _HUB_ID.fullmatch(given) and not path.parent.exists():
        return _open_folder(_fetch(given), size)
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


def _fetch(hub_id: str) -> Path:
    """Folder of a hub model on this machine."""
    import huggingface_hub

    patterns = ["*.json", "README.md", "LICENSE*", "*.safetensors"]
    try:
        return Path(
            huggingface_hub.snapshot_download(
                hub_id, allow_patterns=patterns, local_files_only=True
            )
        )
    except Exception:  # not in the cache, whatever the reason: ask the hub
        pass
    try:
        # Asked by itself first: it fails at once where snapshot_download would try many times.
        huggingface_hub.HfApi().model_info(hub_id, timeout=5.0)
        return Path(huggingface_hub.snapshot_download(hub_id, allow_patterns=patterns))
    except Exception as error:  # the hub's client and its HTTP library raise dozens of types
        raise EnvironmentLacks(
            f"{hub_id} could not be fetched: it is no folder here, and not in the hub's cache",
            found=f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}",
            fix="connect to a network, log in if the model is gated, or give a local folder",
        ) from error


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
    try:
        with _quiet():
            loaded: Any = Sam2Model.from_pretrained(
                folder,
                config=config,
                local_files_only=True,
                dtype=torch.float32,
                output_loading_info=True,
            )
    except Exception as error:  # transformers, safetensors and torch raise a dozen types
        raise TkError(
            f"the weights in {folder} cannot be loaded as SAM-2",
            found=" ".join(str(error).split())[:300],
            fix="check that config.json and the weights belong together and are whole",
        ) from error
    model, info = loaded
    if missing := sorted(info["missing_keys"]):
        raise TkError(
            f"{folder} lacks {len(missing)} weights of SAM-2",
            found="no " + ", ".join(missing[:5]) + (" …" if len(missing) > 5 else ""),
        )
    found: Sam2Model = model
    return found


def _normalisation(folder: Path) -> Normalisation:
    """As the folder's image processor states it."""
    for name in ("preprocessor_config.json", "processor_config.json"):
        value: Any = read_json(folder / name) if (folder / name).is_file() else {}
        value = value.get("image_processor", value)
        if "image_mean" in value and "image_std" in value:
            return Normalisation(tuple(value["image_mean"]), tuple(value["image_std"]))
    return Normalisation()


@contextmanager
def _quiet() -> Iterator[None]:
    """Hush the bars and reports of transformers; what they say of weights is checked."""
    from transformers.utils import logging

    voice: Any = logging  # its functions carry no types
    level, bars = voice.get_verbosity(), voice.is_progress_bar_enabled()
    voice.set_verbosity(CRITICAL)
    voice.disable_progress_bar()
    try:
        yield
    finally:
        voice.set_verbosity(level)
        if bars:
            voice.enable_progress_bar()
