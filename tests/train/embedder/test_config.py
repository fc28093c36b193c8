from __future__ import annotations

from pathlib import Path

from tests.command_lines import options_of

from tk.runtime.preprocess import CropSpec
from tk.train.embedder.config import EmbedderConfig

SEED = """--data_root dataset --out_dir out
--model_id vit_large_patch16_dinov3.lvd1689m --emb_dim 128
--freeze_backbone --epochs 15 --batch 64 --lr 1e-3 --img_size 224 --workers 4 --seed 42
--val_split 0.2 --test_split 0.1 --save_every 5 --min_per_class 200 --crop_mode mix
--mix_mask_p 0.4 --max_refs_per_class 16"""


def test_embedder_config__takes_the_options_of_the_original_script() -> None:
    expected = EmbedderConfig(
        data=Path("dataset"), out=Path("out"), freeze_backbone=True, epochs=15, batch_size=64,
        lr=1e-3, workers=4, min_per_class=200, crop_mode="mix", mix_mask_p=0.4,
        max_refs_per_class=16, save_every=5,
    )  # fmt: skip
    assert options_of(EmbedderConfig, *SEED.split()) == expected


def test_embedder_config__epochs_in_steps() -> None:
    config = EmbedderConfig(data=Path("d"), out=Path("o"), epochs=3, batch_size=64, save_every=2)
    counted = config.in_steps(700)
    assert (counted.steps, counted.eval_every) == (33, 11)
    assert (counted.save_every, counted.keep_every) == (11, 22)


def test_embedder_config__crop_mode_decides_what_the_runtime_does() -> None:
    found = {}
    for mode in ("bbox", "mask", "mix"):
        config = EmbedderConfig(data=Path("d"), out=Path("o"), crop_mode=mode)
        found[mode] = (config.crop_spec(), config.mask_share())
    assert found == {
        "bbox": (CropSpec(0.1, "keep"), 0.0),
        "mask": (CropSpec(0.1, "mask"), 1.0),
        "mix": (CropSpec(0.1, "keep"), 0.4),
    }
