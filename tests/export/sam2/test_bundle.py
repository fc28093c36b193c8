"""The exported bundle: its graphs, and the runtime's masks against the library's processor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from tests.export.opset17 import run_in_both
from tests.export.sam2 import small
from tests.export.sam2.test_modules import library_masks, normalised
from transformers import Sam2Model
from transformers.models.sam2.image_processing_sam2 import Sam2ImageProcessor

from tk.export.sources.sam2 import MAX_BOXES, open_source
from tk.export.sources.source import Source
from tk.runtime.bundle import Bundle
from tk.runtime.errors import TkError
from tk.runtime.heads.segmenter import Segmenter
from tk.runtime.preprocess import fit
from tk.runtime.verify import verify

SIZES = [(90, 141), (57, 43), (301, 200)]
"""Odd, smaller than the logits, portrait."""


@pytest.fixture(scope="module")
def segmenter(bundle: Path) -> Segmenter:
    return Segmenter(Bundle.open(bundle, "segmenter"), threads=1)


@torch.inference_mode()
def library_values(
    network: Sam2Model,
    picture: NDArray[np.uint8],
    canvas: NDArray[np.uint8],
    boxes: NDArray[np.float32],
) -> NDArray[np.float32]:
    """(N, H, W): the library's model and `post_process_masks` on the canvas that tk sees."""
    height, width = picture.shape[:2]
    maps = network.get_image_embeddings(normalised(torch.from_numpy(canvas[None])))
    # As `Sam2Processor._normalize_coordinates`.
    scale = torch.tensor([small.SIDE / width, small.SIDE / height] * 2)
    logits, _ = library_masks(network, maps, torch.from_numpy(boxes) * scale)
    processor: Any = Sam2ImageProcessor()
    done = processor.post_process_masks([logits[None]], [(height, width)], binarize=False)
    values: NDArray[np.float32] = done[0][0].numpy()
    return values


def overlap(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    union = int((a | b).sum())
    return int((a & b).sum()) / union if union else 1.0


@pytest.mark.parametrize("count", [1, 7, 100])
def test_masks__equal_the_librarys_inside_the_padded_box(
    network: Sam2Model, segmenter: Segmenter, count: int
) -> None:
    pictures = [small.pictures(1, *size)[0] for size in SIZES]
    prompts = [small.boxes(count, *size) for size in SIZES]
    before = segmenter.encoder.calls, segmenter.decoder.calls
    found = segmenter.segment(pictures, prompts)
    assert segmenter.encoder.calls - before[0] == 1  # three pictures, one call
    assert segmenter.decoder.calls - before[1] == len(SIZES) * -(-count // MAX_BOXES)
    areas = set()
    for picture, own, result in zip(pictures, prompts, found, strict=True):
        canvas, _ = fit(segmenter.manifest.image, picture)
        expected = library_values(network, picture, canvas, own)
        assert len(result.masks) == count and ((result.iou > 0) & (result.iou < 1)).all()
        for mask, values in zip(result.masks, expected, strict=True):
            h, w = mask.pixels.shape
            inside = values[mask.y : mask.y + h, mask.x : mask.x + w]
            # Two float32 programs may differ where a value is next to nothing.
            undecided = np.abs(inside) < 1e-5 * np.abs(values).max()
            assert undecided.mean() < 0.01
            assert overlap(mask.pixels, np.where(undecided, mask.pixels, inside > 0)) >= 0.999
            assert mask.area == mask.full().sum()
            areas.add(mask.area / mask.pixels.size)
    assert any(0.05 < share < 0.95 for share in areas)


def test_masks__of_no_boxes_beside_a_picture_with_some(segmenter: Segmenter) -> None:
    pictures = [small.pictures(1, *size)[0] for size in SIZES]
    none, some = np.zeros((0, 4), np.float32), small.boxes(7, *SIZES[1])
    found = segmenter.segment(pictures, [none, some, none])
    assert [(len(own.masks), own.iou.shape) for own in found] == [(0, (0,)), (7, (7,)), (0, (0,))]
    (alone,) = segmenter.segment([pictures[1]], [some])
    for own, other in zip(found[1].masks, alone.masks, strict=True):
        assert overlap(own.pixels, other.pixels) >= 0.999


def test_masks__reach_over_the_whole_padded_box(segmenter: Segmenter) -> None:
    picture = small.pictures(1, 100, 150)[0]
    box = np.asarray([[50, 40, 90, 60]], np.float32)
    mask = segmenter.segment([picture], [box])[0].masks[0]
    assert (mask.x, mask.y, *mask.pixels.shape) == (46, 36, 28, 48)  # 0.1 x 40 on each side


def test_graphs__are_fit_for_engines(bundle: Path) -> None:
    shapes: dict[str, list[int | str]] = {}
    for part in ("encoder", "decoder"):
        graph = onnx.load(bundle / f"{part}.fp32.onnx")
        assert [(entry.domain, entry.version) for entry in graph.opset_import] == [("", 18)]
        kinds = {node.op_type for node in graph.graph.node}
        assert not kinds & {"If", "Loop", "Scan", "NonZero", "GridSample", "Where", "Range"}
        assert "LayerNormalization" in kinds and "ReduceMean" not in kinds
        # Position encodings are constants: only the corners of the boxes are encoded at run time.
        waves = [node for node in graph.graph.node if node.op_type in ("Sin", "Cos")]
        assert len(waves) == (0 if part == "encoder" else 2)
        modes = [
            entry.s.decode()
            for node in graph.graph.node
            if node.op_type == "Resize"
            for entry in node.attribute
            if entry.name == "mode"
        ]
        assert set(modes) <= {"nearest"}
        for value in (*graph.graph.input, *graph.graph.output):
            axes = value.type.tensor_type.shape.dim
            shapes[value.name] = [d.dim_value or d.dim_param for d in axes]
    free = {name for name, shape in shapes.items() if any(isinstance(axis, str) for axis in shape)}
    assert free >= {"image", "boxes", "logits", "iou"}
    assert all(isinstance(axis, int) for shape in shapes.values() for axis in shape[1:])
    assert shapes["logits"][1:] == [64, 64] and shapes["image"][1:] == [256, 256, 3]


def test_graphs__opset_17_computes_the_same(bundle: Path) -> None:
    images = np.stack(small.pictures(2))
    features = run_in_both(bundle, "encoder", {"image": images})
    boxes = small.boxes(7, small.SIDE, small.SIDE)
    one = {name: value[:1] for name, value in features.items()}
    found = run_in_both(bundle, "decoder", {**one, "boxes": boxes})
    assert found["logits"].shape == (7, 64, 64) and found["iou"].shape == (7,)


def test_bundle__says_how_to_use_it_and_verifies(bundle: Path) -> None:
    opened, rows = verify(bundle, threads=1)
    assert rows and all(row.passed for row in rows)
    manifest = opened.manifest
    assert manifest.image.mode == "stretch" and manifest.settings["mask_frame"] == "canvas"
    assert manifest.parts["encoder"].max_batch == 3
    assert manifest.parts["decoder"].max_batch == MAX_BOXES
    names = [spec.name for spec in manifest.parts["decoder"].inputs]
    assert names == ["embed", "high_0", "high_1", "boxes"]


@pytest.mark.parametrize("size", [(100, 256), (0, 32), (256, 250)])
def test_size__that_the_model_cannot_take(
    network: Sam2Model, size: tuple[int, int], tmp_path: Path
) -> None:
    network.save_pretrained(tmp_path)
    with pytest.raises(TkError, match="multiples of 32") as caught:
        open_source(Source(tmp_path, "sam2", size=size), 2)
    assert "--size" in caught.value.fix


def test_source__video_model_and_own_normalisation(network: Sam2Model, tmp_path: Path) -> None:
    """Folders of the hub are of the video model; their processor says mean and spread."""
    from transformers import Sam2VideoConfig, Sam2VideoModel

    config: Any = network.config
    video = Sam2VideoConfig(
        vision_config=config.vision_config.to_dict(),
        prompt_encoder_config={"hidden_size": small.WIDTH, "image_size": small.SIDE},
        mask_decoder_config={"hidden_size": small.WIDTH},
        memory_attention_hidden_size=small.WIDTH,
        memory_encoder_hidden_size=small.WIDTH,
    )
    model: Any = Sam2VideoModel(video)
    model.load_state_dict(network.state_dict(), strict=False)
    model.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(
        '{"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.5]}'
    )
    exported = open_source(Source(tmp_path, "sam2", size=(128, 160)), 2)
    encoder = exported.parts["encoder"]
    buffers = dict(encoder.module.named_buffers())
    assert buffers["mean"].tolist() == [127.5] * 3
    assert (1 / buffers["scale"]).tolist() == pytest.approx([63.75, 63.75, 127.5])
    assert encoder.spec.inputs[0].shape == ("B", 128, 160, 3)
    weights = dict(encoder.module.named_parameters())
    assert torch.equal(weights["no_memory"], network.no_memory_embedding)
    assert exported.checkpoint.name == "model.safetensors"
