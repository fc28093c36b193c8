"""Figures of equality, and what each precision must reach."""

from __future__ import annotations

import math
from dataclasses import dataclass

THRESHOLDS: dict[str, dict[str, float]] = {
    # Other orders of summation: an honest graph is equal to 1e-6, so anything near these is a bug.
    "fp32": {
        "cosine": 0.9999,
        "relative_difference": 0.0142,
        "neighbours_kept": 0.99,
        "box_iou": 0.99,
        "score_difference": 0.002,
        "mask_iou": 0.99,
        "iou_difference": 0.01,
        "logit_difference": 0.001,
        "probability_difference": 0.001,
        "agreement": 1.0,
    },
    # 11 bits: one rounding is 0.05 %, and a network that does not overflow keeps 0.9999 (an error
    # of 3 % of a vector's length is 0.9995). Overflow and lost numbers are far beyond: 0.02 to 0.9.
    "fp16": {
        "cosine": 0.9995,
        "relative_difference": 0.032,
        "neighbours_kept": 0.99,
        "box_iou": 0.97,
        "score_difference": 0.01,
        "mask_iou": 0.97,
        "iou_difference": 0.02,
        "logit_difference": 0.01,
        "probability_difference": 0.01,
        "agreement": 1.0,
    },
    # 8 bits: one rounding is 0.4 %, eight times that of fp16; a sound ViT-S keeps 0.9999.
    "bf16": {
        "cosine": 0.998,
        "relative_difference": 0.064,
        "neighbours_kept": 0.97,
        "box_iou": 0.95,
        "score_difference": 0.03,
        "mask_iou": 0.95,
        "iou_difference": 0.04,
        "logit_difference": 0.08,
        "probability_difference": 0.05,
        "agreement": 1.0,
    },
    # 256 steps per tensor. A sound ViT-S keeps 0.998; with 0.983 neighbours were seen to change
    # (field notes on one file in two engines), so the line lies between: 14 % of the length.
    "int8": {
        "cosine": 0.99,
        "relative_difference": 0.15,
        "neighbours_kept": 0.95,
        "box_iou": 0.90,
        "score_difference": 0.05,
        "detections_kept": 0.95,
        "mean_box_iou": 0.95,
        "mean_score_difference": 0.02,
        "mask_iou": 0.90,
        "mean_mask_iou": 0.90,
        "iou_difference": 0.05,
        "logit_difference": 0.15,
        "probability_difference": 0.1,
        "agreement": 1.0,
    },
}
"""Precision -> metric -> the least (similarities) or the most (differences) that passes.

Figures without a limit are recorded and fail nothing, but for not being finite.

Cosines, overlaps and differences are the worst over all rows, but where their name says `mean`.
Batch invariance is judged by the same numbers: an engine may choose other kernels for another
batch, and these differ by as much as the precision rounds, never by more.

A detector in int8 is judged by all its detections together (`detections_kept` and the means,
`tk.runtime.metrics.detections_kept`), and its worst box is recorded: a place is a peak of a map of
scores, rounding to 256 steps moves and adds peaks, and among hundreds there always is one without a
partner. A sound detector lost no average precision while its worst overlap was 0.

So are the masks of int8 (`mean_mask_iou`): the gate's boxes are anywhere, most of them round no
object, and what a segmenter makes of those is undecided. A sound one had 0.99 on average and 0.96
at the worst where boxes were true, 0.95 and 0.64 where they were the gate's.

What one part gives to another has a length too: `relative_difference` (length of the difference
over that of the reference) is that of a cosine at its limit, sqrt(2 (1 - cosine)). An encoder that
gave twice its features had a cosine of 1, and the decoder behind it masks with an overlap of 0.33.

`neighbours_kept` (`tk.runtime.metrics.neighbours`) is summed over the images, for one neighbour
more or less is chance. Its scale is that of the embeddings: 1 as good as float32, 0 as good as by
lot; int8 may lose a twentieth of what there is to lose. `same_neighbour` has no limit: of 16 images
one is 6 %, and near-equal neighbours change places without harm.

Logits of a classifier may be off by the same share of their spread as the vectors of an embedder of
their length. That moves the probability of a class that is in doubt the most: by a quarter of the
error, in logits, per class. A class that is not in doubt (`TIE`) must stay, whatever the precision.
"""

OVER_ALL = "all images"
"""The test whose figures are of all images together; its batch is their number."""


@dataclass(frozen=True)
class Measure:
    """One figure of equality and its verdict.

    Attributes:
        output: of the graph.
        metric: `cosine`, `relative_difference`, `box_iou`, `score_difference`, `mask_iou`,
            `iou_difference`, `logit_difference`, `probability_difference` or `agreement`: the worst
            over all rows; `neighbours_kept`, `same_neighbour`, `detections_kept`, `mean_box_iou`,
            `mean_score_difference` or `mean_mask_iou`: over all images.
        value: the figure.
        threshold: what it had to reach; None for a figure that is recorded and decides nothing.
    """

    output: str
    metric: str
    value: float
    threshold: float | None

    @property
    def passed(self) -> bool:
        """Whether the figure is finite and within its threshold."""
        if self.threshold is None:
            return math.isfinite(self.value)
        if self.metric.endswith("difference"):
            return self.value <= self.threshold
        return self.value >= self.threshold

    @property
    def badness(self) -> float:
        """The greater, the worse; NaN is worst."""
        if not math.isfinite(self.value):
            return math.inf
        return self.value if self.metric.endswith("difference") else -self.value

    def __str__(self) -> str:
        needs = "recorded" if self.threshold is None else f"needs {self.threshold:g}"
        return f"{self.metric} {self.value:.6g} ({needs})"
