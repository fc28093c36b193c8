"""The segmenter head on tiny real bundles: bad boxes, chunks, frames. No PyTorch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tests import tiny_bundles

from tk.runtime.bundle import Bundle
from tk.runtime.errors import TkError
from tk.runtime.heads.segmenter import Segmenter

BLOB = (16, 16, 48, 32)
NAN, INF = float("nan"), float("inf")


@pytest.fixture
def segmenter(tiny_world: Path) -> Segmenter:
    return Segmenter(Bundle.open(tiny_world / "bundles" / "segmenter"), threads=1)


def array(*rows: tuple[float, ...]) -> NDArray[np.float32]:
    return np.asarray(rows, np.float32).reshape(-1, 4)


@pytest.mark.parametrize(
    "bad",
    [
        (20, 20, 20, 30),
        (20, 20, 30, 20),
        (30, 30, 20, 20),
        (NAN, 10, 40, 40),
        (10, 10, INF, 40),
        (-INF, 0, 10, 10),
        (-1e38, -1e38, 1e38, 1e38),
        (70, 10, 90, 40),
        (-30, -30, 0, 0),
        (10, 64, 40, 90),
    ],
)
def test_segment__a_box_that_can_hold_nothing_gives_an_empty_mask(
    segmenter: Segmenter, bad: tuple[float, ...]
) -> None:
    picture = tiny_bundles.blob((255, 0, 0), BLOB)
    good = (10, 10, 52, 40)
    (alone,) = segmenter.segment([picture], [array(good)])
    (found,) = segmenter.segment([picture], [array(good, bad, good)])
    assert [mask.area for mask in found.masks] == [alone.masks[0].area, 0, alone.masks[0].area]
    assert alone.masks[0].area == 32 * 16
    assert found.masks[1].tight_box() is None
    np.testing.assert_array_equal(found.iou, [alone.iou[0], 0, alone.iou[0]])


def test_segment__nothing_usable_does_not_reach_the_network(segmenter: Segmenter) -> None:
    picture = tiny_bundles.blob((255, 0, 0))
    prompts = [array(), array((NAN, 0, 1, 1)), array()]
    found = segmenter.segment([picture] * 3, prompts)
    assert [len(masks.masks) for masks in found] == [0, 1, 0]
    assert [len(masks.iou) for masks in found] == [0, 1, 0]
    assert segmenter.encoder.calls == segmenter.decoder.calls == 0
    assert segmenter.segment([], []) == []


def test_segment__many_boxes_go_in_chunks_and_keep_their_order(segmenter: Segmenter) -> None:
    sizes = [(64, 64), (97, 41), (33, 121)]
    pictures = [np.zeros((h, w, 3), np.uint8) for h, w in sizes]
    for picture in pictures:
        picture[5:30, 5:30] = 255
    prompts = [array(*((5, 5, 10 + i, 30) for i in range(n))) for n in (7, 0, 10)]
    found = segmenter.segment(pictures, prompts)
    assert segmenter.encoder.calls == 1
    assert segmenter.decoder.calls == 3 + 4  # the bundle takes 3 boxes per call
    for masks, own in zip(found, prompts, strict=True):
        assert len(masks.masks) == len(own)
        for mask, box in zip(masks.masks, own, strict=True):
            reach = 0.1 * max(box[2] - box[0], box[3] - box[1])
            assert abs(mask.x + mask.pixels.shape[1] - np.ceil(box[2] + reach)) <= 1
            assert mask.area > 0


def test_segment__pictures_beyond_a_batch(segmenter: Segmenter) -> None:
    pictures = [tiny_bundles.blob((255, 0, 0), (8 + i, 16, 40, 40)) for i in range(5)]
    found = segmenter.segment(pictures, [array((0, 0, 64, 64))] * 5)
    assert [masks.masks[0].area for masks in found] == [(32 - i) * 24 for i in range(5)]
    assert segmenter.encoder.calls == 2  # the bundle takes 3 pictures per call


@pytest.mark.parametrize(
    "boxes",
    [[], [np.zeros(4, np.float32)], [np.zeros((1, 5), np.float32)], [np.zeros((1, 4))] * 2],
)
def test_segment__boxes_that_do_not_fit_the_pictures(
    segmenter: Segmenter, boxes: list[NDArray[np.float32]]
) -> None:
    with pytest.raises(TkError, match="boxes for each picture"):
        segmenter.segment([tiny_bundles.blob((255, 0, 0))], boxes)
