"""GroundingDINO-T at its full size, random weights: shapes, operators, time, memory, the library.

Every layer, width, head and query is the published one. Only the canvas is smaller than the 1024
pixels that people use, and the gate sees batches of 1 and 2: what grows with the canvas is time.
`TK_FULL_CANVAS=1024` runs the same with any other canvas (at 1024: minutes, and 7 GB).
"""

from __future__ import annotations

import os
import resource
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import transformers
from PIL import Image
from tests.export.grounding.library import Library
from tests.export.grounding.models import picture, write_model

from tk.export.sources.registry import open_source
from tk.export.write import write_bundle
from tk.runtime.boxes import clip, valid
from tk.runtime.bundle import Bundle
from tk.runtime.heads.detector import DetectorOptions
from tk.runtime.heads.text_detector import TextDetector, TextOptions

SIDE = int(os.environ.get("TK_FULL_CANVAS", "256"))
PROMPT = "wrench . red pliers."


def tiny_config() -> Any:
    """Of IDEA-Research/grounding-dino-tiny."""
    swin: Any = transformers.SwinConfig
    backbone = swin(
        image_size=224,
        embed_dim=96,
        depths=[2, 2, 6, 2],
        num_heads=[3, 6, 12, 24],
        window_size=7,
        out_indices=[2, 3, 4],
    )
    return transformers.GroundingDinoConfig(
        backbone_config=backbone, text_config=transformers.BertConfig()
    )


@pytest.mark.slow
def test_tiny__at_full_size_equals_the_library(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m", "grounding-dino", tiny_config(), same_queries=True)
    (tmp_path / "images").mkdir()
    image = picture(SIDE * 3 // 4, SIDE)
    Image.fromarray(image).save(tmp_path / "images" / "0.png")

    started = time.process_time()
    model = open_source(folder, 2, size=(SIDE, SIDE))
    lines = write_bundle(model, tmp_path / "b", tmp_path / "images")
    seconds = time.process_time() - started
    assert not [line for line in lines if line.startswith("FAIL") and "onnxruntime-cpu" in line]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"canvas {SIDE}: export and gate {seconds:.0f} s of CPU, peak {peak:.1f} GB")

    shapes = {spec.name: spec.shape for spec in model.parts["model"].spec.outputs}
    assert shapes == {"boxes": ("B", 900, 4), "token_scores": ("B", 900, "T")}
    sizes = {"text": (340e6, 450e6), "model": (240e6, 330e6)}
    for part, (least, most) in sizes.items():
        file = tmp_path / "b" / f"{part}.fp32.onnx"
        graph = onnx.load(file, load_external_data=False)
        kinds = Counter(node.op_type for node in graph.graph.node)
        print(f"{part}: {file.stat().st_size / 1e6:.0f} MB, {sum(kinds.values())} nodes, {kinds}")
        assert least < file.stat().st_size < most
        assert graph.opset_import[0].version == 18
        assert not kinds.keys() & {"If", "Loop", "Scan", "NonZero", "ScatterND", "CumSum"}
        # Whole: 12 layers of BERT, two each, and one on the embeddings.
        assert kinds["LayerNormalization"] == 25 if part == "text" else kinds["GridSample"] == 48

    every = DetectorOptions(box_threshold=0.25, nms_iou=1.0, most=900)
    bundle = Bundle.open(tmp_path / "b", "detector")
    (found,) = TextDetector(bundle, every, TextOptions(PROMPT), threads=1).detect([image])
    library = Library(folder)
    outputs = library.forward(bundle.manifest.image, [image], PROMPT)
    (answer,) = library.answers(outputs, [image], 0.25, 0.25)
    boxes = clip(answer.boxes, image.shape[1], image.shape[0])
    kept = valid(boxes)
    assert len(found) == kept.sum() > 0
    np.testing.assert_allclose(found.scores, np.sort(answer.scores[kept])[::-1], atol=1e-3)
