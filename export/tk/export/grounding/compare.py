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

CLOSE_LOGITS = 1e-3
"""Share of the largest logit, for the logits by which places are chosen."""


class Pinned(ModelPart):
    """A model part that starts from given places.

    Of thousands of places some are so alike that the last bit decides their rank, and each rank
    has an embedding of its own: two runs that differ in nothing else part ways there. So the
    logits are compared, and the decoders on the same choice.

    Attributes:
        places: (B, Q) int64, to start from.
        logits: (B, S) float32, by which it would have chosen.
    """

    places: Tensor
    logits: Tensor

    def _choose(self, logits: Tensor) -> Tensor:
        self.logits = logits
        return self.places


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
        boxes, scores, logits = _library(loaded, image, valid, prompt)
        replace_layers(loaded.network)
        text = TextPart(loaded.network).eval()
        own = Pinned(loaded.network, small, loaded.mean, loaded.std).eval()
        own.places = torch.topk(logits, own.queries, dim=1)[1]
        inputs = (torch.from_numpy(value) for value in prompt.text_inputs().values())
        given = prompt.model_inputs(text(*inputs).numpy())
        found = own(image, valid, *(torch.from_numpy(value) for value in given.values()))
    off = float((found[0] - boxes).abs().max()), float((found[1] - scores).abs().max())
    first = float((own.logits - logits).abs().max() / logits.abs().max())
    if not (off[0] <= CLOSE_PIXELS and off[1] <= CLOSE and first <= CLOSE_LOGITS):
        import transformers

        raise CheckFailed(
            f"transformers {transformers.__version__} computes this model otherwise than tk does",
            expected=f"boxes within {CLOSE_PIXELS} pixels, scores within {CLOSE}, first logits "
            f"within a share of {CLOSE_LOGITS}",
            found=f"{off[0]:.3g} pixels, {off[1]:.3g}, {first:.3g}",
            fix="report this; transformers 5.23 is known to work",
        )
    return ModelPart(loaded.network, canvas, loaded.mean, loaded.std).eval(), text


def _library(
    loaded: Loaded, image: Tensor, valid: Tensor, prompt: Prompt
) -> tuple[Tensor, Tensor, Tensor]:
    """What the library says.

    Returns:
        Boxes (1, Q, 4) xyxy in canvas pixels, token scores (1, Q, T), and the logits (1, S) by
        which it chose the places that its decoder started from.
    """
    rows, columns = valid[0].tolist()
    mask = torch.zeros(image.shape[:3], dtype=torch.long)
    mask[:, :rows, :columns] = 1
    pixels = (image.float() / 255 - torch.tensor(loaded.mean)) / torch.tensor(loaded.std)
    outputs = loaded.network(
        pixel_values=(pixels * mask[..., None]).permute(0, 3, 1, 2),
        pixel_mask=mask,
        input_ids=torch.tensor([prompt.ids]),
    )
    scores = outputs.logits[..., : len(prompt.ids)].sigmoid()
    return corners(outputs.pred_boxes, valid), scores, outputs.enc_outputs_class.amax(-1)
