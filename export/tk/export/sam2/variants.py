"""The four sizes of SAM-2, and which one a set of weights is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor
from transformers import Sam2Config

from tk.runtime.errors import TkError


@dataclass(frozen=True)
class Variant:
    """What the sizes differ in: the image encoder.

    Attributes:
        letter: how the original configurations are called, `sam2.1_hiera_{letter}.yaml`.
        width: channels of the first stage; each later one doubles them.
        heads: of the first stage; each later one doubles them.
        blocks: per stage.
        whole: indices of the blocks that look at the whole picture, not at windows.
        background: side of the position encoding before it is stretched to the picture.
        windows: side of the windows per stage.
    """

    letter: str
    width: int
    heads: int
    blocks: tuple[int, int, int, int]
    whole: tuple[int, int, int]
    background: int
    windows: tuple[int, int, int, int] = (8, 4, 14, 7)


VARIANTS: dict[str, Variant] = {
    "tiny": Variant("t", 96, 1, (1, 2, 7, 2), (5, 7, 9), 7),
    "small": Variant("s", 96, 1, (1, 2, 11, 2), (7, 10, 13), 7),
    "base_plus": Variant("b+", 112, 2, (2, 3, 16, 3), (12, 16, 20), 14),
    "large": Variant("l", 144, 2, (2, 6, 36, 4), (23, 33, 43), 7, (8, 4, 16, 8)),
}

_NAME = re.compile(r"(?:.*[/\\])?sam2(?:\.1)?_hiera_(b\+|[a-z_]+)(?:\.(?:yaml|pt))?")


def variant_of(name: str) -> str:
    """Key of `VARIANTS` for the name of an original configuration.

    Args:
        name: e.g. `configs/sam2.1/sam2.1_hiera_t.yaml`, `sam2_hiera_b+`, or the key itself.

    Raises:
        TkError: no such configuration.
    """
    found = _NAME.fullmatch(name)
    word = found.group(1) if found else name
    for key, variant in VARIANTS.items():
        if word in (key, variant.letter):
            return key
    known = ", ".join(f"sam2.1_hiera_{variant.letter}.yaml" for variant in VARIANTS.values())
    raise TkError(
        f"unknown SAM-2 configuration {name!r}",
        expected=f"{known}, or the same of sam2",
        fix="convert weights of another architecture to a Hugging Face folder with config.json",
    )


def config_of(key: str) -> Sam2Config:
    """Configuration of the library's model of one variant."""
    variant = VARIANTS[key]
    widths = [variant.width << stage for stage in range(4)]
    backbone = {
        "model_type": "sam2_hiera_det_model",
        "hidden_size": variant.width,
        "num_attention_heads": variant.heads,
        "blocks_per_stage": list(variant.blocks),
        "embed_dim_per_stage": widths,
        "num_attention_heads_per_stage": [variant.heads << stage for stage in range(4)],
        "window_size_per_stage": list(variant.windows),
        "global_attention_blocks": list(variant.whole),
        "window_positional_embedding_background_size": [variant.background] * 2,
    }
    vision = {"backbone_config": backbone, "backbone_channel_list": widths[::-1]}
    return Sam2Config(vision_config=vision)


def recognise(state: Mapping[str, Tensor]) -> str:
    """Key of `VARIANTS` that original weights belong to, by their shapes; "" for none of them.

    Args:
        state: names and tensors of the original checkpoint.
    """
    trunk = "image_encoder.trunk."
    position = state.get(f"{trunk}pos_embed")
    if position is None or position.ndim != 4:
        return ""
    blocks = {name.split(".")[3] for name in state if name.startswith(f"{trunk}blocks.")}
    found = (position.shape[1], position.shape[2], len(blocks))
    for key, variant in VARIANTS.items():
        if found == (variant.width, variant.background, sum(variant.blocks)):
            return key
    return ""
