"""Features of prompts, computed once and kept in the bundle: `prompts/NAME.npz`."""

from __future__ import annotations

import hashlib
import io
import re
import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tk.runtime.files import write_bytes
from tk.runtime.text.tokenizer import Prompt

FOLDER = "prompts"


def prompt_key(model: str, prompt: Prompt) -> str:
    """Identity of the features of a prompt.

    Args:
        model: says which weights, precision and device made them.
        prompt: what was encoded.
    """
    return hashlib.sha256(f"{model}|{','.join(map(str, prompt.ids))}".encode()).hexdigest()


def prompt_file(bundle: Path, prompt: Prompt, key: str) -> Path:
    """Where the features of a prompt are kept: readable, and unique by the key."""
    words = re.sub(r"[^a-z0-9]+", "-", prompt.text.lower()).strip("-")[:40]
    return bundle / FOLDER / f"{words or 'prompt'}-{key[:8]}.npz"


def load_features(file: Path, key: str, shape: tuple[int, ...]) -> NDArray[np.float32] | None:
    """Read kept features.

    Args:
        file: see `prompt_file`.
        key: they must have been made for.
        shape: that they must have.

    Returns:
        (1, T, D) float32, or None when there are none, or damaged ones, or others.
    """
    try:
        with np.load(file, allow_pickle=False) as archive:
            features = archive["features"]
            given, digest = str(archive["key"]), str(archive["sha256"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    fits = features.dtype == np.float32 and features.shape == shape and given == key
    if not fits or _digest(features) != digest:
        return None
    found: NDArray[np.float32] = features
    return found


def keep_features(file: Path, key: str, features: NDArray[np.float32]) -> bool:
    """Write features, whole or not at all.

    Returns:
        Whether it could be done: a bundle may be on a disk that this user cannot write to.
    """
    buffer = io.BytesIO()
    np.savez(buffer, features=features, key=key, sha256=_digest(features))
    try:
        write_bytes(file, buffer.getvalue())
    except OSError:
        return False
    return True


def _digest(features: NDArray[np.float32]) -> str:
    return hashlib.sha256(np.ascontiguousarray(features).tobytes()).hexdigest()
