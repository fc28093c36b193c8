"""The compact segmenter: frames, samples, loss, training, export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime as ort
import pytest
import torch
from PIL import Image as PilImage

from tk.runtime.boxes import enlarge
from tk.runtime.errors import TkError
from tk.runtime.masks import BoxMask, coco_rle
from tk.train.scenes.coco import read_scenes
from tk.train.scenes.store import Store
from tk.train.segmenter.config import SegmenterConfig
from tk.train.segmenter.data import cut_frame, make_sample
from tk.train.segmenter.loss import mask_overlap, segmenter_loss
from tk.train.segmenter.model import CROP, SIDE, SPREAD, CompactSegmenter, load_segmenter
from tk.train.segmenter.train import SegmenterTask, train_segmenter


def write_discs(folder: Path) -> Path:
    """Two pictures with a bright ring and a bright bar each, annotated by RLE."""
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for index in range(2):
        pixels = rng.integers(40, 80, (120, 160, 3)).astype(np.uint8)
        ring, bar = np.zeros((2, 120, 160), np.uint8)
        cv2.circle(ring, (50, 60 - 10 * index), 28, 1, 12)
        cv2.line(bar, (100, 20), (140, 90 + 10 * index), 1, 14)
        for category, mask in enumerate((ring, bar)):
            pixels[mask > 0] = (240, 220, 60 + 120 * category)
            box = BoxMask(0, 0, mask.astype(bool), 120, 160)
            tight = box.tight_box()
            assert tight is not None
            x0, y0, x1, y1 = (float(v) for v in tight)
            bbox = [x0, y0, x1 - x0, y1 - y0]
            row = dict(image_id=index, category_id=category, bbox=bbox, segmentation=coco_rle(box))
            annotations.append(row)
        images.append(dict(id=index, file_name=f"{index}.png", width=160, height=120))
        PilImage.fromarray(pixels).save(folder / "images" / f"{index}.png")
    categories = [dict(id=0, name="ring"), dict(id=1, name="bar")]
    content = dict(images=images, annotations=annotations, categories=categories)
    (folder / "annotations.json").write_text(json.dumps(content))
    return folder


def test_frames__equal_the_runtime() -> None:
    boxes = torch.tensor([[3.0, 5, 80, 30], [1, 2, 11, 200]])
    assert np.allclose(CompactSegmenter(0.15).frames(boxes), enlarge(boxes.numpy(), 0.15))


def test_make_sample__mask_comes_back_through_the_frame(tmp_path: Path) -> None:
    scenes = read_scenes(write_discs(tmp_path / "d")).scenes
    picture = Store(scenes, 160, with_masks=True)[0]
    config = settings(tmp_path, jitter=0.05)
    for seed in range(8):
        crop, mask = make_sample(picture, config, np.random.default_rng(seed))
        assert crop.shape == (CROP, CROP, 3) and mask.shape == (SIDE, SIDE)
        bright = crop[..., 0].reshape(SIDE, 2, SIDE, 2).mean(axis=(1, 3)) > 150
        covered = mask > 127
        # The other object may look into the frame, so only this one's cells are asked for.
        assert bright[covered].mean() > 0.97, seed
        edge = cv2.dilate(mask, np.ones((3, 3), np.uint8)) > 0
        near = cv2.dilate(mask, np.ones((9, 9), np.uint8)) > 0
        assert bright[near & ~edge].mean() < 0.1, seed


class Recorder(CompactSegmenter):
    """Keeps the crops that the decoder samples."""

    def cut_out(self, crops: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.crops = crops
        return super().cut_out(crops)


@pytest.mark.parametrize("box", [[10, 20, 60, 50], [-20, -10, 30, 40], [100, 60, 180, 130]])
def test_cut_frame__training_sees_what_the_decoder_samples(box: list[float]) -> None:
    # Smooth, or rounding to whole grey levels between the two steps would show.
    noise = np.random.default_rng(0).integers(0, 256, (12, 16, 3)).astype(np.uint8)
    image = np.asarray(cv2.resize(noise, (160, 120), interpolation=cv2.INTER_CUBIC), np.uint8)
    model = Recorder(0.1).eval()
    with torch.inference_mode():
        model.decode(model.encode(torch.from_numpy(image)[None]), torch.tensor([box]).float())
        crop = cut_frame(image, enlarge(np.asarray([box], np.float32), 0.1)[0])
        trained = model.encode(torch.from_numpy(crop)[None])
    difference = (trained - model.crops).abs() * SPREAD  # grey levels
    assert float(difference.mean()) < 1.0
    assert float(difference.quantile(0.98)) < 8.0


def test_loss__perfect_masks() -> None:
    target = torch.zeros(2, 8, 8)
    target[:, 2:5, 3:6] = 1
    logits = torch.where(target > 0, 20.0, -20.0)
    losses = segmenter_loss(logits, torch.full((2,), 20.0), target)
    assert float(losses["loss"]) < 1e-3
    worse = segmenter_loss(-logits, torch.full((2,), 20.0), target)
    assert float(worse["dice"]) > 0.8 and float(worse["iou"]) == pytest.approx(1.0)
    assert mask_overlap(logits.roll(1, dims=2), target).tolist() == pytest.approx([0.5, 0.5])


def test_decode__many_boxes_equal_one_by_one() -> None:
    torch.manual_seed(0)
    model = CompactSegmenter(0.1).eval()
    image = torch.randint(0, 256, (1, 128, 96, 3), dtype=torch.uint8)
    boxes = torch.tensor([[3.0, 5, 80, 90], [1, 2, 30, 20], [60, 50, 96, 128]])
    with torch.inference_mode():
        pixels = model.encode(image)
        assert pixels.shape == (1, 3, 128, 96)
        many, _ = model.decode(pixels, boxes)
        for row in range(3):
            logits, iou = model.decode(pixels, boxes[row : row + 1])
            assert logits.shape == (1, SIDE, SIDE) and 0 <= float(iou) <= 1
            assert torch.allclose(logits[0], many[row], atol=1e-4)


def settings(folder: Path, **changes: Any) -> SegmenterConfig:
    values: dict[str, Any] = dict(data=folder / "d", out=folder / "run", size=160)
    values |= dict(steps=60, batch_size=4, colour=0, val_split=0, warmup=5, lr=4e-3)
    return SegmenterConfig(**(values | dict(threads=1, device="cpu") | changes))


def test_train_segmenter__overfits_two_images(tmp_path: Path) -> None:
    write_discs(tmp_path / "d")
    config = settings(tmp_path)
    model, state = load_segmenter(train_segmenter(config))
    assert state["task"] == "segmenter" and model.margin == config.margin
    task = SegmenterTask(config)
    task.network.load_state_dict(model.state_dict())
    task.model.eval()
    task.held = list(read_scenes(config.data).scenes)
    assert task.evaluate()["mask_iou"] > 0.8


def test_train_segmenter__needs_masks(tmp_path: Path) -> None:
    folder = write_discs(tmp_path / "d")
    content = json.loads((folder / "annotations.json").read_text())
    for item in content["annotations"]:
        del item["segmentation"]
    (folder / "annotations.json").write_text(json.dumps(content))
    with pytest.raises(TkError, match="has a mask"):
        train_segmenter(settings(tmp_path))


class Part(torch.nn.Module):
    """One method of the model as a module, as an export wraps it."""

    def __init__(self, model: CompactSegmenter, name: str) -> None:
        super().__init__()
        self.model, self.name = model, name
        self.eval()

    def forward(self, *inputs: torch.Tensor) -> Any:
        return getattr(self.model, self.name)(*inputs)


def export(module: Part, inputs: tuple[torch.Tensor, ...], dynamic: int, path: Path) -> Any:
    names = [f"input{i}" for i in range(len(inputs))]
    count = torch.export.Dim("count", min=1, max=64)
    shapes = tuple({0: count} if i == dynamic else None for i in range(len(inputs)))
    program = torch.onnx.export(
        module, inputs, dynamo=True, opset_version=18, dynamic_shapes=(shapes,),
        input_names=names, verbose=False,
    )  # fmt: skip
    assert program is not None
    program.save(str(path))
    return ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def test_export__both_parts_equal_torch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = CompactSegmenter(0.1).eval()
    image = torch.randint(0, 256, (2, 96, 128, 3), dtype=torch.uint8)
    with torch.no_grad():
        pixels = model.encode(image[:1])
    encoder = export(Part(model, "encode"), (image,), 0, tmp_path / "encoder.onnx")
    boxes = torch.tensor([[3.0, 5, 80, 90], [1, 2, 30, 20], [60, 50, 128, 96]])
    decoder = export(Part(model, "decode"), (pixels, boxes), 1, tmp_path / "decoder.onnx")
    for batch in (1, 2):
        with torch.no_grad():
            expected = model.encode(image[:batch])
        (found,) = encoder.run(None, {"input0": image[:batch].numpy()})
        assert np.abs(found - expected.numpy()).max() < 1e-4
    for count in (0, 1, 5):
        own = torch.rand(count, 4) * 50
        own[:, 2:] += own[:, :2] + 4
        with torch.no_grad():
            logits, iou = model.decode(pixels, own)
        values = {"input0": pixels.numpy(), "input1": own.numpy()}
        got = decoder.run(None, values)
        assert got[0].shape == (count, SIDE, SIDE) and got[1].shape == (count,)
        assert np.allclose(got[0], logits.numpy(), atol=1e-4)
        assert np.allclose(got[1], iou.numpy(), atol=1e-4)
