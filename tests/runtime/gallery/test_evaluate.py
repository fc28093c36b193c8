"""Evaluation: figures on painted pictures by hand, and on noise by scikit-learn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score, precision_score
from tests.runtime.gallery.pictures import blobs, rgba, write_references

from tk.runtime.bundle import Bundle
from tk.runtime.errors import TkError
from tk.runtime.gallery.build import build_gallery
from tk.runtime.gallery.evaluate import evaluate_gallery, measure
from tk.runtime.gallery.gallery import MODES, Gallery, SearchMode
from tk.runtime.gallery.prototypes import class_similarity, make_gallery
from tk.runtime.gallery.query import rank_pictures
from tk.runtime.gallery.table import evaluation_lines
from tk.runtime.heads.embedder import Embedder
from tk.runtime.metrics.intervals import wilson


@pytest.fixture(scope="module")
def embedder(tiny_world: Path) -> Embedder:
    """The mean-colour embedder."""
    return Embedder(Bundle.open(tiny_world / "bundles" / "embedder"))


@pytest.fixture(scope="module")
def gallery(embedder: Embedder, tmp_path_factory: pytest.TempPathFactory) -> Gallery:
    """Red, green and blue, with sub-prototypes."""
    folder = write_references(tmp_path_factory.mktemp("refs") / "refs")
    return build_gallery(folder, embedder, sub_prototypes=2)[0]


@pytest.mark.parametrize("search", MODES)
def test_evaluate__known_classes_and_outsiders(
    gallery: Gallery, embedder: Embedder, tmp_path: Path, search: SearchMode
) -> None:
    pictures = write_references(tmp_path / "p", 3, first=20, yellow=(240, 200, 20))
    # A reddish picture among the greens: wrong whatever the threshold.
    rgba((250, 30, 30), 5).save(pictures / "green" / "cropped" / "red.png")
    (pictures / "blue" / "cropped" / "broken.png").write_text("no picture")

    figures = evaluate_gallery(gallery, pictures, embedder, search=search, threshold=0.95)

    assert (figures["pictures"], figures["known"]) == (13, 10)
    assert (figures["accuracy"]["count"], figures["accuracy"]["of"]) == (9, 10)
    assert figures["accuracy"]["interval"] == list(wilson(9, 10))
    assert figures["false_rejections"]["count"] == 0
    assert figures["right_rejections"] == {
        "share": 1.0,
        "interval": list(wilson(3, 3)),
        "count": 3,
        "of": 3,
    }
    assert figures["accuracy_with_unknown"]["share"] == pytest.approx(12 / 13)
    assert figures["recall_at_1"] == pytest.approx(12 / 13)
    # The red one has R = 3 and no right neighbour, each green has 2 of 3 right ones first.
    assert figures["map_at_r"] == pytest.approx((9 + 3 * 2 / 3) / 13)
    rows = {row["class"]: row for row in figures["per_class"]}
    assert [row["class"] for row in figures["per_class"]] == ["blue", "green", "красный"]
    assert (rows["green"]["recall"], rows["красный"]["precision"]) == (0.75, 0.75)
    assert [rows[name]["pictures"] for name in ("blue", "green", "красный")] == [3, 4, 3]
    (outsider,) = figures["outsiders"]
    assert (outsider["class"], outsider["pictures"], outsider["rejected"]) == ("yellow", 3, 3)
    assert len(figures["skipped"]) == 1 and "broken.png" in figures["skipped"][0]
    text = "\n".join(evaluation_lines(figures))
    for words in ("0.9000", "9 of 10", "mAP@R", "yellow", "skipped: broken.png"):
        assert words in text


def test_evaluate__threshold_of_the_gallery_turns_away(
    gallery: Gallery, embedder: Embedder, tmp_path: Path
) -> None:
    pictures = write_references(tmp_path / "p", 3, first=20)
    figures = evaluate_gallery(gallery, pictures, embedder)
    assert figures["threshold"] == gallery.thresholds["centroid"]
    strict = evaluate_gallery(gallery, pictures, embedder, threshold=1.0)
    assert strict["false_rejections"]["share"] > 0.5
    assert strict["accuracy"]["share"] == 1.0
    shares = (strict["false_rejections"]["share"], strict["accuracy_with_unknown"]["share"])
    assert sum(shares) == pytest.approx(1)
    assert (
        sum(row["rejected"] for row in strict["per_class"]) == strict["false_rejections"]["count"]
    )
    assert strict["right_rejections"]["share"] is None, "no outsiders"


def test_evaluate__on_its_own_references_says_so(
    gallery: Gallery, embedder: Embedder, tmp_path: Path
) -> None:
    figures = evaluate_gallery(gallery, write_references(tmp_path / "same"), embedder)
    assert figures["copies_of_references"] == 18
    assert any("look just like references" in line for line in evaluation_lines(figures))


@pytest.mark.parametrize("seed", range(3))
def test_measure__equals_scikit_learn(seed: int) -> None:
    rows, labels = blobs(seed, 6, 30, noise=0.35)
    known = labels < 4
    gallery = make_gallery(tuple("abcd"), rows[known][::2], labels[known][::2])
    similarity = class_similarity(gallery, "centroid", rows)
    figures = measure(tuple("abcd"), ["abcdef"[i] for i in labels], rows, similarity, 0.4)

    answers = similarity.argmax(axis=1)
    true, mine = labels[known], answers[known]
    assert 0.3 < accuracy_score(true, mine) < 1
    assert figures["accuracy"]["share"] == pytest.approx(accuracy_score(true, mine))
    assert figures["macro_f1"] == pytest.approx(f1_score(true, mine, average="macro"))
    precision = precision_score(true, mine, average=None)
    assert [row["precision"] for row in figures["per_class"]] == pytest.approx(precision)
    with_unknown = np.where(similarity.max(axis=1) < 0.4, -1, answers)
    expected = accuracy_score(np.where(known, labels, -1), with_unknown)
    assert figures["accuracy_with_unknown"]["share"] == pytest.approx(expected)
    rejected = with_unknown == -1
    assert figures["false_rejections"]["share"] == pytest.approx(rejected[known].mean())
    assert figures["right_rejections"]["share"] == pytest.approx(rejected[~known].mean())
    assert sum(row["rejected"] for row in figures["outsiders"]) == rejected[~known].sum()


def test_measure__only_outsiders() -> None:
    rows, labels = blobs(0, 2, 4)
    similarity = rows[:, :1]
    figures = measure(("z",), ["ab"[i] for i in labels], rows, similarity, 0.5)
    assert figures["accuracy"]["share"] is None and figures["macro_f1"] is None
    assert figures["per_class"] == []
    assert figures["right_rejections"] == {
        "share": 0.5,
        "interval": list(wilson(4, 8)),
        "count": 4,
        "of": 8,
    }


def test_evaluate__nothing_usable(gallery: Gallery, embedder: Embedder, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.png").write_text("no picture")
    with pytest.raises(TkError, match="no usable picture"):
        evaluate_gallery(gallery, tmp_path, embedder)


def test_rank__nearest_class_first_and_unknown(
    gallery: Gallery, embedder: Embedder, tmp_path: Path
) -> None:
    rgba((250, 20, 20), 7).save(tmp_path / "red.png")
    rgba((200, 190, 20), 7).save(tmp_path / "yellow.png")
    rgba((1, 1, 1), 7).convert("RGB").save(tmp_path / "bare.png")

    answers = rank_pictures(gallery, [tmp_path], embedder, threshold=0.95, top=2)

    bare, red, yellow = answers
    assert (red["class"], yellow["class"]) == ("красный", "unknown")
    assert [row["class"] for row in yellow["ranked"]] == ["красный", "green"]
    for answer in (red, yellow):
        values = [row["similarity"] for row in answer["ranked"]]
        assert len(values) == 2 and values[0] >= values[1]
    assert bare["ranked"] == [] and "has no mask" in bare["error"]
    with pytest.raises(TkError, match="no picture can be used"):
        rank_pictures(gallery, [tmp_path / "bare.png"], embedder)
