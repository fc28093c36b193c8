"""Small GroundingDINO folders with random weights, spread so that every layer matters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from PIL import Image

WORDS = "tool wrench pliers a the red ##s screw ##driver hammer , ' ! x".split()
LETTERS = "к ##л ##ю ##ч".split()
"""Spell a word that is not English, as bert-base-uncased does."""

KINDS = {"grounding-dino": "GroundingDino", "mm-grounding-dino": "MMGroundingDino"}
CANVAS = (224, 256)


def vocabulary() -> dict[str, int]:
    """Few words, with the delimiters where bert-base-uncased has them."""
    fixed = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103}
    fixed |= {".": 1012, "?": 1029}
    fixed |= {letter: 1 + index for index, letter in enumerate(LETTERS)}
    fixed |= {word: 1030 + index for index, word in enumerate(WORDS)}
    taken = set(fixed.values())
    return {**{f"[unused{i}]": i for i in range(1030) if i not in taken}, **fixed}


def small_config(kind: str, **changes: Any) -> Any:
    swin: Any = transformers.SwinConfig  # its arguments are not all declared
    backbone = swin(
        image_size=224,
        embed_dim=48,
        depths=[1, 2, 1, 1],
        num_heads=[3, 6, 12, 24],
        window_size=7,
        out_indices=[2, 3, 4],
    )
    text = transformers.BertConfig(
        vocab_size=1030 + len(WORDS),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
    )
    settings = {
        "backbone_config": backbone,
        "text_config": text,
        "d_model": 128,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_ffn_dim": 256,
        "decoder_ffn_dim": 256,
        "num_queries": 60,
    }
    return getattr(transformers, KINDS[kind] + "Config")(**settings | changes)


def write_model(folder: Path, kind: str, config: Any = None, *, same_queries: bool = False) -> Path:
    """Write a model folder as `save_pretrained` does: config, weights, tokenizer.

    Args:
        same_queries: give all queries one embedding. Of 21760 places with random scores, hundreds
            are so near to each other that the last bit decides their ranks; each rank has its own
            embedding, so PyTorch against itself, one bit beside, has boxes that share nothing.
    """
    torch.manual_seed(0)
    config = config or small_config(kind)
    network = getattr(transformers, KINDS[kind] + "ForObjectDetection")(config).eval()
    spread(network, kind)
    if same_queries:
        rows = network.model.query_position_embeddings.weight.data
        rows.copy_(rows[:1].clone().expand_as(rows))
    network.save_pretrained(folder)
    transformers.BertTokenizer(vocabulary()).save_pretrained(folder)
    return folder


@torch.no_grad()
def spread(network: Any, kind: str) -> None:
    """Fresh box heads, fusion gates and sampling offsets are zero or nearly: they hide mistakes."""
    random = torch.Generator().manual_seed(1)
    config = network.config
    # A box moves once per layer of the decoder, further the wider the layer is. Without this the
    # boxes of full-size models end as points and stripes at the edges, which overlap nothing.
    step = 0.3 * (128 / config.d_model) * (2 / config.decoder_layers)
    for name, value in network.named_parameters():
        noise = torch.randn(value.shape, generator=random)
        if name.endswith(("vision_param", "text_param")):
            value.copy_(0.3 + 0.1 * noise)
        elif "bbox_embed" in name and ".layers.2." in name:
            value.copy_(step * noise)
        elif name.endswith(("sampling_offsets.weight", "attention_weights.weight")):
            value.copy_(0.1 * noise)
        elif name.endswith("decoder.layer_norm.weight") and kind == "grounding-dino":
            value.fill_(0.15)  # else its scores are all 0 or 1
        elif "class_embed" in name:
            value.fill_(-1.0)


def picture(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Soft coloured blobs: (height, width, 3) uint8."""
    random = np.random.default_rng(seed)
    small = random.integers(0, 256, (height // 24 + 2, width // 24 + 2, 3), np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))
