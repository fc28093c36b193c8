"""A small WordPiece vocabulary for a text side that is trained from nothing."""

from __future__ import annotations

import re
import string
from collections.abc import Iterable

from tk.runtime.text.masks import DELIMITERS

FIRST = 1030
"""Smaller ids are left to bert-base-uncased: the library knows its delimiters by id."""

SPECIAL = {"[PAD]": 0, "[UNK]": 100, "[MASK]": 103}
COMMON = ("object", "thing", "tool", "a", "an", "the")


def small_vocabulary(names: Iterable[str]) -> dict[str, int]:
    """Number the words of class names, and characters to spell any other word with.

    Args:
        names: class names and other phrases.

    Returns:
        token -> id, delimiters where bert-base-uncased has them.
    """
    text = " ".join(names).lower().replace("_", " ")
    words = {*COMMON, *re.findall(r"\w+", text)}
    characters = {*string.ascii_lowercase, *string.digits, *string.punctuation, *text}
    characters = {c for c in characters if not c.isspace()} - set(DELIMITERS)
    pieces = {f"##{c}" for c in characters if c.isalnum()}
    tokens = [*sorted(characters), *sorted(pieces), *sorted(words - characters)]
    fixed = SPECIAL | DELIMITERS
    taken = set(fixed.values())
    unused = {f"[unused{i}]": i for i in range(FIRST) if i not in taken}
    return {**unused, **fixed, **{token: FIRST + i for i, token in enumerate(tokens)}}
