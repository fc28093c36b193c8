"""Open a GroundingDINO folder with the library, and refuse what it would silently get wrong."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tk.runtime.errors import TkError
from tk.runtime.files import read_json
from tk.runtime.text.tokenizer import Tokenizer
from tk.train.pretrained.load import load_pretrained

CLASSES = {
    "grounding-dino": "GroundingDinoForObjectDetection",
    "mm-grounding-dino": "MMGroundingDinoForObjectDetection",
}
"""`model_type` -> class of transformers."""

ATTENTION = {"text_config": "sdpa", "backbone_config": "eager"}
"""Eager attention on the text side adds a boolean mask as a number and changes scores by up to
0.6; SDPA in the Swin backbone cannot be exported with a free batch."""

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet: the library's defaults for these models."""


@dataclass(frozen=True)
class Loaded:
    """A model as the library opened it.

    Attributes:
        network: `GroundingDinoForObjectDetection` or its MM sister, evaluation mode, float32.
        tokenizer: reads prompts as the runtime will.
        tokenizer_json: goes into the bundle.
        cleanup: whether the library tidies decoded text once more.
        mean, std: per channel, for values 0..1.
        weights: the file or folder that the weights came from.
    """

    network: Any
    tokenizer: Tokenizer
    tokenizer_json: bytes
    cleanup: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]
    weights: Path


def load_model(path: Path) -> Loaded:
    """Open a model folder, or the weights file in one.

    Raises:
        TkError: weights are missing or do not fit, the configuration is one that the library
            cannot run, the tokenizer is not the model's, or the picture is not normalised.
    """
    folder = path if path.is_dir() else path.parent
    network = _load_network(path, folder)
    config = network.config
    # The library's own code fails with these (transformers 5.23), and only when it runs.
    for name, wanted in (
        ("two_stage", True),
        ("embedding_init_target", True),
        ("position_embedding_type", "sine"),
    ):
        if getattr(config, name, wanted) != wanted:
            raise TkError(
                f"{folder} has a configuration that cannot be exported",
                expected=f"{name} = {wanted}",
                found=f"{name} = {getattr(config, name)}",
            )
    data, cleanup = _load_tokenizer(folder)
    tokenizer = Tokenizer(data, int(config.max_text_len), cleanup=cleanup, name=folder.name)
    mean, std = _normalisation(folder)
    return Loaded(network, tokenizer, data, cleanup, mean, std, path)


def _load_network(path: Path, folder: Path) -> Any:
    import transformers

    facts = read_json(folder / "config.json")
    kind = CLASSES.get(facts.get("model_type"))
    if kind is None:
        raise TkError(
            f"{folder} is not a GroundingDINO model",
            expected="model_type " + " or ".join(CLASSES),
            found=f"model_type {facts.get('model_type')!r}",
        )
    network = load_pretrained(getattr(transformers, kind), path, attn_implementation=ATTENTION)
    return network.requires_grad_(False)


def _load_tokenizer(folder: Path) -> tuple[bytes, bool]:
    """Tokenizer of a folder as `tokenizer.json`, and whether decoded text is tidied."""
    from transformers import AutoTokenizer

    names = ("tokenizer.json", "vocab.txt")
    if not any((folder / name).is_file() for name in names):
        raise TkError(
            f"{folder} has no tokenizer, so no prompt can be read",
            expected=" or ".join(names),
            fix="put the tokenizer files of the model into its folder",
        )
    kind: Any = AutoTokenizer  # its methods carry no types
    try:
        tokenizer = kind.from_pretrained(folder, local_files_only=True)
        data = tokenizer.backend_tokenizer.to_str().encode()
    except Exception as error:  # the package tokenizers raises bare Exception
        raise TkError(f"the tokenizer in {folder} cannot be read: {error}") from None
    return data, bool(tokenizer.clean_up_tokenization_spaces)


def _normalisation(folder: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of `preprocessor_config.json`, or the library's defaults."""
    facts: dict[str, Any] = {}
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (folder / name).is_file():
            found = read_json(folder / name)
            facts = found.get("image_processor", found)
            break
    scale = float(facts.get("rescale_factor", 1 / 255))
    if not facts.get("do_normalize", True) or abs(scale * 255 - 1) > 1e-3:
        raise TkError(
            f"the preprocessing in {folder} is not one that tk knows",
            expected="do_normalize, with rescale_factor 1/255",
            found=f"do_normalize {facts.get('do_normalize')}, rescale_factor {scale}",
        )
    return tuple(facts.get("image_mean", MEAN)), tuple(facts.get("image_std", STD))


@contextmanager
def exportable(network: Any) -> Iterator[None]:
    """Switch off the library's size checks, which the exporter has no operator for.

    For the time of the export only: they compare sizes that are constants there.
    """
    module = inspect.getmodule(type(network))
    name = "torch_compilable_check"
    original = getattr(module, name, None)
    if original is None:  # an older library checks in another way
        yield
        return
    setattr(module, name, _no_check)
    try:
        yield
    finally:
        setattr(module, name, original)


def _no_check(*arguments: Any, **named: Any) -> None:
    """Check nothing."""
