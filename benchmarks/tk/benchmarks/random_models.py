"""GroundingDINO-T, SAM-2.1-tiny and DINOv3 ViT-S with seeded random weights.

Speed and memory do not depend on the weights, so the sizes that people use can be timed where the
published weights cannot be fetched. Such models find nothing: `tk bench chain` gives them boxes.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from tk.runtime.files import atomic_folder
from tk.runtime.preprocess import CropSpec, ImageSpec

WORDS = ("tool", "wrench", "pliers", "hammer")
EMBEDDER = "vit_small_patch16_dinov3"
EMBEDDER_SIZE, DIMENSION = 224, 128
SMALL_CANVAS = 256
"""Of GroundingDINO and SAM-2, when only the mechanics matter."""


def write_models(folder: Path, *, small: bool = False, seed: int = 0) -> None:
    """Write `detector/`, `segmenter/` (Hugging Face folders) and `embedder/` (a checkpoint).

    Args:
        folder: to be made.
        small: models of a few MB with the same parts, to try the mechanics.
        seed: of the weights.
    """
    with atomic_folder(folder) as made:
        torch.manual_seed(seed)
        _write_grounding_dino(made / "detector", small)
        _write_sam2(made / "segmenter", small)
        _write_embedder(made / "embedder", small)


def _write_grounding_dino(folder: Path, small: bool) -> None:
    import transformers

    from tk.train.grounding.small import small_config, start_values
    from tk.train.grounding.vocabulary import small_vocabulary

    library: Any = transformers
    words = small_vocabulary(WORDS)
    if small:
        network = library.MMGroundingDinoForObjectDetection(small_config(max(words.values()) + 1))
        start_values(network)
    else:
        network = library.GroundingDinoForObjectDetection(_grounding_dino_tiny())
    # Fresh queries differ, and which place gets which is decided by the last bits of random
    # scores: PyTorch would not equal itself.
    queries = network.model.query_position_embeddings.weight.data
    queries.copy_(queries[:1].clone().expand_as(queries))
    network.save_pretrained(folder)
    library.BertTokenizer(words).save_pretrained(folder)


def _grounding_dino_tiny() -> Any:
    """The configuration of IDEA-Research/grounding-dino-tiny."""
    import transformers

    library: Any = transformers
    swin = library.SwinConfig(
        image_size=224,
        embed_dim=96,
        depths=[2, 2, 6, 2],
        num_heads=[3, 6, 12, 24],
        window_size=7,
        out_indices=[2, 3, 4],
    )
    return library.GroundingDinoConfig(backbone_config=swin, text_config=library.BertConfig())


def _write_sam2(folder: Path, small: bool) -> None:
    import transformers

    from tk.export.sam2.variants import config_of
    from tk.train.sam2.small import small_model

    library: Any = transformers
    network = small_model(SMALL_CANVAS) if small else library.Sam2Model(config_of("tiny"))
    with torch.no_grad():
        for parameter in network.parameters():
            if not parameter.any():  # fresh positions are zero, and trained ones are not
                parameter.normal_(std=0.02)
    network.save_pretrained(folder)


def _write_embedder(folder: Path, small: bool) -> None:
    from tk.train.embedder.model import EmbedNet
    from tk.train.run.checkpoint import save_checkpoint

    name = "test_vit" if small else EMBEDDER
    side = 160 if small else EMBEDDER_SIZE
    network = EmbedNet(name, DIMENSION, side).eval()
    with torch.no_grad():
        for key, parameter in network.named_parameters():
            if "gamma" in key:  # fresh layer scales of 1e-5 would embed all pictures alike
                parameter.uniform_(0.3, 1.0)
    config = {"model_id": name, "emb_dim": DIMENSION, "pretrained": False}
    state = {
        "task": "embedder",
        "config": json.dumps(config),
        "classes": json.dumps(WORDS),
        "image_spec": json.dumps(asdict(ImageSpec(side, side))),
        "crop_spec": json.dumps(asdict(CropSpec(background="mask"))),
        "step": 0,
        "epoch": 0,
        "model": network.state_dict(),
    }
    folder.mkdir()
    save_checkpoint(folder / "checkpoint_best.pth", state)
