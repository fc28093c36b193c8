"""Original checkpoints: converted by us, compared with the `sam2` package's own predictor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from tests.export.sam2 import small
from torch import Tensor, nn
from transformers import Sam2Model

from tk.export.graph import to_onnx
from tk.export.sam2.convert import convert
from tk.export.sam2.variants import VARIANTS, config_of, recognise, variant_of
from tk.export.sources.sam2 import build_converted, describe, load_original, open_source
from tk.export.sources.source import Source
from tk.runtime.errors import TkError


def original_model() -> Any:
    """The `sam2` package's model in the sizes of `small_config`, without its memory."""
    pytest.importorskip("sam2")
    from sam2.modeling.backbones.hieradet import Hiera
    from sam2.modeling.backbones.image_encoder import FpnNeck, ImageEncoder
    from sam2.modeling.position_encoding import PositionEmbeddingSine
    from sam2.modeling.sam2_base import SAM2Base

    torch.manual_seed(0)
    trunk = Hiera(
        embed_dim=16,
        stages=tuple(small.BLOCKS),
        global_att_blocks=tuple(small.WHOLE),
        window_spec=tuple(small.WINDOWS),
        window_pos_embed_bkg_spatial_size=(7, 7),
    )
    neck = FpnNeck(
        position_encoding=PositionEmbeddingSine(num_pos_feats=small.WIDTH, normalize=True),
        d_model=small.WIDTH,
        backbone_channel_list=[128, 64, 32, 16],
        fpn_top_down_levels=[2, 3],
        fpn_interp_model="nearest",
    )
    model = SAM2Base(
        ImageEncoder(trunk, neck, scalp=1),
        memory_attention=nn.Identity(),
        memory_encoder=nn.Identity(),
        image_size=small.SIDE,
        directly_add_no_mem_embed=True,
        use_high_res_features_in_sam=True,
        iou_prediction_use_sigmoid=True,
        use_obj_ptrs_in_encoder=True,
        proj_tpos_enc_in_obj_ptrs=True,
        pred_obj_scores=True,
        pred_obj_scores_mlp=True,
        fixed_no_obj_ptr=True,
        use_mlp_for_obj_ptr_proj=True,
        no_obj_embed_spatial=True,
        multimask_output_in_sam=True,
        use_multimask_token_for_obj_ptr=True,
    ).eval()
    small.spread(model)
    return model


def predictor_masks(
    model: Any, picture: NDArray[np.uint8], boxes: NDArray[np.float32], feature_sides: list[int]
) -> tuple[NDArray[np.bool_], NDArray[np.float32], NDArray[np.float32]]:
    """Masks (N, H, W), IoU (N,) and logits (N, h, w) of the best multimask, by the package."""
    from sam2.sam2_image_predictor import SAM2ImagePredictor

    predictor = SAM2ImagePredictor(model)
    predictor._bb_feat_sizes = [(side, side) for side in feature_sides]
    predictor.set_image(picture)
    masks, iou, logits = predictor.predict(box=boxes, multimask_output=True)
    rows, best = np.arange(len(boxes)), iou.argmax(axis=1)
    return masks[rows, best] > 0, iou[rows, best], logits[rows, best]


def test_convert__exported_decoder_gives_the_masks_of_the_original() -> None:
    original = original_model()
    network, left_out = build_converted(small.small_config(), original.state_dict())
    assert left_out == len([n for n in original.state_dict() if "obj_ptr" in n]) + 5
    picture, boxes = small.pictures(1)[0], small.boxes(20, small.SIDE, small.SIDE)
    masks, iou, logits = predictor_masks(original, picture, boxes, [64, 32, 16])

    model = describe(network, Source(Path("x.pt"), "sam2"), 2, {})
    features = model.parts["encoder"].run({"image": picture[None]})
    decoder = model.parts["decoder"]
    data = to_onnx(decoder, decoder.feed(picture[None], 2), {}).data
    session = ort.InferenceSession(data, providers=["CPUExecutionProvider"])
    found, found_iou = session.run(["logits", "iou"], {**features, "boxes": boxes})

    np.testing.assert_allclose(found_iou, iou, atol=1e-4)
    # The package cuts its logits to -32..32.
    np.testing.assert_allclose(found.clip(-32, 32), logits, atol=2e-3 * np.abs(logits).max())
    full = nn.functional.interpolate(
        torch.from_numpy(found)[None], masks.shape[1:], mode="bilinear"
    )
    drawn = full[0].numpy() > 0
    union, shared = (drawn | masks).sum(axis=(1, 2)), (drawn & masks).sum(axis=(1, 2))
    assert (union > 0).all() and (shared / union).min() >= 0.999
    assert 0.02 < masks.mean() < 0.98


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return {name: value.clone() for name, value in original_model().state_dict().items()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sam_mask_decoder.iou_token.weight": None}, "no mask_decoder.iou_token.weight"),
        ({"sam_mask_decoder.extra.weight": torch.ones(2)}, "unknown mask_decoder.extra.weight"),
        ({"no_mem_embed": torch.ones(1, 1, 5)}, "no_memory_embedding is (1, 1, 5), not (1, 1, 32)"),
        ({"sam_prompt_encoder.point_embeddings.3.weight": None}, "point_embed.weight is (3, 32)"),
        ({"surprise": torch.ones(1)}, "unknown surprise"),
    ],
)
def test_convert__nothing_is_missing_or_dropped_in_silence(
    weights: dict[str, Tensor], change: dict[str, Tensor | None], message: str
) -> None:
    changed = {name: v for name, v in (weights | change).items() if v is not None}
    with pytest.raises(TkError, match="not of the SAM-2 configuration") as caught:
        convert(changed, Sam2Model(small.small_config()).state_dict())
    assert message in caught.value.found


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("configs/sam2.1/sam2.1_hiera_t.yaml", "tiny"),
        ("configs/sam2/sam2_hiera_s.yaml", "small"),
        ("sam2.1_hiera_b+.yaml", "base_plus"),
        ("sam2.1_hiera_base_plus.pt", "base_plus"),
        ("sam2.1_hiera_l", "large"),
        ("large", "large"),
    ],
)
def test_variant_of__names(name: str, key: str) -> None:
    assert variant_of(name) == key


def test_variant_of__unknown_name_lists_the_known() -> None:
    with pytest.raises(TkError, match="unknown SAM-2 configuration") as caught:
        variant_of("configs/sam3.yaml")
    assert "sam2.1_hiera_b+.yaml" in caught.value.expected


@pytest.mark.parametrize("key", VARIANTS)
@pytest.mark.parametrize("family", ["sam2.1/sam2.1", "sam2/sam2"])
def test_variants__take_the_weights_of_the_packages_configurations(key: str, family: str) -> None:
    pytest.importorskip("sam2")
    from hydra import compose
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    settings = compose(config_name=f"configs/{family}_hiera_{VARIANTS[key].letter}.yaml")
    OmegaConf.resolve(settings)
    trunk = instantiate(settings.model.image_encoder.trunk, _recursive_=True)
    with torch.device("meta"):
        expected = Sam2Model(config_of(key)).vision_encoder.backbone.state_dict()
    original = {f"image_encoder.trunk.{name}": v for name, v in trunk.state_dict().items()}
    assert recognise(original) == key
    shapes = sorted(tuple(value.shape) for value in original.values())
    assert shapes == sorted(tuple(value.shape) for value in expected.values())
    vision: Any = config_of(key).vision_config
    config = vision.backbone_config
    for own, theirs in zip(range(sum(config.blocks_per_stage)), trunk.blocks, strict=True):
        assert (own in config.global_attention_blocks) == (theirs.window_size == 0)


def test_load_original__bad_files(weights: dict[str, Tensor], tmp_path: Path) -> None:
    for name, saved in (("w", weights), ("list", [1, 2]), ("other", {"model": {"a": 1}})):
        torch.save(saved, tmp_path / f"{name}.pt")
    (tmp_path / "text.pt").write_text("no weights")
    with pytest.raises(TkError, match="no SAM-2 that tk knows"):
        load_original(tmp_path / "w.pt", "")
    with pytest.raises(TkError, match="not of the SAM-2 configuration"):
        open_source(Source(tmp_path / "w.pt", "sam2", sam2_cfg="sam2.1_hiera_t.yaml"), 2)
    for name in ("list", "other"):
        with pytest.raises(TkError, match="not a checkpoint of sam2"):
            load_original(tmp_path / f"{name}.pt", "tiny")
    with pytest.raises(TkError, match="cannot be read"):
        load_original(tmp_path / "text.pt", "tiny")
