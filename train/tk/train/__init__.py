"""Training. What user code imports by name is found when it is asked for: PyTorch takes seconds."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tk.train.ssl.backbone.export import load_dinov2_backbone
    from tk.train.ssl.backbone.multistream import MultiStreamEncoder

__all__ = ["MultiStreamEncoder", "load_dinov2_backbone"]

_HOMES = {
    "MultiStreamEncoder": "tk.train.ssl.backbone.multistream",
    "load_dinov2_backbone": "tk.train.ssl.backbone.export",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
