"""Layers of the library, rewritten: same numbers, less memory, tables as constants, and no item of
a batch sees another.

They take the place of the library's modules inside a loaded model and share their weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Fusion(nn.Module):
    """Attention between picture and text, both ways (`GroundingDinoBiMultiHeadAttention`).

    A picture has 21760 places on a canvas of 1024 pixels, a prompt a handful of tokens, so no
    place is projected: `(x Wq) k = x (Wq k)`, and attention's output goes through the second
    projection once per token instead of once per place. Heads and tokens share one axis. Never
    more work than the library's order; for short prompts a fortieth, a sixth of the whole detector.

    The library subtracts the largest score of the whole batch before the softmax, so pictures of a
    batch change each other's last bits; a softmax needs no such shift.

    Args:
        original: the library's module.
    """

    def __init__(self, original: Any) -> None:
        super().__init__()
        self.heads, self.scale = int(original.num_heads), float(original.scale)
        self.vision_proj, self.text_proj = original.vision_proj, original.text_proj
        self.values_vision_proj = original.values_vision_proj
        self.values_text_proj = original.values_text_proj
        self.out_vision_proj = original.out_vision_proj
        self.out_text_proj = original.out_text_proj

    def forward(
        self,
        vision_features: Tensor,
        text_features: Tensor,
        vision_attention_mask: Tensor,
        text_attention_mask: Tensor | None,
    ) -> tuple[tuple[Tensor, None], tuple[Tensor, None]]:
        """Let each side look at the other.

        Args:
            vision_features: (B, S, D).
            text_features: (B, T, D), or (1, T, D) for all of them.
            vision_attention_mask: (B, S) bool, True for padding.
            text_attention_mask: (B or 1, T) bool, True for padding; None for no padding.
        """
        low = torch.finfo(vision_features.dtype).min
        scores = self._scores(vision_features, text_features)
        real = scores.reshape(*scores.shape[:2], self.heads, -1)
        if text_attention_mask is not None:
            real = real.masked_fill(text_attention_mask[:, None, None, :], low)
        to_text = real.softmax(-1).flatten(-2)
        vision = to_text @ self._offers(text_features) + self.out_vision_proj.bias
        # The other way over the same scores: which places of the picture a token looks at.
        to_vision = scores.masked_fill(vision_attention_mask[..., None], low).softmax(-2)
        return (vision, None), (self._read(to_vision.transpose(-1, -2) @ vision_features), None)

    def _scores(self, vision: Tensor, text: Tensor) -> Tensor:
        """Scaled products of queries and keys: (B, S, heads * T)."""
        keys = _split(self.text_proj(text) * self.scale, self.heads)
        directions = (keys @ _rows(self.vision_proj, self.heads)).flatten(1, 2)
        offsets = (keys @ self.vision_proj.bias.reshape(self.heads, -1, 1)).flatten(1, 2)
        scores: Tensor = vision @ directions.transpose(-1, -2) + offsets.transpose(-1, -2)
        return scores

    def _offers(self, text: Tensor) -> Tensor:
        """What each token of each head adds to a place that looks at it: (B, heads * T, D)."""
        values = _split(self.values_text_proj(text), self.heads)
        weight = self.out_vision_proj.weight.t().reshape(self.heads, values.shape[-1], -1)
        offers: Tensor = (values @ weight).flatten(1, 2)
        return offers

    def _read(self, seen: Tensor) -> Tensor:
        """What tokens make of the places that they saw: seen (B, heads * T, D) -> (B, T, D)."""
        weight = _rows(self.values_vision_proj, self.heads).transpose(1, 2)
        bias = self.values_vision_proj.bias.reshape(self.heads, 1, -1)
        values = seen.reshape(seen.shape[0], self.heads, -1, seen.shape[2]) @ weight + bias
        read: Tensor = self.out_text_proj(_join(values))
        return read


def _rows(layer: nn.Linear, heads: int) -> Tensor:
    """Weight of a projection, by head: (heads, d, D)."""
    return layer.weight.reshape(heads, -1, layer.in_features)


def _split(x: Tensor, heads: int) -> Tensor:
    """(B, L, heads * d) -> (B, heads, L, d)."""
    return x.reshape(*x.shape[:2], heads, x.shape[2] // heads).transpose(1, 2)


def _join(x: Tensor) -> Tensor:
    """(B, heads, L, d) -> (B, L, heads * d)."""
    return x.transpose(1, 2).flatten(2)


class TextEnhancer(nn.Module):
    """Self-attention of the text (`GroundingDinoTextEnhancerLayer`), one mask for all pictures.

    Args:
        original: the library's module.
    """

    def __init__(self, original: Any) -> None:
        super().__init__()
        self.self_attn, self.activation = original.self_attn, original.activation
        self.fc1, self.fc2 = original.fc1, original.fc2
        self.layer_norm_before = original.layer_norm_before
        self.layer_norm_after = original.layer_norm_after

    def forward(
        self, hidden_states: Tensor, attention_masks: Tensor, position_embeddings: Tensor
    ) -> tuple[Tensor, None]:
        """Let the tokens of a phrase look at each other.

        Args:
            hidden_states: (B, T, D).
            attention_masks: (1, T, T) bool, which tokens see each other.
            position_embeddings: (1, T, D).
        """
        placed = hidden_states + position_embeddings
        hidden = torch.where(attention_masks, 0.0, torch.finfo(placed.dtype).min)[:, None]
        seen = self.self_attn(
            queries=placed, keys=placed, values=hidden_states, attention_mask=hidden
        )[0]
        states = self.layer_norm_before(hidden_states + seen)
        change = self.fc2(self.activation(self.fc1(states)))
        return self.layer_norm_after(states + change), None


class Sampling(nn.Module):
    """Core of deformable attention (`MultiScaleDeformableAttention`), one level after another.

    The library keeps the samples of all levels to weigh them in one go: 360 MB per picture on a
    canvas of 1024 pixels. Weighing each level on its own needs a quarter.
    """

    def forward(
        self,
        value: Tensor,
        value_spatial_shapes: Tensor,
        value_spatial_shapes_list: list[tuple[int, int]],
        level_start_index: Tensor,
        sampling_locations: Tensor,
        attention_weights: Tensor,
        im2col_step: int,
    ) -> Tensor:
        """Sample and weigh.

        Args:
            value: (B, S, heads, d), all levels one after the other.
            value_spatial_shapes_list: height and width of each level.
            sampling_locations: (B, Q, heads, levels, points, 2), x and y in 0..1.
            attention_weights: (B, Q, heads, levels, points).

        Returns:
            (B, Q, heads * d).
        """
        heads, depth = value.shape[2:]
        queries = sampling_locations.shape[1]
        # (B, S, heads, d) -> (B * heads, d, S), and so on: heads join the batch.
        flat = value.permute(0, 2, 3, 1).flatten(0, 1)
        grid = (2 * sampling_locations - 1).transpose(1, 2).flatten(0, 1)
        weights = attention_weights.transpose(1, 2).flatten(0, 1)
        total: Tensor | None = None
        start = 0
        for level, (height, width) in enumerate(value_spatial_shapes_list):
            plane = flat[:, :, start : start + height * width].reshape(-1, depth, height, width)
            start += height * width
            samples = F.grid_sample(plane, grid[:, :, level], align_corners=False)
            weighed = (samples * weights[:, None, :, level]).sum(-1)
            total = weighed if total is None else total + weighed
        assert total is not None  # a model has at least one level
        return total.reshape(-1, heads * depth, queries).transpose(1, 2)


class WindowAttention(nn.Module):
    """Attention in the windows of a Swin backbone (`SwinAttention`).

    The library adds the bias to the mask of shifted windows for every picture of a batch, at each
    run; here both are constants that are added to the scores.

    Args:
        original: the library's module.
    """

    def __init__(self, original: Any) -> None:
        super().__init__()
        self.heads, self.scale = int(original.num_attention_heads), float(original.scaling)
        self.q_proj, self.k_proj = original.q_proj, original.k_proj
        self.v_proj, self.o_proj = original.v_proj, original.o_proj
        self.relative_position_bias = original.relative_position_bias

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, **ignored: Any
    ) -> tuple[Tensor, None]:
        """Let the places of each window look at each other.

        Args:
            hidden_states: (B * windows, n, C).
            attention_mask: (windows, n, n) float32 to add, or None.
        """
        query = self._split(self.q_proj(hidden_states)) * self.scale
        scores = query @ self._split(self.k_proj(hidden_states)).transpose(-1, -2)
        scores = scores + self.relative_position_bias()
        if attention_mask is not None:
            windows = scores.reshape(-1, attention_mask.shape[0], *scores.shape[1:])
            scores = (windows + attention_mask[:, None]).flatten(0, 1)
        states = scores.softmax(-1) @ self._split(self.v_proj(hidden_states))
        return self.o_proj(_join(states)), None

    def _split(self, x: Tensor) -> Tensor:
        return _split(x, self.heads)


class Table(nn.Module):
    """A linear layer whose input is always the same: its output, for each item of a batch.

    Args:
        layer: the layer.
        states: (n, C), its input.
    """

    def __init__(self, layer: nn.Linear, states: Tensor) -> None:
        super().__init__()
        self.register_buffer("table", layer(states).detach(), persistent=False)

    def forward(self, states: Tensor) -> Tensor:
        """Give the table, (B, n, D), whatever `states: (B, n, C)` holds."""
        table: Tensor = self.get_buffer("table")
        return table.expand(states.shape[0], -1, -1)


@torch.no_grad()
def replace_layers(network: Any) -> None:
    """Put our layers in the place of the library's, in all of `network`."""
    for module in network.modules():
        name = type(module).__name__.removeprefix("MM")
        if name == "GroundingDinoFusionLayer":
            module.attn = Fusion(module.attn)
        elif name == "GroundingDinoEncoderLayer":
            module.text_enhancer_layer = TextEnhancer(module.text_enhancer_layer)
        elif name == "GroundingDinoMultiscaleDeformableAttention":
            module.attn = Sampling()
        elif name == "SwinLayer":
            module.attention = WindowAttention(module.attention)
    # The decoder starts from learned queries, which are the same for every picture.
    first = network.model.decoder.layers[0].self_attn
    first.value = Table(first.value, network.model.query_position_embeddings.weight)


@contextmanager
def windows_kept(network: nn.Module) -> Iterator[None]:
    """Restore the window sizes of a Swin backbone, which a small picture changes for good."""
    layers = [module for module in network.modules() if hasattr(module, "shift_size")]
    before = [(layer.window_size, layer.shift_size) for layer in layers]
    try:
        yield
    finally:
        for layer, kept in zip(layers, before, strict=True):
            layer.window_size, layer.shift_size = kept
