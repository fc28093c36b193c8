"""Which places show which object."""

from __future__ import annotations

import pytest
import torch

from tk.train.grounding.auxiliary import SIDE, Auxiliary
from tk.train.grounding.dense import Places, assign_places, make_places

SHAPES = [(16, 16), (8, 8)]


def places(pictures: int = 1) -> Places:
    return make_places(SHAPES, 256, 256, torch.tensor([[256, 256]] * pictures))


def assigned(boxes: list[list[float]], usable: torch.Tensor | None = None) -> list[list[int]]:
    """Places of each object (pixels xyxy) in one picture of 256 x 256."""
    given = torch.tensor(boxes) / 256
    centred = torch.cat([(given[:, :2] + given[:, 2:]) / 2, given[:, 2:] - given[:, :2]], 1)
    usable = torch.ones(1, 320, dtype=torch.bool) if usable is None else usable
    cells, things = assign_places(places(), usable, centred, torch.zeros(len(boxes)).long())
    return [cells[things == index].tolist() for index in range(len(boxes))]


def test_places__centres_and_strides() -> None:
    own = places()
    assert own.centres[0].tolist() == [8, 8] and own.centres[17].tolist() == [24, 24]
    assert own.centres[256].tolist() == [16, 16] and own.strides[[0, 256]].tolist() == [16, 32]


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        # Centre in the corner of four places: within 24 pixels lie four on each axis.
        ([64, 64, 128, 128], [16 * r + c for r in (4, 5, 6, 7) for c in (4, 5, 6, 7)]),
        # Nine places around a centre that is a place's.
        ([72, 72, 136, 136], [16 * r + c for r in (5, 6, 7) for c in (5, 6, 7)]),
        # Flat: only the row that its box covers.
        ([72, 100, 136, 108], [16 * 6 + c for c in (5, 6, 7)]),
        # So thin that it covers no centre: the nearest place.
        ([72, 110, 136, 114], [16 * 6 + 6]),
        # Longer than eight strides: the next level.
        ([32, 32, 192, 64], [256 + 8 + c for c in (2, 3, 4)]),
    ],
)
def test_assign__level_and_reach(box: list[float], expected: list[int]) -> None:
    assert sorted(assigned([box])[0]) == expected


def test_assign__the_smaller_object_takes_the_place() -> None:
    large, small = assigned([[40, 40, 160, 160], [84, 84, 124, 124]])
    assert set(large).isdisjoint(small) and len(small) == 9
    twins = assigned([[72, 72, 136, 136]] * 2)
    assert len(twins[0]) == 9 and twins[1] == []


def test_assign__only_usable_places() -> None:
    usable = torch.ones(1, 320, dtype=torch.bool)
    usable[0, :112] = False
    assert assigned([[72, 72, 136, 136]], usable) == [[16 * 7 + c for c in (5, 6, 7)]]
    usable[:] = False
    assert assigned([[72, 72, 136, 136]], usable) == [[]]


def test_assign__pictures_do_not_mix_and_may_be_empty() -> None:
    usable = torch.ones(3, 320, dtype=torch.bool)
    boxes = torch.tensor([[0.40625, 0.40625, 0.25, 0.25]] * 2)
    cells, things = assign_places(places(3), usable, boxes, torch.tensor([0, 2]))
    assert sorted(cells[things == 1] - cells[things == 0]) == [640] * 9
    none = torch.zeros(0, dtype=torch.int64)
    cells, things = assign_places(places(3), usable, torch.zeros(0, 4), none)
    assert len(cells) == len(things) == 0


def test_auxiliary__starts_at_its_places() -> None:
    own = make_places(SHAPES, 256, 256, torch.tensor([[128, 256], [256, 256]]))
    logits, boxes = Auxiliary(8, 5)(torch.zeros(2, 320, 8), own)
    assert logits.shape == (2, 320, 5)
    # The lower half of the first canvas is padding.
    assert not boxes[0, 128:256].isfinite().any() and boxes[0, :128].isfinite().all()
    expected = torch.tensor([24 / 256, 8 / 128, SIDE, SIDE])
    torch.testing.assert_close(boxes[0, 1].sigmoid(), expected, atol=5e-3, rtol=0)
    assert boxes[1].isfinite().all()
