"""A prompt as tokens: the package `tokenizers` and the rules that a prompt must keep."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tk.runtime.backends.base import Arrays
from tk.runtime.errors import EnvironmentLacks, TkError
from tk.runtime.text.masks import DELIMITERS, phrase_masks

ENDS = (".", "?")
UNKNOWN = "[UNK]"


@dataclass(frozen=True)
class Prompt:
    """A prompt that was read.

    Attributes:
        text: with its final dot.
        ids: [CLS] … [SEP].
    """

    text: str
    ids: tuple[int, ...]

    def text_inputs(self, length: int = 0) -> Arrays:
        """Inputs of the part `text`, padded to `length` tokens when that is more."""
        ids = (*self.ids, *[0] * (length - len(self.ids)))
        mask, positions = phrase_masks(ids)
        return {
            "input_ids": np.asarray([ids], np.int32),
            "text_mask": mask[None],
            "position_ids": positions[None],
        }

    def model_inputs(self, features: NDArray[np.float32]) -> Arrays:
        """Inputs of the part `model` beside the picture.

        Args:
            features: (1, T, D) float32, what the part `text` made of `text_inputs`.
        """
        inputs = self.text_inputs(features.shape[1])
        real = np.arange(features.shape[1])[None] < len(self.ids)
        return {
            "text_features": features,
            "text_mask": inputs["text_mask"],
            "token_mask": real,
            "position_ids": inputs["position_ids"],
        }


class Tokenizer:
    """Reads prompts and writes phrases.

    Args:
        data: a `tokenizer.json`.
        limit: most tokens of a prompt, [CLS] and [SEP] included: columns of the library's scores.
        cleanup: whether the library tidies spaces before punctuation once more after decoding.
        name: the model, for messages.

    Raises:
        EnvironmentLacks: the package `tokenizers` is not installed.
        TkError: not a tokenizer, or one with other ids than the model's.
    """

    def __init__(self, data: bytes, limit: int, *, cleanup: bool, name: str) -> None:
        try:
            import tokenizers
        except ImportError:
            raise EnvironmentLacks(
                f"reading a prompt for {name} needs the package tokenizers",
                fix="pip install 'tk-vision[text]', or export the model with --bake PROMPT",
            ) from None
        try:
            self._tokenizer: Any = tokenizers.Tokenizer.from_buffer(data)
        except Exception as error:  # the package raises bare Exception
            raise TkError(f"the tokenizer of {name} cannot be read: {error}") from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.limit, self.cleanup, self.name = limit, cleanup, name
        found = {token: self._tokenizer.token_to_id(token) for token in DELIMITERS}
        if found != DELIMITERS:
            raise TkError(
                f"the tokenizer of {name} has another vocabulary than its weights",
                expected=f"the ids of bert-base-uncased: {_pairs(DELIMITERS)}",
                found=_pairs(found),
                fix="take the tokenizer files that belong to the model",
            )

    def read(self, prompt: str) -> Prompt:
        """Turn a prompt into tokens; phrases end with a dot, and the last dot is added.

        Raises:
            TkError: no words, more tokens than the model takes, or words it does not know.
        """
        text = prompt.strip()
        if text and not text.endswith(ENDS):
            # Without it the last phrase changes with the padding after it.
            text += "."
        encoding = self._tokenizer.encode(text)
        ids = tuple(int(token) for token in encoding.ids)
        if not set(ids) - set(DELIMITERS.values()):
            raise TkError(
                "the prompt names nothing",
                expected="words, phrases divided by dots",
                found=repr(prompt),
                fix='for example --prompt "tool." or --prompt "wrench . pliers ."',
            )
        if len(ids) > self.limit:
            raise TkError(
                "the prompt is too long for this detector",
                expected=f"at most {self.limit} tokens",
                found=f"{len(ids)} tokens",
                fix="name fewer things, or annotate in several runs",
            )
        if strange := self._strange(text, encoding):
            places = ", ".join(repr(phrase) for phrase in phrases(text) if _has(phrase, strange))
            raise TkError(
                f"the vocabulary of {self.name} does not know {', '.join(map(repr, strange))}",
                expected="words that its vocabulary can spell; published weights read English",
                found=f"{UNKNOWN} tokens in the phrase {places} of the prompt {text!r}",
                fix='say it in English, for example --prompt "wrench . pliers ."',
            )
        return Prompt(text, ids)

    def _strange(self, text: str, encoding: Any) -> list[str]:
        """Words of the prompt that the vocabulary cannot spell at all."""
        unknown = self._tokenizer.token_to_id(UNKNOWN)
        spans = zip(encoding.ids, encoding.offsets, strict=True)
        words = [text[start:stop] for token, (start, stop) in spans if token == unknown]
        return list(dict.fromkeys(words))

    def write(self, ids: Sequence[int]) -> str:
        """Turn token ids back into text, as the library does."""
        text = str(self._tokenizer.decode(list(ids), skip_special_tokens=False))
        return tidy(text) if self.cleanup else text


def phrases(text: str) -> list[str]:
    """Phrases of a prompt, without the marks that end them."""
    return [phrase.strip() for phrase in re.split(r"[.?]", text) if phrase.strip()]


def foreign_phrases(text: str) -> list[str]:
    """Phrases with letters that are not Latin: the vocabulary spells them letter by letter."""
    return [phrase for phrase in phrases(text) if not all(map(_is_latin, phrase))]


def _is_latin(char: str) -> bool:
    return not char.isalpha() or unicodedata.name(char, "").startswith("LATIN")


def _has(phrase: str, words: Sequence[str]) -> bool:
    return any(word in phrase for word in words)


def _pairs(ids: dict[str, Any]) -> str:
    return ", ".join(f"{token} = {number}" for token, number in ids.items())


_TIDY = (
    *((" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'")),
    *((" n't", "n't"), (" 'm", "'m"), (" 's", "'s"), (" 've", "'ve"), (" 're", "'re")),
)


def tidy(text: str) -> str:
    """Take the spaces before punctuation away (`clean_up_tokenization` of transformers)."""
    for old, new in _TIDY:
        text = text.replace(old, new)
    return text
