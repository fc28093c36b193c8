"""Weights of a transformers model, whole: a missing weight is an error, not a random number."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from logging import CRITICAL
from pathlib import Path
from typing import Any

from tk.runtime.errors import TkError
from tk.runtime.files import refuse_existing, refuse_inputs

RESULT = "model"
"""Folder in which a run of `tk train` keeps a library's model."""


def result_folder(folder: Path) -> Path:
    """The model folder of a run folder; any other folder itself."""
    inner = folder / RESULT
    return inner if (inner / "config.json").is_file() else folder


def check_result(out: Path, model: str) -> None:
    """Refuse an `out` whose model folder, which a run replaces, is its own start or somebody's.

    Args:
        out: folder of the run.
        model: what the training starts from: a folder, or a name.

    Raises:
        TkError: names what would be lost.
    """
    refuse_inputs(out / RESULT, {"--model": result_folder(Path(model))})
    refuse_existing(out / RESULT, overwrite=True, own="config.json")


def load_pretrained(kind: Any, path: Path, **options: Any) -> Any:
    """Load a model of transformers in float32 and evaluation mode, without a network.

    Args:
        kind: class of the model.
        path: model folder, or a `.safetensors` file with config.json beside it.
        options: further arguments of `from_pretrained`.

    Raises:
        TkError: unreadable, or the weights are not all there or have other shapes.
    """
    import torch

    options = {"dtype": torch.float32, "output_loading_info": True, **options}
    try:
        with quiet():
            if path.is_dir():
                model, info = kind.from_pretrained(path, local_files_only=True, **options)
            else:
                from safetensors.torch import load_file

                config = kind.config_class.from_pretrained(path.parent, local_files_only=True)
                weights = load_file(path)
                model, info = kind.from_pretrained(
                    None, config=config, state_dict=weights, **options
                )
    except Exception as error:  # transformers, safetensors and torch raise a dozen types
        raise TkError(
            f"the weights in {path} cannot be loaded as {kind.__name__}",
            found=" ".join(str(error).split())[:300],
            fix="check that config.json and the weights belong together and are whole",
        ) from error
    missing = sorted(key for key in info["missing_keys"] if "num_batches_tracked" not in key)
    if missing:
        raise TkError(
            f"{path} lacks {len(missing)} weights of {kind.__name__}",
            found="no " + ", ".join(missing[:5]) + (" …" if len(missing) > 5 else ""),
            fix="check that config.json and the weights belong together and are whole",
        )
    return model.eval()


@contextmanager
def quiet() -> Iterator[None]:
    """Hush the bars and reports of transformers; what they say of weights is checked above."""
    from transformers.utils import logging

    voice: Any = logging  # its functions carry no types
    level, bars = voice.get_verbosity(), voice.is_progress_bar_enabled()
    voice.set_verbosity(CRITICAL)
    voice.disable_progress_bar()
    try:
        yield
    finally:
        voice.set_verbosity(level)
        if bars:
            voice.enable_progress_bar()
