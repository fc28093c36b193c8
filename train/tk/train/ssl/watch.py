"""Is the training still learning? Loss, entropy of the teacher and rank of the features say so.

A healthy teacher is sure of every picture (low entropy of each answer) and says different things of
different pictures (high entropy of their mean). Two ways to minimise the loss without learning: the
same spread-out answer to everything (uniform collapse, the loss is ln K), or the same sharp answer
to everything (constant collapse, the loss goes to 0). The third, features that spread in few
directions, shows in their rank (RankMe).

Pure Python but for `entropies`; the state is a dict of numbers, for checkpoints.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from tk.runtime.errors import CheckFailed

Kind = Literal["uniform", "constant", "rank"]

UNIFORM = 0.01
"""Share of ln K that the loss may be away from ln K and still count as stuck there."""
CONSTANT = 0.5
"""Share of the entropy it could have, below which the mean answer says collapse."""
FALLEN = 0.05
"""Share of ln K by which the loss must have fallen first: a teacher may start out sharp."""
RANK = 0.5
"""Share of the first rank below which features have collapsed."""
WINDOW = 50
"""Observations that are averaged before anything is said."""


@dataclass(frozen=True)
class Verdict:
    """Something is wrong.

    Attributes:
        kind: which collapse.
        step: when it was seen.
        text: what it means, with the figures.
        fix: what to change.
    """

    kind: Kind
    step: int
    text: str
    fix: str


_FIXES: dict[Kind, str] = {
    "uniform": (
        "lower --teacher-temp (0.02 to 0.04), --head-norm batch, normalise by the data's own mean "
        "and deviation, a smaller --out-dim, --adam-eps 1e-12; --preset small does all of it"
    ),
    "constant": (
        "--centering mean or sinkhorn (not none), a lower --centering-momentum, a lower --lr or "
        "longer warm-up, --momentum nearer to 1; make sure that teacher and student are two objects"
    ),
    "rank": (
        "--koleo-weight 0.1, --centering sinkhorn, a lower --lr, stronger crops, larger batches"
    ),
}


class Watch:
    """Takes figures as they come and says once when a collapse begins.

    Args:
        out_dim: prototypes K, 2 or more.
        pictures: whose answers are averaged into the entropy of the mean; so few pictures cannot
            show more than so many prototypes, however healthy the teacher is.
        warmup: steps before which being at ln K is normal.
        window: observations that are averaged.
    """

    def __init__(self, out_dim: int, pictures: int, warmup: int, window: int = WINDOW) -> None:
        self.log_k, self.log_pictures = math.log(out_dim), math.log(max(1, pictures))
        self.warmup = warmup
        self._losses: deque[float] = deque(maxlen=window)
        self._means: deque[float] = deque(maxlen=window)
        self._rows: deque[float] = deque(maxlen=window)
        self._highest = -math.inf
        self._first_rank: float | None = None
        self._active: set[str] = set()

    @property
    def collapsed(self) -> tuple[str, ...]:
        """Kinds of collapse that last, sorted."""
        return tuple(sorted(self._active))

    def step(
        self, step: int, loss: float, *, entropy: float, entropy_of_mean: float
    ) -> list[Verdict]:
        """Look at an optimizer step.

        Args:
            step: from 0.
            loss: of DINO, in nats: the cross-entropy, without other terms.
            entropy: mean over pictures of the entropy of the teacher's answer, nats.
            entropy_of_mean: entropy of the teacher's mean answer, nats.

        Returns:
            collapses that were not there before.

        Raises:
            CheckFailed: a figure is NaN or infinite; nothing of this step should be saved.
        """
        figures = {"loss": loss, "teacher's entropy": entropy, "mean answer": entropy_of_mean}
        require_finite(step, figures)
        self._losses.append(loss)
        self._rows.append(entropy)
        self._means.append(entropy_of_mean)
        if len(self._losses) < (self._losses.maxlen or 1):
            return []
        mean = _mean(self._losses)
        self._highest = max(self._highest, mean)
        found = [self._uniform(step, mean), self._constant(step, mean)]
        return [verdict for verdict in found if verdict is not None]

    def rank(self, step: int, rank: float) -> list[Verdict]:
        """Look at the effective rank of the features; the first one is what others are held to.

        Raises:
            CheckFailed: it is NaN or infinite.
        """
        require_finite(step, {"effective rank": rank})
        if self._first_rank is None:
            self._first_rank = rank
        bad = rank < max(RANK * self._first_rank, 1.5)
        text = (
            f"rank collapse: the features spread in {rank:.1f} directions, "
            f"{self._first_rank:.1f} at the start of the run; most of them say nothing"
        )
        verdict = self._note("rank", bad, step, text)
        return [] if verdict is None else [verdict]

    def state(self) -> dict[str, Any]:
        """All that is remembered, as numbers, lists and strings."""
        return {
            "losses": list(self._losses),
            "rows": list(self._rows),
            "means": list(self._means),
            "highest": self._highest,
            "first_rank": self._first_rank,
            "active": sorted(self._active),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore what `state` gave."""
        for values, name in (
            (self._losses, "losses"),
            (self._rows, "rows"),
            (self._means, "means"),
        ):
            values.clear()
            values.extend(state[name])
        self._highest, self._first_rank = state["highest"], state["first_rank"]
        self._active = set(state["active"])

    def _uniform(self, step: int, mean: float) -> Verdict | None:
        bad = step >= self.warmup and all(
            abs(loss - self.log_k) < UNIFORM * self.log_k for loss in self._losses
        )
        text = (
            f"uniform collapse: the loss stays at {mean:.4f}, which is ln K = {self.log_k:.4f}: "
            "the networks say the same of every picture, spread over all prototypes; "
            "they have learned nothing so far"
        )
        return self._note("uniform", bad, step, text)

    def _constant(self, step: int, mean: float) -> Verdict | None:
        entropy, rows = _mean(self._means), _mean(self._rows)
        # The mean of n answers has at most their own entropy and ln n more.
        most = min(self.log_k, rows + self.log_pictures)
        fallen = mean < self._highest - FALLEN * self.log_k
        bad = step >= self.warmup and fallen and entropy < CONSTANT * most
        text = (
            f"constant collapse: the loss has fallen to {mean:.3f} because the teacher says nearly "
            f"the same of every picture: its mean answer has an entropy of {entropy:.2f}, "
            f"it could be {most:.2f}"
        )
        return self._note("constant", bad, step, text)

    def _note(self, kind: Kind, bad: bool, step: int, text: str) -> Verdict | None:
        known = kind in self._active
        (self._active.add if bad else self._active.discard)(kind)
        return Verdict(kind, step, text, _FIXES[kind]) if bad and not known else None


def require_finite(step: int, figures: dict[str, float]) -> None:
    """Stop a training whose figures are no numbers any more.

    Args:
        step: optimizer step, from 0.
        figures: name -> value.

    Raises:
        CheckFailed: names the figures that are NaN or infinite.
    """
    bad = [f"{name} {value}" for name, value in figures.items() if not math.isfinite(value)]
    if bad:
        raise CheckFailed(
            f"the training broke at step {step}; the last checkpoint is from before",
            expected="finite numbers",
            found=", ".join(bad),
            fix="go on from the last checkpoint (--resume) with another setting: a lower --lr, a "
            "longer --warmup-epochs, a smaller --clip, --precision float32; --koleo-weight 0 if "
            "pictures are there twice; look for NaN in --weights",
        )


@torch.no_grad()
def entropies(answers: Tensor) -> dict[str, Tensor]:
    """What `Watch.step` wants to know of a teacher.

    Args:
        answers: (..., K) float32 probabilities.

    Returns:
        teacher_entropy: mean entropy of an answer; entropy_of_mean: of the mean answer; nats.
    """
    rows = answers.flatten(0, -2).float()
    return {
        "teacher_entropy": torch.special.entr(rows).sum(dim=-1).mean(),
        "entropy_of_mean": torch.special.entr(rows.mean(dim=0)).sum(),
    }


def _mean(values: deque[float]) -> float:
    return math.fsum(values) / len(values)
