"""Weights from a file must be numbers."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from tk.runtime.errors import TkError


def check_finite(module: nn.Module, path: Path) -> None:
    """Refuse weights that are no numbers.

    Raises:
        TkError: names the first such tensor.
    """
    for name, value in module.state_dict().items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise TkError(
                f"the weights in {path} are broken",
                expected="finite numbers",
                found=f"NaN or infinity in {name.removeprefix('vit.')}",
                fix="use an earlier checkpoint of the run that wrote them",
            )
