from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from tk.runtime.errors import TkError
from tk.runtime.preprocess import CropSpec, Image, ImageSpec, fit
from tk.train.embedder.config import EmbedderConfig
from tk.train.embedder.task import EmbedderTask
from tk.train.embedder.train import load_embedder, train_embedder
from tk.train.run.checkpoint import classes_of, crop_spec_of, image_spec_of
from tk.train.run.loop import prepare
from tk.train.run.options import validate

DIGITS = load_digits()


def digit(index: int) -> Image:
    """(8, 8, 3) uint8."""
    grey = (DIGITS.images[index] * 15.9).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


def write_digits(root: Path, count: int) -> Path:
    for i in range(count):
        folder = root / f"цифра {DIGITS.target[i]}" / "cropped"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{i}.png").write_bytes(cv2.imencode(".png", digit(i))[1].tobytes())
    return root


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> EmbedderConfig:
    """A run on the first 600 digits, a few seconds long."""
    root = write_digits(tmp_path_factory.mktemp("digits"), 600)
    (root / "цифра 0" / "cropped" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    config = validate(
        EmbedderConfig,
        {
            "data_root": root,
            "out_dir": tmp_path_factory.mktemp("run") / "digits",
            "model_id": "test_resnet",
            "pretrained": False,
            "img_size": 48,
            "emb_dim": 32,
            "epochs": 9,
            "batch": 32,
            "lr": 4e-3,
            "margin_warmup": 0.3,
            "warmup": 10,
            "aug": "light",
            "max_refs_per_class": 20,
            "threads": 1,
            "device": "cpu",
        },
    )
    train_embedder(config)
    return config


def test_train_embedder__learns_digits(run: EmbedderConfig) -> None:
    records = [json.loads(line) for line in (run.out / "metrics.jsonl").read_text().splitlines()]
    test = next(record for record in records if record.get("event") == "test")
    assert test["test_accuracy"] >= 0.9
    assert test["test_macro_f1"] >= 0.9
    epochs = [record for record in records if record.get("event") == "eval"]
    assert len(epochs) == 9
    assert max(record["val_accuracy"] for record in epochs) >= 0.9
    names = {"loss", "accuracy", "macro_f1", "macro_auc", "per_class"}
    assert set(epochs[0]) >= {f"{split}_{name}" for split in ("train", "val") for name in names}
    assert set(epochs[0]) >= {"val_recall_at_1", "val_map_at_r"}
    table = epochs[-1]["val_per_class"]["цифра 3"]
    assert set(table) == {"precision", "recall", "f1", "auc", "support"}


def test_train_embedder__prototypes_name_unseen_digits(run: EmbedderConfig) -> None:
    with np.load(run.out / "prototypes.npz", allow_pickle=False) as file:
        arrays = dict(file)
    assert set(arrays) == {"centroids", "stacks", "stack_labels", "id2cls", "cls2id"}
    assert arrays["centroids"].shape == (10, 32) and arrays["centroids"].dtype == np.float32
    assert np.linalg.norm(arrays["centroids"], axis=1) == pytest.approx(np.ones(10), abs=1e-6)
    assert np.bincount(arrays["stack_labels"]).tolist() == [20] * 10
    assert arrays["id2cls"].tolist() == [f"цифра {i}" for i in range(10)]
    assert json.loads(str(arrays["cls2id"]))["цифра 7"] == 7

    net, state = load_embedder(run.out / "checkpoint_best.pth")
    assert not net.training
    assert classes_of(state) == tuple(f"цифра {i}" for i in range(10))
    assert crop_spec_of(state) == CropSpec()
    spec = image_spec_of(state)
    assert spec == ImageSpec(48, 48, anchor="center")
    unseen = np.stack([fit(spec, digit(i))[0] for i in range(700, 900)])
    with torch.inference_mode():
        found = net(torch.from_numpy(unseen)).numpy()
    predicted = (found @ arrays["centroids"].T).argmax(axis=1)
    assert np.mean(predicted == DIGITS.target[700:900]) >= 0.85


def test_train_embedder__broken_files_and_splits(run: EmbedderConfig) -> None:
    table = json.loads((run.out / "splits.json").read_text(encoding="utf-8"))
    sizes = {name: sum(counts.values()) for name, counts in table["counts"].items()}
    assert sum(sizes.values()) == 600
    assert sizes["val"] == pytest.approx(120, abs=6) and sizes["test"] == pytest.approx(60, abs=6)


def test_train_embedder__a_finished_run_is_left_alone(
    run: EmbedderConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("checkpoint_last.pth", "metrics.jsonl", "prototypes.npz", "splits.json")
    before = [(run.out / name).read_bytes() for name in names]
    train_embedder(run)
    assert "finished already" in capsys.readouterr().err
    assert [(run.out / name).read_bytes() for name in names] == before


def test_train_embedder__freeze_moves_the_head_only(tmp_path: Path) -> None:
    root = write_digits(tmp_path / "digits", 120)
    config = EmbedderConfig(
        data=root, out=tmp_path / "run", model_id="test_resnet", pretrained=False, img_size=32,
        freeze_backbone=True, steps=2, batch_size=8, val_split=0.0, test_split=0.0,
        min_per_class=3, loss="cosface", aug="none", device="cpu", seed=5,
    )  # fmt: skip
    torch.manual_seed(5)
    net, _ = load_embedder(train_embedder(config))
    prepare(config)
    fresh = EmbedderTask(config).model
    changed = {k for k, v in net.state_dict().items() if not torch.equal(v, fresh.state_dict()[k])}
    assert changed and all(name.startswith("head.") for name in changed)


def test_train_embedder__margin_grows(tmp_path: Path) -> None:
    config = EmbedderConfig(
        data=write_digits(tmp_path / "digits", 120), out=tmp_path / "run", model_id="test_resnet",
        pretrained=False, img_size=32, steps=10, margin=0.3, margin_warmup=0.5, min_per_class=3,
    )  # fmt: skip
    task = EmbedderTask(config)
    batch = task.collate([task.sample(i, 0, np.random.default_rng(i)) for i in range(4)])
    found = []
    for step in (0, 4, 9):
        task.loss(batch, step)
        found.append(task.margin.margin)
    assert found == pytest.approx([0.06, 0.3, 0.3])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_per_class": 15}, r"цифра \d: 1\d"),
        ({"val_split": 0.6, "test_split": 0.4}, "leave something to train on"),
        ({"crop_mode": "mask", "min_per_class": 1}, "unusable files left out"),
        ({"mix_mask": 1}, "no such option"),
    ],
)
def test_train_embedder__says_what_is_wrong(
    tmp_path: Path, options: dict[str, object], message: str
) -> None:
    root = write_digits(tmp_path / "digits", 120)
    common = {"data": root, "out": tmp_path / "run", "model_id": "test_resnet", "pretrained": False}
    with pytest.raises(TkError, match=message):
        train_embedder(validate(EmbedderConfig, {**common, **options}))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("margin", "warned"), [(0.5, True), (0.0, False)])
def test_embedder_task__crop_files_without_context(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], margin: float, warned: bool
) -> None:
    root = write_digits(tmp_path / "digits", 60)
    for path in sorted(root.rglob("cropped/*.png")):
        mask = path.parents[1] / "masks" / f"{path.stem}_mask.png"
        mask.parent.mkdir(exist_ok=True)
        mask.write_bytes(cv2.imencode(".png", np.full((8, 8), 255, np.uint8))[1].tobytes())
    EmbedderTask(
        EmbedderConfig(
            data=root, out=tmp_path / "run", model_id="test_resnet", pretrained=False, img_size=32,
            min_per_class=3, crop_margin=margin,
        )
    )  # fmt: skip
    text = "60 of 60 crop files end before the margin of 0.5"
    assert (text in capsys.readouterr().err) == warned


def test_train_embedder__bfloat16_keeps_weights_in_float32(tmp_path: Path) -> None:
    root = write_digits(tmp_path / "digits", 60)
    losses = {}
    for precision in ("float32", "bfloat16"):
        config = EmbedderConfig(
            data=root, out=tmp_path / precision, model_id="test_vit", pretrained=False, img_size=32,
            min_per_class=3, steps=4, batch_size=8, precision=precision, device="cpu", threads=1,
            layer_decay=0.7,
        )  # fmt: skip
        _, state = load_embedder(train_embedder(config))
        weights = {**state["model"], **state["others"]["margin"]}
        assert {v.dtype for v in weights.values() if v.is_floating_point()} == {torch.float32}
        lines = (config.out / "metrics.jsonl").read_text("utf-8").splitlines()
        losses[precision] = json.loads(lines[0])["loss"]
    # Not equal, or half precision was never used; close, or the margin was computed in it.
    assert losses["bfloat16"] != losses["float32"]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.03)
