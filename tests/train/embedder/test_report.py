from __future__ import annotations

import re
import shutil
import subprocess
import warnings
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import precision_recall_fscore_support

from tk.runtime.errors import TkError
from tk.train.embedder.report.confusion import confusions, draw_confusion
from tk.train.embedder.report.history import figures_of_best, series
from tk.train.embedder.report.measured import Measured, class_scores, finite_part, thumbnail
from tk.train.embedder.report.neighbours import choose_queries, find_nearest
from tk.train.embedder.report.projection import _balanced, draw_projection
from tk.train.embedder.report.style import LeftOut, png, short, style
from tk.train.embedder.report.write import write_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
EVIL = "<b>'\"</script><script>document.title='pwned'</script><img src=x onerror=alert(1)>"
NAMES = ("Ключ рожковый", "Отвёртка «+»", EVIL, "цена $5 и $6", "锤子")
PLOTS = ("curves", "confusion", "per_class", "neighbours", "projection")

browser = pytest.mark.browser
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")


@pytest.fixture(autouse=True)
def warnings_are_errors() -> Iterator[None]:
    """A missing glyph, a division by zero or a layout that does not fit is a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def split(
    labels: NDArray[np.int64], classes: int, seed: int, noise: float = 0.5, dim: int = 16
) -> Measured:
    """Points around one random centre per class; the canvas is a plain colour of the class."""
    centres = np.random.default_rng(99).standard_normal((classes, dim))
    rng = np.random.default_rng(seed)
    points = centres[labels] + noise * rng.standard_normal((len(labels), dim))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    logits = 5 * points @ centres.T
    weights = np.exp(logits - logits.max(axis=1, keepdims=True, initial=-1e9))
    weights /= weights.sum(axis=1, keepdims=True)
    return Measured(
        files=tuple(f"s{seed}/{label}/{i}.jpg" for i, label in enumerate(labels)),
        labels=labels,
        embeddings=points.astype(np.float32),
        probabilities=weights.astype(np.float32),
        canvas=lambda i: np.full((48, 48, 3), 20 + 4 * int(labels[i] % 50), np.uint8),
    )


def even(classes: int, each: int, seed: int, noise: float = 0.5) -> Measured:
    return split(np.repeat(np.arange(classes, dtype=np.int64), each), classes, seed, noise)


def records(classes: tuple[str, ...] = NAMES, epochs: int = 3) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for step in range(epochs * 10):
        loss = 20 / (1 + step)
        found.append({"step": step, "epoch": step // 10, "lr": 1e-3, "loss": loss})
        if step % 10 == 9:
            value = 0.5 + 0.1 * (step // 10)
            per_class = {name: {"f1": value, "support": 4} for name in classes}
            event = {"event": "eval", "step": step, "epoch": step // 10 + 1}
            for part in ("train", "val"):
                event |= {f"{part}_{key}": value for key in ("loss", "accuracy", "macro_f1")}
                event[f"{part}_per_class"] = per_class
            found.append({**event, "val_recall_at_1": 0.9, "val_macro_auc": None})
    last = {"step": 19, "epoch": 2, "metric": "val_accuracy", "value": 0.6}
    test = {"test_accuracy": 0.75, "test_macro_f1": 0.7, "test_per_class": per_class}
    return [*found, {"event": "best", **last}, {"event": "test", "step": 19, **test}]


def write(folder: Path, classes: tuple[str, ...] = NAMES, **more: Any) -> Path:
    parts: dict[str, Any] = {
        "title": "Смена " + EVIL,
        "records": records(classes),
        "held": even(len(classes), 4, seed=1, noise=1.5),
        "references": even(len(classes), 6, seed=2),
        "facts": {"held": "Test split", "img_size": "48", EVIL: EVIL},
        **more,
    }
    return write_report(folder=folder, classes=classes, **parts)


def plots_of(page: Path) -> dict[str, NDArray[np.uint8]]:
    pictures = {}
    for path in sorted((page.parent / "plots").iterdir()):
        assert path.suffix == ".png", "no temporary file is left"
        picture = cv2.imread(str(path))
        assert picture is not None
        pictures[path.stem] = np.asarray(picture, np.uint8)
    return pictures


class Page(HTMLParser):
    """Tags, and rows of text by table."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.source = text
        self.tags: list[str] = []
        self.attributes: list[dict[str, str | None]] = []
        self.tables: list[list[list[str]]] = []
        self.cell = False
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes.append(dict(attrs))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self.cell = True

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self.cell = False

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        if self.cell:
            self.tables[-1][-1][-1] += data


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return write(tmp_path_factory.mktemp("run"))


def test_report__pictures(page: Path) -> None:
    pictures = plots_of(page)
    assert sorted(pictures) == sorted(PLOTS)
    for name, picture in pictures.items():
        height, width = picture.shape[:2]
        assert 250 < height < 2500, name
        assert 350 < width < 2500, name
        assert picture.std() > 10, f"{name} is not blank"
    # The sheet shows the canvas of every class: grey 20 + 4 * label.
    sheet = pictures["neighbours"]
    for label in range(len(NAMES)):
        grey = abs(sheet.astype(int) - (20 + 4 * label)).max(axis=2) == 0
        assert grey.sum() > 2000, label


def test_report__no_injection(page: Path, tmp_path: Path) -> None:
    plain = write(
        tmp_path, tuple("абвгд"), title="x", facts={"held": "y", "img_size": "48", "z": "z"}
    )
    text = page.read_text("utf-8")
    found = Page(text)
    assert found.tags == Page(plain.read_text("utf-8")).tags
    assert EVIL in [row[0] for row in found.tables[1]]


def test_report__self_contained(page: Path) -> None:
    text = page.read_text("utf-8")
    assert str(page.parent) not in text
    assert not re.search(r"https?://|//cdn|@import|<link|src=\"(?!data:image/)", text)
    assert len(re.findall('src="data:image/png', text)) == len(PLOTS)


def test_report__tables(page: Path) -> None:
    figures, by_class, *_ = Page(page.read_text("utf-8")).tables
    rows = {row[0]: row[1:] for row in figures}
    assert rows[""] == ["Train", "Validation", "Test"]
    # The best is at step 19, not the last evaluation; 15 of 20: Wilson by hand.
    assert rows["Accuracy"][1].startswith("60.0 % ")
    assert rows["Accuracy"][2] == "75.0 % 53.1–88.8, n = 20"
    assert rows["Macro ROC AUC"] == ["–", "–", "–"]
    assert rows["Crops"] == ["20", "20", "20"]
    assert [row[0] for row in by_class[:1]] == ["Class"]
    assert {row[0] for row in by_class[1:]} == set(NAMES)
    worst = [float(row[4].rstrip(" %")) for row in by_class[1:]]
    assert worst == sorted(worst)
    assert worst[0] < worst[-1]


def test_report__errors_listed(page: Path) -> None:
    held = even(len(NAMES), 4, seed=1, noise=1.5)
    wrong = np.flatnonzero(held.predicted != held.labels)
    text = page.read_text("utf-8")
    assert 0 < len(wrong) < 24
    assert f"{len(wrong)} of {len(wrong)} errors among 20 crops" in text
    sure = held.probabilities.max(axis=1)
    expected = [held.files[i] for i in sorted(wrong, key=lambda i: -sure[i])]
    assert re.findall(r'<div class="name">([^<]*)</div>', text) == expected


def test_report__same_again(page: Path, tmp_path: Path) -> None:
    assert write(tmp_path).read_bytes() == page.read_bytes()


def empty() -> Measured:
    return split(np.zeros(0, np.int64), len(NAMES), 1)


def not_finite(measured: Measured) -> Measured:
    embeddings, probabilities = measured.embeddings.copy(), measured.probabilities.copy()
    embeddings[0, 3] = np.nan
    probabilities[5, 0] = np.inf
    parts = measured.files, measured.labels, embeddings, probabilities
    return Measured(*parts, measured.canvas)


def all_same(measured: Measured) -> Measured:
    embeddings = np.zeros_like(measured.embeddings)
    embeddings[:, 0] = 1
    parts = measured.files, measured.labels, embeddings, measured.probabilities
    return Measured(*parts, measured.canvas)


HELD, REFERENCES = even(5, 4, seed=1), even(5, 6, seed=2)


@pytest.mark.parametrize(
    ("more", "missing", "said"),
    [
        ({"held": empty()}, {"confusion", "per_class", "neighbours"}, "no held-out crops"),
        ({"references": empty()}, {"neighbours"}, "no reference crops"),
        ({"held": empty(), "references": empty()}, set(PLOTS) - {"curves"}, "there are no crops"),
        ({"held": not_finite(HELD)}, set(), "2 crops are left out"),
        ({"held": all_same(HELD), "references": all_same(REFERENCES)}, {"projection"}, "the same"),
        ({"held": even(5, 1, 1), "references": even(5, 1, 2)}, set(), "All 5 held-out crops"),
        ({"held": split(np.array([2]), 5, 1), "references": empty()},
         {"neighbours", "projection"}, "at least 3 crops"),
        ({"held": split(np.array([2]), 5, 1), "references": split(np.array([1, 1, 4]), 5, 2)},
         set(), "t-SNE is left out"),
    ],
    ids=[
        "no held", "no references", "no crops", "nan", "collapsed", "one each", "one crop",
        "four crops",
    ],
)  # fmt: skip
def test_report__what_is_missing_is_left_out(
    tmp_path: Path, more: dict[str, Any], missing: set[str], said: str
) -> None:
    for name in PLOTS:
        (tmp_path / "plots").mkdir(exist_ok=True)
        (tmp_path / "plots" / f"{name}.png").write_bytes(b"of an earlier report")
    page = write(tmp_path, records=[], **more)
    missing = missing | {"curves"}
    assert set(plots_of(page)) == set(PLOTS) - missing
    text = page.read_text("utf-8")
    assert said in text
    for name in missing:
        assert re.search(rf'<section id="{name}"><h2>[^<]*</h2><p class="left-out">Left out', text)
    assert not re.search(r"\bnan\b|\binf\b", " ".join(Page(text).texts))


@pytest.mark.parametrize(
    "lines",
    [
        [{"step": 0, "epoch": 0, "lr": float("nan"), "loss": None}, {"event": "eval", "step": 0}],
        [{"event": "eval", "step": 3, "epoch": None, "val_per_class": {"a": None}}],
        [{"step": 0, "lr": 0.0, "loss": 1.0}, {"event": "best", "step": None, "value": None}],
        [{"event": "eval", "step": 9, "epoch": 1, "val_accuracy": 1, "train_loss": float("inf")},
         {"event": "best", "step": 9, "epoch": 1, "metric": "val_accuracy", "value": 1}],
    ],
    ids=["nan", "bare", "best of nothing", "one evaluation"],
)  # fmt: skip
def test_report__poor_records(tmp_path: Path, lines: list[dict[str, Any]]) -> None:
    page = write(tmp_path, records=lines, held=empty(), references=empty())
    assert set(plots_of(page)) == {"curves"}


def test_report__sixty_classes(tmp_path: Path) -> None:
    classes = tuple(f"Отвёртка крестовая длинная очень, размер {i}" for i in range(60))
    page = write(tmp_path, classes, held=even(60, 1, 1, noise=1.5), references=even(60, 1, 2))
    pictures = plots_of(page)
    assert set(pictures) == set(PLOTS)
    height, width = pictures["confusion"].shape[:2]
    assert min(height, width) > 1500, "25 pixels a class"
    assert max(max(one.shape) for one in pictures.values()) < 3000
    text = page.read_text("utf-8")
    assert len(Page(text).tables[1]) == 61
    assert 'class="native"' in text


def test_class_scores__against_scikit_learn_and_pairs() -> None:
    held = split(np.array([0, 0, 1, 1, 1, 2, 4, 4]), 5, seed=3, noise=2.0)
    scores = class_scores(NAMES, held)
    expected = precision_recall_fscore_support(
        held.labels, held.predicted, labels=range(5), zero_division=np.nan
    )
    for name, values in zip(("precision", "recall", "f1", "support"), expected, strict=True):
        np.testing.assert_allclose([getattr(one, name) for one in scores], values, err_msg=name)
    for label, one in enumerate(scores):
        column = held.probabilities[:, label]
        own, rest = column[held.labels == label], column[held.labels != label]
        wins = (own[:, None] > rest).mean() if len(own) else np.nan
        np.testing.assert_allclose(one.auc, wins)
    assert np.isnan(scores[3].recall)
    assert scores[3].support == 0


def test_confusions__most_frequent_first() -> None:
    labels = np.array([0, 0, 0, 1, 1, 2])
    answers = np.eye(3, dtype=np.float32)[[1, 1, 0, 1, 2, 2]]
    held = Measured(("x",) * 6, labels, answers, answers, HELD.canvas)
    assert confusions(("a", "b", "c"), held) == [("a", "b", 2, 3), ("b", "c", 1, 2)]


def test_find_nearest__brute_force_without_itself() -> None:
    both = even(4, 5, seed=5, noise=1.0)
    found = find_nearest(both, both, 3)
    for i in range(len(both)):
        near = [(float(both.embeddings[i] @ both.embeddings[j]), j) for j in range(20) if j != i]
        best = sorted(near, reverse=True)[:3]
        assert found.index[i].tolist() == [j for _, j in best]
        np.testing.assert_allclose(found.similarity[i], [s for s, _ in best], rtol=1e-5)
        assert found.right[i] == (both.labels[best[0][1]] == both.labels[i])


def test_find_nearest__only_itself() -> None:
    one = split(np.array([0]), 5, 1)
    found = find_nearest(one, one)
    assert not found.right.any()
    assert not np.isfinite(found.similarity).any()


def test_choose_queries__wrong_first_and_balanced() -> None:
    labels = np.repeat(np.arange(6), 50)
    right = np.ones(300, np.bool_)
    right[[3, 7, 9, 160]] = False
    chosen = choose_queries(labels, right)
    assert len(chosen) == len(set(chosen)) == 12
    assert set(chosen[:4]) == {3, 7, 9, 160}
    # Three of class 0 and one of class 3 are wrong; the rest fills up the other classes.
    counts = np.bincount(labels[chosen], minlength=6)
    assert counts.tolist() == [3, 2, 2, 2, 2, 1] or sorted(counts) == [1, 2, 2, 2, 2, 3]
    assert choose_queries(labels, right) == chosen
    assert choose_queries(labels, right, seed=1) != chosen
    assert sorted(choose_queries(labels[:5], right[:5])) == [0, 1, 2, 3, 4]


def test_choose_queries__many_wrong_are_balanced() -> None:
    labels = np.repeat(np.arange(4), [500, 5, 5, 5])
    chosen = choose_queries(labels, np.zeros(515, np.bool_))
    assert np.bincount(labels[chosen]).tolist() == [3, 3, 3, 3]


def test_projection__balanced_choice() -> None:
    labels = np.repeat(np.arange(3), [3000, 40, 500])
    held = np.arange(3540) % 2 == 0
    keep = _balanced(labels, held, 600)
    assert len(np.unique(keep)) == 600
    counts = {
        (c, h): int(((labels == c) & (held == h))[keep].sum()) for c in range(3) for h in (0, 1)
    }
    assert counts[1, 0] == counts[1, 1] == 20
    assert {counts[c, h] for c in (0, 2) for h in (0, 1)} == {140}


def test_projection__explained_variance_is_stated() -> None:
    both = np.concatenate([HELD.embeddings, REFERENCES.embeddings]).astype(np.float64)
    spectrum = np.linalg.eigvalsh(np.cov(both.T))[::-1]
    with style():
        figure, caption = draw_projection(NAMES, HELD, REFERENCES)
    assert f"holds {spectrum[:2].sum() / spectrum.sum():.1%} of the variance" in caption
    assert figure.axes[0].get_title("left").startswith(f"PCA: {spectrum[0] / spectrum.sum():.0%}")
    assert figure.axes[1].get_title("left") == "t-SNE: perplexity 16, seed 0"


def test_finite_part__keeps_crops_together() -> None:
    part, lost = finite_part(not_finite(HELD))
    assert lost == 2
    kept = [i for i in range(20) if i not in (0, 5)]
    assert part.files == tuple(HELD.files[i] for i in kept)
    for i, j in enumerate(kept):
        np.testing.assert_array_equal(part.canvas(i), HELD.canvas(j))
    assert finite_part(HELD) == (HELD, 0)


def gone(index: int) -> NDArray[np.uint8]:
    raise TkError(f"{index}.jpg does not exist")


def test_thumbnail__file_that_is_gone() -> None:
    held = Measured(HELD.files, HELD.labels, HELD.embeddings, HELD.probabilities, gone)
    assert thumbnail(held, 0, 40).shape == (40, 40, 3)
    assert thumbnail(HELD, 0, 40).shape == (40, 40, 3)
    assert thumbnail(HELD, 0, 400).shape == (48, 48, 3), "never enlarged"


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("Отвёртка «+» №3", "Отвёртка «+» №3"),
        ("и\u0306од", "йод"),  # a folder name of macOS: letter and accent apart
        ("锤 a\nb\udcff", "▯ a▯b▯"),
        ("a" * 20 + "b" * 20, "a" * 14 + "…" + "b" * 13),
        ("$x$", "$x$"),
    ],
)
def test_short(name: str, shown: str) -> None:
    assert short(name) == shown


def test_style__leaves_no_trace() -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    with style():
        png(draw_confusion(NAMES, HELD)[0])
    assert dict(matplotlib.rcParams) == before


def test_draw_confusion__nothing() -> None:
    with pytest.raises(LeftOut):
        draw_confusion(NAMES, empty())


def test_history__series_and_best() -> None:
    found = records()
    assert figures_of_best(found)["val_accuracy"] == 0.6
    assert figures_of_best([]) == {}
    x, y = series([{"a": 1, "b": None}, {"a": 2, "b": 3}, {"b": 4}, {"a": 5, "b": True}], "a", "b")
    assert (x.tolist(), y.tolist()) == ([2.0], [3.0])


def chromium(folder: Path, page: Path, fragment: str = "") -> tuple[Page, str]:
    """The page as the browser has it, and what the browser had to say."""
    assert CHROMIUM is not None
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
        f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=4000",
        "--window-size=1300,1000", "--enable-logging=stderr", "--dump-dom",
        page.resolve().as_uri() + fragment,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    console = "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)
    return Page(done.stdout), console


def column(page: Page, index: int) -> list[str]:
    return [row[index] for row in page.tables[1][1:]]


@browser
@needs_chromium
@pytest.mark.parametrize(
    ("fragment", "index", "reverse"),
    [("#sort=f1-down", 4, True), ("#sort=f1-up", 4, False), ("#sort=precision-down", 2, True)],
)
def test_page__sorting(
    tmp_path: Path, page: Path, fragment: str, index: int, reverse: bool
) -> None:
    dom, console = chromium(tmp_path, page, fragment)
    assert console == ""
    values = [float(text.rstrip(" %")) for text in column(dom, index)]
    assert values == sorted(values, reverse=reverse)
    assert values != sorted(values, reverse=not reverse)


@browser
@needs_chromium
def test_page__undefined_stays_last(tmp_path: Path) -> None:
    labels = np.repeat(np.array([0, 2, 3]), 3)
    page = write(tmp_path, records=[], held=split(labels, 5, 1, noise=1.5))
    for fragment in ("#sort=recall-up", "#sort=recall-down"):
        dom, _ = chromium(tmp_path, page, fragment)
        assert column(dom, 3)[-2:] == ["–", "–"]


DRIVER = """<script>
const names = () => [...body.rows].map(row => value(row, 0)).join("|");
const say = text => {
  const p = document.createElement("p");
  p.textContent = text;
  document.body.append(p);
};
const press = key => new Promise(done => {
  addEventListener("hashchange", () => done(), { once: true });
  document.querySelector(`[data-key=${key}] a`).click();
});
addEventListener("load", async () => {
  await press("name");
  say("first " + names());
  await press("name");
  say("second " + names());
  const seen = [...document.images].filter(image => image.complete && image.naturalWidth > 40);
  say("pictures " + seen.length + " of " + document.images.length);
});
</script>"""


@browser
@needs_chromium
def test_page__clicks_and_pictures(tmp_path: Path) -> None:
    classes = ("ключ 10", "ключ 9", "Ёрш", "зубило", "ершик")
    page = write(tmp_path, classes)
    text = re.sub(r"'sha256-[^']+'", "'unsafe-inline'", page.read_text("utf-8"))
    page.write_text(text.replace("</body>", DRIVER + "</body>"), "utf-8")
    dom, console = chromium(tmp_path, page)
    assert console == ""
    said = dict(one.split(" ", 1) for one in dom.texts if re.match("first|second|pictures", one))
    upward = said["first"].split("|")
    assert upward.index("ключ 9") < upward.index("ключ 10"), "numbers in names count as numbers"
    assert sorted(upward) == sorted(classes)
    assert said["second"].split("|") == upward[::-1]
    wrong = int((even(5, 4, 1, 1.5).predicted != even(5, 4, 1).labels).sum())
    count = len(PLOTS) + wrong
    assert said["pictures"] == f"{count} of {count}"


@browser
@needs_chromium
def test_page__names_do_not_run(tmp_path: Path, page: Path) -> None:
    dom, console = chromium(tmp_path, page)
    assert console == ""
    assert "<title>Смена &lt;b&gt;'\"&lt;/script&gt;" in dom.source, "no script changed it"
    assert dom.tags.count("script") == 1
    assert not any("onerror" in attributes for attributes in dom.attributes)
    assert EVIL in column(dom, 0)
