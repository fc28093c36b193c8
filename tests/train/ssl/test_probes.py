from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.model_selection import train_test_split
from sklearn.neighbors import KNeighborsClassifier

from tk.runtime.errors import CheckFailed, TkError
from tk.runtime.images import read_image
from tk.train.data.digits import write_digits
from tk.train.embedder.data import find_crops
from tk.train.embedder.split import split_crops
from tk.train.ssl.probes import knn
from tk.train.ssl.probes.features import Features, Labels
from tk.train.ssl.probes.floors import floors, probe_figures
from tk.train.ssl.probes.knn import knn_accuracy
from tk.train.ssl.probes.linear import linear_accuracy
from tk.train.ssl.probes.rank import rank_me

Parts = tuple[Features, Labels, Features, Labels]


def digits(seed: int = 0) -> Parts:
    """80 % of scikit-learn's digits as references, 20 % as questions."""
    data = load_digits()
    train, test, labels, wanted = train_test_split(
        data.data, data.target, test_size=0.2, stratify=data.target, random_state=seed
    )
    return train, labels, test, wanted


def noisy(seed: int = 0) -> Parts:
    """Three overlapping classes in 5 dimensions, with lengths that must not count."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, 260)
    centres = rng.normal(size=(3, 5))
    rows = (centres[labels] + rng.normal(size=(260, 5))) * rng.uniform(0.1, 9, (260, 1))
    return rows[:200], labels[:200], rows[200:], labels[200:]


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (5, 0.07), (20, 0.07), (20, 0.5)])
def test_knn__is_the_published_sum_over_neighbours(k: int, temperature: float) -> None:
    train, labels, test, wanted = noisy()
    right = 0
    for row, label in zip(cosine_similarity(test, train), wanted, strict=True):
        votes = dict.fromkeys(range(3), 0.0)
        for near in sorted(range(len(row)), key=lambda i: -row[i])[:k]:
            votes[int(labels[near])] += float(np.exp(row[near] / temperature))
        right += max(votes, key=lambda name: votes[name]) == label
    found = knn_accuracy(train, labels, test, wanted, k=k, temperature=temperature)
    assert found == right / len(wanted)
    assert 0.4 < found < 0.95  # neither chance nor trivial


@pytest.mark.parametrize("k", [1, 20])
def test_knn__without_weights_is_scikit_learns(k: int) -> None:
    train, labels, test, wanted = digits()
    oracle = KNeighborsClassifier(k, metric="cosine").fit(train, labels).score(test, wanted)
    assert knn_accuracy(train, labels, test, wanted, k=k, temperature=math.inf) == oracle


def test_knn__the_floors_of_the_digits_are_those_published_for_them() -> None:
    parts = digits()
    assert round(knn_accuracy(*parts, k=1), 3) == 0.981
    assert round(knn_accuracy(*parts, k=20, temperature=math.inf), 3) == 0.967
    assert round(linear_accuracy(*parts), 3) == 0.967
    assert round(linear_accuracy(*digits(42)), 3) == 0.972


def test_knn__equal_neighbours_are_taken_in_the_order_of_the_references() -> None:
    rng = np.random.default_rng(0)
    cosines = rng.integers(0, 4, (50, 30)).astype(np.float32)
    cosines[25:] = rng.normal(size=(25, 30))
    for k in (1, 7, 30):
        whole = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
        assert (knn._nearest(cosines, k) == whole).all()


def test_knn__blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = knn_accuracy(*noisy())
    monkeypatch.setattr(knn, "BLOCK", 7)
    assert knn_accuracy(*noisy()) == whole


def test_knn__more_neighbours_than_references_are_all_of_them() -> None:
    parts = noisy()
    assert knn_accuracy(*parts, k=1000) == knn_accuracy(*parts, k=200)


def test_knn__a_tiny_temperature_is_the_nearest_neighbour() -> None:
    parts = noisy()
    assert knn_accuracy(*parts, temperature=1e-6) == knn_accuracy(*parts, k=1)


def test_rank_me__of_known_spectra() -> None:
    flat = np.linalg.qr(np.random.default_rng(0).normal(size=(50, 8)))[0]
    assert rank_me(flat) == pytest.approx(8, rel=1e-5)
    assert rank_me(np.outer(np.arange(1, 9), np.ones(5))) == pytest.approx(1, abs=1e-4)
    sigmas = np.array([4.0, 2, 1, 1])
    shares = sigmas / sigmas.sum()
    closed = np.prod(shares**-shares)
    basis = np.linalg.qr(np.random.default_rng(1).normal(size=(30, 4)))[0]
    assert rank_me(basis * sigmas) == pytest.approx(closed, rel=1e-5)
    assert rank_me(np.zeros((4, 3))) == 1


def test_rank_me__ignores_scale_and_rotation() -> None:
    rows = np.random.default_rng(0).normal(size=(40, 6)) * np.arange(1, 7)
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(6, 6)))[0]
    assert rank_me(rows @ turn * 1e-3) == pytest.approx(rank_me(rows), rel=1e-9)


def test_probes__say_what_is_wrong_with_features() -> None:
    train, labels, test, wanted = noisy()
    with pytest.raises(TkError, match="references and questions are of different networks"):
        knn_accuracy(train, labels, test[:, :3], wanted)
    with pytest.raises(TkError, match="cannot use these labels"):
        knn_accuracy(train, labels[:-1], test, wanted)
    with pytest.raises(TkError, match=r"cannot use these features(.|\n)*\(0, 5\)"):
        linear_accuracy(train, labels, test[:0], wanted[:0])
    with pytest.raises(TkError, match="single class"):
        linear_accuracy(train, np.zeros_like(labels), test, wanted)
    train[3, 2] = np.nan
    with pytest.raises(CheckFailed, match="NaN or infinity in 1 of 200"):
        knn_accuracy(train, labels, test, wanted)
    with pytest.raises(CheckFailed, match="the network is broken"):
        rank_me(train)


def test_floors__of_a_folder_of_digits(tmp_path: Path) -> None:
    write_digits(tmp_path / "digits", size=8)
    _, crops = find_crops(tmp_path / "digits")
    held = {crop.path for crop in split_crops(crops, 0, 0.2, seed=0)["test"]}
    images = [read_image(crop.path) for crop in crops]
    labels = np.array([crop.label for crop in crops])
    asked = np.array([crop.path in held for crop in crops])
    assert 350 < asked.sum() < 370

    mixing = np.random.default_rng(0).normal(size=(192, 4))

    def lossy(pixels: Features) -> Features:
        rows: Features = np.maximum(pixels.reshape(len(pixels), -1) / 255 @ mixing, 0)
        return rows

    found = floors(images, labels, asked, 8, lossy)
    raw = found["raw_pixels"]
    # Three standard deviations of 360 questions around the published floors.
    assert raw["knn_1"] == pytest.approx(0.981, abs=0.022)
    assert raw["knn_20"] == pytest.approx(0.967, abs=0.028)
    assert raw["linear"] == pytest.approx(0.967, abs=0.028)
    rows = lossy(np.stack(images))
    assert found["untrained"] == probe_figures(rows, labels, asked)
    assert found["untrained"]["knn_20"] < 0.6


def test_floors__pictures_of_any_size_are_stretched() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(40) % 2
    images = [np.full((*rng.integers(3, 30, 2), 3), 40 + 150 * label, np.uint8) for label in labels]
    for image, label in zip(images, labels, strict=True):
        image[..., label] = 0  # a direction, since length does not count
    found = floors(images, labels, np.arange(40) >= 30, 6)
    assert found == {"raw_pixels": {"knn_1": 1.0, "knn_20": 1.0, "linear": 1.0}}
    with pytest.raises(TkError, match="labelled pictures"):
        floors([], labels[:0], np.zeros(0, bool), 6)
