"""Step 6: train every head with every seed, keep them, and what they say of the test patches."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tk.runtime.errors import TkError
from tk.runtime.preprocess import ImageSpec
from tk.runtime.progress import progress
from tk.train.classifier.checkpoint import Architecture, save_classifier
from tk.train.classifier.model import FeatureClassifier
from tk.train.distill.arrays import write_npz
from tk.train.distill.extract import Features, read_features
from tk.train.distill.fit import Data, Recipe, fit_head, fit_probe, make_data
from tk.train.distill.layout import MODELS, PREDICTIONS
from tk.train.distill.models import HEADS, Model
from tk.train.distill.split import Items


class HeadTrainer:
    """Trains heads on the features in a run folder.

    Args:
        run: the run folder.
        items: the patches, row by row.
        spec: how a patch becomes the input of the backbone.
        teacher, student: recipes.
        of: features that heads are trained on: `features`, `features_ssl`, `features_random`.
        seeds: runs of each head with a random start.
        balanced: weigh rare classes more.
    """

    def __init__(
        self,
        run: Path,
        items: Items,
        spec: ImageSpec,
        teacher: Recipe,
        student: Recipe,
        *,
        of: Sequence[str],
        seeds: int,
        balanced: bool,
    ) -> None:
        self.run, self.items, self.spec, self.seeds = run, items, spec, seeds
        self.recipes = {"labels": teacher, "distilled": student, "control": student}
        self.balanced = balanced
        self.models = [model for model in HEADS if model.features in of]
        self.features = {name: read_features(run, name, len(items.files)) for name in of}

    def train(self) -> None:
        """Write `models/NAME/seedK.pth` and `predictions.npz`.

        Raises:
            TkError: features that are not finite or not of these patches.
        """
        test = self.items.rows("test")
        found: dict[str, NDArray[Any]] = {
            "labels": self.items.labels[test],
            "files": np.asarray([self.items.files[row] for row in test]),
        }
        total = sum(1 if model.learns == "probe" else self.seeds for model in self.models)
        with progress("heads", total) as bar:
            teachers: dict[int, nn.Module] = {}
            for model in self.models:
                data = self._data(model.features)
                for seed in range(1 if model.learns == "probe" else self.seeds):
                    head = self._fit(model, data, seed, teachers.get(seed))
                    if model.name == "teacher":
                        teachers[seed] = head
                    self._keep(model, seed, head)
                    found[f"{model.name}/seed{seed}"] = _probabilities(
                        head, self.features[model.features].values[test]
                    )
                    bar.advance(note=f"{model.name} {seed}")
        write_npz(self.run / PREDICTIONS, found)

    def _fit(self, model: Model, data: Data, seed: int, teacher: nn.Module | None) -> nn.Module:
        if model.learns == "probe":
            head, converged = fit_probe(data)
            if not converged:
                print(f"{model.name}: the linear probe has not converged", file=sys.stderr)
            return head
        recipe = self.recipes[model.learns]
        return fit_head(
            model.shape, data, recipe, seed, teacher if model.learns == "distilled" else None
        )

    def _data(self, name: str) -> Data:
        values = self.features[name].values
        if not np.isfinite(values).all():
            raise TkError(
                f"{name}.npy holds numbers that are not finite",
                fix="run its step again with --force",
            )
        rows = self.items.learned()
        return make_data(
            values[rows], self.items.labels[rows], len(self.items.classes), self.balanced
        )

    def _keep(self, model: Model, seed: int, head: nn.Module) -> None:
        of: Features = self.features[model.features]
        save_classifier(
            self.run / MODELS / model.name / f"seed{seed}.pth",
            FeatureClassifier(head),
            Architecture(
                "feature",
                of.model_id,
                of.img_size,
                of.values.shape[1],
                model.shape,
                of.backbone_sha256,
            ),
            classes=self.items.classes,
            image_spec=self.spec,
            config={"model": model.name, "seed": seed, "learns": model.learns},
        )


def _probabilities(head: nn.Module, features: NDArray[np.float32]) -> NDArray[np.float32]:
    """(N, C) float32, rows sum to 1."""
    with torch.inference_mode():
        logits: torch.Tensor = head(torch.from_numpy(features))
        return logits.softmax(dim=1).numpy()
