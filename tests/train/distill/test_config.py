"""Options: the keys of the seed's config.yaml, TOML, JSON and YAML, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from tests.command_lines import options_of

from tk.runtime.errors import TkError
from tk.train.distill.config import DistillConfig

SEED_KEYS = """
training: {temperature: 4.0, alpha: 0.6, models_dir: ./models, epochs: 3}
ssl_dino_finetune:
  freeze_blocks: 9
  weight_decay: 1e-3
  learning_rate: 1e-5
  batch_size: 16
  epochs: 2
  target_size: 196
extract_features: {target_size: 210, batch_size: 8}
extract_patches:
  max_patches_per_img: 4
  context: 0.3
  class_ids: [1, 3, 4]
  min_bbox_size: 9
  min_contour_area: 33
  save_dir_patches: ./patches/images
  annotation_path: ./patches/patches_annotation.json
  annotation_dir: ./patches
image_params: {img_width: 1600, img_height: 256, target_width: 128, target_height: 128}
paths:
  csv_path: ./dataset/train.csv
  img_dir: ./dataset/train_images
  save_path: ./dataset/annotations.json
  annotation_path: ./dataset/annotations.json
  save_dir: result/
  path_visualize: ./visualize
  report_dir: ./report
"""
"""Every key of the seed's config.yaml, with other values than the defaults."""


def call(*arguments: str) -> DistillConfig:
    return options_of(DistillConfig, *arguments)


def write(folder: Path, text: str, name: str = "config.yaml") -> str:
    (folder / name).write_text(text, "utf-8")
    return str(folder / name)


def test_defaults__are_what_a_file_of_them_reads_back() -> None:
    """32 and 32.0 are equal, but not in the hash of a step's options."""
    defaults = DistillConfig(data=Path("d"), out=Path("o"))
    again = defaults.completed(defaults.resolved())
    assert repr(again.resolved()) == repr(defaults.resolved())


def test_seed__every_key_says_what_it_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config(tmp_path, SEED_KEYS)
    expected: dict[str, Any] = dict(
        data=tmp_path / "dataset",
        out=tmp_path / "result",
        min_contour_area=33,
        min_box=9,
        context=0.3,
        max_per_image=4,
        class_ids=(1, 3, 4),
        target=128,
        img_size=210,
        features_batch_size=8,
        ssl_epochs=2,
        ssl_batch_size=16,
        ssl_lr=1e-5,
        ssl_weight_decay=1e-3,
        ssl_freeze_blocks=9,
        ssl_img_size=196,
        temperature=4.0,
        alpha=0.6,
    )
    assert {name: getattr(config, name) for name in expected} == expected
    # What the seed's own scripts do not read, or what lies in the run folder here, is named.
    said = capsys.readouterr().err
    for name in ("training.epochs", "paths.report_dir", "image_params.img_width"):
        assert f"config.yaml: {name} is not used: " in said


def make_config(folder: Path, text: str) -> DistillConfig:
    from tk.train.run.options import read_config_file, validate

    return validate(DistillConfig, read_config_file(Path(write(folder, text)), DistillConfig))


def test_seed__defaults_are_the_seeds() -> None:
    config = DistillConfig(data=Path("d"), out=Path("o"))
    assert (config.temperature, config.alpha) == (3.0, 0.7)
    assert (config.teacher_epochs, config.teacher_lr) == (15, 1e-3)
    assert (config.distill_epochs, config.distill_lr, config.head_batch_size) == (20, 1e-2, 32)
    assert (config.ssl_epochs, config.ssl_batch_size, config.ssl_lr) == (3, 32, 1e-6)
    assert (config.ssl_weight_decay, config.ssl_freeze_blocks) == (1e-4, 10)
    assert (config.target, config.context, config.max_per_image) == (224, 0.2, 5)
    assert (config.test_split, config.split_seed, config.seeds) == (0.2, 42, 5)
    assert "dinov2" in config.model_id and config.pretrained


@pytest.mark.parametrize("name", ["c.toml", "c.json", "c.yaml", "c.yml"])
def test_files__say_the_same_and_the_command_line_wins(tmp_path: Path, name: str) -> None:
    text = {
        "c.toml": 'data = "strips"\n[heads]\nseeds = 7\nalpha = 0.5\n[features]\nbatch_size = 4\n',
        "c.json": json.dumps(
            {"data": "strips", "heads": {"seeds": 7, "alpha": 0.5}, "features": {"batch_size": 4}}
        ),
    }.get(name, "data: strips\nheads: {seeds: 7, alpha: 0.5}\nfeatures: {batch_size: 4}\n")
    config = call("--config", write(tmp_path, text, name), "--out", "run", "--seeds", "9")
    assert (config.seeds, config.alpha, config.features_batch_size) == (9, 0.5, 4)
    assert config.data == tmp_path / "strips" and config.out == Path("run")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("training: {temprature: 3}", "keys that are no options: training.temprature"),
        ("modell: vit", "keys that are no options: modell"),
        ("training: {alpha: high}", "--alpha: .*found 'high'"),
        ("training: {alpha: 1.5}", "--alpha: .*less than or equal to 1"),
        ("extract_patches: {class_ids: [1, 7]}", r"--class-ids: no such class \[7\]"),
        ("image_params: {target_width: 224, target_height: 96}", "patches are square"),
        ("training: {alpha: 0.7", "is not valid YAML: .*line 1"),
        ("just words", "must hold a table of options"),
        ("test_split: 0.6\nval_split: 0.4", "leave nothing to train on"),
    ],
)
def test_files__refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(TkError, match=message):
        call("--data", "d", "--out", "o", "--config", write(tmp_path, text))


@pytest.mark.parametrize(
    "text",
    ["paths: {csv_path: a/train.csv, img_dir: b/train_images}", "paths: {csv_path: a/labels.csv}"],
)
def test_files__table_and_images_of_two_folders(tmp_path: Path, text: str) -> None:
    with pytest.raises(TkError, match=r"DATA/train\.csv and DATA/train_images of one folder"):
        call("--out", "o", "--config", write(tmp_path, text))


def test_options__missing(tmp_path: Path) -> None:
    with pytest.raises(TkError, match="missing option --out"):
        call("--data", "d")
    with pytest.raises(TkError, match="missing option --data"):
        call("--out", "o")
    with pytest.raises(TkError, match=r"nothing\.yaml does not exist"):
        call("--out", "o", "--config", str(tmp_path / "nothing.yaml"))


DOCS = Path(__file__).parents[3] / "docs"


def test_doc__example_is_read_and_says_the_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    config = call("--config", str(DOCS / "distill.toml"))
    expected = DistillConfig(data=DOCS / "steel", out=DOCS / "runs" / "defects")
    assert config == expected
    assert capsys.readouterr().err == ""


def test_doc__example_without_its_comments(tmp_path: Path) -> None:
    """The lines that are commented out are options, too."""
    text = (DOCS / "distill.toml").read_text("utf-8")
    text = text.replace("# weights", "weights").replace("# model", "model")
    config = call("--config", write(tmp_path, text, "c.toml"))
    assert config.student == "mobilenetv4_conv_small"
    assert config.weights == tmp_path / "backbone.pth"


def test_doc__defaults_it_states() -> None:
    text = (DOCS / "defects.md").read_text("utf-8")
    known = DistillConfig(data=Path("d"), out=Path("o")).model_dump()
    section = text[text.index("## From patches to the table") :]
    stated = re.findall(r"`--(seeds|val_split|min_per_class) ([\d.]+)`", section)
    assert len(stated) == 3
    for name, value in stated:
        assert float(value) == known[name]
