"""Several backbones side by side, each for pictures of its own kind (face, left hand, ...)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from tk.runtime.errors import TkError
from tk.train.ssl.backbone.export import load_dinov2_backbone


class MultiStreamEncoder(nn.Module):
    """Pictures by stream -> class tokens by stream.

    Args:
        backbones: stream -> module that turns (B, 3, H, W) into (B, D), or a specification for
            `load_dinov2_backbone`. Streams may share a module, which is then one set of weights.

    Raises:
        TkError: no stream, a name that PyTorch cannot give to a module, or a specification that
            cannot be loaded.
    """

    def __init__(self, backbones: Mapping[str, nn.Module | str]) -> None:
        super().__init__()
        if not backbones:
            raise TkError("MultiStreamEncoder needs a backbone", expected="stream -> backbone")
        self.backbones = nn.ModuleDict()
        for name, given in backbones.items():
            if not name or "." in name or hasattr(nn.ModuleDict, name):
                raise TkError(
                    "this is no name for a stream",
                    expected="a name without '.', not one of nn.ModuleDict's own",
                    found=repr(name),
                )
            self.backbones[name] = load_dinov2_backbone(given) if isinstance(given, str) else given

    def forward(self, streams: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run each stream's backbone.

        Args:
            streams: (B, 3, H, W) float32, normalised, by stream; batches may differ.

        Returns:
            (B, D) by stream, in the order given.

        Raises:
            TkError: a stream without a backbone.
        """
        for name in streams:
            if name not in self.backbones:
                raise TkError(
                    "there is no backbone for this stream",
                    expected=", ".join(self.backbones),
                    found=name,
                )
        return {name: self.backbones[name](images) for name, images in streams.items()}
