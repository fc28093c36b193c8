"""Step 4: go on pre-training the backbone on the patches, without their labels."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from tk.train.distill.config import DistillConfig
from tk.train.distill.layout import INFO
from tk.train.distill.split import Items, read_split
from tk.train.distill.steps import Step, without_paths
from tk.train.run.options import validate
from tk.train.ssl.config import SslConfig

FOLDER, PICTURES = "ssl", "ssl_pictures"


def backbone_file(run: Path) -> Path:
    """The backbone that the step leaves."""
    return run / FOLDER / "backbone.pt"


def ssl_step(config: DistillConfig) -> Step:
    """Make the step; it goes on where it was interrupted."""
    run, info = config.out, config.out / INFO
    settings = ssl_settings(config)

    def work() -> None:
        from tk.train.ssl.train import train_ssl

        link_pictures(read_split(info), run / PICTURES)
        train_ssl(ssl_config(config))

    return Step(
        "ssl",
        f"{config.ssl_algorithm} on the patches, from the weights of the features",
        work,
        without_paths(settings),
        # Not the file of the backbone: features.json has the digest of its weights.
        [info, run / "features.json"],
        [backbone_file(run)],
        partial=[run / FOLDER],
    )


def ssl_config(config: DistillConfig) -> SslConfig:
    """The configuration of the training.

    Raises:
        TkError: values that `tk train ssl` does not take.
    """
    more = {"threads": config.threads, "device": config.device, "goes_on": ""}
    return validate(SslConfig, ssl_settings(config) | more)


def ssl_settings(config: DistillConfig) -> dict[str, Any]:
    """Options of `tk train ssl`, those of the seed among them.

    The test patches stay out, though no label is used: a line sees new strips.
    """
    run = config.out
    return {
        "train_dir": [run / PICTURES],
        "out": run / FOLDER,
        "export_backbone": backbone_file(run),
        "model": config.model_id.partition(".")[0],
        "weights": run / "backbone.pth",
        "algorithm": config.ssl_algorithm,
        "image_size": config.ssl_img_size or config.img_size,
        "epochs": config.ssl_epochs,
        "batch_size": config.ssl_batch_size,
        "lr": config.ssl_lr,
        "lr_end": min(config.ssl_lr, 1e-6),
        "weight_decay": config.ssl_weight_decay,
        "weight_decay_end": config.ssl_weight_decay,
        "freeze_blocks": config.ssl_freeze_blocks,
        "out_dim": config.ssl_out_dim,
        "aug_local_crops": config.ssl_local_crops,
    }


def link_pictures(items: Items, folder: Path) -> None:
    """Make a folder of links to the patches that are for learning."""
    if folder.is_dir():
        shutil.rmtree(folder)
    for row in items.learned():
        link = folder / items.files[row]
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(items.root / items.files[row], link.parent))
