"""The loss of DINO (arXiv:2104.14294, equation 3)."""

from __future__ import annotations

import torch
from torch import Tensor


def dino_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Mean cross-entropy over all pairs of a teacher's view and another view of the student.

    Args:
        student: (Vs, B, K) logits; its first Vt views are the teacher's.
        teacher: (Vt, B, K) probabilities.
        temperature: of the student.

    Returns:
        scalar.
    """
    log_guesses = (student / temperature).log_softmax(dim=-1)
    # All pairs at once, (Vt, Vs); those of a view with itself are left out.
    pairs = -torch.einsum("tbk,sbk->ts", teacher, log_guesses) / student.shape[1]
    same = torch.eye(len(teacher), len(student), dtype=torch.bool, device=pairs.device)
    return pairs.masked_fill(same, 0.0).sum() / (pairs.numel() - len(teacher))
