"""SAM-2's image encoder as one graph: canvas in, the three feature maps of the mask decoder out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import Sam2Model
from transformers.models.sam2.modeling_sam2 import Sam2MultiScaleAttention, Sam2MultiScaleBlock

ROWS = 512
"""Queries that look at the whole picture at a time. All 4096 of a 1024-pixel canvas at once would
write 268 MB of weights per block, which costs more memory than all the rest together."""


class Sam2Encoder(nn.Module):
    """What `Sam2Model.get_image_embeddings` computes, for one canvas size and from uint8.

    The position encoding is interpolated once, here, so the graph holds it as a constant; the
    sine encodings of the neck, which only the video model reads, are left out.

    Args:
        model: the library's model; its modules are shared, not copied.
        hw: canvas height and width, pixels.
        mean, std: of the channels, on the scale 0..1.
    """

    mean: Tensor
    scale: Tensor
    position: Tensor

    def __init__(
        self, model: Sam2Model, hw: tuple[int, int], mean: Sequence[float], std: Sequence[float]
    ) -> None:
        super().__init__()
        backbone, neck = model.vision_encoder.backbone, model.vision_encoder.neck
        self.patch_embed, self.blocks = backbone.patch_embed, backbone.blocks
        self.stage_ends = frozenset(backbone.stage_ends)
        self.laterals = neck.convs
        self.top_down = frozenset(neck.fpn_top_down_levels)
        self.conv_s0, self.conv_s1 = model.mask_decoder.conv_s0, model.mask_decoder.conv_s1
        self.no_memory = model.no_memory_embedding
        stride = backbone.config.patch_stride
        rows, columns = hw[0] // stride[0], hw[1] // stride[1]
        with torch.no_grad():
            position = backbone._get_pos_embed((rows, columns))
        self.register_buffer("mean", torch.tensor(mean) * 255, persistent=False)
        self.register_buffer("scale", 1 / (torch.tensor(std) * 255), persistent=False)
        self.register_buffer("position", position.detach().clone(), persistent=False)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Encode canvases.

        Args:
            image: (B, H, W, 3) uint8 RGB.

        Returns:
            embed: (B, C, H/16, W/16) float32.
            high_0: (B, C/8, H/4, W/4) float32.
            high_1: (B, C/4, H/8, W/8) float32.
        """
        pixels = (image.float() - self.mean) * self.scale
        hidden = self.patch_embed(pixels.permute(0, 3, 1, 2)) + self.position
        stages = []
        for index, block in enumerate(self.blocks):
            hidden = _run(block, hidden)
            if index in self.stage_ends:
                stages.append(hidden)
        finest, fine, coarse = self._pyramid(stages)
        embed = coarse + self.no_memory.reshape(1, -1, 1, 1)
        return embed, self.conv_s0(finest), self.conv_s1(fine)

    def _pyramid(self, stages: list[Tensor]) -> list[Tensor]:
        """Feature pyramid over (B, h, w, C) stages; its three finest levels, finest first."""
        last = len(stages) - 1
        levels: list[Tensor] = []
        for index in range(last, -1, -1):
            level = self.laterals[last - index](stages[index].permute(0, 3, 1, 2))
            if index in self.top_down and levels:
                level = level + nn.functional.interpolate(
                    levels[0], scale_factor=2.0, mode="nearest"
                )
            levels.insert(0, level)
        return levels[:3]


def _run(block: Sam2MultiScaleBlock, hidden: Tensor) -> Tensor:
    """One block on (B, h, w, C); those that look at the whole picture do it by parts."""
    if block.window_size or block.query_stride or block.dim != block.dim_out:
        result: Tensor = block(hidden)
        return result
    hidden = hidden + _look_around(block.attn, block.layer_norm1(hidden))
    widened: Tensor = hidden + block.mlp(block.layer_norm2(hidden))
    return widened


def _look_around(attention: Sam2MultiScaleAttention, hidden: Tensor) -> Tensor:
    """Attention of every place of (B, h, w, C) to every other, `ROWS` queries at a time."""
    _, h, w, _ = hidden.shape
    heads = attention.num_attention_heads
    joined = attention.qkv(hidden).reshape(-1, h * w, 3, heads, attention.dim_out // heads)
    query, key, value = joined.permute(2, 0, 3, 1, 4).unbind(0)
    keys = key.transpose(2, 3) * attention.scale
    parts = [(rows @ keys).softmax(dim=-1) @ value for rows in query.split(ROWS, dim=2)]
    seen = torch.cat(parts, dim=2).transpose(1, 2).reshape(-1, h, w, attention.dim_out)
    projected: Tensor = attention.proj(seen)
    return projected
