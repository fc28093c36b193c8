"""The patch loss of iBOT (arXiv:2111.07832, equation 2)."""

from __future__ import annotations

from torch import Tensor


def ibot_patch_loss(
    student: Tensor, teacher: Tensor, weights: Tensor, temperature: float, images: int
) -> Tensor:
    """Cross-entropy on masked patches, averaged in each image and then over the images.

    Args:
        student: (M, K) logits of masked patches, which the student has not seen.
        teacher: (M, K) probabilities of the same patches, which the teacher has seen.
        weights: (M,) 1 / number of masked patches in the patch's image.
        temperature: of the student.
        images: how many, those without masks included.

    Returns:
        scalar; 0 when no patch is masked.
    """
    log_guesses = (student / temperature).log_softmax(dim=-1)
    return -((teacher * log_guesses).sum(dim=-1) * weights).sum() / images
