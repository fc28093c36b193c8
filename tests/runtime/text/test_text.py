"""Prompts, masks and phrases against transformers, and the rules of a prompt."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tests.export.grounding.models import vocabulary
from transformers.models.grounding_dino import modeling_grounding_dino, processing_grounding_dino

from tk.runtime.errors import EnvironmentLacks, TkError
from tk.runtime.text.masks import DELIMITERS, phrase_masks
from tk.runtime.text.phrases import assemble_phrases
from tk.runtime.text.prompts import keep_features, load_features, prompt_file, prompt_key
from tk.runtime.text.tokenizer import Prompt, Tokenizer, foreign_phrases

modeling: Any = modeling_grounding_dino
processing: Any = processing_grounding_dino
LIBRARY: Any = transformers.BertTokenizer(vocabulary())


def tokenizer(limit: int = 256, *, cleanup: bool = False) -> Tokenizer:
    data = LIBRARY.backend_tokenizer.to_str().encode()
    return Tokenizer(data, limit, cleanup=cleanup, name="detector")


@pytest.mark.parametrize(
    ("prompt", "sent"),
    [
        ("tool.", "tool."),
        ("  Tool ", "Tool."),
        ("wrench . pliers .", "wrench . pliers ."),
        ("wrench . red pliers . a screwdrivers", "wrench . red pliers . a screwdrivers."),
        ("tool? hammer", "tool? hammer."),
        ("WRENCH . Red PLIERS .", "WRENCH . Red PLIERS ."),
        ("tool . tool .", "tool . tool ."),
        ("tool?", "tool?"),
        ("..tool..", "..tool.."),
    ],
)
def test_read__tokens_are_the_library_s(prompt: str, sent: str) -> None:
    read = tokenizer().read(prompt)
    assert read.text == sent
    assert list(read.ids) == LIBRARY(sent)["input_ids"]


def _random_ids(seed: int) -> list[int]:
    random = np.random.default_rng(seed)
    inner = random.choice([1012, 1029, *range(1030, 1040)], random.integers(1, 20))
    return [101, *(int(i) for i in inner), 102, *[0] * int(random.integers(0, 4))]


@pytest.mark.parametrize("seed", range(30))
def test_masks__are_the_library_s(seed: int) -> None:
    ids = _random_ids(seed)
    expected = modeling.generate_masks_with_special_tokens_and_transfer_map(
        torch.LongTensor([ids]),
        torch.LongTensor(modeling.SPECIAL_TOKENS),
    )
    mask, positions = phrase_masks(ids)
    np.testing.assert_array_equal(mask, expected[0][0])
    np.testing.assert_array_equal(positions, expected[1][0])
    assert sorted(DELIMITERS.values()) == modeling.SPECIAL_TOKENS


@pytest.mark.parametrize("limit", [256, 0])
@pytest.mark.parametrize("cleanup", [False, True])
@pytest.mark.parametrize("seed", range(8))
def test_phrases__are_the_library_s(seed: int, cleanup: bool, limit: int) -> None:
    """`limit` 0: a prompt that fills all columns, of which the library blanks the last."""
    random = np.random.default_rng(seed)
    words = random.choice(["wrench", "red", "pliers", "screwdrivers", ".", "?", ",", "'", "!"], 12)
    read = tokenizer().read(" ".join(words) + " tool.")
    columns = limit or len(read.ids)
    scores = random.random((20, len(read.ids))).astype(np.float32)
    scores[0] = 0
    padded = np.zeros((20, columns), np.float32)
    padded[:, : len(read.ids)] = scores
    posmap = torch.from_numpy(padded) > 0.6
    expected = LIBRARY.batch_decode(
        processing.get_phrases_from_posmap(posmap, list(read.ids)),
        clean_up_tokenization_spaces=cleanup,
    )
    own = tokenizer(columns, cleanup=cleanup)
    assert assemble_phrases(scores, read.ids, 0.6, columns, own.write) == expected
    assert expected[0] == ""


def test_phrases__none_for_no_boxes() -> None:
    assert assemble_phrases(np.zeros((0, 4), np.float32), (101, 1030, 102), 0.2, 256, str) == []


@pytest.mark.parametrize(
    ("prompt", "limit", "message"),
    [
        ("", 256, "names nothing"),
        ("  ", 256, "names nothing"),
        (" . ? .", 256, "names nothing"),
        ("tool. " * 10, 21, "22 tokens"),
        ("?", 256, "names nothing"),
        (" . . ", 256, "names nothing"),
        ("red гаечный ключ . tool", 256, "in the phrase 'red гаечный ключ' of the prompt"),
        ("tool. 扳手.", 256, "in the phrase '扳手' of"),
        ("red 🔧 . tool .", 256, "does not know '🔧'"),
    ],
)
def test_read__refuses(prompt: str, limit: int, message: str) -> None:
    with pytest.raises(TkError, match=message):
        tokenizer(limit).read(prompt)
    assert len(tokenizer(22).read("tool. " * 10).ids) == 22


def test_read__upper_case_and_a_missing_dot_are_the_same_prompt() -> None:
    assert tokenizer().read("Wrench . RED Pliers").ids == tokenizer().read("wrench.red pliers.").ids


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("wrench . red pliers? tool.", []),
        ("schraubenschlüssel 17 mm . naïve clé .", []),
        ("wrench . гаечный ключ . 扳手 .", ["гаечный ключ", "扳手"]),
    ],
)
def test_foreign_phrases__are_those_with_letters_that_are_not_latin(
    prompt: str, expected: list[str]
) -> None:
    assert foreign_phrases(prompt) == expected


def test_tokenizer__another_vocabulary_is_refused() -> None:
    other = {word: index for index, word in enumerate(vocabulary())}
    data = transformers.BertTokenizer(other).backend_tokenizer.to_str().encode()
    with pytest.raises(TkError, match="another vocabulary") as caught:
        Tokenizer(data, 256, cleanup=False, name="m")
    assert "1012" in caught.value.expected


def test_tokenizer__not_one_is_refused() -> None:
    with pytest.raises(TkError, match="cannot be read"):
        Tokenizer(b"{}", 256, cleanup=False, name="m")


def test_tokenizer__missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(EnvironmentLacks, match="package tokenizers"):
        tokenizer()


def test_prompts__only_the_same_key_and_shape(tmp_path: Path) -> None:
    prompt = Prompt("Wrench . pliers .", (101, 1031, 1012, 102))
    key = prompt_key("model", prompt)
    assert key != prompt_key("other", prompt)
    file = prompt_file(tmp_path, prompt, key)
    assert file.name.startswith("wrench-pliers-") and file.parent.name == "prompts"
    features = np.random.default_rng(0).random((1, 4, 8), np.float32)
    assert load_features(file, key, (1, 4, 8)) is None
    assert keep_features(file, key, features)
    kept = load_features(file, key, (1, 4, 8))
    assert kept is not None
    np.testing.assert_array_equal(kept, features)
    assert load_features(file, "another", (1, 4, 8)) is None
    assert load_features(file, key, (1, 5, 8)) is None
