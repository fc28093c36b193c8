"""GroundingDINO-T at its real size, random weights: it exports, what that needs, that it runs."""

from __future__ import annotations

import resource
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
import transformers
from PIL import Image
from tests.export.grounding.models import WORDS, picture, write_model

from tk.export.sources.registry import open_source
from tk.export.write import write_bundle
from tk.runtime.bundle import Bundle
from tk.runtime.heads.detector import DetectorOptions
from tk.runtime.heads.text_detector import TextDetector, TextOptions


def tiny_of_the_hub() -> transformers.GroundingDinoConfig:
    """The configuration of IDEA-Research/grounding-dino-tiny, with few words."""
    swin: type = transformers.SwinConfig
    backbone = swin(
        image_size=224,
        embed_dim=96,
        depths=[2, 2, 6, 2],
        num_heads=[3, 6, 12, 24],
        window_size=7,
        out_indices=[2, 3, 4],
    )
    text = transformers.BertConfig(vocab_size=1030 + len(WORDS))
    return transformers.GroundingDinoConfig(backbone_config=backbone, text_config=text)


@pytest.mark.slow
def test_full_size__exports_and_runs(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m", "grounding-dino", tiny_of_the_hub(), same_queries=True)
    (tmp_path / "photos").mkdir()
    photo = picture(900, 1200)
    Image.fromarray(photo).save(tmp_path / "photos" / "a.png")

    started = time.monotonic()
    lines = write_bundle(open_source(folder, 1), tmp_path / "b", tmp_path / "photos")
    exported = time.monotonic() - started
    assert all(line.startswith("ok") for line in lines)

    bundle = Bundle.open(tmp_path / "b", "detector")
    assert bundle.manifest.image.height == bundle.manifest.image.width == 1024
    assert bundle.manifest.parts["model"].outputs[0].shape == ("B", 900, 4)
    graph = onnx.load(tmp_path / "b" / "model.fp32.onnx")
    kinds = {node.op_type for node in graph.graph.node}
    assert not kinds & {"If", "Loop", "Scan", "CumSum", "NonZero"}
    detector = TextDetector(bundle, DetectorOptions(), TextOptions("tool."), threads=1)
    started = time.monotonic()
    found = detector.detect([photo])[0]
    seconds = time.monotonic() - started
    assert np.isfinite(found.boxes).all()
    size = {a.part: round(a.bytes / 1e6) for a in bundle.manifest.artifacts}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(
        f"\nexport and gate {exported:.0f} s, {len(graph.graph.node)} nodes, MB {size}, "
        f"one picture {seconds:.1f} s on one thread, peak memory of all this {peak:.1f} GB"
    )
    print(*lines, sep="\n")
