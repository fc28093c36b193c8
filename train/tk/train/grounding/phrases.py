"""Class names as phrases of a prompt: which tokens name which class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tk.runtime.errors import TkError
from tk.runtime.text.masks import DELIMITERS
from tk.runtime.text.tokenizer import Tokenizer

RENAME = "use another name, in the annotations if it is a category's"

Phrase = tuple[str, tuple[int, ...]]
"""Text, and the indices of the classes that it names."""


@dataclass(frozen=True, eq=False)
class Asked:
    """A prompt and what it asks for.

    Attributes:
        ids: [CLS] … [SEP], T of them.
        tokens: (C, T) bool, the tokens that name each class; none for a class not asked for.
        phrases: (P, T) bool, the tokens of each phrase.
        texts: P phrases as the runtime writes them.
    """

    ids: tuple[int, ...]
    tokens: NDArray[np.bool_]
    phrases: NDArray[np.bool_]
    texts: tuple[str, ...]


@dataclass(frozen=True)
class Variety:
    """How training prompts differ; see the options of the same names."""

    shuffle: bool = True
    word_share: float = 0.0
    subset_share: float = 0.0
    any_word: str = ""
    any_share: float = 0.0


class Phrasebook:
    """Prompts about the classes of a data set.

    Args:
        reader: of the model that is trained.
        classes: their names, C of them.
        variety: of the prompts that `draw` makes.

    Raises:
        TkError: a name that is no phrase, two equal names, or more names than a prompt can hold.
    """

    def __init__(
        self, reader: Tokenizer, classes: Sequence[str], variety: Variety | None = None
    ) -> None:
        self.reader, self.classes = reader, tuple(classes)
        self.variety = variety or Variety()
        if not classes:
            raise TkError("the data have no categories, so there is nothing to ask for")
        self.names: list[Phrase] = [(tidy(name), (i,)) for i, name in enumerate(classes)]
        self._check_names()
        self.words = last_words(self.names)
        everything = tuple(range(len(classes)))
        self.any: list[Phrase] = [(tidy(self.variety.any_word), everything)]
        if self.variety.any_word:
            self._check(self.any[0][0], "--any-word")
        self.all = self._ask_all()
        self.ask(self.words)

    def _check_names(self) -> None:
        seen: dict[str, str] = {}
        for (text, _), name in zip(self.names, self.classes, strict=True):
            self._check(text, "the class name")
            key = text.lower()
            if key in seen:
                raise TkError(f"two classes have one name: {seen[key]!r} and {name!r}")
            seen[key] = name

    def _check(self, text: str, what: str) -> None:
        if any(mark in text for mark in DELIMITERS if len(mark) == 1):
            raise TkError(
                f"{what} {text!r} cannot be a phrase: a dot or ? divides phrases", fix=RENAME
            )
        try:
            self.reader.read(text)
        except TkError as error:
            raise TkError(
                f"{what} {text!r} cannot be a phrase: {error.what}",
                expected=error.expected,
                found=error.found,
                fix=RENAME,
            ) from None

    def _ask_all(self) -> Asked:
        try:
            return self.ask(self.names)
        except TkError as error:
            raise TkError(
                f"{len(self.classes)} class names are too long for one prompt of this model",
                expected=error.expected,
                found=error.found,
                fix="train with fewer categories, or --single-class tool",
            ) from None

    def ask(self, phrases: Sequence[Phrase]) -> Asked:
        """Join phrases to a prompt.

        Raises:
            TkError: it is too long.
        """
        ids = self.reader.read(" . ".join(text for text, _ in phrases) + " .").ids
        marks = np.isin(ids, list(DELIMITERS.values()))
        # Phrase p lies between the delimiters p and p + 1; the first is [CLS].
        number = np.where(marks, 0, np.cumsum(marks))
        found = np.arange(1, len(phrases) + 1)[:, None] == number
        tokens = np.zeros((len(self.classes), len(ids)), np.bool_)
        for row, (_, named) in zip(found, phrases, strict=True):
            tokens[list(named)] |= row
        texts = [self.reader.write([ids[i] for i in np.flatnonzero(row)]) for row in found]
        return Asked(ids, tokens, found, tuple(texts))

    def prompts(self) -> dict[str, Asked]:
        """What an evaluation asks, in fixed order; the key begins the names of the figures."""
        found = {"": self.all}
        if len(self.words) < len(self.names) and self.variety.word_share:
            found["word_"] = self.ask(self.words)
        if self.variety.any_word:
            found["any_"] = self.ask(self.any)
        return found

    def draw(self, rng: np.random.Generator) -> Asked:
        """Make the prompt of one training sample."""
        style, kind = rng.random(), self.variety
        if kind.any_word and style < kind.any_share:
            return self.ask(self.any)
        by_word = rng.random() < kind.word_share
        phrases = self.words if by_word else self.names
        order = rng.permutation(len(phrases)) if kind.shuffle else np.arange(len(phrases))
        if rng.random() < kind.subset_share:
            count = int(rng.integers(1, len(phrases) + 1))
            chosen = np.sort(rng.permutation(len(phrases))[:count])
            order = order[np.isin(order, chosen)]
        return self.ask([phrases[index] for index in order])


def tidy(name: str) -> str:
    """A class name as people would write it in a prompt."""
    return " ".join(name.replace("_", " ").split())


def last_words(names: Sequence[Phrase]) -> list[Phrase]:
    """Group classes by the last word of their names, which in English says what a thing is."""
    groups: dict[str, list[int]] = {}
    for text, classes in names:
        groups.setdefault(text.split()[-1].lower(), []).extend(classes)
    return [(word, tuple(classes)) for word, classes in groups.items()]
