"""A vision transformer as pre-training sees it: class token and patches, some of them hidden."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tk.runtime.errors import TkError


class Features(NamedTuple):
    """What a backbone says of pictures.

    Attributes:
        cls: (B, D) class tokens.
        patches: (B, N, D), row by row.
    """

    cls: Tensor
    patches: Tensor


class Backbone(nn.Module):
    """One of timm's transformers (`VisionTransformer` or `Eva`) and a token for hidden patches.

    Args:
        vit: made with `dynamic_img_size`, without classifier, its last norm active.

    Attributes:
        width, patch_size, depth: D, pixels, number of blocks.
    """

    def __init__(self, vit: Any) -> None:
        super().__init__()
        self.vit = vit
        self.width, self.depth = int(vit.embed_dim), len(vit.blocks)
        self.patch_size = int(vit.patch_embed.patch_size[0])
        self.mask_token = nn.Parameter(torch.zeros(1, self.width))
        self._hidden: Tensor | None = None
        vit.patch_embed.register_forward_hook(self._hide)

    def forward(self, images: Tensor, masks: Tensor | None = None) -> Features:
        """Run the transformer.

        Args:
            images: (B, 3, H, W) float32, normalised; sides are multiples of the patch size.
            masks: (B, N) bool; true patches are hidden before position embeddings are added.
        """
        self._hidden = masks
        try:
            tokens = self.vit.forward_features(images)
        finally:
            self._hidden = None
        return Features(tokens[:, 0], tokens[:, self.vit.num_prefix_tokens :])

    def _hide(self, _: nn.Module, __: Any, embedded: Tensor) -> Tensor:
        """Put the mask token in the place of hidden patches: (B, h, w, D) or (B, N, D)."""
        if self._hidden is None:
            return embedded
        hidden = self._hidden.reshape(embedded.shape[:-1]).unsqueeze(-1)
        return torch.where(hidden, self.mask_token.to(embedded.dtype), embedded)


def forward_crops(
    backbone: nn.Module, crops: Sequence[Tensor], masks: Sequence[Tensor | None] | None = None
) -> list[Features]:
    """Run a backbone on crops, those of one size in one pass.

    Args:
        crops: (B, 3, h, w) each.
        masks: of each crop, (B, N) bool or None.

    Returns:
        features of each crop, in their order.
    """
    hidden = list(masks) if masks is not None else [None] * len(crops)
    groups: dict[tuple[int, ...], list[int]] = {}
    for place, crop in enumerate(crops):
        groups.setdefault((*crop.shape[-2:], hidden[place] is not None), []).append(place)
    found: dict[int, Features] = {}
    for places in groups.values():
        own = [mask for place in places if (mask := hidden[place]) is not None]
        packed = backbone(
            torch.cat([crops[place] for place in places]), torch.cat(own) if own else None
        )
        sizes = [len(crops[place]) for place in places]
        parts = zip(packed.cls.split(sizes), packed.patches.split(sizes), strict=True)
        found |= {place: Features(*part) for place, part in zip(places, parts, strict=True)}
    return [found[place] for place in range(len(crops))]


def freeze_blocks(backbone: Backbone, count: int) -> None:
    """Keep the patch embedding, positions, prefix tokens and the first `count` blocks as they are.

    Blocks are chosen by their number, not by their name: `blocks.1` is not the start of
    `blocks.10`.

    Raises:
        TkError: more blocks than there are.
    """
    if not count:
        return
    if count > backbone.depth:
        raise TkError(
            "--freeze-blocks is larger than the transformer",
            expected=f"at most {backbone.depth}",
            found=str(count),
        )
    vit = backbone.vit
    for name, parameter in vit.named_parameters():
        if name.split(".")[0] not in ("blocks", "norm", "fc_norm"):
            parameter.requires_grad_(False)
    for block in vit.blocks[:count]:
        block.requires_grad_(False)
