"""Our cut of the model against the library's own forward pass, before anything is exported."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from tk.export.grounding.layers import replace_layers, windows_kept
from tk.export.grounding.load import Loaded
from tk.export.grounding.parts import ModelPart, TextPart, corners
from tk.runtime.errors import CheckFailed
from tk.runtime.text.tokenizer import Prompt

VALID = (0.7, 1.0)
"""Share of the canvas that is picture: padding must be treated as the library treats it."""

CLOSE = 2e-3
"""Scores may differ by so much; what a changed library does is hundreds of times larger."""

CLOSE_PIXELS = 0.1


@torch.no_grad()
def cut_model(
    loaded: Loaded, canvas: tuple[int, int], prompt: Prompt
) -> tuple[ModelPart, TextPart]:
    """Cut the library's model in two and prove on one picture that nothing else changed.

    Args:
        loaded: as the library opened it; its layers are replaced.
        canvas: (height, width) of the parts.
        prompt: text of the comparison.

    Raises:
        CheckFailed: this version of the library computes something else than we do.
        ValueError, RuntimeError: the canvas is too small for the network.
    """
    # Small, to save time, but above the size at which a Swin backbone changes its windows.
    side = 32 * (1 + int(getattr(loaded.network.config.backbone_config, "window_size", 7)))
    small = side, side + 32
    random = np.random.default_rng(0)
    image = torch.from_numpy(random.integers(0, 256, (1, *small, 3), np.uint8))
    rows, columns = (max(1, int(s * share)) for s, share in zip(small, VALID, strict=True))
    valid = torch.tensor([[rows, columns]], dtype=torch.int32)
    with windows_kept(loaded.network):
        boxes, scores = _library(loaded, image, valid, prompt)
        replace_layers(loaded.network)
        text = TextPart(loaded.network).eval()
        own = ModelPart(loaded.network, small, loaded.mean, loaded.std).eval()
        inputs = (torch.from_numpy(value) for value in prompt.text_inputs().values())
        given = prompt.model_inputs(text(*inputs).numpy())
        found = own(image, valid, *(torch.from_numpy(value) for value in given.values()))
    off = float((found[0] - boxes).abs().max()), float((found[1] - scores).abs().max())
    if not (off[0] <= CLOSE_PIXELS and off[1] <= CLOSE):
        import transformers

        raise CheckFailed(
            f"transformers {transformers.__version__} computes this model otherwise than tk does",
            expected=f"boxes within {CLOSE_PIXELS} pixels, scores within {CLOSE}",
            found=f"{off[0]:.3g} pixels, {off[1]:.3g}",
            fix="report this; transformers 5.23 is known to work",
        )
    return ModelPart(loaded.network, canvas, loaded.mean, loaded.std).eval(), text


def _library(loaded: Loaded, image: Tensor, valid: Tensor, prompt: Prompt) -> tuple[Tensor, Tensor]:
    """Boxes (1, Q, 4) xyxy in canvas pixels and token scores (1, Q, T) of the library."""
    rows, columns = valid[0].tolist()
    mask = torch.zeros(image.shape[:3], dtype=torch.long)
    mask[:, :rows, :columns] = 1
    pixels = (image.float() / 255 - torch.tensor(loaded.mean)) / torch.tensor(loaded.std)
    outputs = loaded.network(
        pixel_values=(pixels * mask[..., None]).permute(0, 3, 1, 2),
        pixel_mask=mask,
        input_ids=torch.tensor([prompt.ids]),
    )
    return corners(outputs.pred_boxes, valid), outputs.logits[..., : len(prompt.ids)].sigmoid()
