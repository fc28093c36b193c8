"""What is known of the licence of weights that tk trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm


def licence_of_training(config: dict[str, Any]) -> str:
    """What the configuration of a training says of the weights that it started from.

    Args:
        config: with `model_id`, and `weights` or `pretrained` where it did not start from nothing.
    """
    model = config["model_id"]
    if weights := config.get("weights"):
        return (
            f"{model}, started from the file {Path(weights).name}: its licence is not known to tk"
        )
    if not config.get("pretrained"):
        return "own weights, trained from scratch"
    stated = timm.get_pretrained_cfg(model)
    return f"{model}: {getattr(stated, 'license', None) or 'not stated'}"
