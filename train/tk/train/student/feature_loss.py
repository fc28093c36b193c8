"""Distillation of features (FitNets, Romero et al. 2015, arXiv:1412.6550).

The student's feature, brought to the teacher's length by a linear layer that is thrown away after
the training, should equal the teacher's: mean squared error, as in timm's FeatureDistillationTask.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class FeatureDistillation(nn.Module):
    """Projection and loss.

    Args:
        student, teacher: lengths of their features.
    """

    def __init__(self, student: int, teacher: int) -> None:
        super().__init__()
        self.projection = nn.Linear(student, teacher)

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compare features.

        Args:
            student: (B, S) float32.
            teacher: (B, T) float32; no gradient goes into it.

        Returns:
            () float32, mean over batch and T of the squared differences.
        """
        projected: Tensor = self.projection(student)
        return F.mse_loss(projected.float(), teacher.detach().float())
