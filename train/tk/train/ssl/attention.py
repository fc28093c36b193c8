"""Where the class token of the last block looks (DINO, arXiv:2104.14294, figure 1)."""

from __future__ import annotations

from typing import Any

import torch
from timm.layers.pos_embed_sincos import apply_rot_embed_cat
from torch import Tensor

from tk.train.ssl.backbone.base import Backbone


@torch.no_grad()
def class_attention(backbone: Backbone, images: Tensor) -> Tensor:
    """Attention of the class token to the patches in the last block.

    Args:
        images: (B, 3, H, W) normalised.

    Returns:
        (B, heads, h, w) float32; with the other tokens each head's shares make 1.
    """
    seen: list[tuple[Tensor, dict[str, Any]]] = []
    attention = backbone.vit.blocks[-1].attn

    def keep(_: Any, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> None:
        seen.append((args[0], kwargs))

    handle = attention.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        backbone.forward(images)  # not the call: what is compiled skips hooks
    finally:
        handle.remove()
    tokens, kwargs = seen[0]
    shares: Tensor = _shares(attention, tokens, kwargs.get("rope"))[:, :, 0]
    rows = images.shape[-2] // backbone.patch_size
    patches = shares[:, :, backbone.vit.num_prefix_tokens :]
    return patches.reshape(*patches.shape[:2], rows, -1).float()


def _shares(attention: Any, tokens: Tensor, rope: Tensor | None) -> Tensor:
    """(B, heads, N, N) softmax of queries and keys, as timm's attention computes them."""
    batch, count, _ = tokens.shape
    if getattr(attention, "qkv", None) is not None:
        bias = attention.qkv.bias
        if bias is None and getattr(attention, "q_bias", None) is not None:
            bias = torch.cat((attention.q_bias, attention.k_bias, attention.v_bias))
        qkv = torch.nn.functional.linear(tokens, attention.qkv.weight, bias)
        query, key, _ = qkv.reshape(batch, count, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)
    else:
        query, key = (
            project(tokens).reshape(batch, count, attention.num_heads, -1).transpose(1, 2)
            for project in (attention.q_proj, attention.k_proj)
        )
    query, key = attention.q_norm(query), attention.k_norm(key)
    if rope is not None:
        query, key = _rotated(attention, query, key, rope)
    shares: Tensor = (query * attention.scale @ key.transpose(-2, -1)).softmax(dim=-1)
    return shares


def _rotated(attention: Any, query: Tensor, key: Tensor, rope: Tensor) -> tuple[Tensor, Tensor]:
    first = attention.num_prefix_tokens
    half = getattr(attention, "rotate_half", False)
    query, key = (
        torch.cat([x[:, :, :first], apply_rot_embed_cat(x[:, :, first:], rope, half=half)], dim=2)
        for x in (query, key)
    )
    return query, key
