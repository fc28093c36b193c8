"""Models with random weights have the shapes of the published ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from tk.benchmarks.random_models import grounding_dino_config, write_embedder
from tk.train.embedder.train import load_embedder


@pytest.mark.parametrize(
    ("size", "kind", "channels", "levels"),
    [
        ("tiny", "GroundingDino", [192, 384, 768], 4),
        ("large", "MMGroundingDino", [192, 384, 768, 1536], 5),
    ],
)
def test_grounding_dino_config__maps_that_the_published_model_reads(
    size: str, kind: str, channels: list[int], levels: int
) -> None:
    """The neck of OpenMMLab's configurations: `in_channels` and `num_outs`."""
    network: Any = getattr(transformers, kind + "ForObjectDetection")
    with torch.device("meta"):
        core = network(grounding_dino_config(size)).model
    projections = [project[0] for project in core.input_proj_vision]
    assert [project.in_channels for project in projections[: len(channels)]] == channels
    assert len(projections) == levels and core.level_embed.shape == (levels, 256)
    assert len(core.encoder.layers) == len(core.decoder.layers) == 6


def test_write_embedder__is_a_checkpoint_of_a_training(tmp_path: Path) -> None:
    write_embedder(tmp_path / "new" / "run", "test_vit", 160, 32)
    network, state = load_embedder(tmp_path / "new" / "run" / "checkpoint_best.pth")
    with torch.inference_mode():
        found = network(torch.randint(0, 256, (3, 160, 160, 3), dtype=torch.uint8))
    assert found.shape == (3, 32) and state["step"] == 0
    assert float(torch.cdist(found, found).max()) > 0.01
