"""SAM-2 with small random weights: the mechanics, compared with the libraries' own calls."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tests.train.data.test_masks import crop

from tk.runtime.errors import EnvironmentLacks, TkError
from tk.runtime.preprocess import Image
from tk.train.data.masks.generate import ensure_masks
from tk.train.data.masks.sam2 import open_masker
from tk.train.embedder.data import find_crops, read_picture

SIZE = 128
"""Input of the Hugging Face model; the package's predictor has 1024 built in."""

TINY = (
    ("embed_dim: 96", "embed_dim: 8"),
    ("stages: [1, 2, 7, 2]", "stages: [1, 1, 2, 1]"),
    ("global_att_blocks: [5, 7, 9]", "global_att_blocks: [3]"),
    ("[768, 384, 192, 96]", "[64, 32, 16, 8]"),
    ("256", "32"),
    ("2048", "32"),
    ("num_layers: 4", "num_layers: 1"),
    ("num_pos_feats: 64", "num_pos_feats: 8"),
    ("out_dim: 64", "out_dim: 8"),
    ("kv_in_dim: 64", "kv_in_dim: 8"),
)
"""Changes that make sam2.1_hiera_t a model of 0.8 million weights."""


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def images() -> list[Image]:
    rng = np.random.default_rng(0)
    shapes = ((60, 90, 3), (100, 50, 3), (3, 40, 3))  # 3 high: like channels first
    return [rng.integers(0, 256, shape, dtype=np.uint8) for shape in shapes]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A configuration on disk and its checkpoint."""
    sam2 = pytest.importorskip("sam2", reason="the extra sam2 is not installed")
    from tk.train.data.masks.sam2_package import _hydra_in

    folder = tmp_path_factory.mktemp("package")
    text = (Path(sam2.__path__[0]) / "configs/sam2.1/sam2.1_hiera_t.yaml").read_text("utf-8")
    for old, new in TINY:
        assert old in text
        text = text.replace(old, new)
    (folder / "tiny.yaml").write_text(text, "utf-8")
    from sam2.build_sam import build_sam2

    torch.manual_seed(0)
    with _hydra_in(folder):
        model = build_sam2("tiny.yaml", None, "cpu")
    torch.save({"model": model.state_dict()}, folder / "tiny.pt")
    return str(folder / "tiny.yaml"), str(folder / "tiny.pt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder."""
    pytest.importorskip("transformers", reason="the extra export is not installed")
    from transformers import Sam2Config, Sam2ImageProcessor, Sam2Model, Sam2Processor

    grids = [[SIZE // step] * 2 for step in (4, 8, 16)]
    backbone = {
        "model_type": "sam2_hiera_det_model", "hidden_size": 8, "image_size": [SIZE, SIZE],
        "blocks_per_stage": [1, 1, 2, 1], "embed_dim_per_stage": [8, 16, 32, 64],
        "global_attention_blocks": [3],
    }  # fmt: skip
    vision = {
        "model_type": "sam2_vision_model", "backbone_config": backbone, "fpn_hidden_size": 32,
        "backbone_channel_list": [64, 32, 16, 8], "backbone_feature_sizes": grids,
    }  # fmt: skip
    config = Sam2Config(
        vision_config=vision,
        prompt_encoder_config={"hidden_size": 32, "image_size": SIZE},
        mask_decoder_config={"hidden_size": 32, "mlp_dim": 64, "iou_head_hidden_dim": 32},
    )
    torch.manual_seed(0)
    made = tmp_path_factory.mktemp("hf")
    model = Sam2Model(config)
    with torch.no_grad():  # the three masks must differ in their predicted IoU
        model.mask_decoder.iou_prediction_head.proj_out.weight.mul_(50)
    model.save_pretrained(made)
    square = {"height": SIZE, "width": SIZE}
    small = {"height": SIZE // 4, "width": SIZE // 4}
    Sam2Processor(Sam2ImageProcessor(size=square, mask_size=small)).save_pretrained(made)
    return made


def assert_same(
    answers: list[tuple[NDArray[np.bool_], float]],
    expected: list[tuple[NDArray[Any], NDArray[Any]]],
) -> None:
    """Compare with the three masks and their IoU that a library gives, crop by crop."""
    for (mask, iou), (three, ious) in zip(answers, expected, strict=True):
        best = int(np.argmax(ious))
        assert len(three) == len(ious) == 3
        assert mask.dtype == np.bool_
        assert iou == pytest.approx(float(ious[best]), abs=1e-5)
        # One crop at a time sums in another order than a batch, at most a pixel may flip.
        assert (mask != three[best].astype(bool)).sum() <= 1
        others = [three[index].astype(bool) for index in range(3) if index != best]
        assert all((mask != other).any() for other in others)


def test_package__equals_its_predictor(pair: tuple[str, str], images: list[Image]) -> None:
    answers = open_masker(*pair, "cpu").masks(images)
    from sam2.build_sam import build_sam2
    from sam2.sam2_image_predictor import SAM2ImagePredictor

    from tk.train.data.masks.sam2_package import _hydra_in

    with _hydra_in(Path(pair[0]).parent):
        predictor = SAM2ImagePredictor(build_sam2("tiny.yaml", pair[1], "cpu"))
    expected = []
    for image in images:
        predictor.set_image(image)
        box = np.array([0, 0, image.shape[1], image.shape[0]])
        expected.append(predictor.predict(box=box, multimask_output=True)[:2])
    assert_same(answers, expected)


def test_package__leaves_hydra_as_it_was(pair: tuple[str, str]) -> None:
    from hydra.core.global_hydra import GlobalHydra

    held = GlobalHydra.instance().hydra
    try:
        GlobalHydra.instance().clear()  # as a program does that uses Hydra itself
        open_masker(*pair, "cpu")
        assert GlobalHydra.instance().hydra is None
    finally:
        GlobalHydra.instance().hydra = held


def test_package__unknown_configuration_lists_the_known(pair: tuple[str, str]) -> None:
    with pytest.raises(TkError) as caught:
        open_masker("configs/sam2.1/none.yaml", pair[1], "cpu")
    assert "configs/sam2.1/sam2.1_hiera_l.yaml" in caught.value.expected
    assert "training" not in caught.value.expected


def test_package__weights_of_another_size(pair: tuple[str, str], tmp_path: Path) -> None:
    renamed = tmp_path / "sam2.1_hiera_small.pt"
    renamed.write_bytes(Path(pair[1]).read_bytes())
    with pytest.raises(TkError, match="do not fit") as caught:
        open_masker("configs/sam2.1/sam2.1_hiera_t.yaml", str(renamed), "cpu")
    assert caught.value.fix == "--sam2_cfg configs/sam2.1/sam2.1_hiera_s.yaml"


class Planted:
    """Unpickled carelessly, it makes a folder."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("kind", ["absent", "folder", "truncated", "foreign", "planted"])
def test_package__unusable_checkpoint(kind: str, pair: tuple[str, str], tmp_path: Path) -> None:
    file = tmp_path / "sam.pt"
    if kind == "folder":
        file.mkdir()
    elif kind == "truncated":
        whole = Path(pair[1]).read_bytes()
        file.write_bytes(whole[: len(whole) // 2])
    elif kind == "foreign":
        torch.save({"state_dict": {}}, file)
    elif kind == "planted":
        torch.save({"model": Planted(str(tmp_path / "harm"))}, file)
    with pytest.raises(TkError, match=r"sam\.pt"):
        open_masker(pair[0], str(file), "cpu")
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    "text",
    [
        "model: {_target_: os.mkdir, path: HARM}",
        "model: {_target_: sam2.build_sam.os.mkdir, path: HARM}",
        "model: {_target_: sam2.build_sam.logging.FileHandler, filename: HARM}",
        "model: {_target_: sam2.modeling.sam2_utils.MLP, x: [{_target_: os.mkdir, path: HARM}]}",
        "trainer: {}",
        "model: [",
    ],
)
def test_package__configuration_calls_nothing_foreign(
    text: str, pair: tuple[str, str], tmp_path: Path
) -> None:
    config, harm = tmp_path / "c.yaml", tmp_path / "harm"
    config.write_text(text.replace("HARM", str(harm)), "utf-8")
    with pytest.raises(TkError, match=r"c\.yaml"):
        open_masker(str(config), pair[1], "cpu")
    assert not harm.exists()


@pytest.mark.parametrize(
    ("package", "extra", "cfg"),
    [("sam2", "sam2", "configs/sam2.1/sam2.1_hiera_t.yaml"), ("transformers", "export", "")],
)
def test_open__absent_package(
    package: str, extra: str, cfg: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(EnvironmentLacks, match=rf"tk-vision\[{extra}\]"):
        open_masker(cfg, "some/model", "cpu")


def test_hf__equals_model_and_processor(folder: Path, images: list[Image]) -> None:
    from PIL import Image as Pillow
    from transformers import Sam2Model, Sam2Processor

    answers = open_masker("", str(folder), "cpu").masks(images)
    model = Sam2Model.from_pretrained(folder)
    processor: Any = Sam2Processor.from_pretrained(folder)
    expected = []
    for image in images:
        box = [[[0.0, 0.0, float(image.shape[1]), float(image.shape[0])]]]
        # Pillow pictures, whose layout needs no guess.
        inputs = processor(Pillow.fromarray(image), input_boxes=box, return_tensors="pt")
        with torch.no_grad():
            out = model(**inputs)
        masks = processor.post_process_masks(out.pred_masks, inputs["original_sizes"])
        expected.append((masks[0][0].numpy(), out.iou_scores[0, 0].numpy()))
    assert_same(answers, expected)


def test_hf__video_folder_as_it_is_released(
    folder: Path,
    images: list[Image],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    import json

    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config |= {"model_type": "sam2_video", "architectures": ["Sam2VideoModel"]}
    (tmp_path / "config.json").write_text(json.dumps(config), "utf-8")
    one, two = (open_masker("", str(place), "cpu").masks(images) for place in (folder, tmp_path))
    assert all((a[0] == b[0]).all() and a[1] == b[1] for a, b in zip(one, two, strict=True))
    assert "sam2_video" not in caplog.text


@pytest.mark.parametrize("kind", ["truncated", "other model", "weights absent", "no weights"])
def test_hf__unusable_folder(kind: str, folder: Path, tmp_path: Path) -> None:
    import json

    from safetensors.torch import load_file, save_file

    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    if kind == "truncated":
        weights.write_bytes(weights.read_bytes()[:2000])
    elif kind == "no weights":
        weights.unlink()
    elif kind == "other model":
        config.write_text(json.dumps({"model_type": "bert"}), "utf-8")
    else:
        tensors = load_file(weights)
        tensors.pop("mask_decoder.iou_token.weight")
        save_file(tensors, weights, {"format": "pt"})
    with pytest.raises(TkError) as caught:
        open_masker("", str(tmp_path), "cpu")
    assert str(tmp_path) in str(caught.value)
    if kind == "weights absent":
        assert "mask_decoder.iou_token.weight" in caught.value.found


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("sam2.1_hiera_tiny.pt", "--sam2_cfg configs/sam2.1/sam2.1_hiera_t.yaml"),
        ("./nowhere", "does not exist"),
        ("no/where/at/all", "does not exist"),
    ],
)
def test_hf__no_folder_is_told_without_asking_the_hub(source: str, says: str) -> None:
    with pytest.raises(TkError) as caught:
        open_masker("", source, "cpu")
    assert says in str(caught.value)


@pytest.mark.parametrize("way", ["package", "hf"])
def test_ensure__end_to_end(way: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    cfg, ckpt = ("", str(request.getfixturevalue("folder")))
    if way == "package":
        cfg, ckpt = request.getfixturevalue("pair")
    root, out = tmp_path / "data", tmp_path / "run"
    for name in ("a", "b"):
        crop(root / name / "cropped" / "x.png", size=(30, 40))
    done = ensure_masks(
        root, find_crops(root)[1], sam2_cfg=cfg, sam2_ckpt=ckpt, device="cpu", out=out
    )
    assert done.made + len(done.skipped) == 2
    assert not any(item.reason.startswith("model failed") for item in done.outcomes)
    assert (out / "masks.csv").is_file() and (out / "masks.png").is_file()
    masked = [read_picture(item).mask is not None for item in find_crops(root)[1]]
    assert sum(masked) == done.made


def test_command__makes_masks_and_says_so(folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "data"
    for name in ("a", "b"):
        crop(root / name / "x.png", size=(30, 40))
    command = [sys.executable, "-m", "tk.cli", "data", "masks", str(root), "--device", "cpu"]
    command += ["--sam2_ckpt", str(folder), "--min_iou", "0", "--min-area", "0", "--max_area", "1"]
    command += ["--report", str(tmp_path / "r.csv"), "--sheet", str(tmp_path / "s.png")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "2 crops: 0 had a mask, 2 made" in done.stdout
    assert (tmp_path / "r.csv").is_file() and (tmp_path / "s.png").is_file()
    assert all(read_picture(item).mask is not None for item in find_crops(root)[1])
