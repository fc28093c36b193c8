"""The two graphs of a GroundingDINO: text, and picture with text.

The forward pass is the library's, cut in two, on a canvas of fixed size and with the masks of the
prompt made outside: the exporter has no `isin`, `cummax` and `searchsorted`. Everything that
depends only on the size of the canvas is a constant.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from tk.export.grounding.levels import Levels


class TextPart(nn.Module):
    """Token ids -> features of the prompt, in the width of the detector.

    Args:
        model: `GroundingDinoForObjectDetection` or its MM sister, in evaluation mode.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.backbone, self.projection = model.model.text_backbone, model.model.text_projection

    def forward(self, input_ids: Tensor, text_mask: Tensor, position_ids: Tensor) -> Tensor:
        """Encode prompts.

        Args:
            input_ids: (N, T) int32.
            text_mask: (N, T, T) bool, which tokens see each other.
            position_ids: (N, T) int32, place of a token in its phrase.

        Returns:
            (N, T, D) float32.
        """
        states = self.backbone(
            input_ids=input_ids,
            attention_mask=text_mask[:, None],
            token_type_ids=torch.zeros_like(input_ids),
            position_ids=position_ids,
        ).last_hidden_state
        features: Tensor = self.projection(states)
        return features


class ModelPart(nn.Module):
    """Canvas and features of a prompt -> boxes and token scores.

    Args:
        model: the library's model, in evaluation mode, after `replace_layers`.
        canvas: (height, width), pixels.
        mean, std: per channel, for values 0..1.
    """

    rows: Tensor
    columns: Tensor
    mean: Tensor
    scale: Tensor

    def __init__(
        self,
        model: Any,
        canvas: tuple[int, int],
        mean: tuple[float, ...],
        std: tuple[float, ...],
    ) -> None:
        super().__init__()
        self.network = model
        config = model.config
        self.canvas, self.queries = canvas, int(config.num_queries)
        rows = torch.arange(canvas[0], dtype=torch.int32)[None]
        columns = torch.arange(canvas[1], dtype=torch.int32)[None]
        self.register_buffer("rows", rows, persistent=False)
        self.register_buffer("columns", columns, persistent=False)
        scale = 255 * torch.tensor(std)
        self.register_buffer("mean", 255 * torch.tensor(mean), persistent=False)
        self.register_buffer("scale", 1 / scale, persistent=False)
        with torch.no_grad():
            maps = self._feature_maps(torch.zeros(1, 3, *canvas))
        shapes = [(int(m.shape[2]), int(m.shape[3])) for m in maps]
        places = sum(height * width for height, width in shapes)
        if places < self.queries:
            raise ValueError(f"{places} places for {self.queries} queries")
        temperature = float(config.positional_embedding_temperature)
        self.levels = Levels(canvas, shapes, int(config.d_model), temperature)

    def forward(
        self,
        image: Tensor,
        valid_hw: Tensor,
        text_features: Tensor,
        text_mask: Tensor,
        token_mask: Tensor | None,
        position_ids: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Detect.

        Args:
            image: (B, H, W, 3) uint8 RGB, pictures at the top left corner of the canvas.
            valid_hw: (B, 2) int32, rows and columns that are picture.
            text_features: (1, T, D) float32.
            text_mask: (1, T, T) bool, which tokens see each other.
            token_mask: (1, T) bool, False for padding; None for no padding.
            position_ids: (1, T) int32.

        Returns:
            boxes: (B, Q, 4) float32 xyxy, canvas pixels.
            token_scores: (B, Q, T) float32, 0..1, 0 for padding.
        """
        maps = self._feature_maps(self._pixels(image, valid_hw))
        vision = torch.cat([m.flatten(2).transpose(1, 2) for m in maps], 1)
        mask, positions, ratios = self.levels(valid_hw)
        core = self.network.model
        level_embed = [
            row.expand(height * width, -1)
            for row, (height, width) in zip(core.level_embed, self.levels.shapes, strict=True)
        ]
        shapes = torch.tensor(self.levels.shapes, dtype=torch.long)
        common = {
            "spatial_shapes": shapes,
            "spatial_shapes_list": self.levels.shapes,
            "level_start_index": None,
            "valid_ratios": ratios,
            "return_dict": True,
        }
        padding = None if token_mask is None else ~token_mask
        encoded = core.encoder(
            vision_features=vision,
            vision_attention_mask=~mask,
            vision_position_embedding=positions + torch.cat(level_embed),
            text_features=text_features,
            text_attention_mask=padding,
            text_self_attention_masks=~text_mask,
            text_position_ids=position_ids,
            **common,
        )
        vision, text = encoded.last_hidden_state_vision, encoded.last_hidden_state_text
        target, reference = self._queries(vision, text, valid_hw, padding)
        decoded = core.decoder(
            inputs_embeds=target,
            vision_encoder_hidden_states=vision,
            vision_encoder_attention_mask=mask,
            text_encoder_hidden_states=text,
            text_encoder_attention_mask=padding,
            reference_points=reference,
            **common,
        )
        last = decoded.intermediate_hidden_states[:, -1]
        reference = decoded.intermediate_reference_points[:, -2]  # of the layer before the last
        delta = self.network.bbox_embed[-1](last)
        boxes = (delta + torch.special.logit(reference, eps=1e-5)).sigmoid()
        scores = _token_logits(self.network.class_embed[-1], last, text).sigmoid()
        if padding is not None:
            scores = scores.masked_fill(padding[:, None], 0.0)
        return corners(boxes, valid_hw), scores

    def _pixels(self, image: Tensor, valid_hw: Tensor) -> Tensor:
        """Normalise, then zero the padding, as the library pads: (B, 3, H, W) float32."""
        pixels = (image.float() - self.get_buffer("mean")) * self.get_buffer("scale")
        rows = self.get_buffer("rows") < valid_hw[:, :1]
        columns = self.get_buffer("columns") < valid_hw[:, 1:]
        inside = rows[:, :, None, None] & columns[:, None, :, None]
        return torch.where(inside, pixels, 0.0).permute(0, 3, 1, 2)

    def _feature_maps(self, pixels: Tensor) -> list[Tensor]:
        """Feature maps of all levels, each (B, D, h, w)."""
        core = self.network.model
        found = core.backbone.conv_encoder.model(pixels, return_dict=True).feature_maps
        maps = [
            project(m)
            for project, m in zip(core.input_proj_vision[: len(found)], found, strict=True)
        ]
        for index, project in enumerate(core.input_proj_vision[len(found) :]):
            maps.append(project(found[-1] if index == 0 else maps[-1]))
        return maps

    def _queries(
        self, vision: Tensor, text: Tensor, valid_hw: Tensor, padding: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Choose the places that the decoder starts from.

        Returns:
            target: (B, Q, D), and reference boxes (B, Q, 4) cxcywh in 0..1.
        """
        core = self.network.model
        proposals, likely = self.levels.proposals(valid_hw)
        objects = core.enc_output_norm(core.enc_output(torch.where(likely, vision, 0.0)))
        logits = _token_logits(core.encoder_output_class_embed, objects, text)
        if padding is not None:
            logits = logits.masked_fill(padding[:, None], torch.finfo(logits.dtype).min)
        chosen = self._choose(logits.amax(-1))
        boxes = core.encoder_output_bbox_embed(objects) + proposals
        boxes = torch.gather(boxes, 1, chosen[..., None].expand(-1, -1, 4)).sigmoid()
        return core.query_position_embeddings.weight.expand(vision.shape[0], -1, -1), boxes

    def _choose(self, logits: Tensor) -> Tensor:
        """Places with the highest logits, best first: (B, S) -> (B, Q) int64."""
        return torch.topk(logits, self.queries, dim=1)[1]


def _token_logits(head: Any, states: Tensor, text: Tensor) -> Tensor:
    """Similarity of queries and tokens, (B, Q, T): the library's head without its padding."""
    logits = states @ text.transpose(-1, -2)
    bias = getattr(head, "bias", None)
    # MM-GroundingDINO scales and shifts; GroundingDINO does neither.
    return logits if bias is None else logits / math.sqrt(states.shape[-1]) + bias


def corners(boxes: Tensor, valid_hw: Tensor) -> Tensor:
    """Boxes cxcywh relative to the picture -> xyxy in canvas pixels."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    size = valid_hw.flip(1).float().repeat(1, 2)[:, None]
    return torch.cat([centre - half, centre + half], -1) * size


class BakedPart(nn.Module):
    """`ModelPart` with one prompt as constants, without padding.

    Args:
        part: the model part.
        features, mask, positions: `text_features`, `text_mask` and `position_ids` of its inputs.
    """

    def __init__(self, part: ModelPart, features: Tensor, mask: Tensor, positions: Tensor) -> None:
        super().__init__()
        self.part = part
        self.register_buffer("features", features, persistent=False)
        self.register_buffer("mask", mask, persistent=False)
        self.register_buffer("positions", positions, persistent=False)

    def forward(self, image: Tensor, valid_hw: Tensor) -> tuple[Tensor, Tensor]:
        """Detect what the baked prompt names; see `ModelPart.forward`."""
        boxes, scores = self.part(image, valid_hw, self.features, self.mask, None, self.positions)
        return boxes, scores
