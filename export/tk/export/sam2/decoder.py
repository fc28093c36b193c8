"""SAM-2's prompt encoder and mask decoder as one graph: many boxes of one picture, best masks out.

The same numbers as `Sam2Model.forward(image_embeddings=…, input_boxes=…)` followed by picking the
mask of the highest predicted IoU, in fewer operations:

- the picture's features stay a batch of one until boxes have written into them (layer 0 would
  otherwise project the same 4096 tokens again for every box);
- the two transposed convolutions do not overlap (kernel = stride = 2), so they are matrix products
  on tokens, and the pixels of a mask are put in order once, at the end, as single numbers;
- only the chosen mask is computed, not all four.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Sam2Model
from transformers.models.sam2.modeling_sam2 import Sam2Attention, Sam2TwoWayAttentionBlock

IOU_TOKEN, FIRST_MASK_TOKEN = 1, 2
"""Places among the output tokens: object score, predicted IoU, single mask, the multimasks."""


class Sam2Decoder(nn.Module):
    """Boxes of one picture -> one mask each.

    Args:
        model: the library's model; its modules are shared, not copied.
        hw: canvas height and width, pixels.
    """

    size: Tensor
    gaussian: Tensor
    position: Tensor
    fixed_tokens: Tensor
    corners: Tensor
    not_a_point: Tensor
    no_mask: Tensor

    def __init__(self, model: Sam2Model, hw: tuple[int, int]) -> None:
        super().__init__()
        prompt, decoder = model.prompt_encoder, model.mask_decoder
        self.decoder = decoder
        config: Any = model.config
        patch = config.prompt_encoder_config.patch_size
        self.grid = (hw[0] // patch, hw[1] // patch)
        output_tokens = (decoder.obj_score_token, decoder.iou_token, decoder.mask_tokens)
        constants = {
            "size": torch.tensor([hw[1], hw[0]], dtype=torch.float32),
            "gaussian": prompt.shared_embedding.positional_embedding,
            "fixed_tokens": torch.cat([token.weight for token in output_tokens])[None],
            "corners": prompt.point_embed.weight[2:4],
            "not_a_point": prompt.not_a_point_embed.weight[None],
            "no_mask": prompt.no_mask_embed.weight.reshape(1, -1, 1, 1),
        }
        for name, value in constants.items():
            self.register_buffer(name, value.detach().clone(), persistent=False)
        self.register_buffer("position", self._grid_encoding(), persistent=False)

    def _grid_encoding(self) -> Tensor:
        """Position encoding of each feature cell's centre: (1, h * w, C) float32."""
        rows, columns = ((torch.arange(count) + 0.5) / count for count in self.grid)
        y, x = torch.meshgrid(rows, columns, indexing="ij")
        return self._encode(torch.stack([x, y], dim=-1).reshape(1, -1, 2))

    def _encode(self, places: Tensor) -> Tensor:
        """Random Fourier features of places (…, 2) xy in 0..1: (…, C)."""
        angles = (2 * math.pi) * ((2 * places - 1) @ self.gaussian)
        return torch.cat([angles.sin(), angles.cos()], dim=-1)

    def forward(
        self, embed: Tensor, high_0: Tensor, high_1: Tensor, boxes: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Decode boxes.

        Args:
            embed: (1, C, h, w) float32, of one picture, as the encoder gives it; high_0 and high_1
                are its maps at four and two times this resolution.
            high_0: (1, C/8, 4h, 4w) float32.
            high_1: (1, C/4, 2h, 2w) float32.
            boxes: (N, 4) float32, xyxy, canvas pixels.

        Returns:
            logits: (N, 4h, 4w) float32 over the canvas, object above 0.
            iou: (N,) float32, the model's own estimate, 0..1.
        """
        tokens = self._tokens(boxes)
        image = (embed + self.no_mask).flatten(2).transpose(1, 2)
        queries, image = self._transform(tokens, image)
        kernels, iou = self._best(queries)
        logits = self._draw(self._upscale(image, high_0, high_1), kernels)
        return logits, iou

    def _tokens(self, boxes: Tensor) -> Tensor:
        """Output tokens and two corners per box: (N, T, C)."""
        # A box edge is a pixel's place to this model, and the pixel's centre is half a pixel on.
        corners = self._encode((boxes.reshape(-1, 2, 2) + 0.5) / self.size) + self.corners
        fixed = self.fixed_tokens.expand(boxes.shape[0], -1, -1)
        padding = self.not_a_point.expand(boxes.shape[0], -1, -1)
        return torch.cat([fixed, corners, padding], dim=1)

    def _transform(self, tokens: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """Two-way transformer over (N, T, C) tokens and (1, h * w, C) features."""
        transformer: Any = self.decoder.transformer
        queries = tokens
        for layer in transformer.layers:
            queries, image = self._two_way(layer, queries, image, tokens)
        attended = _attend(
            transformer.final_attn_token_to_image, queries + tokens, image + self.position, image
        )
        return transformer.layer_norm_final_attn(queries + attended), image

    def _two_way(
        self, layer: Sam2TwoWayAttentionBlock, queries: Tensor, image: Tensor, tokens: Tensor
    ) -> tuple[Tensor, Tensor]:
        if layer.skip_first_layer_pe:
            queries = _attend(layer.self_attn, queries, queries, queries)
        else:
            placed = queries + tokens
            queries = queries + _attend(layer.self_attn, placed, placed, queries)
        queries = layer.layer_norm1(queries)
        keys = image + self.position
        queries = queries + _attend(layer.cross_attn_token_to_image, queries + tokens, keys, image)
        queries = layer.layer_norm2(queries)
        queries = layer.layer_norm3(queries + layer.mlp(queries))
        written = _attend(layer.cross_attn_image_to_token, keys, queries + tokens, queries)
        return queries, layer.layer_norm4(image + written)

    def _best(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Kernel (N, C/8) of the multimask with the highest predicted IoU, and that IoU (N,)."""
        quality = self.decoder.iou_prediction_head(queries[:, IOU_TOKEN])[:, 1:]
        kernels = [
            mlp(queries[:, FIRST_MASK_TOKEN + index])
            for index, mlp in enumerate(self.decoder.output_hypernetworks_mlps)
            if index > 0  # mask 0 is the answer to ambiguous prompts, and a box is not one
        ]
        stacked = torch.stack(kernels, dim=1)
        chosen = quality.argmax(dim=1, keepdim=True)
        index = chosen[:, :, None].expand(-1, 1, stacked.shape[2])
        return stacked.gather(1, index)[:, 0], quality.gather(1, chosen)[:, 0]

    def _upscale(self, image: Tensor, high_0: Tensor, high_1: Tensor) -> Tensor:
        """Features of the 4 x 4 pixels of each cell: (N, h * w, 4, 4, C/8), two by two by two."""
        decoder = self.decoder
        h, w = self.grid
        fine = high_1.reshape(1, -1, h, 2, w, 2).permute(0, 2, 4, 3, 5, 1)
        finest = high_0.reshape(1, -1, h, 2, 2, w, 2, 2).permute(0, 2, 5, 3, 6, 4, 7, 1)
        halves = _spread(decoder.upscale_conv1, image) + fine.reshape(1, h * w, 4, -1)
        norm = decoder.upscale_layer_norm
        halves = nn.functional.layer_norm(
            halves, norm.normalized_shape, norm.weight, norm.bias, norm.eps
        )
        quarters = _spread(decoder.upscale_conv2, decoder.activation(halves))
        features: Tensor = decoder.activation(quarters + finest.reshape(1, h * w, 4, 4, -1))
        return features

    def _draw(self, features: Tensor, kernels: Tensor) -> Tensor:
        """Product of features and kernels, pixels in rows and columns: (N, 4h, 4w)."""
        h, w = self.grid
        cells = features.flatten(1, 3) @ kernels[:, :, None]
        pixels = cells.reshape(-1, h, w, 2, 2, 2, 2).permute(0, 1, 3, 5, 2, 4, 6)
        return pixels.reshape(-1, 4 * h, 4 * w)


def _attend(module: Sam2Attention, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Multi-head attention of (N | 1, T, C) tensors; a batch of one goes with any other."""
    heads = module.num_attention_heads

    def split(tokens: Any) -> Tensor:
        parted: Tensor = tokens.unflatten(-1, (heads, -1)).transpose(1, 2)
        return parted

    q = split(module.q_proj(query)) * module.scaling
    weights = (q @ split(module.k_proj(key)).transpose(2, 3)).softmax(dim=-1)
    joined = (weights @ split(module.v_proj(value))).transpose(1, 2).flatten(2)
    projected: Tensor = module.o_proj(joined)
    return projected


def _spread(convolution: nn.ConvTranspose2d, tokens: Tensor) -> Tensor:
    """Transposed convolution of kernel = stride = 2 on tokens: (…, C) -> (…, 4, C')."""
    weight = convolution.weight.permute(0, 2, 3, 1).flatten(1)
    bias = convolution.bias
    assert bias is not None  # the library always makes one
    pixels: Any = tokens @ weight
    parted: Tensor = pixels.unflatten(-1, (4, -1)) + bias
    return parted
