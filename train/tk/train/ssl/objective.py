"""What DINO and iBOT minimise, for one part of a batch: student against teacher."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tk.train.ssl.backbone.base import Features, forward_crops
from tk.train.ssl.centering.base import Centering
from tk.train.ssl.config import SslConfig
from tk.train.ssl.dino_loss import dino_loss
from tk.train.ssl.ibot_loss import ibot_patch_loss
from tk.train.ssl.koleo import koleo_loss
from tk.train.ssl.network import Network
from tk.train.ssl.watch import entropies

Crops = list[Tensor]


class SelfDistillation:
    """Loss of a batch.

    DINO (arXiv:2104.14294): every view of the student is to say of a picture what the teacher
    says of the other global view. iBOT (arXiv:2111.07832): the student sees global views with
    masked patches, and is to say of a masked patch what the teacher, who sees it, says.

    Args:
        centering: of the class token's logits; `patch_centering` of the patches'.
    """

    def __init__(
        self,
        student: Network,
        teacher: Network,
        centering: Centering,
        patch_centering: Centering,
        config: SslConfig,
    ) -> None:
        self.student, self.teacher, self.config = student, teacher, config
        self.centering, self.patch_centering = centering, patch_centering
        self._answers: list[Tensor] = []
        self._patch_answers: list[Tensor] = []

    def __call__(self, batch: dict[str, Any], temperature: float) -> dict[str, Tensor]:
        """Compute the loss and its terms.

        Args:
            batch: `global` (B, 2, 3, S, S) and `local` (B, L, 3, s, s) float32, normalised;
                `masks` (B, 2, N) bool for iBOT.
            temperature: of the teacher.

        Returns:
            scalars; `loss` is to be minimised.
        """
        large: Crops = list(batch["global"].unbind(1))
        small: Crops = list(batch["local"].unbind(1))
        masks = list(batch["masks"].unbind(1)) if "masks" in batch else None
        with torch.no_grad():
            shown = forward_crops(self.teacher.backbone, large)
            targets = self._targets(shown, temperature)
        hidden = [*masks, *[None] * len(small)] if masks else None
        seen = forward_crops(self.student.backbone, large + small, hidden)
        logits = self.student.head(torch.cat([one.cls for one in seen])).float()
        logits = logits.view(len(seen), -1, logits.shape[-1])
        terms = {"dino_loss": dino_loss(logits, targets, self.config.student_temp)}
        total = terms["dino_loss"]
        if masks:
            terms["ibot_loss"] = self._patches(seen, shown, masks, temperature)
            total = total + self.config.ibot_weight * terms["ibot_loss"]
        if self.config.koleo_weight:
            terms["koleo_loss"] = self._spread(seen[: len(large)])
            total = total + self.config.koleo_weight * terms["koleo_loss"]
        return {"loss": total, **terms, **entropies(targets)}

    def _targets(self, shown: list[Features], temperature: float) -> Tensor:
        """The teacher's answers: (2, B, K) probabilities."""
        logits = self.teacher.head(torch.cat([one.cls for one in shown])).float()
        self._answers.append(logits)
        targets: Tensor = self.centering(logits, temperature)
        return targets.view(len(shown), -1, targets.shape[-1])

    def _patches(
        self, seen: list[Features], shown: list[Features], masks: list[Tensor], temperature: float
    ) -> Tensor:
        """Cross-entropy on masked patches; every picture with masks counts alike."""
        chosen = torch.cat(masks)
        counts = chosen.sum(dim=1, keepdim=True).clamp(min=1)
        weights = (1.0 / counts).expand_as(chosen)[chosen]
        with torch.no_grad():
            answers = torch.cat([one.patches for one in shown])[chosen]
            answers = self.teacher.patch_logits(answers).float()
            self._patch_answers.append(answers)
            targets = self.patch_centering(answers, temperature)
        guesses = torch.cat([one.patches for one in seen[: len(shown)]])[chosen]
        guesses = self.student.patch_logits(guesses).float()
        return ibot_patch_loss(guesses, targets, weights, self.config.student_temp, len(chosen))

    def _spread(self, seen: list[Features]) -> Tensor:
        """KoLeo of each global view, summed as in DINOv2: a picture's views may be near."""
        return torch.stack([koleo_loss(one.cls) for one in seen]).sum()

    @torch.no_grad()
    def update_centres(self) -> None:
        """Move the centres by all parts of the batch, once per optimizer step."""
        for centering, answers in (
            (self.centering, self._answers),
            (self.patch_centering, self._patch_answers),
        ):
            if answers:
                centering.update(torch.cat(answers))
                answers.clear()
