"""Severstal's run lengths against the formula that the competition's notebooks publish."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from tk.runtime.errors import TkError
from tk.runtime.masks import BoxMask, decode_row_major, rle_row_major
from tk.train.data.steel.runs import decode_column_runs, encode_column_runs

RNG = np.random.default_rng(0)
BLOCK = np.zeros((7, 11), bool)
BLOCK[2:5, 3:8] = True
MASKS = {
    "empty": np.zeros((5, 9), bool),
    "full": np.ones((5, 9), bool),
    "block": BLOCK,
    "first and last": np.eye(6, dtype=bool) & (np.arange(6) % 5 == 0),
    "noise": RNG.random((16, 100)) < 0.5,
    "one row": RNG.random((1, 40)) < 0.5,
    "one column": RNG.random((40, 1)) < 0.5,
}


def kaggle_encode(mask: NDArray[np.bool_]) -> str:
    """The formula that the competition's notebooks share."""
    pixels = np.concatenate([[0], mask.reshape(-1, order="F").astype(int), [0]])
    runs = np.where(pixels[1:] != pixels[:-1])[0] + 1
    runs[1::2] -= runs[::2]
    return " ".join(str(x) for x in runs)


def kaggle_decode(text: str, height: int, width: int) -> NDArray[np.bool_]:
    """Pixel by pixel, from the competition's definition of its numbers."""
    mask = np.zeros((height, width), bool)
    numbers = [int(word) for word in text.split()]
    for start, length in zip(numbers[::2], numbers[1::2], strict=True):
        for pixel in range(start, start + length):
            mask[(pixel - 1) % height, (pixel - 1) // height] = True
    return mask


@pytest.mark.parametrize("name", MASKS)
def test_runs__as_published_and_back(name: str) -> None:
    mask = MASKS[name]
    text = encode_column_runs(mask)
    assert text == kaggle_encode(mask)
    height, width = mask.shape
    decoded = decode_column_runs(text, height, width, "here")
    assert decoded.dtype == bool and decoded.shape == mask.shape
    np.testing.assert_array_equal(decoded, mask)
    np.testing.assert_array_equal(decoded, kaggle_decode(text, height, width))


def test_decode__pixels_are_counted_down_the_columns_from_1() -> None:
    mask = decode_column_runs("1 3 10 5", 256, 1600, "here")
    assert [tuple(at) for at in np.argwhere(mask)] == [
        (row, 0) for row in (0, 1, 2, 9, 10, 11, 12, 13)
    ]
    assert decode_column_runs("257 1", 256, 1600, "here")[0, 1]
    assert decode_column_runs("409600 1", 256, 1600, "here")[255, 1599]


@pytest.mark.parametrize("text", ["", "  ", "nan", "NaN"])
def test_decode__nothing_is_an_empty_mask(text: str) -> None:
    assert not decode_column_runs(text, 4, 6, "here").any()


def test_decode__any_order_and_touching_runs() -> None:
    mask = decode_column_runs("10 2 1 3 4 2", 4, 6, "here")
    np.testing.assert_array_equal(mask, kaggle_decode("1 5 10 2", 4, 6))


@pytest.mark.parametrize(
    ("text", "what", "found"),
    [
        ("1 3 5", "a start without a length", "3 numbers"),
        ("1 a", "not a whole number", "'a'"),
        ("1 2.5", "not a whole number", "'2.5'"),
        ("-1 2", "not a whole number", "'-1'"),
        ("١ 2", "not a whole number", "'١'"),
        ("1 99999999999999999999", "not a whole number", "'99999999999999999999'"),
        ("0 2", "outside the pixels 1..24", "0 2"),
        ("3 0", "outside the pixels 1..24", "3 0"),
        ("24 2", "outside the pixels 1..24", "24 2"),
        ("1 999999999999999999", "outside the pixels 1..24", "1 999999999999999999"),
        ("25 1", "outside the pixels 1..24", "25 1"),
        ("9 3 1 9", "overlapping runs", "1 9 and 9 3"),
        ("5 1 5 1", "overlapping runs", "5 1 and 5 1"),
    ],
)
def test_decode__refuses_what_cannot_be_a_mask(text: str, what: str, found: str) -> None:
    with pytest.raises(TkError) as caught:
        decode_column_runs(text, 4, 6, "train.csv, line 7, image a.jpg, class 3")
    assert caught.value.what.startswith("train.csv, line 7, image a.jpg, class 3: ")
    assert what in caught.value.what
    assert caught.value.found == found
    assert "down the columns" in caught.value.expected


def test_runs__are_not_those_of_predictions() -> None:
    """The two codecs tell different masks of the same numbers: they must not be mixed."""
    counts = rle_row_major(BoxMask(0, 0, BLOCK, *BLOCK.shape))
    assert (decode_row_major(BLOCK.shape, counts) == BLOCK).all()
    assert " ".join(map(str, counts)) != encode_column_runs(BLOCK)
