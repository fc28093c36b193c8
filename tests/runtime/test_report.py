from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import cv2
import numpy as np
import pytest

from tk.runtime.images import write_jpeg
from tk.runtime.report import write_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
EVIL = "</script><script>document.title='pwned'</script><img src=x onerror=\"document.title=1\">"
STRANGE = "цех №1/фото #5 100%?'\"<b>&.jpg"

browser = pytest.mark.browser
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")


def detection(name: str, score: float | None, margin: float | None, **more: Any) -> dict[str, Any]:
    return {
        "bbox_xyxy": [1, 2, 30, 40],
        "class": name,
        "score_metric": score,
        "score_vlm": 0.5,
        "vlm_class": "tool",
        "ranked": [{"name": name, "score": score}, {"name": "other", "score": 0.1}],
        "margin": margin,
        "runner_up": "other",
        **more,
    }


def record(image: str, *detections: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"image": image, "width": 64, "height": 48, "detections": list(detections), **more}


RECORDS = [
    record("b/sure.jpg", detection("hammer", 0.9, 0.5), detection("Ключ", 0.8, 0.4)),
    record("a/doubt.jpg", detection("hammer", 0.95, 0.6), detection("saw", 0.4, 0.01)),
    record("c/empty.jpg"),
    record("d/broken.jpg", error="broken.jpg is truncated"),
    record("e/unknown.jpg", detection("unknown", 0.3, None, runner_up=None)),
    record(STRANGE, *[detection(EVIL, 0.7, 0.2) for _ in range(9)]),
]


def make(folder: Path, records: list[dict[str, Any]] = RECORDS, **more: Any) -> Path:
    return write_report(records, folder / "report.html", pictures=lambda name: None, **more)


def embedded(page: Path) -> Any:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text())
    assert found is not None
    return json.loads(found.group(1))


def test_report__embedded_data(tmp_path: Path) -> None:
    data = embedded(make(tmp_path, summary={"Gallery": "11 классов"}))
    assert data["counts"] == {
        "images": 6, "detections": 14, "classes": 4, "unknown": 1, "errors": 1,
    }  # fmt: skip
    assert data["summary"] == [["Gallery", "11 классов"]]
    assert [image["name"] for image in data["images"]] == [one["image"] for one in RECORDS]
    assert data["images"][3]["error"] == "broken.jpg is truncated"
    assert [c["name"] for c in data["classes"]] == [EVIL, "hammer", "saw", "Ключ", "unknown"]
    saw = data["images"][1]["detections"][1]
    assert data["classes"][saw["cls"]]["name"] == "saw"
    assert (saw["score"], saw["margin"], data["names"][saw["next"]]) == (0.4, 0.01, "other")


class _Elements(HTMLParser):
    """Counts of elements, and the text of those with a class."""

    VOID = frozenset({"meta", "input", "img", "br", "link"})

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[list[str]] = []
        self.texts: dict[str, list[str]] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag in self.VOID:
            return
        classes = (dict(attrs).get("class") or "").split()
        self.open.append(classes)
        for name in classes:
            self.texts.setdefault(name, []).append("")

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID and self.open:
            self.open.pop()

    def handle_data(self, data: str) -> None:
        for name in {name for classes in self.open for name in classes}:
            self.texts[name][-1] += data


def elements(page: str) -> _Elements:
    parser = _Elements()
    parser.feed(page)
    return parser


def test_report__no_injection(tmp_path: Path) -> None:
    page = make(tmp_path, title=EVIL, summary={EVIL: EVIL})
    evil = [*RECORDS, record(EVIL, error=EVIL)]
    full = make(tmp_path / "full", evil, title=EVIL, summary={EVIL: EVIL})
    plain = make(tmp_path / "plain", [record("a.jpg")])
    expected = elements(plain.read_text()).tags
    assert elements(page.read_text()).tags == expected
    assert elements(full.read_text()).tags == expected
    assert embedded(full)["images"][-1]["name"] == EVIL


def test_report__self_contained(tmp_path: Path) -> None:
    text = make(tmp_path).read_text()
    assert not re.search(r"https?://|//cdn|@import|<link|src=\"", text)


def test_report__numbers_that_are_not(tmp_path: Path) -> None:
    odd = detection("a", float("nan"), float("inf"), ranked=None, score_vlm=None)
    (image,) = embedded(make(tmp_path, [record("a.jpg", odd)]))["images"]
    assert image["detections"][0]["score"] is None
    assert image["detections"][0]["margin"] is None


def test_report__lone_surrogates_and_placeholders(tmp_path: Path) -> None:
    page = make(
        tmp_path, [record("bad\udcff.jpg", detection("{{script}}", 1, 1))], title="{{data}}"
    )
    data = embedded(page)
    assert data["images"][0]["name"] == "bad\\udcff.jpg"
    assert data["classes"][0]["name"] == "{{script}}"
    assert "<h1>{{data}}</h1>" in page.read_text()


def test_report__picture_addresses_are_quoted(tmp_path: Path) -> None:
    page = write_report(
        [record(STRANGE), record("none.jpg"), record("x.jpg")],
        tmp_path / "r.html",
        pictures={STRANGE: "p/" + STRANGE, "x.jpg": "javascript:alert(1)"}.get,
    )
    strange, none, script = (image["picture"] for image in embedded(page)["images"])
    assert re.fullmatch(r"p/[A-Za-z0-9%._/-]+", strange)
    assert "%23" in strange
    assert "%25" in strange
    assert none is None
    assert script.startswith("javascript%3A")


def chromium(folder: Path, page: Path, fragment: dict[str, Any], *options: str) -> str:
    assert CHROMIUM is not None
    address = page.resolve().as_uri() + "#" + urlencode(fragment, doseq=True)
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
        f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=4000",
        "--window-size=1300,1000", *options, address,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout


def seen(folder: Path, page: Path, **fragment: Any) -> _Elements:
    return elements(chromium(folder, page, fragment, "--dump-dom"))


@browser
@needs_chromium
@pytest.mark.parametrize(
    ("fragment", "expected"),
    [
        (
            {},
            [
                "d/broken.jpg", "a/doubt.jpg", STRANGE, "e/unknown.jpg", "b/sure.jpg",
                "c/empty.jpg",
            ],
        ),
        ({"show": "unknown"}, ["e/unknown.jpg"]),
        ({"show": "error"}, ["d/broken.jpg"]),
        ({"show": "empty"}, ["c/empty.jpg"]),
        ({"class": "hammer", "sort": "name"}, ["a/doubt.jpg", "b/sure.jpg"]),
        ({"class": ["Ключ", "saw"]}, ["a/doubt.jpg", "b/sure.jpg"]),
        ({"most": 0.4}, ["a/doubt.jpg", "e/unknown.jpg"]),
        ({"least": 0.85, "class": "saw"}, []),
        ({"text": "ФОТО #5"}, [STRANGE]),
        ({"sort": "count", "least": 0.6}, [STRANGE, "a/doubt.jpg", "b/sure.jpg"]),
    ],
    ids=str,
)  # fmt: skip
def test_page__filter_and_sort(
    tmp_path: Path, fragment: dict[str, Any], expected: list[str]
) -> None:
    dom = seen(tmp_path, make(tmp_path), **fragment)
    assert dom.texts.get("title", []) == expected
    whole = "6 images" if len(expected) == 6 else f"{len(expected)} of 6 images"
    assert dom.texts["status"] == [whole]


@browser
@needs_chromium
def test_page__texts_and_no_injection(tmp_path: Path) -> None:
    page = make(tmp_path, title="Смена " + EVIL, summary={"Gallery": EVIL})
    dom_text = chromium(tmp_path, page, {}, "--dump-dom")
    assert "<title>Смена &lt;/script&gt;" in dom_text, (
        "the title is as written: no script changed it"
    )
    dom = elements(dom_text)
    assert dom.tags.count("script") == 2
    assert "img" not in dom.tags
    assert dom.texts["error"] == ["Not annotated: broken.jpg is truncated"]
    assert any(text.startswith("unknown0.30") for text in dom.texts["unknown"])
    assert dom.texts["more"] == ["show 3 more"]
    assert EVIL in dom.texts["name"]


@browser
@needs_chromium
def test_page__many_images(tmp_path: Path) -> None:
    many = [record(f"{i}.jpg", detection("a", 0.5, i / 3000)) for i in range(2000)]
    dom = seen(tmp_path, make(tmp_path, many))
    cards = dom.texts["title"]
    assert dom.texts["status"] == ["2,000 images"]
    assert len(cards) < 500, "the rest is added while the reader scrolls"
    assert cards == [f"{i}.jpg" for i in range(len(cards))]


@browser
@needs_chromium
def test_page__picture_loads_from_file(tmp_path: Path) -> None:
    magenta = np.full((48, 64, 3), (255, 0, 255), np.uint8)
    strange = STRANGE.replace("?", "")  # the rest is allowed on every file system we test on
    write_jpeg(tmp_path / "картинки" / strange, magenta, quality=100)
    page = write_report(
        [record(strange)], tmp_path / "отчёт №1.html", pictures=lambda name: f"картинки/{name}"
    )
    shot = tmp_path / "shot.png"
    chromium(tmp_path, page, {}, f"--screenshot={shot}")
    pixels = np.asarray(cv2.imread(str(shot))).astype(int)
    assert ((abs(pixels - (255, 0, 255))).max(axis=2) < 12).sum() > 10_000


@browser
@needs_chromium
def test_page__what_is_asked_for_comes_first(tmp_path: Path) -> None:
    crowd = [detection("a", 0.5, 0.01) for _ in range(8)]
    page = make(tmp_path, [record("x.jpg", *crowd, detection("b", 0.5, 0.9))])
    rows = seen(tmp_path, page, **{"class": "b"}).texts["rows"]
    assert rows[0].startswith("b0.50")


DRIVER = """<script>
const say = (id, value, event) => { $(id).value = value; $(id).dispatchEvent(new Event(event)); };
document.querySelectorAll("#classes input")[1].click();  // hammer
say("sort", "name", "change");
say("least", "0.92", "input");
document.querySelector(".tile[data-show=all]").click();
document.body.append(make("p", "first", matches.map(i => i.name).join()));
$("reset").click();
say("text", "SURE", "input");
document.body.append(make("p", "second", matches.map(i => i.name).join()));
</script>"""


@browser
@needs_chromium
def test_page__controls(tmp_path: Path) -> None:
    page = make(tmp_path)
    text = re.sub(r"'sha256-[^']+'", "'unsafe-inline'", page.read_text())
    page.write_text(text.replace("</body>", DRIVER + "</body>"))
    dom = seen(tmp_path, page)
    assert dom.texts["first"] == ["a/doubt.jpg"]
    assert dom.texts["second"] == ["b/sure.jpg"]
    assert dom.texts["title"] == ["b/sure.jpg"]
