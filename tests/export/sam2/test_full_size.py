"""SAM-2.1 tiny at its full size, from an original checkpoint to masks; random weights."""

from __future__ import annotations

import resource
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from tests.export.sam2 import small
from tests.export.sam2.test_convert import predictor_masks

from tk.export.sources.sam2 import open_source
from tk.export.sources.source import Source
from tk.export.write import write_bundle
from tk.runtime.bundle import Bundle
from tk.runtime.heads.segmenter import Segmenter

CONFIG = "configs/sam2.1/sam2.1_hiera_t.yaml"
SIDE = 1024


@pytest.mark.slow
def test_tiny__from_the_original_checkpoint_to_the_same_masks(tmp_path: Path) -> None:
    pytest.importorskip("sam2")
    from sam2.build_sam import build_sam2

    original: Any = build_sam2(CONFIG, ckpt_path=None, device="cpu")
    small.spread(original)
    torch.save({"model": original.state_dict()}, tmp_path / "tiny.pt")
    pictures = small.pictures(2, SIDE, SIDE)
    (tmp_path / "images").mkdir()
    for index, picture in enumerate(pictures):
        Image.fromarray(picture).save(tmp_path / "images" / f"{index}.png")

    started = time.monotonic()
    model = open_source(Source(tmp_path / "tiny.pt", "sam2", sam2_cfg=CONFIG), 2)
    lines = write_bundle(model, tmp_path / "b", tmp_path / "images")
    seconds = time.monotonic() - started
    assert not any(line.startswith("FAIL") for line in lines)
    assert model.source["sam2_variant"] == "tiny" and model.source["video_tensors_left_out"] > 100
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"export and gate {seconds:.0f} s, peak {peak:.1f} GB")
    sizes = {"encoder": (120e6, 150e6), "decoder": (15e6, 25e6)}
    for part, (least, most) in sizes.items():
        file = tmp_path / "b" / f"{part}.fp32.onnx"
        kinds = Counter(node.op_type for node in onnx.load(file).graph.node)
        print(f"{part}: {file.stat().st_size / 1e6:.0f} MB, {sum(kinds.values())} nodes, {kinds}")
        assert least < file.stat().st_size < most
        assert not kinds.keys() & {"If", "Loop", "Scan", "NonZero", "GridSample", "ScatterND"}
    shapes = {spec.name: spec.shape for spec in model.parts["encoder"].spec.outputs}
    expected = {"embed": (256, 64, 64), "high_0": (32, 256, 256), "high_1": (64, 128, 128)}
    assert {name: shape[1:] for name, shape in shapes.items()} == expected

    segmenter = Segmenter(Bundle.open(tmp_path / "b", "segmenter"))
    boxes = small.boxes(20, SIDE, SIDE)
    (found,) = segmenter.segment(pictures[:1], [boxes])
    masks, iou, _ = predictor_masks(original, pictures[0], boxes, [256, 128, 64])
    np.testing.assert_allclose(found.iou, iou, atol=1e-3)
    for own, whole in zip(found.masks, masks, strict=True):
        h, w = own.pixels.shape
        wanted = whole[own.y : own.y + h, own.x : own.x + w]
        union = int((own.pixels | wanted).sum())
        assert union == 0 or int((own.pixels & wanted).sum()) / union >= 0.999
    assert any(0 < own.area < own.pixels.size for own in found.masks)
