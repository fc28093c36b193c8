"""The plain chain: its own pieces against other implementations, and against tk's chain."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask
from tests import tiny_bundles
from torch import Tensor, nn

from tk.benchmarks.equality import compare_records
from tk.benchmarks.reference_chain import (
    ReferenceChain,
    full_mask,
    full_masks,
    run_lengths,
    run_lengths_at_once,
)
from tk.benchmarks.timing import Run
from tk.benchmarks.tk_chain import run_tk
from tk.benchmarks.torch_models import Compact, CompactSegmenter, TorchEmbedder, TorchModels
from tk.runtime.annotate.annotator import AnnotateOptions, Chain, Models
from tk.runtime.images import find_images
from tk.runtime.preprocess import CropSpec, ImageSpec
from tk.runtime.records import load_predictions

SIDE = tiny_bundles.SIDE


@pytest.mark.parametrize("seed", range(5))
def test_run_lengths__are_those_of_pycocotools(seed: int) -> None:
    mask = np.random.default_rng(seed).random((7, 9)) < 0.5
    mask[0, 0] = bool(seed % 2)
    # Column by column on the transposed mask is row by row on the mask.
    packed = coco_mask.frPyObjects({"size": [9, 7], "counts": run_lengths(mask)}, 9, 7)
    assert (coco_mask.decode(packed).T == mask).all()
    assert run_lengths_at_once(mask) == run_lengths(mask)


@pytest.mark.parametrize("value", [False, True])
def test_run_lengths__of_a_flat_mask(value: bool) -> None:
    for encode in (run_lengths, run_lengths_at_once):
        assert encode(np.full((2, 3), value)) == ([0, 6] if value else [6])


def test_full_mask__whole_frame_is_cv2_resize() -> None:
    logits = np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32)
    frame = torch.tensor([0.0, 0.0, 40.0, 24.0])
    expected = cv2.resize(logits, (40, 24), interpolation=cv2.INTER_LINEAR)
    found = full_mask(torch.from_numpy(logits), frame, frame, (24, 40)).numpy()
    clear = np.abs(expected) > 1e-5
    assert (found == (expected > 0))[clear].all()


def test_full_masks__of_the_whole_picture_are_those_one_by_one() -> None:
    logits = torch.from_numpy(np.random.default_rng(0).standard_normal((3, 8, 8), np.float32))
    frames = torch.tensor([[0.0, 0.0, 40.0, 24.0]]).expand(3, -1)
    regions = torch.tensor([[-9.0, -9, 70, 70], [3.5, 2, 9, 11.5], [41, 2, 60, 9]])
    found = full_masks(logits, frames, regions, (24, 40))
    for row, region in enumerate(regions):
        assert (found[row] == full_mask(logits[row], frames[row], region, (24, 40))).all()
    assert found[0].any() and found[1].any() and not found[2].any()


def test_full_mask__frame_beyond_the_picture_and_region() -> None:
    ones = torch.ones(4, 4)
    frame = torch.tensor([-5.0, 2.0, 8.0, 40.0])
    region = torch.tensor([1.2, -3.0, 30.0, 6.5])
    mask = full_mask(ones, frame, region, (10, 12)).numpy()
    expected = np.zeros((10, 12), np.bool_)
    expected[2:7, 1:8] = True
    assert (mask == expected).all()


@pytest.mark.parametrize(
    "frame", [[20.0, 0.0, 30.0, 5.0], [0.0, -9.0, 5.0, 0.2], [3.0, 3.0, 3.2, 3.2]]
)
def test_full_mask__frame_without_a_pixel_is_empty(frame: list[float]) -> None:
    everything = torch.tensor([0.0, 0.0, 12.0, 10.0])
    assert not full_mask(torch.ones(4, 4), torch.tensor(frame), everything, (10, 12)).any()


class BlobDetector(nn.Module):
    """The detector of `tiny_bundles` in PyTorch: one box around what is bright."""

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        bright = (image[0].amax(dim=-1) > 128).nonzero()
        if not len(bright):
            return torch.zeros(1, 1, 4), torch.zeros(1, 1, 1)
        low, high = bright.amin(dim=0), bright.amax(dim=0) + 1
        box = torch.stack([low[1], low[0], high[1], high[0]]).float()
        return box[None, None], torch.ones(1, 1, 1)


class BlobSegmenter(nn.Module):
    """Exactly the bright pixels of the canvas."""

    def encode(self, image: Tensor) -> Tensor:
        return image.amax(dim=-1).float() - 128

    def decode(self, pixels: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        return pixels.expand(len(boxes), -1, -1), torch.ones(len(boxes))


class MeanColor(nn.Module):
    """Mean colour as a unit vector."""

    def forward(self, image: Tensor) -> Tensor:
        return nn.functional.normalize(image.float().mean(dim=(1, 2)), dim=1)


def blob_models() -> TorchModels:
    spec = ImageSpec(SIDE, SIDE)
    crop = CropSpec(margin=0.0, background="mask", fill=(0, 0, 0))
    return TorchModels(
        Compact(BlobDetector(), spec, ("blob",)),
        CompactSegmenter(BlobSegmenter(), spec, None),
        TorchEmbedder(MeanColor(), spec, crop),
    )


def save(path: Path, picture: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Blobs of different colours, sizes and places, an empty picture and a broken file."""
    folder = tmp_path / "in"
    for index, color in enumerate([(255, 9, 9), (9, 255, 9), (9, 9, 255), (255, 200, 9)]):
        box = (10 + 8 * index, 16, 60 + 9 * index, 60 + 5 * index)
        save(folder / f"{index}" / "ключ.png", tiny_bundles.blob(color, box, 150)[: 120 + index])
    save(folder / "nothing.png", np.full((90, 70, 3), 20, np.uint8))
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff no picture")
    return folder


def both(
    world: Path, photos: Path, out: Path, batched: bool = False, **options: object
) -> tuple[Run, Run]:
    """Run both chains on the blobs; records are in out/pytorch and out/tk."""
    settings = AnnotateOptions(pictures=False, threads=1, batch_size=2, **options)  # type: ignore[arg-type]
    bundles = world / "bundles"
    models = Models(bundles / "detector", bundles / "segmenter", bundles / "embedder")
    chain = Chain(models, world / "gallery", settings)
    reference = ReferenceChain(
        blob_models(), chain.gallery, chain.threshold, settings, batched=batched
    )
    files = find_images(photos)
    runs = (
        reference.run(files, photos, out / "pytorch"),
        run_tk(chain, settings, files, photos, out / "tk"),
    )
    chain.close()
    return runs


@pytest.mark.parametrize(("batched", "search"), [(False, "centroid"), (True, "stack")])
def test_chains__find_the_same(
    tiny_world: Path, photos: Path, tmp_path: Path, batched: bool, search: str
) -> None:
    both(tiny_world, photos, tmp_path, batched, search=search)

    reference = load_predictions(tmp_path / "pytorch" / "predictions.json")
    found = load_predictions(tmp_path / "tk" / "predictions.json")
    equality = compare_records(reference, found)
    assert equality.problems == []
    assert (equality.images, equality.matched, equality.min_mask_iou) == (6, 4, 1.0)
    assert equality.max_score_difference < 1e-5
    for a, b in zip(reference, found, strict=True):
        assert a.get("error") == b.get("error")
        assert (a["image"], a["width"], a["height"]) == (b["image"], b["width"], b["height"])
        for one, other in zip(a["detections"], b["detections"], strict=True):
            assert one["mask_rle"] == other["mask_rle"]
            assert one["bbox_xyxy"] == other["bbox_xyxy"]


def test_chains__a_difference_is_seen(tiny_world: Path, photos: Path, tmp_path: Path) -> None:
    """The check can fail: with another threshold of unknown, one side names fewer objects."""
    both(tiny_world, photos, tmp_path / "a")
    both(tiny_world, photos, tmp_path / "b", unknown_threshold=0.9)
    reference = load_predictions(tmp_path / "a" / "pytorch" / "predictions.json")
    found = load_predictions(tmp_path / "b" / "tk" / "predictions.json")
    assert compare_records(reference, found).class_agreement < 1.0


def test_chains__clocks_add_up(tiny_world: Path, photos: Path, tmp_path: Path) -> None:
    for run in both(tiny_world, photos, tmp_path):
        assert len(run.images) == 6
        assert all(seconds > 0 for seconds in run.stages.values())
        assert sum(run.stages.values()) <= run.seconds
        assert sum(run.images) <= run.seconds
    assert run.engine is not None and 0 < run.engine < run.seconds
    assert run.engine_cpu is not None and 0 <= run.engine_cpu < run.cpu
