"""The global random generators: seed them, take their states, put them back."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

_APART = 1_000_003
"""Between the seeds of two processes, so that seeds 0, 1, 2 of a user never meet."""


def seed_all(seed: int, rank: int = 0) -> None:
    """Seed torch, numpy and python; every process of a run draws other numbers."""
    number = (seed + _APART * rank) % 2**32
    torch.manual_seed(number)
    np.random.seed(number)
    random.seed(number)


def rng_state() -> dict[str, Any]:
    """States of the global generators of torch, numpy and python as tensors and numbers."""
    numpy_state = np.random.get_state(legacy=False)
    assert isinstance(numpy_state, dict)
    version, words, gauss = random.getstate()
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy_key": torch.from_numpy(numpy_state["state"]["key"].astype(np.int64)),
        "numpy_pos": int(numpy_state["state"]["pos"]),
        "numpy_has_gauss": int(numpy_state["has_gauss"]),
        "numpy_gauss": float(numpy_state["gauss"]),
        "python_version": version,
        "python_words": torch.tensor(words, dtype=torch.int64),
        "python_gauss": gauss,
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_rng_state(state: dict[str, Any]) -> None:
    """Restore what `rng_state` took."""
    torch.set_rng_state(state["torch"])
    key = state["numpy_key"].numpy().astype(np.uint32)
    np.random.set_state(
        {
            "bit_generator": "MT19937",
            "state": {"key": key, "pos": state["numpy_pos"]},
            "has_gauss": state["numpy_has_gauss"],
            "gauss": state["numpy_gauss"],
        }
    )
    words = tuple(state["python_words"].tolist())
    random.setstate((state["python_version"], words, state["python_gauss"]))
    if torch.cuda.is_available() and len(state.get("cuda", ())) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
