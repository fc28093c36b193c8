"""The loss of DINO: every view says of a picture what the teacher says of another view of it.

DINO (arXiv:2104.14294, equation 3), with q_t the teacher's answer to global view t, p_s the
student's to view s, and the mean over all pairs of different views:

    L = mean_{t, s != t} mean_b  - sum_k q_t[b, k] log p_s[b, k]
"""

from __future__ import annotations

from torch import Tensor


def dino_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Cross-entropy between different views.

    Args:
        student: (Vs, B, K) float32 logits of all views, the global ones first.
        teacher: (Vt, B, K) float32 probabilities of the global views, in the same order.
        temperature: of the student.

    Returns:
        scalar; ln K when every answer is uniform.
    """
    views, targets = len(student), len(teacher)
    log_p = (student / temperature).log_softmax(dim=-1)
    # All views but its own, for each target: one product per target instead of one per pair.
    others = log_p.sum(dim=0) - log_p[:targets]
    return -(teacher * others).sum(dim=-1).mean(dim=1).sum() / (targets * (views - 1))
