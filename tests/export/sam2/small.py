"""SAM-2 in miniature, with weights that leave no part of the network without effect."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import Sam2Config, Sam2Model

SIDE, WIDTH = 256, 32
BLOCKS, WINDOWS, WHOLE = [1, 2, 2, 1], [8, 4, 14, 7], [4]

EMBEDDINGS = (
    "embed",
    "embed_window",
    "embedding",
    "embed.weight",
    "token.weight",
    "tokens.weight",
    *(f"point_embeddings.{index}.weight" for index in range(4)),
)
"""Ends of names of weights that are added to features, not multiplied with them."""


def small_config() -> Sam2Config:
    """All kinds of blocks (windows, whole picture, pooling), 0.4 M weights, 256 pixels."""
    widths = [16, 32, 64, 128]
    backbone = {
        "model_type": "sam2_hiera_det_model",
        "hidden_size": widths[0],
        "blocks_per_stage": BLOCKS,
        "embed_dim_per_stage": widths,
        "window_size_per_stage": WINDOWS,
        "global_attention_blocks": WHOLE,
    }
    vision = {
        "backbone_config": backbone,
        "backbone_channel_list": widths[::-1],
        "backbone_feature_sizes": [[64, 64], [32, 32], [16, 16]],
        "fpn_hidden_size": WIDTH,
    }
    return Sam2Config(
        vision_config=vision,
        prompt_encoder_config={"hidden_size": WIDTH, "image_size": SIDE},
        mask_decoder_config={"hidden_size": WIDTH},
    )


def small_model() -> Sam2Model:
    """The library's model of `small_config`, ready to be exported."""
    torch.manual_seed(0)
    made: Any = Sam2Model(small_config())
    model: Sam2Model = made.eval()
    spread(model)
    shared = model.prompt_encoder.shared_embedding.positional_embedding
    model.shared_image_embedding.positional_embedding.copy_(shared)
    return model


@torch.no_grad()
def spread(model: nn.Module, seed: int = 1) -> None:
    """Draw all weights anew, so that none is zero and signals keep their size on the way.

    Freshly made models have position encodings of zero and answers that hardly depend on the box:
    equality of two of them would prove little.
    """
    random = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        noise = torch.randn(weight.shape, generator=random)
        if "norm" in name and name.endswith("weight"):
            weight.copy_(1 + 0.2 * noise)
        elif name.endswith(EMBEDDINGS):
            weight.copy_(noise)
        elif weight.ndim >= 2:
            weight.copy_(noise * 1.5 / weight[0].numel() ** 0.5)
        else:
            weight.copy_(0.3 * noise)


def pictures(count: int, height: int = SIDE, width: int = SIDE) -> list[NDArray[np.uint8]]:
    """Pictures with structure at several scales: (height, width, 3) uint8 each."""
    import cv2

    random = np.random.default_rng(count * 1000 + height + width)
    made = []
    for _ in range(count):
        total: NDArray[Any] = np.zeros((height, width, 3))
        for side in (3, 9, 33):
            coarse = random.normal(0, 40, (side, side, 3))
            total += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)
        made.append(np.clip(total + 128, 0, 255).astype(np.uint8))
    return made


def boxes(count: int, height: int, width: int) -> NDArray[np.float32]:
    """Boxes of all sizes inside a picture: (count, 4) float32 xyxy."""
    random = np.random.default_rng(count)
    sizes = random.uniform(0.05, 0.9, (count, 2))
    corners = random.uniform(0, 1, (count, 2)) * (1 - sizes)
    both = np.concatenate([corners, corners + sizes], axis=1)
    return np.asarray(both * np.tile([width, height], 2), np.float32)
