"""Adding to a bundle: what has to be the same, what is said when it is not, what is recorded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.export.small_models import Mlp, small_model, write_images

from tk.export import write
from tk.export.existing import AGAIN
from tk.export.model import ExportModel
from tk.export.pictures import Pictures, load_inputs
from tk.export.request import Request
from tk.export.write import write_bundle
from tk.runtime.bundle import Bundle
from tk.runtime.errors import TkError
from tk.runtime.files import read_json
from tk.runtime.preprocess import CropSpec, ImageSpec

FP16 = Request(precisions=("fp16",))


def described(folder: Path, **changes: Any) -> ExportModel:
    """A model with settings, as a text detector has them."""
    settings = {"text": {"baked": "tool .", "max_tokens": 9}, "hidden": (8, 4)}
    own = small_model(Mlp(), folder)
    return replace(own, **{"classes": ("hammer", "saw"), "settings": settings, **changes})


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images and a bundle."""
    folder = tmp_path_factory.mktemp("existing")
    write_images(folder / "images", 40)
    write_bundle(described(folder), folder / "b", folder / "images")
    return folder


@pytest.mark.parametrize(
    ("changes", "what", "found", "fix"),
    [
        (
            {"settings": {"text": {"baked": "pliers .", "max_tokens": 9}, "hidden": [8, 4]}},
            "another prompt",
            "prompt: 'tool .' in the bundle, 'pliers .' asked for",
            "add --bake 'tool .'",
        ),
        (
            {"settings": {"text": {"baked": "tool .", "max_tokens": 7}, "hidden": [8]}},
            "another setting text.max_tokens, setting hidden.1",
            "setting text.max_tokens: 9 in the bundle, 7 asked for; "
            "setting hidden.1: 4 in the bundle, nothing asked for",
            AGAIN,
        ),
        (
            {"classes": ("hammer", "saw", "pliers")},
            "another class 2",
            "class 2: nothing in the bundle, pliers asked for",
            AGAIN,
        ),
        (
            {"crop": replace(CropSpec(), margin=0.3)},
            "another crop margin",
            f"crop margin: {CropSpec().margin} in the bundle, 0.3 asked for",
            AGAIN,
        ),
        (
            {"image": ImageSpec(8, 10)},
            "another canvas",
            "canvas: 8x8 in the bundle, 8x10 asked for",
            "add --size 8x8",
        ),
        (
            {"image": ImageSpec(8, 8, pad=0)},
            "another canvas pad",
            "canvas pad: 114 in the bundle, 0 asked for",
            AGAIN,
        ),
    ],
)
def test_add__says_what_differs(
    changes: dict[str, Any], what: str, found: str, fix: str, place: Path
) -> None:
    with pytest.raises(TkError) as caught:
        write_bundle(described(place, **changes), place / "b", place / "images", request=FP16)
    assert caught.value.what.endswith(f"cannot be added to: {what}")
    assert caught.value.found == found and caught.value.fix.startswith(fix)


def test_add__several_differences_in_one_answer(place: Path) -> None:
    other = described(place)
    parts = small_model(Mlp(), place, largest=2).parts
    with pytest.raises(TkError) as caught:
        model = replace(other, parts=parts)
        write_bundle(model, place / "b", place / "images", opset=17, request=FP16)
    assert caught.value.found == (
        "largest batch: 5 in the bundle, 2 asked for; opset: 18 in the bundle, 17 asked for"
    )
    assert caught.value.fix == f"add --max-batch 5 --opset 18; or {AGAIN}"
    with pytest.raises(TkError) as caught:
        parts = {"twin": parts["model"]}
        write_bundle(replace(other, parts=parts), place / "b", place / "images", request=FP16)
    assert "parts: model in the bundle, twin asked for" in caught.value.found
    with pytest.raises(TkError) as caught:
        parts = small_model(Mlp(), place, width=9).parts
        write_bundle(replace(other, parts=parts), place / "b", place / "images", request=FP16)
    assert caught.value.found == ("part model.outputs.0.shape.1: 8 in the bundle, 9 asked for")


def noted(model: ExportModel, images: Path, calibration: int) -> Pictures:
    """Pictures with a note, as features have."""
    found = load_inputs(model, images, calibration)
    return replace(found, note=f"{len(found.gate)} seen")


def test_add__the_report_tells_of_both_exports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = write_images(tmp_path / "images", 40)
    model = described(tmp_path)
    monkeypatch.setattr(write, "load_inputs", noted)
    write_bundle(model, tmp_path / "b", images)
    first = Bundle.open(tmp_path / "b").manifest.versions
    monkeypatch.setattr(write, "library_versions", lambda: {**first, "torch": "99.0"})
    int8 = Request(precisions=("int8",))
    lines = write_bundle(model, tmp_path / "b", images, request=int8)
    report = read_json(tmp_path / "b" / "parity.json")
    assert report["images"] == 32 and report["exports"] == [
        {"precisions": ["fp32"], "images": 16, "versions": first},
        {"precisions": ["int8"], "images": 32, "versions": {**first, "torch": "99.0"}},
    ]
    assert Bundle.open(tmp_path / "b").manifest.versions["torch"] == "99.0"
    assert report["note"] == "16 seen; then 32 seen"
    assert report["calibration"]["shared_with_gate"]
    said = "int8: the 32 images that judge are among the 40 whose ranges were measured"
    assert any(line.startswith(said) and "64" in line for line in lines)
