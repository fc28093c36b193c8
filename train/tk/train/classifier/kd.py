"""Distillation of logits (Hinton, Vinyals, Dean 2015, arXiv:1503.02531)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def kd_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL(teacher || student) of softened predictions, times T^2.

    T^2 makes up for the gradients, which shrink with 1 / T^2: the weight of this term keeps its
    meaning when the temperature changes (section 2 of the paper).

    Args:
        student: (B, C) float32 logits.
        teacher: (B, C) float32 logits; no gradient goes into them.
        temperature: T, > 0; the larger, the more the wrong classes count.

    Returns:
        () float32, >= 0, mean over the batch; 0 where both say the same.
    """
    soft = (teacher.detach() / temperature).log_softmax(dim=1)
    own = (student / temperature).log_softmax(dim=1)
    return F.kl_div(own, soft, reduction="batchmean", log_target=True) * temperature**2
