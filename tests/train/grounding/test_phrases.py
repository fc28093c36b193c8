"""Class names as phrases; vocabulary of a small model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import transformers

from tk.runtime.errors import TkError
from tk.runtime.text.phrases import assemble_phrases
from tk.runtime.text.tokenizer import Tokenizer
from tk.train.grounding.phrases import Phrasebook, Variety
from tk.train.grounding.vocabulary import small_vocabulary

NAMES = ("adjustable wrench", "open-end wrench", "side_cutters", "Phillips screwdriver", "brace")


def reader(names: Sequence[str] = NAMES, limit: int = 256) -> Tokenizer:
    make: Any = transformers.BertTokenizer
    data = make(small_vocabulary(names)).backend_tokenizer.to_str().encode()
    return Tokenizer(data, limit, cleanup=False, name="small")


def test_all__every_class_has_its_phrase() -> None:
    asked = Phrasebook(reader(), NAMES).all
    assert asked.texts == (
        "adjustable wrench",
        "open - end wrench",
        "side cutters",
        "phillips screwdriver",
        "brace",
    )
    assert (asked.tokens == asked.phrases).all() and asked.tokens.sum(axis=0).max() == 1
    # The runtime puts together the same words from these tokens.
    own = reader()
    scores = asked.tokens.astype(np.float32)
    assert assemble_phrases(scores, asked.ids, 0.25, 256, own.write) == list(asked.texts)


def test_draw__shuffled_phrases_name_the_same_classes() -> None:
    own = reader()
    book = Phrasebook(own, NAMES, Variety(shuffle=True))
    texts = set()
    for seed in range(20):
        asked = book.draw(np.random.default_rng(seed))
        texts.add(asked.ids)
        for name, row in zip(book.all.texts, asked.tokens, strict=True):
            assert own.write([asked.ids[i] for i in np.flatnonzero(row)]) == name
    assert len(texts) > 15
    again = [book.draw(np.random.default_rng(3)).ids for _ in range(2)]
    assert again[0] == again[1]


def test_draw__last_words_join_classes_and_subsets_leave_some_out() -> None:
    own = reader()
    asked = Phrasebook(own, NAMES, Variety(word_share=1)).draw(np.random.default_rng(0))
    assert sorted(asked.texts) == ["brace", "cutters", "screwdriver", "wrench"]
    assert (asked.tokens[0] == asked.tokens[1]).all() and asked.tokens.any(axis=1).all()
    book = Phrasebook(own, NAMES, Variety(subset_share=1))
    counts = [
        int(book.draw(np.random.default_rng(seed)).tokens.any(axis=1).sum()) for seed in range(60)
    ]
    assert set(counts) == {1, 2, 3, 4, 5}


def test_draw__any_word_names_everything() -> None:
    variety = Variety(any_word="tool", any_share=1)
    asked = Phrasebook(reader(), NAMES, variety).draw(np.random.default_rng(0))
    assert asked.texts == ("tool",) and asked.tokens[:, 1].all() and len(asked.ids) == 4


@pytest.mark.parametrize(
    ("names", "limit", "message"),
    [
        ((), 256, "no categories"),
        (("wrench", " "), 256, "'' cannot be a phrase"),
        (("wrench", "no. 5 pliers"), 256, "a dot or . divides phrases"),
        (("wrench", "why?"), 256, "divides phrases"),
        (("side cutters", "Side_Cutters"), 256, "two classes have one name"),
        (NAMES, 12, "5 class names are too long for one prompt"),
        (("wrench", "ключ"), 256, "does not know 'ключ'"),
    ],
)
def test_book__what_is_no_phrase_is_refused(
    names: tuple[str, ...], limit: int, message: str
) -> None:
    with pytest.raises(TkError, match=message):
        Phrasebook(reader(limit=limit), names)


def test_vocabulary__spells_other_words_and_other_scripts() -> None:
    own = reader(("гаечный ключ", "open-end wrench"))
    assert own.read("hammer with 2 claws, red!").text.endswith("!.")
    assert len(own.read("wrench.").ids) == 4 and len(own.read("ключ").ids) == 4
    ids = list(small_vocabulary(NAMES).values())
    assert sorted(ids) == list(range(len(ids)))
    assert len(own.read("side cutters").ids) > 4 == len(reader().read("brace cutters").ids) - 1
