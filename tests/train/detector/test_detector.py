from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from PIL import Image as PilImage
from torchvision.ops import generalized_box_iou

from tk.runtime.errors import TkError
from tk.runtime.preprocess import ImageSpec
from tk.train.detector.config import DetectorConfig
from tk.train.detector.loss import detector_loss, focal_loss, giou
from tk.train.detector.model import CompactDetector, load_detector
from tk.train.detector.targets import make_targets
from tk.train.detector.train import DetectorTask, predict, train_detector
from tk.train.run.checkpoint import classes_of, image_spec_of

BOXES = np.array([[16, 16, 52, 40], [70, 80, 126, 120], [90, 4, 100, 60]], np.float32)
LABELS = np.array([0, 1, 1], np.int64)


def test_make_targets__one_box() -> None:
    heat, target, weight = make_targets(BOXES[:1], LABELS[:1], 2, 64, 96)
    assert heat.shape == (2, 8, 12) and target.shape == (4, 8, 12) and weight.shape == (8, 12)
    assert np.argwhere(heat == 1).tolist() == [[0, 3, 4]]
    assert heat[1].max() == 0 and weight.sum() == pytest.approx(1)
    assert (target[:, weight > 0] == BOXES[0][:, None]).all()
    sigma = (BOXES[0, 2] - BOXES[0, 0]) / 8 * 0.09
    assert heat[0, 3, 5] == pytest.approx(math.exp(-0.5 / max(sigma, 0.4) ** 2))


def test_make_targets__small_box_wins_the_shared_cell() -> None:
    boxes = np.array([[28, 28, 36, 36], [0, 0, 64, 64]], np.float32)
    _, target, _ = make_targets(boxes, np.zeros(2, np.int64), 1, 64, 64)
    assert target[:, 4, 4].tolist() == [28, 28, 36, 36]


def test_make_targets__nothing() -> None:
    heat, _, weight = make_targets(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), 1, 64, 64)
    assert not heat.any() and not weight.any()


def perfect() -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, ...]]:
    arrays = [torch.from_numpy(a)[None] for a in make_targets(BOXES, LABELS, 2, 128, 128)]
    heat = torch.where(arrays[0] == 1, 15.0, -15.0)
    boxes = torch.where(arrays[2][:, None] > 0, arrays[1], torch.tensor(0.0))
    return heat, boxes, tuple(arrays)


def test_loss__perfect_prediction_costs_nothing_and_decodes() -> None:
    heat, boxes, targets = perfect()
    losses = detector_loss(heat, boxes, (targets[0], targets[1], targets[2]))
    assert float(losses["loss"]) < 1e-4
    found, scores = CompactDetector(2, 128, 128).detections(heat, boxes)
    assert found.shape == (1, 64, 4) and scores.shape == (1, 64, 2)
    kept = scores[0].amax(dim=1) > 0.5
    rows = {
        tuple(map(float, box)): int(label)
        for box, label in zip(found[0][kept], scores[0][kept].argmax(1), strict=True)
    }
    assert rows == {
        tuple(map(float, box)): int(label) for box, label in zip(BOXES, LABELS, strict=True)
    }


@pytest.mark.parametrize("wrong", ["heat", "box"])
def test_loss__wrong_prediction_costs(wrong: str) -> None:
    heat, boxes, targets = perfect()
    if wrong == "heat":
        heat = heat.roll(3, dims=3)
    else:
        boxes = boxes + 8.0
    losses = detector_loss(heat, boxes, (targets[0], targets[1], targets[2]))
    assert float(losses[wrong]) > 0.3


def test_focal_loss__closed_form() -> None:
    heat, target = torch.tensor([[[[0.3, -1.2]]]]), torch.tensor([[[[1.0, 0.25]]]])
    p, q = 1 / (1 + math.exp(-0.3)), 1 / (1 + math.exp(1.2))
    expected = -((1 - p) ** 2 * math.log(p)) - 0.75**4 * q**2 * math.log(1 - q)
    assert float(focal_loss(heat, target)) == pytest.approx(expected, rel=1e-5)


def test_giou__equals_torchvision() -> None:
    a, b = torch.rand(20, 4) * 50, torch.rand(20, 4) * 50
    a[:, 2:] += a[:, :2]
    b[:, 2:] += b[:, :2]
    assert torch.allclose(giou(a, b), generalized_box_iou(a, b).diagonal(), atol=1e-5)


def test_detections__neighbouring_cells_give_one_peak() -> None:
    heat = torch.full((1, 1, 16, 16), -9.0)
    heat[0, 0, 5, 5:8] = torch.tensor([2.0, 3.0, 1.0])
    boxes = torch.zeros(1, 4, 16, 16)
    _, scores = CompactDetector(1, 128, 128).detections(heat, boxes)
    assert (scores > 0.5).sum() == 1
    assert float(scores.max()) == pytest.approx(1 / (1 + math.exp(-3)))


def write_squares(folder: Path) -> Path:
    """Two pictures with two coloured rectangles each."""
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for index in range(2):
        pixels = rng.integers(60, 90, (96, 128, 3)).astype(np.uint8)
        for label, (x, y) in enumerate(((12 + 8 * index, 20), (70, 40 - 16 * index))):
            pixels[y : y + 36, x : x + 44] = (230, 60, 30) if label else (30, 200, 240)
            annotations.append(dict(image_id=index, category_id=label, bbox=[x, y, 44, 36]))
        images.append(dict(id=index, file_name=f"{index}.png", width=128, height=96))
        PilImage.fromarray(pixels).save(folder / "images" / f"{index}.png")
    categories = [dict(id=0, name="blue"), dict(id=1, name="red")]
    content = dict(images=images, annotations=annotations, categories=categories)
    (folder / "annotations.json").write_text(json.dumps(content))
    return folder


def settings(folder: Path, **changes: Any) -> DetectorConfig:
    values: dict[str, Any] = dict(data=folder / "d", out=folder / "run", size=128, steps=90)
    values |= dict(batch_size=4, rotate=0, scale=1.05, colour=0.2, mirror=False, val_split=0)
    return DetectorConfig(**(values | dict(lr=3e-3, warmup=10, threads=1, device="cpu") | changes))


def test_train_detector__overfits_two_images(tmp_path: Path) -> None:
    write_squares(tmp_path / "d")
    config = settings(tmp_path)
    path = train_detector(config)
    model, state = load_detector(path)
    assert classes_of(state) == ("blue", "red")
    assert image_spec_of(state) == ImageSpec(128, 128)
    task = DetectorTask(config)
    task.model.load_state_dict(model.state_dict())
    task.held = list(task.all_scenes)
    task.model.eval()
    with torch.inference_mode():
        assert task.evaluate()["ap50"] > 0.95
        boxes, scores, labels = predict(model, task.image_spec, task.held[0])
    sure = scores > 0.5
    assert sorted(labels[sure].tolist()) == [0, 1] and boxes[sure].max() <= 128


def test_train_detector__other_task_is_refused(tmp_path: Path) -> None:
    write_squares(tmp_path / "d")
    path = train_detector(settings(tmp_path, steps=1, single_class="tool"))
    model, state = load_detector(path)
    assert classes_of(state) == ("tool",) and model.heat[-1].out_channels == 1
    state["task"] = "segmenter"
    del state["format"], state["version"]
    from tk.train.run.checkpoint import save_checkpoint

    save_checkpoint(path, state)
    with pytest.raises(TkError, match="another task"):
        load_detector(path)


def test_export__graph_equals_torch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = CompactDetector(2, 64, 96).eval()
    # Spread the logits: the values of a fresh head are so near that their order is rounding.
    torch.nn.init.normal_(model.heat[-1].weight, std=3.0)  # type: ignore[arg-type]
    program = torch.onnx.export(
        model, (torch.zeros(2, 64, 96, 3, dtype=torch.uint8),), dynamo=True, opset_version=18,
        dynamic_shapes={"image": {0: torch.export.Dim("batch", min=1, max=64)}},
        input_names=["image"], output_names=["boxes", "scores"], verbose=False,
    )  # fmt: skip
    assert program is not None
    program.save(str(tmp_path / "d.onnx"))
    session = ort.InferenceSession(str(tmp_path / "d.onnx"), providers=["CPUExecutionProvider"])
    for batch in (1, 2, 5):
        image = torch.randint(0, 256, (batch, 64, 96, 3), dtype=torch.uint8)
        with torch.inference_mode():
            boxes, scores = (output.numpy() for output in model(image))
        got = session.run(None, {"image": image.numpy()})
        assert got[0].shape == (batch, 64, 4) and got[1].shape == (batch, 64, 2)
        assert np.abs(got[1] - scores).max() < 1e-4
        strong = scores.max(axis=2) > 1e-6  # below are suppressed cells, equal to one another
        assert strong.any() and np.abs(got[0] - boxes)[strong].max() < 1e-3
