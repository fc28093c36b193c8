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

GROUNDING_DINO: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "tiny": (
        {
            "image_size": 224,
            "embed_dim": 96,
            "depths": [2, 2, 6, 2],
            "num_heads": [3, 6, 12, 24],
            "window_size": 7,
            "out_indices": [2, 3, 4],
        },
        {},
    ),
    "large": (
        {
            "image_size": 384,
            "embed_dim": 192,
            "depths": [2, 2, 18, 2],
            "num_heads": [6, 12, 24, 48],
            "window_size": 12,
            "out_indices": [1, 2, 3, 4],
        },
        {"num_feature_levels": 5},
    ),
}
"""Size -> Swin backbone and what else differs from the defaults; all else is published as is."""


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
        write_sam2(made / "segmenter", None if small else "tiny")
        name, side = ("test_vit", 160) if small else (EMBEDDER, EMBEDDER_SIZE)
        write_embedder(made / "embedder", name, side)


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
        network = library.GroundingDinoForObjectDetection(grounding_dino_config("tiny"))
    # Fresh queries differ, and which place gets which is decided by the last bits of random
    # scores: PyTorch would not equal itself.
    queries = network.model.query_position_embeddings.weight.data
    queries.copy_(queries[:1].clone().expand_as(queries))
    network.save_pretrained(folder)
    library.BertTokenizer(words).save_pretrained(folder)


def grounding_dino_config(size: str) -> Any:
    """Make the configuration of a published GroundingDINO.

    Args:
        size: `tiny` (IDEA-Research/grounding-dino-tiny) or `large` (mm_grounding_dino_large_all,
            the detector of the original annotator; for the MM classes of the library). The large
            one reads the finest feature map too: five levels, the first at stride 4.

    Raises:
        KeyError: another size.
    """
    import transformers

    library: Any = transformers
    backbone, more = GROUNDING_DINO[size]
    kind = "MMGroundingDinoConfig" if size == "large" else "GroundingDinoConfig"
    return getattr(library, kind)(
        backbone_config=library.SwinConfig(**backbone), text_config=library.BertConfig(), **more
    )


def write_sam2(folder: Path, variant: str | None) -> None:
    """Write a folder of a SAM-2 as `save_pretrained` does.

    Args:
        folder: to be made.
        variant: `tiny`, `small`, `base_plus` or `large`; None for a model of a few MB.
    """
    import transformers

    from tk.export.sam2.variants import config_of
    from tk.train.sam2.small import small_model

    library: Any = transformers
    network = (
        small_model(SMALL_CANVAS) if variant is None else library.Sam2Model(config_of(variant))
    )
    with torch.no_grad():
        for parameter in network.parameters():
            if not parameter.any():  # fresh positions are zero, and trained ones are not
                parameter.normal_(std=0.02)
    network.save_pretrained(folder)


def write_embedder(folder: Path, name: str, side: int, dimension: int = DIMENSION) -> None:
    """Write a checkpoint of an embedder, as a training would.

    Args:
        folder: to be made.
        name: of a backbone of timm.
        side: of its crops, pixels.
        dimension: of the embedding.
    """
    from tk.train.embedder.model import EmbedNet
    from tk.train.run.checkpoint import save_checkpoint

    network = EmbedNet(name, dimension, side).eval()
    with torch.no_grad():
        for key, parameter in network.named_parameters():
            if "gamma" in key:  # fresh layer scales of 1e-5 would embed all pictures alike
                parameter.uniform_(0.3, 1.0)
    config = {"model_id": name, "emb_dim": dimension, "pretrained": False}
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
    folder.mkdir(parents=True)
    save_checkpoint(folder / "checkpoint_best.pth", state)
