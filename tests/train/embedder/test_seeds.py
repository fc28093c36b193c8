"""The users' command lines as their documents give them, with a small model and small pictures."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from tests.train.data.test_masks_sam2 import pair

from tk.train.run.checkpoint import load_checkpoint

__all__ = ["pair"]

BBOX = """
  --data_root "/home/ubuntu/diabert/dataset/dataset" \
  --out_dir "/home/ubuntu/diabert/dataset/predrazmetka_dashi/lct_dino3_out" \
  --model_id "vit_large_patch16_dinov3.lvd1689m" \
  --emb_dim 128 \
  --freeze_backbone \
  --epochs 15 \
  --batch 64 \
  --lr 1e-3 \
  --img_size 224 \
  --workers 4 \
  --seed 42 \
  --val_split 0.2 \
  --test_split 0.1 \
  --save_every 5 \
  --min_per_class 200 \
  --crop_mode bbox \
  --use_clearml \
  --clearml_project "DINOv3-Embeddings" \
  --clearml_task_name "dino3_tools_11cls"
"""
MIX = """
  --data_root "/home/ubuntu/diabert/dataset/dataset" \
  --out_dir "/home/ubuntu/diabert/dataset/predrazmetka_dashi/lct_dino3_out" \
  --model_id "vit_large_patch16_dinov3.lvd1689m" \
  --emb_dim 128 \
  --freeze_backbone \
  --epochs 15 \
  --batch 64 \
  --lr 1e-3 \
  --img_size 224 \
  --workers 4 \
  --seed 42 \
  --val_split 0.2 \
  --test_split 0.1 \
  --save_every 5 \
  --min_per_class 200 \
  --crop_mode mix \
  --mix_mask_p 0.4 \
  --auto_generate_masks \
  --sam2_cfg configs/sam2.1/sam2.1_hiera_l.yaml \
  --sam2_ckpt /home/ubuntu/sam2/checkpoints/sam2.1_hiera_large.pt \
  --use_clearml \
  --clearml_project "DINOv3-Embeddings" \
  --clearml_task_name "dino3_tools_11cls_mix"
"""
MINIMAL = """
  --data_root "/home/ubuntu/diabert/dataset/dataset" \
  --out_dir "/home/ubuntu/diabert/dataset/predrazmetka_dashi/lct_dino3_out" \
  --model_id "vit_large_patch16_dinov3.lvd1689m" \
  --epochs 15 --batch 64 --lr 1e-3 --img_size 224 \
  --workers 4 --seed 42 --val_split 0.2 --save_every 5 \
  --max_refs_per_class 16 \
  --gpus 2
"""
TOOLS = ("Бокорезы", "Отвертка «+»")


def write_tools(root: Path, count: int, bare: int = 0) -> Path:
    """Discs and bars, with masks for all but `bare` crops of each class."""
    rng = np.random.default_rng(0)
    for name in TOOLS:
        for folder in ("cropped", "masks"):
            (root / name / folder).mkdir(parents=True)
        for i in range(count):
            mask = np.zeros((48, 48), np.uint8)
            x, y = (int(v) for v in rng.integers(18, 30, 2))
            if name == TOOLS[0]:
                cv2.circle(mask, (x, y), 12, 255, -1)
            else:
                cv2.rectangle(mask, (x - 4, y - 15), (x + 4, y + 15), 255, -1)
            image = rng.integers(0, 120, (48, 48, 3), dtype=np.uint8)
            image[mask > 0] += np.uint8(120)
            jpg = cv2.imencode(".jpg", image)[1].tobytes()
            (root / name / "cropped" / f"IMG_{i}.jpg").write_bytes(jpg)
            if i >= bare:
                png = cv2.imencode(".png", mask)[1].tobytes()
                (root / name / "masks" / f"IMG_{i}_mask.png").write_bytes(png)
    return root


def run(seed: str, root: Path, out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    text = seed.replace("/home/ubuntu/diabert/dataset/dataset", str(root))
    text = text.replace("/home/ubuntu/diabert/dataset/predrazmetka_dashi/lct_dino3_out", str(out))
    text = text.replace("vit_large_patch16_dinov3.lvd1689m", "test_vit")
    words = [*shlex.split(text.replace("\\\n", " ")), "--no-pretrained", *more]
    cache = out.parent / "clearml"
    environment = {
        **os.environ,
        "CLEARML_OFFLINE_MODE": "1",
        "CLEARML_CACHE_DIR": str(cache),
        "CLEARML_CONFIG_FILE": str(cache / "none.conf"),
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run(
        [sys.executable, "-m", "tk.cli", "train", "embedder", *words],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def check_run(out: Path, done: subprocess.CompletedProcess[str]) -> list[dict[str, object]]:
    assert done.returncode == 0, done.stderr
    assert "trained; best weights in" in done.stderr
    names = {path.name for path in out.iterdir()}
    assert names >= {
        *("checkpoint_last.pth", "checkpoint_best.pth", "checkpoint_ep005.pth"),
        *("checkpoint_ep010.pth", "checkpoint_ep015.pth", "train.log", "metrics.jsonl"),
        *("config.json", "splits.json", "prototypes.npz", "gallery.json", "report.html"),
    }
    with np.load(out / "prototypes.npz", allow_pickle=False) as file:
        assert {"centroids", "stacks", "cls2id", "id2cls"} <= set(file)
        assert file["id2cls"].tolist() == list(TOOLS)
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [r["event"] for r in records if r.get("event") in ("eval", "test")] == [
        *["eval"] * 15,
        "test",
    ]
    log = (out / "train.log").read_text("utf-8")
    for name in ("loss", "accuracy", "macro_f1", "macro_auc"):
        assert f"train_{name} " in log and f"val_{name} " in log
    return records


@pytest.mark.slow
def test_seed__bbox_with_clearml(tmp_path: Path) -> None:
    root, out = write_tools(tmp_path / "data", 200), tmp_path / "out"
    done = run(BBOX, root, out, "--device", "cpu", "--feature_views", "2")
    records = check_run(out, done)
    assert records[-1]["test_accuracy"] == 1.0
    (archive,) = (tmp_path / "clearml" / "offline").glob("*.zip")
    with zipfile.ZipFile(archive) as file:
        sent = "".join(file.read(n).decode("utf-8") for n in file.namelist() if "metrics" in n)
        task = "".join(file.read(n).decode("utf-8") for n in file.namelist() if "task" in n)
    assert "dino3_tools_11cls" in task
    for name in ("accuracy", "macro_f1", "test"):
        assert name in sent
    assert "Бокорезы" in sent or json.dumps("Бокорезы")[1:-1] in sent


@pytest.mark.slow
def test_seed__mix_with_generated_masks(tmp_path: Path, pair: tuple[str, str]) -> None:
    root, out = write_tools(tmp_path / "data", 200, bare=1), tmp_path / "out"
    seed = MIX.replace("configs/sam2.1/sam2.1_hiera_l.yaml", pair[0])
    seed = seed.replace("/home/ubuntu/sam2/checkpoints/sam2.1_hiera_large.pt", pair[1])
    done = run(seed, root, out, "--device", "cpu", "--feature_views", "2")
    check_run(out, done)
    table = (out / "masks.csv").read_text("utf-8")
    assert table.count("IMG_0.jpg") == 2
    assert (out / "masks.png").exists()


@pytest.mark.slow
def test_seed__minimal_on_two_processes(tmp_path: Path) -> None:
    root, out = write_tools(tmp_path / "data", 20), tmp_path / "out"
    seed = MINIMAL.replace("--workers 4", "--workers 1").replace("224", "64")
    check_run(out, run(seed, root, out, "--device", "cpu"))
    facts = json.loads((out / "config.json").read_text("utf-8"))["facts"]
    assert facts["processes"] == 2
    assert facts["optimizer"]["name"] == "AdamW" and facts["loss"]["name"] == "arcface"
    assert len(load_checkpoint(out / "checkpoint_last.pth")["rng"]) == 2
    with np.load(out / "prototypes.npz", allow_pickle=False) as file:
        assert np.bincount(file["stack_labels"]).max() <= 16


def test_seed__gpus_that_are_not_there(tmp_path: Path) -> None:
    done = run(MINIMAL.replace("--gpus 2", "--gpus 99"), tmp_path, tmp_path / "out")
    assert done.returncode == 3
    assert "--gpus 99 needs as many GPUs" in done.stderr


def test_seed__too_few_images(tmp_path: Path) -> None:
    root = write_tools(tmp_path / "data", 5)
    seed = BBOX.replace("--use_clearml", "")
    done = run(seed, root, tmp_path / "out", "--device", "cpu")
    assert done.returncode == 2
    assert all(f"{name}: 5" in done.stderr for name in TOOLS)
    assert not (tmp_path / "out").exists()
