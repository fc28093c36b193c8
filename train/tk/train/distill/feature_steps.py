"""Steps that run the backbone: as it is given, with random weights, and fine-tuned."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

from tk.runtime.files import write_bytes
from tk.train.backbone import ImageEncoder
from tk.train.distill.arrays import write_npy
from tk.train.distill.config import DistillConfig
from tk.train.distill.extract import extract_features, keep_encoder, read_features
from tk.train.distill.layout import INFO
from tk.train.distill.pictures import draw_pca
from tk.train.distill.split import read_split
from tk.train.distill.steps import Step


def given_features(config: DistillConfig, crops: Path) -> Step:
    """Step 3: the backbone of the options."""
    if not (config.pretrained or config.weights):
        print("--no-pretrained without --weights: the backbone is random", file=sys.stderr)
    pretrained = config.pretrained and config.weights is None
    return _step(config, crops, "", pretrained=pretrained, weights=config.weights)


def random_features(config: DistillConfig, crops: Path) -> Step:
    """The floor: the same architecture with random weights."""
    return _step(config, crops, "random")


def ssl_features(config: DistillConfig, crops: Path, weights: Path) -> Step:
    """Step 5: the backbone that step 4 has fine-tuned."""
    return _step(config, crops, "ssl", weights=weights)


def _step(
    config: DistillConfig,
    crops: Path,
    kind: str,
    *,
    pretrained: bool = False,
    weights: Path | None = None,
) -> Step:
    """Make a step that writes features, labels, the backbone they are of, and a picture of them."""
    run = config.out
    after, before = (f"_{kind}", f"{kind}_") if kind else ("", "")
    name, labels = f"features{after}", run / f"labels{after}.npy"
    backbone, picture = run / f"backbone{after}.pth", run / f"{before}features_pca.png"

    def work() -> None:
        items, spec = read_split(run / INFO), config.image_spec()
        with torch.random.fork_rng(devices=[]):
            # Where no weights are given: other random ones than those of the floor.
            torch.manual_seed(1 if kind == "random" else 0)
            encoder = ImageEncoder(
                config.model_id, config.img_size, pretrained=pretrained, weights=weights
            )
        size, device = config.features_batch_size, config.device
        extract_features(run, name, encoder, spec, items, batch_size=size, device=device)
        keep_encoder(backbone, encoder, spec)
        write_npy(labels, items.labels)
        found = read_features(run, name, len(items.files)).values
        title = " ".join([kind, "features of", config.model_id]).strip()
        held = np.asarray(items.split == "test")
        write_bytes(picture, draw_pca(found, items.labels, held, items.classes, title))

    return Step(
        name=f"{before}features",
        title=f"{config.model_id}, {kind or 'frozen'}",
        run=work,
        options={
            "model_id": config.model_id,
            "img_size": config.img_size,
            "pretrained": pretrained,
            "batch_size": config.features_batch_size,
        },
        inputs=[run / INFO, crops, *([weights] if weights else [])],
        outputs=[run / f"{name}.npy", run / f"{name}.json", labels, backbone, picture],
        cache=[run / f"{name}.json"],
    )
