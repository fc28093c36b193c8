"""Our encoder and decoder against the library's forward passes, in PyTorch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.export.sam2 import small
from torch import Tensor
from transformers import Sam2Model

from tk.export.sam2.decoder import Sam2Decoder
from tk.export.sam2.encoder import Sam2Encoder
from tk.export.sources.sam2 import IMAGENET_MEAN, IMAGENET_STD


def normalised(images: Tensor) -> Tensor:
    """(B, H, W, 3) uint8 -> (B, 3, H, W) float32, as the library's processor does."""
    scaled = (images.float() / 255 - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)
    return scaled.permute(0, 3, 1, 2)


@torch.inference_mode()
def library_masks(network: Sam2Model, maps: list[Tensor], boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (N, h, w) of the best multimask and its predicted IoU (N,), by the library."""
    given = network(image_embeddings=[value[:1] for value in maps], input_boxes=boxes[None])
    iou, best = given.iou_scores[0].max(dim=-1)
    return given.pred_masks[0][torch.arange(len(boxes)), best], iou


@torch.inference_mode()
def test_encoder__equals_the_library(network: Sam2Model) -> None:
    images = torch.from_numpy(np.stack(small.pictures(3)))
    hw = (small.SIDE, small.SIDE)
    embed, high_0, high_1 = Sam2Encoder(network, hw, IMAGENET_MEAN, IMAGENET_STD)(images)
    expected = network.get_image_embeddings(normalised(images))
    for found, wanted in zip((high_0, high_1, embed), expected, strict=True):
        assert found.shape == wanted.shape
        assert (found - wanted).abs().max() < 1e-4 * wanted.abs().max()
    assert (embed[0] - embed[1]).abs().mean() > 0.1 * embed.abs().mean()  # it looks at the picture


@torch.inference_mode()
@pytest.mark.parametrize("count", [1, 2, 20])
def test_decoder__equals_the_library(network: Sam2Model, count: int) -> None:
    images = torch.from_numpy(np.stack(small.pictures(1)))
    maps = network.get_image_embeddings(normalised(images))
    boxes = torch.from_numpy(small.boxes(count, small.SIDE, small.SIDE))
    logits, iou = Sam2Decoder(network, (small.SIDE, small.SIDE))(maps[2], maps[0], maps[1], boxes)
    expected, expected_iou = library_masks(network, maps, boxes)
    assert (logits - expected).abs().max() < 1e-4 * expected.abs().max()
    assert (iou - expected_iou).abs().max() < 1e-5
    if count > 2:
        all_iou = network(image_embeddings=maps, input_boxes=boxes[None]).iou_scores[0]
        assert len(set(all_iou.argmax(dim=-1).tolist())) > 1  # boxes choose different masks
        assert not torch.equal(expected[0] > 0, expected[1] > 0)


@torch.inference_mode()
def test_canvas__need_not_be_square_or_of_the_models_size(network: Sam2Model) -> None:
    h, w, side = 128, 192, small.SIDE
    images = torch.from_numpy(np.stack(small.pictures(2, h, w)))
    embed, high_0, high_1 = Sam2Encoder(network, (h, w), IMAGENET_MEAN, IMAGENET_STD)(images)
    seen = network.vision_encoder(normalised(images)).fpn_hidden_states
    assert torch.allclose(high_0, network.mask_decoder.conv_s0(seen[0]), atol=1e-3)
    boxes = torch.from_numpy(small.boxes(5, h, w))
    maps = (embed[:1], high_0[:1], high_1[:1])
    logits, iou = Sam2Decoder(network, (h, w))(*maps, boxes)
    # The library divides by its own square, so its boxes are scaled to mean the same places.
    scaled = (boxes + 0.5) * torch.tensor([side / w, side / h] * 2) - 0.5
    prompt = network.prompt_encoder
    sizes = prompt.image_embedding_size
    try:
        prompt.image_embedding_size = (h // 16, w // 16)
        expected, expected_iou = library_masks(network, [maps[1], maps[2], maps[0]], scaled)
    finally:
        prompt.image_embedding_size = sizes
    assert logits.shape == (5, h // 4, w // 4)
    assert (logits - expected).abs().max() < 1e-4 * expected.abs().max()
    assert (iou - expected_iou).abs().max() < 1e-5


@torch.inference_mode()
def test_encoder__looks_around_by_parts(
    network: Sam2Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large canvas takes its queries in several parts; here 256 in parts of 100."""
    images = torch.from_numpy(np.stack(small.pictures(2)))
    encoder = Sam2Encoder(network, (small.SIDE, small.SIDE), IMAGENET_MEAN, IMAGENET_STD)
    whole = encoder(images)
    monkeypatch.setattr("tk.export.sam2.encoder.ROWS", 100)
    for found, wanted in zip(encoder(images), whole, strict=True):
        assert (found - wanted).abs().max() < 1e-5 * wanted.abs().max()
