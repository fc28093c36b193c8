"""The two parts in PyTorch against the library, before any export."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.export.grounding.library import Library
from tests.export.grounding.models import CANVAS, KINDS, picture, small_config, write_model
from torch import Tensor

from tk.export.grounding import compare, layers
from tk.export.grounding.levels import Levels
from tk.export.grounding.load import load_model
from tk.export.model import ExportModel
from tk.export.sources.grounding_dino import open_source
from tk.export.sources.source import Source
from tk.runtime.errors import CheckFailed, TkError
from tk.runtime.preprocess import ImageSpec, fit


def _close(found: Any, expected: Any, **options: Any) -> None:
    np.testing.assert_allclose(np.asarray(found), np.asarray(expected), rtol=0, **options)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prompt", ["tool.", "wrench . a red pliers . screwdriver?"])
def test_parts__equal_the_library(
    kind: str,
    prompt: str,
    folders: dict[str, Path],
    opened: dict[str, ExportModel],
    libraries: dict[str, Library],
) -> None:
    model = opened[kind]
    images = [picture(300, 200, 1), picture(224, 256, 2), picture(60, 500, 3)]
    expected = libraries[kind].forward(model.image, images, prompt)

    read = load_model(folders[kind]).tokenizer.read(prompt)
    fitted = [fit(model.image, image) for image in images]
    features = model.parts["text"].run(read.text_inputs())["text_features"]
    found = model.parts["model"].run(
        {
            "image": np.stack([canvas for canvas, _ in fitted]),
            "valid_hw": np.asarray([place.valid_hw for _, place in fitted], np.int32),
            **read.model_inputs(np.asarray(features, np.float32)),
        }
    )

    scores = expected.logits.sigmoid().numpy()
    assert scores[..., len(read.ids) :].max() == 0
    _close(found["token_scores"], scores[..., : len(read.ids)], atol=1e-4)
    centre, half = np.split(expected.pred_boxes.numpy(), 2, axis=-1)
    hw = np.asarray([place.valid_hw for _, place in fitted])[:, None, ::-1]
    boxes = np.concatenate([(centre - half / 2) * hw, (centre + half / 2) * hw], axis=-1)
    _close(found["boxes"], boxes, atol=0.02)
    assert np.ptp(scores.max(-1)) > 0.1 and boxes.std() > 10  # a model that says something


def test_parts__padded_text_changes_nothing(
    folders: dict[str, Path], opened: dict[str, ExportModel]
) -> None:
    model = opened["grounding-dino"]
    read = load_model(folders["grounding-dino"]).tokenizer.read("wrench . pliers .")
    pictures: dict[str, Any] = {
        "image": picture(*CANVAS)[None],
        "valid_hw": np.asarray([CANVAS], np.int32),
    }
    answers = []
    for length in (0, len(read.ids) + 7):
        features = model.parts["text"].run(read.text_inputs(length))["text_features"]
        text = read.model_inputs(np.asarray(features, np.float32))
        answers.append(model.parts["model"].run(pictures | text))
    real = len(read.ids)
    _close(answers[1]["token_scores"][..., :real], answers[0]["token_scores"], atol=1e-4)
    assert np.asarray(answers[1]["token_scores"])[..., real:].max() == 0
    _close(answers[1]["boxes"], answers[0]["boxes"], atol=0.02)


@pytest.mark.parametrize("valid", [(128, 160), (127, 3), (1, 160), (65, 64)])
def test_levels__equal_the_library(valid: tuple[int, int], folders: dict[str, Path]) -> None:
    network = load_model(folders["grounding-dino"]).network
    canvas, shapes = (128, 160), [(16, 20), (8, 10), (4, 5), (2, 3)]
    levels = Levels(canvas, shapes, 128, network.config.positional_embedding_temperature)
    mask = torch.zeros(1, *canvas, dtype=torch.long)
    mask[:, : valid[0], : valid[1]] = 1
    own_mask, positions, ratios = levels(torch.tensor([valid], dtype=torch.int32))
    boxes, likely = levels.proposals(torch.tensor([valid], dtype=torch.int32))
    start = 0
    wanted = []
    for level, (height, width) in enumerate(shapes):
        small = torch.nn.functional.interpolate(mask[None].float(), size=(height, width))
        flag = small.to(torch.bool)[0]
        wanted.append(flag)
        stop = start + height * width
        assert torch.equal(own_mask[:, start:stop], flag.flatten(1))
        reference = network.model.backbone.position_embedding(torch.zeros(1), flag)
        reference = reference.flatten(2).transpose(1, 2)
        inside = flag.flatten()
        torch.testing.assert_close(
            positions[0, start:stop][inside], reference[0][inside], atol=2e-5, rtol=0
        )
        assert torch.allclose(ratios[:, level], network.model.get_valid_ratio(flag))
        start = stop
    flat = torch.cat([flag.flatten(1) for flag in wanted], 1)
    _, logits = network.model.generate_encoder_output_proposals(
        torch.zeros(1, start, 128), ~flat, shapes
    )
    assert torch.equal(likely[..., 0], torch.isfinite(logits).all(-1))
    torch.testing.assert_close(boxes.sigmoid(), logits.sigmoid(), atol=1e-6, rtol=0)


def test_parts__items_of_a_batch_do_not_meet(opened: dict[str, ExportModel]) -> None:
    part = opened["grounding-dino"].parts["model"]
    inputs = part.feed(np.stack([picture(*CANVAS, seed=s) for s in range(3)]), 3)
    alone = part.run({**inputs, **{n: inputs[n][:1] for n in ("image", "valid_hw")}})
    loud = {**inputs, "image": inputs["image"].copy()}
    loud["image"][1:] = 255 - loud["image"][1:]
    for name, values in part.run(loud).items():
        _close(values[:1], alone[name], atol=1e-3)


def _changed(folder: Path, tmp_path: Path, change: Callable[[dict[str, Tensor]], None]) -> Path:
    """A copy of a model folder with other weights."""
    from safetensors.torch import load_file, save_file

    copy = Path(shutil.copytree(folder, tmp_path / "changed"))
    weights = load_file(copy / "model.safetensors")
    change(weights)
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    return copy


def test_open__places_that_are_alike_are_no_difference(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    """The last bit decides the ranks of nearly equal places, and so which boxes come out."""

    def flatten(weights: dict[str, Tensor]) -> None:
        weights["model.enc_output.weight"] *= 1e-5
        weights["model.enc_output.bias"].copy_(torch.linspace(-1, 1, 128))

    folder = _changed(folders["grounding-dino"], tmp_path, flatten)
    assert open_source(Source(folder, "grounding-dino", CANVAS), 1).parts


@pytest.mark.parametrize(
    "weight", ["level_embed", "enc_output_norm.weight", "decoder.layer_norm.weight"]
)
def test_open__a_library_that_computes_otherwise_is_refused(
    weight: str, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def replace(network: Any) -> None:
        layers.replace_layers(network)
        network.model.get_parameter(weight).mul_(1.2)

    monkeypatch.setattr(compare, "replace_layers", replace)
    with pytest.raises(CheckFailed, match="computes this model otherwise") as caught:
        open_source(Source(folders["grounding-dino"], "grounding-dino", CANVAS), 1)
    assert "first logits" in caught.value.expected and "pixels" in caught.value.found


def test_load__missing_weights_are_an_error(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = write_model(tmp_path / "m", "grounding-dino")
    weights = load_file(folder / "model.safetensors")
    del weights["model.text_projection.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(TkError, match="text_projection"):
        load_model(folder)


def test_load__two_stage_false_is_refused(tmp_path: Path) -> None:
    import json

    folder = write_model(tmp_path / "m", "grounding-dino")
    facts = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**facts, "embedding_init_target": False}))
    with pytest.raises(TkError, match="embedding_init_target"):
        load_model(folder)


def test_load__no_tokenizer_is_an_error(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m", "mm-grounding-dino")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(TkError, match="no tokenizer"):
        load_model(folder)


def test_open__small_canvas_is_an_error(folders: dict[str, Path]) -> None:
    with pytest.raises(TkError, match="32x32"):
        open_source(Source(folders["grounding-dino"], "grounding-dino", (32, 32)), 1)


def test_open__large_windows_survive_the_comparison(tmp_path: Path) -> None:
    config = small_config("grounding-dino")
    config.backbone_config.window_size = 8
    folder = write_model(tmp_path / "m", "grounding-dino", config)
    model = open_source(Source(folder, "grounding-dino", (288, 288)), 1)
    image = [picture(288, 288)]
    expected = Library(folder).forward(ImageSpec(288, 288, pad=0), image, "tool.")
    read = load_model(folder).tokenizer.read("tool.")
    features = model.parts["text"].run(read.text_inputs())["text_features"]
    found = model.parts["model"].run(
        {
            "image": np.stack(image),
            "valid_hw": np.asarray([[288, 288]], np.int32),
            **read.model_inputs(np.asarray(features, np.float32)),
        }
    )
    _close(found["token_scores"], expected.logits[..., : len(read.ids)].sigmoid(), atol=1e-4)
