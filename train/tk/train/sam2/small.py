"""A small SAM-2 of random weights, for small data and few cores."""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Sam2Config as LibraryConfig
from transformers import Sam2Model

WIDTHS = (32, 64, 96, 128)
"""Channels at 1/4, 1/8, 1/16 and 1/32 of the canvas."""
BLOCKS = (1, 1, 3, 1)
WINDOWS = (8, 4, 8, 4)
WHOLE = (3,)
"""Blocks that look at the whole picture."""
HIDDEN = 96
"""Channels of pyramid and decoder; a pixel of a mask is made from an eighth of it."""

BRIGHTNESS, COLOUR = 1.5, (1.0, 0.5, 0.2)
"""Spread of the slowest wave of brightness in a patch of 7 pixels of a photo; shares of it that
red against blue and green against both have."""
FLAT = 6.0
"""How much further the means of patches spread than their slowest waves."""

STEEP = 3.0
"""Attention logit of a corner far to the left of a pixel; steeper ones learn more slowly."""
TWICE_SAID = 2.3
"""How much larger a place is in a key: normalised with its token, and then added once more."""
LOWEST, HIGHEST = 1 / 8, 8.0
"""Waves of the position encoding over half the canvas."""


def small_config(side: int) -> LibraryConfig:
    """Configuration of the library's class.

    Args:
        side: of the canvas, pixels.
    """
    backbone = {
        "model_type": "sam2_hiera_det_model",
        "hidden_size": WIDTHS[0],
        "num_attention_heads": 1,
        "image_size": [side, side],
        "blocks_per_stage": list(BLOCKS),
        "embed_dim_per_stage": list(WIDTHS),
        "num_attention_heads_per_stage": [1, 2, 4, 4],
        "window_size_per_stage": list(WINDOWS),
        "global_attention_blocks": list(WHOLE),
        "mlp_ratio": 3.0,
    }
    vision = {
        "backbone_config": backbone,
        "backbone_channel_list": list(WIDTHS[::-1]),
        "backbone_feature_sizes": [[side // step, side // step] for step in (4, 8, 16)],
        "fpn_hidden_size": HIDDEN,
        "fpn_top_down_levels": [0, 1, 2, 3],
        "fpn_kernel_size": 3,
        "fpn_padding": 1,
    }
    return LibraryConfig(
        vision_config=vision,
        prompt_encoder_config={"hidden_size": HIDDEN, "image_size": side},
        mask_decoder_config={
            "hidden_size": HIDDEN,
            "mlp_dim": 2 * HIDDEN,
            "num_attention_heads": 4,
            "iou_head_hidden_dim": HIDDEN,
        },
    )


def small_model(side: int) -> Sam2Model:
    """The library's model with random weights from torch's global generator."""
    made: Any = Sam2Model(small_config(side))
    model: Sam2Model = made
    with torch.no_grad():
        _draw(model)
        _look(model)
        _place(model)
        _listen(model)
    return model


def detail(model: Sam2Model) -> nn.ModuleList:
    """Layers that add the picture's detail to what the decoder makes of picture and box."""
    decoder: Any = model.mask_decoder
    return nn.ModuleList([*model.vision_encoder.neck.convs, decoder.conv_s0, decoder.conv_s1])


def _draw(model: Sam2Model) -> None:
    """Draw weights that keep the size of a signal.

    The library's spread of 0.02 waits for released weights to overwrite it: at these widths every
    layer would shrink its signal fivefold.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.ConvTranspose2d):
            # Its stride is its side: an output pixel comes from one tap of each channel.
            nn.init.normal_(module.weight, std=len(module.weight) ** -0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.5)
    nn.init.normal_(model.prompt_encoder.point_embed.weight, std=0.3)
    nn.init.normal_(model.prompt_encoder.no_mask_embed.weight, std=0.1)


def _look(model: Sam2Model) -> None:
    """Let the encoder see outlines from the first step on.

    Of a random filter's answers nearly all is the brightness of the place, and outlines drown in
    it. Cosines, each divided by what it usually answers, say brightness, colour and edges equally
    loud; what the blocks add to them is quiet.
    """
    backbone: Any = model.vision_encoder.backbone
    kernel = backbone.patch_embed.projection.weight
    kernel.copy_(_cosines(len(kernel), kernel.shape[-1]))
    for block in backbone.blocks:
        block.attn.proj.weight.mul_(0.5)
        block.mlp.proj_out.weight.mul_(0.5)


def _cosines(count: int, side: int) -> Tensor:
    """Filters of a cosine transform, the slowest first, that answer a photo with a spread of 1.

    Returns:
        (count, 3, side, side) float32.
    """
    place = (torch.arange(side) + 0.5) / side
    waves = torch.stack([torch.cos(math.pi * k * place) for k in range(side)])
    waves = waves / waves.norm(dim=1, keepdim=True)
    opponents = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, -1.0], [-0.5, 1.0, -0.5]])
    opponents = opponents / opponents.norm(dim=1, keepdim=True)
    # As picture formats do: less detail of colour than of brightness.
    order = sorted(
        itertools.product(range(3), range(side), range(side)),
        key=lambda which: math.hypot(*which[1:]) + 1.5 * (which[0] > 0),
    )
    filters = []
    for colour, down, across in order[:count]:
        pace = math.hypot(down, across)
        spread = BRIGHTNESS * COLOUR[colour] * (1 / pace if pace else FLAT)
        plane = waves[down][:, None] * waves[across][None, :] / spread
        filters.append(opponents[colour][:, None, None] * plane)
    return torch.stack(filters)


def _place(model: Sam2Model) -> None:
    """Waves along x and along y instead of random directions.

    "Right of the left edge" is a sum of few such waves and of very many slanted ones, which a
    wide model has and a small one lacks. The two copies of the matrix must be equal, as they are
    in released weights.
    """
    count = HIDDEN // 4
    waves = torch.logspace(math.log10(LOWEST), math.log10(HIGHEST), count)
    matrix = torch.zeros(2, 2 * count)
    matrix[0, :count], matrix[1, count:] = waves, waves
    model.prompt_encoder.shared_embedding.positional_embedding.copy_(matrix)
    model.shared_image_embedding.positional_embedding.copy_(matrix)


def _listen(model: Sam2Model) -> None:
    """Let the box reach the pixels from the first step on.

    With an ordinary draw attention is nearly uniform, so every token becomes the mean of all and
    every pixel hears the same of the box: training then stays for a thousand steps and more at
    masks that do not depend on the box. Here a token first keeps what it is, what the picture
    adds to it is quiet, and a pixel hears on which side of the box's edges it lies. Masks begin
    undecided: loud ones cost a hundred steps of taking back what was never learned, and some
    runs do not survive them.
    """
    transformer: Any = model.mask_decoder.transformer
    for index, layer in enumerate(transformer.layers):
        own = layer.self_attn
        if index == 0:
            # The only attention without a shortcut around it.
            for projection in (own.q_proj, own.k_proj, own.v_proj, own.o_proj):
                nn.init.eye_(projection.weight)
        else:
            own.o_proj.weight.mul_(0.2)
        _match_places(layer.cross_attn_token_to_image, 0.1)
        _match_places(layer.cross_attn_image_to_token, 1.5)
        _hear_sides(model, layer.cross_attn_image_to_token)
        layer.mlp.proj_out.weight.mul_(0.2)
    _match_places(transformer.final_attn_token_to_image, 0.1)
    for lateral in model.vision_encoder.neck.convs:
        lateral.weight.mul_(0.3)
    decoder: Any = model.mask_decoder
    for head in decoder.output_hypernetworks_mlps:
        head.proj_out.weight.mul_(0.5)
    decoder.iou_prediction_head.proj_out.weight.mul_(0.1)


def _match_places(attention: Any, loudness: float) -> None:
    """Queries and keys of one place agree; `loudness` scales what is then said."""
    nn.init.normal_(attention.q_proj.weight, std=1.5 * HIDDEN**-0.5)
    attention.k_proj.weight.copy_(attention.q_proj.weight)
    attention.o_proj.weight.mul_(loudness)


def _hear_sides(model: Sam2Model, attention: Any) -> None:
    """A pixel's first head hears the corners to the left of it, its second those above it.

    The difference of two places is a product of their waves, sin(a - b) = sin a cos b - cos a
    sin b, and a sum of such sines is a step. The upper left corner says the opposite of the lower
    right one, so between them a pixel hears one of them alone, which is "within".
    """
    count, size = HIDDEN // 4, attention.head_dim
    first, second = model.prompt_encoder.point_embed.weight[2:4]
    apart = (second - first) / (second - first).square().sum()
    used, shares = _step(model.prompt_encoder.shared_embedding.positional_embedding[0], size // 2)
    large = (shares.abs() * STEEP * size**0.5).sqrt()
    rows = torch.arange(size // 2)
    for head in (0, 1):
        sine = used + head * count
        cosine = sine + 2 * count
        queries, keys = torch.zeros(2, size, HIDDEN)
        queries[rows, sine], keys[rows, cosine] = large, large * shares.sign()
        rest = rows + size // 2
        queries[rest, cosine], keys[rest, sine] = large, -large * shares.sign()
        own = slice(head * size, (head + 1) * size)
        attention.q_proj.weight[own] = queries
        attention.k_proj.weight[own] = keys / TWICE_SAID
        attention.v_proj.weight[own.start] = -apart
        attention.v_proj.weight[own.start + 1] = apart


def _step(waves: Tensor, terms: int) -> tuple[Tensor, Tensor]:
    """Waves whose sines add up to a step at 0.

    Args:
        waves: (N,) float32 ascending, over half the canvas, N >= 7.
        terms: how many of them to use.

    Returns:
        (terms,) int64 which; (terms,) float32 their shares: least squares, small ones preferred.
    """
    used = torch.linspace(0, HIDDEN // 4 - 7, terms).round().long()
    distance = torch.linspace(-1.5, 1.5, 601)
    sines = torch.sin(2 * math.pi * distance[:, None] * waves[used])
    normal = sines.T @ sines + 3 * torch.eye(terms)
    return used, torch.linalg.solve(normal, sines.T @ torch.tanh(10 * distance))
