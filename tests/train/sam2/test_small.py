"""Random weights of a small SAM-2: what they know of a box before any training."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv2d

from tk.train.data.synth.scene import render_scene
from tk.train.sam2 import small
from tk.train.sam2.model import Normalisation, predict

CORNERS = slice(6, 8)
"""Tokens of a box's corners, after those of object, IoU and four masks."""


@pytest.mark.parametrize("layer", [0, 1])
def test_small__a_pixel_hears_the_corners_to_the_left_of_it_and_above_it(layer: int) -> None:
    """What attention sees of a corner rises where the pixels pass it: head 0 across, 1 down."""
    torch.manual_seed(0)
    model = small.small_model(256)
    transformer: Any = model.mask_decoder.transformer
    attention = transformer.layers[layer].cross_attn_image_to_token
    seen: list[Tensor] = []

    def look(module: Any, _: Any, given: dict[str, Tensor]) -> None:
        places, tokens = (
            part[0].unflatten(-1, (-1, module.head_dim)).movedim(-2, 0)
            for part in (module.q_proj(given["query"]), module.k_proj(given["key"]))
        )
        seen.append(places @ tokens[..., CORNERS, :].transpose(-1, -2))  # (heads, boxes, places, 2)

    handle = attention.register_forward_pre_hook(look, with_kwargs=True)
    boxes = torch.tensor([[[60.0, 70, 150, 180], [90, 50, 190, 150]]])
    with torch.inference_mode():
        predict(model, torch.zeros(1, 3, 256, 256), boxes)
    handle.remove()
    centres = np.arange(16) * 16 + 8
    for number, corners in enumerate(boxes[0].reshape(2, 2, 2).numpy()):
        logits = seen[0][:, number].reshape(-1, 16, 16, 2).numpy()
        for corner, (x, y) in enumerate(corners):
            for head, passed in ((0, (centres > x)[None, :]), (1, (centres > y)[:, None])):
                where = np.broadcast_to(passed, (16, 16)).ravel()
                agreement = np.corrcoef(logits[head, ..., corner].ravel(), where)[0, 1]
                assert agreement > 0.6, (number, corner, head, agreement)


def test_step__rises_at_nought_and_keeps_its_sign() -> None:
    matrix = small.small_model(128).prompt_encoder.shared_embedding.positional_embedding
    used, shares = small._step(matrix[0], 6)
    distance = torch.linspace(-1.5, 1.5, 61)
    step = torch.sin(2 * torch.pi * distance[:, None] * matrix[0, used]) @ shares
    assert torch.equal(step.sign(), distance.sign())
    torch.testing.assert_close(step, -step.flip(0))
    assert step[distance > 0.3].min() > 0.6 and step.max() < 1.5


def test_look__filters_say_edges_as_loud_as_brightness() -> None:
    scenes = [render_scene(seed=0, index=index, size=256).image for index in range(4)]
    torch.manual_seed(0)
    projection = small.small_model(256).vision_encoder.backbone.patch_embed.projection

    def spreads(weight: Tensor) -> Tensor:
        pixels = [Normalisation().pixels(torch.from_numpy(image)[None]) for image in scenes]
        answers = [conv2d(part, weight, stride=4)[0].flatten(1) for part in pixels]
        strengths: Tensor = torch.linalg.svdvals(torch.cat(answers, dim=1))
        return strengths

    with torch.no_grad():
        flat = projection.weight.flatten(1)
        torch.testing.assert_close(flat @ flat.T, torch.diag(flat.square().sum(dim=1)))
        ours = spreads(projection.weight)
        drawn = spreads(torch.randn_like(projection.weight))
    assert ours[8] / ours[0] > 3 * drawn[8] / drawn[0]


def test_listen__masks_begin_undecided() -> None:
    torch.manual_seed(0)
    model = small.small_model(128)
    boxes = torch.tensor([[[20.0, 30, 80, 100], [40, 10, 120, 60]]])
    with torch.inference_mode():
        found = predict(model, torch.randn(1, 3, 128, 128), boxes)
    assert found.logits.abs().mean() < 0.5
    assert (found.iou - 0.5).abs().max() < 0.2
