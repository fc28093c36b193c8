"""`tk train ssl`: options, the seed's file, presets; nothing is trained here."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from tests.command_lines import options_of

from tk.runtime.errors import TkError
from tk.train.ssl.config import SMALL, SslConfig

SEED = """
train_dir = ["../datasets/face_train"]
output_dir = "work_dirs/dino_face"
epochs = 50
algorithm = "ibot"

[dataset]
batch_size = 48
num_workers = 4
pin_memory = true
persistent_workers = true

[augmentation]
brightness = 0.5
gaussian_blur_prob = 0.7
mean = [0.481, 0.457, 0.408]
std = [0.268, 0.261, 0.276]

[checkpointing]
best_name = "best.pt"
last_name = "last.pt"
history_file = "training_metrics.jsonl"

[experiment]
name = "face-ibot-baseline"
tags = ["face", "ibot", "baseline"]
notes = "Entrenamiento inicial con augmentations más agresivos."
"""
"""The file of the seed, letter for letter."""

FLIPPED = (("pin_memory = true", "pin_memory = false"), ("workers = true", "workers = false"))
"""Its two values that are defaults here already."""

NAMED: dict[str, Any] = {
    "epochs": 50,
    "algorithm": "ibot",
    "batch_size": 48,
    "workers": 4,
    "dataset_pin_memory": True,
    "dataset_persistent_workers": True,
    "aug_brightness": 0.5,
    "aug_gaussian_blur_prob": 0.7,
    "aug_mean": (0.481, 0.457, 0.408),
    "aug_std": (0.268, 0.261, 0.276),
    "checkpoint_best_name": "best.pt",
    "checkpoint_last_name": "last.pt",
    "checkpoint_history_file": "training_metrics.jsonl",
    "experiment_name": "face-ibot-baseline",
    "experiment_tag": ["face", "ibot", "baseline"],
    "experiment_notes": "Entrenamiento inicial con augmentations más agresivos.",
}
"""What it must change, beside its two paths."""

BASE = ("--train-dir", "pictures", "--output-dir", "run")


def call(*arguments: str) -> SslConfig:
    return options_of(SslConfig, *arguments)


def write(folder: Path, text: str, name: str = "run.toml") -> str:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text, encoding="utf-8")
    return str(folder / name)


def test_ssl_config__the_example_of_the_seed() -> None:
    config = call(
        *("--train-dir", "data/rois/face", "--output-dir", "work_dirs/dino_face"),
        *("--epochs", "100", "--batch-size", "64", "--learning-rate", "1e-3"),
        *("--algorithm", "dino", "--export-backbone", "work_dirs/dino_face/backbone.pt"),
    )
    assert config.train_dir == [Path("data/rois/face")] and config.lr == 1e-3
    assert config.export_backbone == Path("work_dirs/dino_face/backbone.pt")
    assert (config.image_size, config.patch_size, config.vit_embed_dim) == (224, 16, 384)
    assert (config.vit_depth, config.heads(), config.local_size(16)) == (12, 6, 96)


def test_ssl_config__file_of_the_seed_changes_every_value_it_names(tmp_path: Path) -> None:
    config = call("--config", write(tmp_path / "configs", SEED))
    assert config.train_dir == [tmp_path / "configs" / "../datasets/face_train"]
    assert config.out == tmp_path / "configs" / "work_dirs/dino_face"
    assert {name: getattr(config, name) for name in NAMED} == NAMED
    default = call(*BASE)
    same = {name for name in NAMED if getattr(default, name) == NAMED[name]}
    assert same == {"dataset_pin_memory", "dataset_persistent_workers"}
    text = SEED
    for found, other in FLIPPED:
        assert found in text
        text = text.replace(found, other)
    flipped = call("--config", write(tmp_path, text))
    assert not flipped.dataset_pin_memory and not flipped.dataset_persistent_workers


@pytest.mark.parametrize(
    ("arguments", "changes"),
    [
        (("--train-dir", "a", "--train-dir", "b"), {"train_dir": [Path("a"), Path("b")]}),
        (("--output-dir", "o"), {"out": Path("o")}),
        (("--out", "o"), {"out": Path("o")}),
        (("--epochs", "3"), {"epochs": 3}),
        (("--algorithm", "dino"), {"algorithm": "dino"}),
        (("--batch-size", "8"), {"batch_size": 8}),
        (("--dataset-batch-size", "8"), {"batch_size": 8}),
        (("--dataset_batch_size", "8"), {"batch_size": 8}),
        (("--workers", "1"), {"workers": 1}),
        (("--dataset-num-workers", "1"), {"workers": 1}),
        (("--no-dataset-pin-memory",), {"dataset_pin_memory": False}),
        (("--no-dataset-persistent-workers",), {"dataset_persistent_workers": False}),
        (("--aug-brightness", "0.1"), {"aug_brightness": 0.1}),
        (("--aug_gaussian_blur_prob", "0"), {"aug_gaussian_blur_prob": 0.0}),
        (("--aug-mean", "0.5", "0.4", "0.3"), {"aug_mean": (0.5, 0.4, 0.3)}),
        (("--aug-std", "0.5", "0.4", "0.3"), {"aug_std": (0.5, 0.4, 0.3)}),
        (("--checkpoint-best-name", "b.pth"), {"checkpoint_best_name": "b.pth"}),
        (("--checkpoint-last-name", "l.pth"), {"checkpoint_last_name": "l.pth"}),
        (("--checkpoint-history-file", "h.jsonl"), {"checkpoint_history_file": "h.jsonl"}),
        (("--experiment-name", "n"), {"experiment_name": "n"}),
        (("--experiment-tag", "x", "--experiment-tag", "y"), {"experiment_tag": ["x", "y"]}),
        (("--experiment-tags", "x"), {"experiment_tag": ["x"]}),
        (("--experiment-notes", "m"), {"experiment_notes": "m"}),
    ],
)
def test_ssl_config__command_line_wins(
    tmp_path: Path, arguments: tuple[str, ...], changes: dict[str, Any]
) -> None:
    file = write(tmp_path, SEED)
    config, plain = call("--config", file, *arguments), call("--config", file)
    expected = {name: getattr(plain, name) for name in SslConfig.model_fields} | changes
    assert {n: getattr(config, n) for n in expected if n != "data"} == {
        name: value for name, value in expected.items() if name != "data"
    }


@pytest.mark.parametrize("spelling", ["dataset", "dataloader"])
def test_ssl_config__top_level_wins_over_sections(tmp_path: Path, spelling: str) -> None:
    text = f"""{{"train_dir": "p", "out": "o", "{spelling}": {{"batch_size": 4, "num_workers": 1}},
    "augmentations": {{"brightness": 0.1}}, "checkpoints": {{"best_name": "b.pt"}},
    "batch_size": 16, "aug_brightness": 0.2}}"""
    config = call("--config", write(tmp_path, text, "run.json"))
    assert (config.batch_size, config.workers, config.aug_brightness) == (16, 1, 0.2)
    assert config.checkpoint_best_name == "b.pt" and config.train_dir == [tmp_path / "p"]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("epoch = 3", "epoch"),
        ("[augmentation]\nsharpness = 1\nhue = 0.1", "augmentation.sharpness"),
        ("[dataset]\nlr = 1", "dataset.lr"),
        ("[training]\nlr = 1", "training"),
    ],
)
def test_ssl_config__unknown_keys_are_named(tmp_path: Path, text: str, named: str) -> None:
    with pytest.raises(TkError, match=f"no options: {re.escape(named)}"):
        call(*BASE, "--config", write(tmp_path, text))


def test_ssl_config__preset_lies_under_file_and_command_line(tmp_path: Path) -> None:
    plain, small = call(*BASE), call(*BASE, "--preset", "small")
    assert {name: getattr(small, name) for name in SMALL} == SMALL
    differing = {n for n in SslConfig.model_fields if getattr(plain, n) != getattr(small, n)}
    assert differing == {"preset", *SMALL} - {"batch_size"}
    file = write(tmp_path, 'preset = "small"\nout_dim = 99\nmomentum = 0.5\n')
    config = call(*BASE, "--config", file, "--momentum", "0.7")
    assert (config.out_dim, config.momentum, config.adam_eps) == (99, 0.7, 1e-12)
    assert SslConfig(**json.loads(json.dumps(config.resolved()))) == config


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--image-size", "100"), "multiple of --patch-size"),
        (("--vit-num-heads", "5"), "multiple of --vit-num-heads"),
        (("--aug-local-size", "100"), "--aug-local-size must be a multiple"),
        (("--aug-local-size", "240"), "not larger than --image-size"),
        (("--aug-global-scale", "0.9", "0.2"), "from <= to"),
        (("--mask-ratio", "0.2", "1.2"), "from <= to"),
        (("--aug-mean", "0.5", "0.5", "0.5"), "belong together"),
        (("--aug-mean", "0", "0", "0", "--aug-std", "0", "1", "1"), "above 0"),
        (("--pretrained",), "needs the --model"),
        (("--model", "m", "--pretrained", "--weights", "w"), "one of them"),
        (("--checkpoint-best-name", "checkpoint_last.pt"), "a name of its own"),
        (("--checkpoint-history-file", "params.json"), "a name of its own"),
        (("--checkpoint-last-name", "../last.pt"), "plain name"),
        (("--checkpoint-last-name", "last.bin"), "must end with .pt"),
        (("--batch-size", "1"), "greater than or equal to 2"),
        (("--preset", "tiny"), "tiny"),
    ],
)
def test_ssl_config__what_does_not_fit_is_named(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises((TkError, ValueError), match=message):
        call(*BASE, *arguments)


def test_ssl_config__no_folder() -> None:
    with pytest.raises(TkError, match="missing option --train-dir"):
        call("--out", "run")


def test_ssl_config__in_steps() -> None:
    config = call(*BASE, "--epochs", "20", "--batch-size", "10", "--save-every", "2").in_steps(104)
    assert (config.steps, config.warmup, config.eval_every, config.save_every) == (200, 20, 100, 20)
    assert config.lr == 5e-4 * 10 / 256
    assert call(*BASE, "--steps", "7", "--lr", "1").in_steps(104).steps == 7
