"""`--export-backbone` files in `tk export` and as `--weights` of `tk train embedder`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.train.ssl.runs import config, write_digits
from torch.nn import functional as F

from tk.export.sources.registry import find_source, open_source
from tk.export.write import write_bundle
from tk.runtime.bundle import Bundle
from tk.runtime.errors import TkError
from tk.runtime.heads.embedder import Embedder
from tk.runtime.images import read_image
from tk.runtime.preprocess import fit
from tk.train.embedder.model import EmbedNet
from tk.train.ssl.backbone.export import export_backbone, load_dinov2_backbone
from tk.train.ssl.backbone.timm import make_timm
from tk.train.ssl.backbone.vit import make_vit
from tk.train.ssl.train import train_ssl


def test_backbone__from_pre_training_to_a_bundle(tmp_path: Path) -> None:
    digits, path = write_digits(tmp_path / "digits", 32), tmp_path / "backbone.pt"
    train_ssl(config(digits, tmp_path / "run", epochs=1, export_backbone=path))
    assert find_source(str(path)).task == "backbone"
    model = open_source(path, 4)
    lines = write_bundle(model, tmp_path / "bundle", digits)
    assert not any(line.startswith("FAIL") for line in lines)

    embedder = Embedder(Bundle.open(tmp_path / "bundle"))
    crops = [read_image(file) for file in sorted(digits.rglob("*.png"))[:6]]
    canvases = np.stack([fit(model.image, crop)[0] for crop in crops])
    facts = torch.load(path, weights_only=True)["metadata"]
    scaled = (torch.from_numpy(canvases) / 255 - torch.tensor(facts["mean"])) / torch.tensor(
        facts["std"]
    )
    with torch.inference_mode():
        tokens = load_dinov2_backbone(f"file::{path}:slt_vitsmall_patch16")(
            scaled.permute(0, 3, 1, 2)
        )
    np.testing.assert_allclose(embedder.embed(crops), F.normalize(tokens).numpy(), atol=1e-5)


def test_backbone__file_without_preprocessing_is_refused(tmp_path: Path) -> None:
    shape = dict(image_size=16, patch_size=4, embed_dim=16, depth=1, num_heads=2, mlp_ratio=4.0)
    export_backbone(tmp_path / "b.pt", make_vit(16, 4, 16, 1, 2), shape, {"mean": [0.0] * 3})
    with pytest.raises(TkError, match="how a picture becomes its input") as caught:
        open_source(tmp_path / "b.pt", 1)
    assert "no std, image_spec" in str(caught.value)


@pytest.mark.parametrize("name", ["own", "test_vit"])
def test_backbone__weights_of_an_embedder(name: str, tmp_path: Path) -> None:
    """The default shape is timm's ViT-S/16, and a model of timm is itself."""
    torch.manual_seed(0)
    if name == "own":
        made, model_id = make_vit(224, 16, 384, 12, 6), "vit_small_patch16_224"
    else:
        made, model_id = make_timm(name, 160), name
    path, size = tmp_path / "b.pt", made.vit.patch_embed.img_size[0]
    export_backbone(path, made, {"image_size": size}, {})
    network = EmbedNet(model_id, 8, size, weights=path)
    found, wanted = network.backbone.state_dict(), made.vit.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[key], value) for key, value in wanted.items())
