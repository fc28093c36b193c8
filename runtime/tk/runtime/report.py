"""The HTML report: annotation results as one page for people who check them."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tk.runtime.draw import UNKNOWN, class_colors
from tk.runtime.files import write_bytes

Record = Mapping[str, Any]

_PAGE = Path(__file__).parent / "report_page.html"
_SCRIPT = Path(__file__).parent / "report_page.js"
_RANKED = 5


def write_report(
    predictions: Sequence[Record],
    out: Path,
    *,
    pictures: Callable[[str], str | None],
    title: str = "Annotation results",
    summary: Mapping[str, str] | None = None,
) -> Path:
    """Write one self-contained HTML page that lists, filters and sorts the results.

    Args:
        predictions: records of images, as in predictions.json; masks are not needed.
        out: the HTML file.
        pictures: name of an image -> path of its drawn picture relative to the folder of `out`
            (POSIX, not quoted), or None where there is no picture.
        title: heading of the page.
        summary: more facts for the header, such as the gallery or the date.

    Returns:
        `out`.
    """
    data = _page_data(predictions, pictures, summary or {})
    script = _SCRIPT.read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    parts = {
        "title": html.escape(_text(title)),
        # Only the script of this page may run, whatever the names of files and classes hold.
        "policy": "default-src 'none'; img-src 'self' file: data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'",
        "data": _embed(data),
        "script": script,
    }
    page = re.sub(r"\{\{(\w+)\}\}", lambda m: parts[m.group(1)], _PAGE.read_text("utf-8"))
    write_bytes(out, page.encode("utf-8"))
    return out


def _page_data(
    predictions: Sequence[Record],
    pictures: Callable[[str], str | None],
    summary: Mapping[str, str],
) -> dict[str, Any]:
    counts = Counter(str(item["class"]) for one in predictions for item in one["detections"])
    ordered = sorted(counts, key=lambda name: (name == UNKNOWN, -counts[name], name))
    colors = class_colors(counts)
    names: dict[str, int] = {}
    index = {name: i for i, name in enumerate(ordered)}
    return {
        "summary": [[_text(key), _text(value)] for key, value in summary.items()],
        "counts": {
            "images": len(predictions),
            "detections": counts.total(),
            "classes": len(counts.keys() - {UNKNOWN}),
            "unknown": counts[UNKNOWN],
            "errors": sum(bool(one.get("error")) for one in predictions),
        },
        "classes": [
            {
                "name": _text(name),
                "count": counts[name],
                "color": "#{:02x}{:02x}{:02x}".format(*colors[name]),
                "unknown": name == UNKNOWN,
            }
            for name in ordered
        ],
        "images": [_image(one, pictures, index, names) for one in predictions],
        "names": list(names),
    }


def _image(
    record: Record,
    pictures: Callable[[str], str | None],
    index: Mapping[str, int],
    names: dict[str, int],
) -> dict[str, Any]:
    picture = pictures(record["image"])
    error = record.get("error")
    return {
        "name": _text(record["image"]),
        # The bytes of a file name that are not UTF-8 are quoted as they are.
        "picture": quote(picture, errors="surrogateescape") if picture else None,
        "width": record.get("width"),
        "height": record.get("height"),
        "error": _text(error) if error else None,
        "detections": [_detection(item, index, names) for item in record["detections"]],
    }


def _detection(
    item: Mapping[str, Any], index: Mapping[str, int], names: dict[str, int]
) -> dict[str, Any]:
    """What the page needs of one detection; other classes are numbers in a shared table."""

    def number(name: str) -> int:
        return names.setdefault(_text(name), len(names))

    runner_up = item.get("runner_up")
    ranked = (item.get("ranked") or [])[:_RANKED]
    return {
        "cls": index[str(item["class"])],
        "score": _number(item.get("score_metric")),
        "margin": _number(item.get("margin")),
        "proposal": _number(item.get("score_vlm")),
        "prompt": _text(item.get("vlm_class") or ""),
        "next": None if runner_up is None else number(runner_up),
        "ranked": [[number(other["name"]), _number(other.get("score"))] for other in ranked],
    }


def _number(value: Any) -> float | None:
    """Four digits are enough for people; anything but a finite number is None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return round(float(value), 4)


def _text(value: object) -> str:
    """Text without lone surrogates, which UTF-8 cannot hold."""
    return str(value).encode("utf-8", "backslashreplace").decode("utf-8")


def _embed(data: dict[str, Any]) -> str:
    """JSON that cannot end or open an element of the page it stands in."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
