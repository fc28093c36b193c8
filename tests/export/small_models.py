"""Embedders of a few kB that half precision and int8 treat well, badly, or not at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from tk.export.model import ExportModel, ExportPart, repeat_rows
from tk.runtime.backends.base import Arrays
from tk.runtime.manifest import Part, TensorSpec
from tk.runtime.preprocess import CropSpec, ImageSpec

SIDE, WIDTH = 8, 32
IMAGE = TensorSpec("image", "uint8", ("B", SIDE, SIDE, 3))
EMBEDDING = TensorSpec("embedding", "float32", ("B", 8))


class Mlp(nn.Module):
    """Four layers with residuals, as sound as a small transformer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Linear(SIDE * SIDE * 3, WIDTH)
        self.norm = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(4))
        self.up = nn.ModuleList(nn.Linear(WIDTH, 2 * WIDTH) for _ in range(4))
        self.down = nn.ModuleList(nn.Linear(2 * WIDTH, WIDTH) for _ in range(4))
        self.head = nn.Linear(WIDTH, 8)

    def hidden(self, block: int, x: Tensor) -> Tensor:
        """What a block adds."""
        added: Tensor = self.down[block](torch.relu(self.up[block](self.norm[block](x))))
        return added

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem(image.float().flatten(1) / 255 - 0.5)
        for block in range(4):
            x = x + self.hidden(block, x)
        return nn.functional.normalize(self.head(x))


class Cancelling(Mlp):
    """Block 2 subtracts two nearly equal large products: half precision loses what is left."""

    def __init__(self) -> None:
        super().__init__()
        self.twin = nn.Linear(WIDTH, 2 * WIDTH)
        own = next(self.up[2].parameters())
        with torch.no_grad():
            self.twin.weight.copy_(own * 300)
            own.mul_(300).add_(torch.randn_like(own) * 0.3)

    def hidden(self, block: int, x: Tensor) -> Tensor:
        if block != 2:
            return super().hidden(block, x)
        y = self.norm[2](x)
        rest: Tensor = self.down[2](10 * (self.up[2](y) - self.twin(y)))
        return rest


def small_model(
    net: nn.Module, folder: Path, largest: int = 5, side: int = SIDE, width: int = 8
) -> ExportModel:
    """An export model of a network."""

    def feed(canvases: NDArray[np.uint8], batch: int) -> Arrays:
        return {"image": repeat_rows(canvases, batch)}

    checkpoint = folder / "net.pth"
    torch.save(net.state_dict(), checkpoint)
    image = TensorSpec("image", "uint8", ("B", side, side, 3))
    spec = Part((image,), (TensorSpec("embedding", "float32", ("B", width)),), largest)
    return ExportModel(
        task="embedder",
        parts={"model": ExportPart(net.eval(), spec, feed)},
        image=ImageSpec(side, side),
        crop=CropSpec(),
        classes=(),
        settings={},
        source={},
        licence="none",
        checkpoint=checkpoint,
    )


def write_images(
    folder: Path, count: int, broken: int = 0, side: int = SIDE, brightest: int = 255
) -> Path:
    """Pictures with structure (gradients and blobs), and files that are none."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    for index in range(count):
        coarse = random.integers(0, brightest + 1, (3, 3, 3), np.uint8)
        Image.fromarray(coarse).resize((side, side)).save(folder / f"{index:03}.png")
    for index in range(broken):
        (folder / f"broken{index}.jpg").write_text("no picture")
    return folder
