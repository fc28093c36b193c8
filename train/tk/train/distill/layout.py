"""Names of files in a run folder that several steps use."""

from __future__ import annotations

INFO = "class_info.json"
"""Classes, and of every row of the features: file, source image, split, label."""

MODELS, PREDICTIONS = "models", "predictions.npz"
"""Heads, `MODELS/NAME/seedK.pth`, and what they say of the test patches."""
