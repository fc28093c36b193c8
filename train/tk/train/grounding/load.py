"""Open the GroundingDINO that a training starts from, and write the one that it ends with."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tk.runtime.errors import EnvironmentLacks, TkError
from tk.runtime.files import atomic_folder, read_json, write_json
from tk.runtime.text.tokenizer import Tokenizer
from tk.train.grounding.config import SMALL
from tk.train.grounding.small import small_config, start_values, thaw_norms
from tk.train.grounding.vocabulary import small_vocabulary
from tk.train.pretrained.hub import fetch, is_hub_id
from tk.train.pretrained.load import load_pretrained, quiet, result_folder

CLASSES = {
    "grounding-dino": "GroundingDinoForObjectDetection",
    "mm-grounding-dino": "MMGroundingDinoForObjectDetection",
}
"""`model_type` -> class of transformers."""

ATTENTION = {"text_config": "sdpa", "backbone_config": "eager"}
"""As the export opens it: eager attention on the text side adds a boolean mask as a number."""

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PREPROCESSING = "preprocessor_config.json"
FACTS = "training.json"
"""What the training was, beside the weights."""


@dataclass(frozen=True)
class Start:
    """A model to train.

    Attributes:
        network: the library's `…ForObjectDetection`; live batch norms if it is new.
        words: the library's tokenizer, which is written beside the trained weights.
        reader: reads prompts as the runtime will.
        mean, std: per channel, for values 0..1.
        preprocessing: content of `preprocessor_config.json`.
    """

    network: Any
    words: Any
    reader: Tokenizer
    mean: tuple[float, ...]
    std: tuple[float, ...]
    preprocessing: dict[str, Any]


def open_start(model: str, names: Iterable[str]) -> Start:
    """Build the small model, or open released or own weights.

    Args:
        model: `small`, a folder, or a hub id.
        names: class names and other phrases, for the vocabulary of a small one.

    Raises:
        EnvironmentLacks: no transformers, or a hub id and no network.
        TkError: not a GroundingDINO, or files that are missing or damaged.
    """
    try:
        import transformers
    except ModuleNotFoundError:
        raise EnvironmentLacks(
            "training GroundingDINO needs the package transformers",
            fix="pip install 'tk-vision[export]'",
        ) from None
    if model == SMALL:
        vocabulary = small_vocabulary(names)
        make: Any = transformers.BertTokenizer
        words = make(vocabulary)
        network = build(small_config(len(vocabulary)))
        thaw_norms(network)
        start_values(network)
        for parameter in network.parameters():  # the library freezes what it takes for trained
            parameter.requires_grad_(True)
        return _start(network, words, SMALL, {})
    folder = find_folder(model)
    network = _pretrained(folder)  # first, for it says whether this is such a model at all
    read: Any = transformers.AutoTokenizer
    try:
        words = read.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # transformers and tokenizers raise a dozen types
        raise TkError(
            f"the tokenizer in {model} cannot be read",
            expected="tokenizer.json or vocab.txt beside the weights",
            found=" ".join(str(error).split())[:200],
        ) from None
    file = folder / PREPROCESSING
    preprocessing = read_json(file) if file.is_file() else {}
    return _start(network, words, model, preprocessing)


def _start(network: Any, words: Any, name: str, preprocessing: dict[str, Any]) -> Start:
    data = words.backend_tokenizer.to_str().encode()
    cleanup = bool(words.clean_up_tokenization_spaces)
    limit = int(network.config.max_text_len)
    reader = Tokenizer(data, limit, cleanup=cleanup, name=Path(name).name)
    mean = tuple(preprocessing.get("image_mean", MEAN))
    std = tuple(preprocessing.get("image_std", STD))
    defaults = {
        "image_processor_type": "GroundingDinoImageProcessor",
        "do_normalize": True,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "image_mean": list(mean),
        "image_std": list(std),
    }
    return Start(network, words, reader, mean, std, defaults | preprocessing)


def build(config: Any) -> Any:
    """The library's model of a configuration, with fresh weights."""
    import transformers

    kind = getattr(transformers, CLASSES[config.model_type])
    return kind._from_config(config, attn_implementation=ATTENTION)


def find_folder(model: str) -> Path:
    """Folder of a model on this machine; a hub id is fetched.

    Raises:
        EnvironmentLacks: the hub could not be reached.
        TkError: there is nothing of that name.
    """
    folder = Path(model)
    if folder.is_dir():
        return result_folder(folder)
    if is_hub_id(model):
        return fetch(model)
    raise TkError(
        f"there is no model folder {model}",
        expected=f"{SMALL}, a Hugging Face folder, a run folder, or a hub id",
    )


def _pretrained(folder: Path) -> Any:
    import transformers

    if not (folder / "config.json").is_file():
        raise TkError(f"{folder} has no config.json: it is no model folder")
    facts = read_json(folder / "config.json")
    name = CLASSES.get(str(facts.get("model_type"))) if isinstance(facts, dict) else None
    if name is None:
        raise TkError(
            f"{folder} is not a GroundingDINO model",
            expected="model_type " + " or ".join(CLASSES),
            found=f"model_type {facts.get('model_type')!r}" if isinstance(facts, dict) else "",
        )
    kind = getattr(transformers, name)
    return load_pretrained(kind, folder, attn_implementation=ATTENTION)


def write_model(
    folder: Path,
    start: Start,
    weights: dict[str, Tensor],
    facts: dict[str, Any],
    *,
    half: bool,
) -> None:
    """Write a Hugging Face folder, whole or not at all.

    Args:
        folder: is replaced.
        start: what the training began with.
        weights: state dict of the trained `start.network`.
        facts: go into `training.json`; `size` is the side of the canvas in pixels.
        half: write the weights in float16.
    """
    network = build(start.network.config)
    kept = {key: value for key, value in weights.items() if "num_batches_tracked" not in key}
    network.load_state_dict(kept)
    with torch.no_grad():
        # Heads that share a tensor have several names in a state dict, and an average one only.
        for name, parameter in network.named_parameters():
            parameter.copy_(kept[name])
    if half:
        network.half()
    with quiet(), atomic_folder(folder, overwrite=True, own="config.json") as temporary:
        network.save_pretrained(temporary)
        start.words.save_pretrained(temporary)
        edges = {"shortest_edge": facts["size"], "longest_edge": facts["size"]}
        write_json(temporary / PREPROCESSING, start.preprocessing | {"size": edges})
        write_json(temporary / FACTS, facts)
        for file in temporary.iterdir():
            file.chmod(0o644)  # safetensors makes its files private


def remove_model(folder: Path) -> None:
    """Remove what an older training wrote."""
    shutil.rmtree(folder, ignore_errors=True)
