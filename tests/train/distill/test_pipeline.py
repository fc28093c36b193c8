"""The whole pipeline, and that a step runs again only when something it depends on changed."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.tiny_runs import tiny_config, write_crops, write_tiny_run

from tk.runtime.errors import Interrupted, TkError
from tk.runtime.files import read_json
from tk.train.classifier.checkpoint import load_classifier, load_encoder, make_chain
from tk.train.distill.config import DistillConfig
from tk.train.distill.pipeline import train_distill
from tk.train.distill.results import read_predictions
from tk.train.distill.split import read_split


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_run(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    """The run and its crops once more, to change something there."""
    shutil.copytree(run.parent, tmp_path / "moved")
    return tmp_path / "moved" / "run"


def rerun(run: Path, **changes: Any) -> Path:
    return train_distill(tiny_config(run.parent / "crops", run, **changes))


def steps_said(text: str) -> dict[str, str]:
    """Step -> what standard error says of it."""
    known = ("split", "features", "random_features", "train", "compare")
    lines = [line.split(": ", 1) for line in text.splitlines() if ": " in line]
    return {line[0]: line[1] for line in lines if line[0] in known}


def ran(text: str) -> list[str]:
    return [name for name, what in steps_said(text).items() if what != "unchanged"]


def test_pipeline__parameters_of_the_seed(run: Path) -> None:
    rows = {row["name"]: row for row in read_json(run / "results.json")["rows"]}
    assert {name: row["parameters"] for name, row in rows.items()} == {
        "linear": 1540,
        "teacher": 57796,
        "student": 26852,
        "student_no_kd": 26852,
        "teacher_sized_student": 57796,
        "linear_random": 1540,
    }
    assert f"{rows['student']['compression']:.1f}x" == "2.2x"
    assert rows["linear"]["compression"] is None and rows["teacher"]["improvement"] is None


def test_pipeline__results_follow_from_the_checkpoints(run: Path) -> None:
    """Accuracy, from pixels, by the chain of the files that results.json names."""
    from tk.runtime.images import read_image
    from tk.runtime.preprocess import fit

    results, items = read_json(run / "results.json"), read_split(run / "class_info.json")
    test = items.rows("test")
    predictions = read_predictions(run / "predictions.npz")
    for row in results["rows"]:
        encoder, spec = load_encoder(run / row["backbone"])
        chain = make_chain(load_classifier(run / row["checkpoint"]), encoder)
        pixels = np.stack([fit(spec, read_image(items.root / items.files[i]))[0] for i in test])
        with torch.inference_mode():
            said = chain(torch.from_numpy(pixels))[0].numpy()
        seed = int(row["checkpoint"].removesuffix(".pth").rpartition("seed")[2])
        assert np.allclose(said, predictions.models[row["name"]][seed], atol=1e-4)
        right = float((said.argmax(1) == items.labels[test]).mean())
        assert right == pytest.approx(row["accuracy"]["seeds"][seed])
        assert sorted(row["accuracy"]["seeds"])[(len(row["accuracy"]["seeds"]) - 1) // 2] == right


def test_pipeline__artefacts_of_the_seed(run: Path) -> None:
    features, labels = np.load(run / "features.npy"), np.load(run / "labels.npy")
    items = read_split(run / "class_info.json")
    assert features.shape == (96, 384) and features.dtype == np.float32
    assert labels.tolist() == items.labels.tolist()
    assert [len(items.rows(name)) for name in ("train", "val", "test")] == [67, 10, 19]
    for name in ("features_pca", "all_confusion_matrices", "reliability", "results_table"):
        assert (run / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    with np.load(run / "confusion_matrices.npz") as tables:
        assert tables["student"].sum() == 19 and tables["student"].shape == (4, 4)
    table = (run / "results_table.md").read_text("utf-8")
    titles = [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("| ")]
    assert titles[:5] == [
        "Model",
        "-" * len("Teacher-Sized Student (Distilled)"),
        "Linear Probe (Original)",
        "Neural Network (Teacher)",
        "Tiny Student (Distilled)",
    ]


def test_pipeline__verdicts_are_those_of_the_intervals(run: Path) -> None:
    found = read_json(run / "results.json")["comparisons"]
    assert ("student", "student_no_kd") in [(c["a"], c["b"]) for c in found]
    for c in found:
        words = "better" if c["low"] > 0 else "worse" if c["high"] < 0 else "no difference shown"
        assert c["verdict"].startswith(words)


def test_rerun__nothing_changed_nothing_done(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also of a run that was moved with its crops."""
    times = {path: path.stat().st_mtime_ns for path in copy.rglob("*.*") if path.suffix != ".json"}
    rerun(copy)
    assert set(steps_said(capsys.readouterr().err).values()) == {"unchanged"}
    assert times == {path: path.stat().st_mtime_ns for path in times}


@pytest.mark.parametrize(
    ("changes", "again"),
    [
        ({"alpha": 0.5}, ["train", "compare"]),
        ({"seeds": 1}, ["train", "compare"]),
        ({"random_floor": False}, ["train", "compare"]),
        ({"step": "compare", "force": True}, ["compare"]),
        ({"workers": 2, "threads": 1}, []),
    ],
)
def test_rerun__what_reads_the_option(
    copy: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], again: list[str]
) -> None:
    rerun(copy, **changes)
    assert ran(capsys.readouterr().err) == again


def test_rerun__changed_input_or_output(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (copy / "features.npy").read_bytes()
    with open(copy / "features.npy", "r+b") as file:  # one number, as a bad disk would
        file.seek(-4, 2)
        file.write(b"\0\0\0\0")
    rerun(copy)
    # Features come out as before, so what stands on them has nothing to do.
    assert ran(capsys.readouterr().err) == ["features"]
    assert (copy / "features.npy").read_bytes() == before
    next((copy.parent / "crops" / "digit 3").iterdir()).unlink()
    rerun(copy)
    assert ran(capsys.readouterr().err) == list(
        ("split", "features", "random_features", "train", "compare")
    )
    assert len(np.load(copy / "features.npy")) == 95


def test_interrupted__goes_on_and_ends_as_if_nothing_had_been(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run.parent / "crops", tmp_path / "crops")
    out = tmp_path / "run"

    from tk.train.distill import pipeline

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(pipeline, "compare_models", stop)
        with pytest.raises(Interrupted, match="in step compare"):
            rerun(out)
    assert not (out / "results.json").exists()
    assert read_json(out / "steps.json")["compare"]["state"] == "begun"
    # As a kill in the middle of writing leaves it.
    (out / ".results.csv.123.tmp").write_text("half")
    rerun(out)
    assert ran(capsys.readouterr().err.rpartition("split")[2]) == ["compare"]
    assert not list(out.glob(".*.tmp"))
    assert (out / "results.json").read_bytes() == (run / "results.json").read_bytes()
    assert (out / "results_table.md").read_bytes() == (run / "results_table.md").read_bytes()


def test_step__alone_needs_those_before_it(run: Path, tmp_path: Path) -> None:
    crops = run.parent / "crops"
    with pytest.raises(TkError, match=r"step train needs .*class_info\.json"):
        train_distill(tiny_config(crops, tmp_path / "run", step="train"))
    with pytest.raises(TkError, match="--step prepare is no step of this run"):
        train_distill(tiny_config(crops, tmp_path / "run", step="prepare"))
    train_distill(tiny_config(crops, tmp_path / "run", step="split"))
    assert read_split(tmp_path / "run" / "class_info.json").classes[0] == "digit 0"


def test_compare__after_another_split_is_refused(copy: Path) -> None:
    before = (copy / "results.json").read_bytes()
    rerun(copy, step="split", split_seed=7)
    with pytest.raises(TkError, match="measured on other test patches") as caught:
        rerun(copy, step="compare", split_seed=7)
    assert "--step train" in caught.value.fix
    assert (copy / "results.json").read_bytes() == before
    rerun(copy, split_seed=7)


def test_step__takes_options_that_are_not_given_from_the_run(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And heads state the backbone, the canvas and the seeds of the steps before them."""
    before = read_json(copy / "results.json")
    few: dict[str, Any] = dict(data=copy.parent / "crops", out=copy)
    train_distill(DistillConfig(**few, step="compare", force=True))
    assert "model_id=mobilevit_xs" in (text := capsys.readouterr().err) and "img_size=32" in text
    assert read_json(copy / "results.json") == before
    train_distill(DistillConfig(**few, step="train", force=True, seeds=1))
    head = load_classifier(copy / "models" / "teacher" / "seed0.pth")
    assert head.image_spec.height == head.architecture.img_size == 32
    assert not (copy / "models" / "teacher" / "seed1.pth").exists()
    # What was given counts from then on; what was refused does not.
    recorded = read_json(copy / "config.json")
    assert (recorded["seeds"], recorded["img_size"]) == (1, 32)
    with pytest.raises(TkError, match="measured on other test patches"):
        train_distill(DistillConfig(**few, step="split", split_seed=7))
        train_distill(DistillConfig(**few, step="compare", alpha=0.1))
    assert read_json(copy / "config.json")["alpha"] == recorded["alpha"]


def test_registry__damaged_means_all_again(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copy / "steps.json").write_text("{")
    rerun(copy)
    text = capsys.readouterr().err
    assert "steps.json is damaged" in text and len(ran(text)) == 5


def test_features__of_another_backbone_are_refused(copy: Path) -> None:
    head = load_classifier(copy / "models" / "student" / "seed0.pth")
    encoder, _ = load_encoder(copy / "backbone_random.pth")
    with pytest.raises(TkError, match="features of another backbone"):
        make_chain(head, encoder)


def test_data__that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(TkError, match="does not exist") as caught:
        train_distill(tiny_config(tmp_path / "nowhere", tmp_path / "run"))
    assert "--download" in caught.value.fix
    write_crops(tmp_path / "crops", 6)
    with pytest.raises(TkError, match="chooses among Severstal's classes"):
        train_distill(tiny_config(tmp_path / "crops", tmp_path / "run", class_ids=(1, 2)))
    with pytest.raises(TkError, match="lies among the classes"):
        train_distill(tiny_config(tmp_path / "crops", tmp_path / "crops" / "run"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_id": "no_such_net"}, "timm knows no such model"),
        ({"weights": Path("nope.pth")}, "--weights nope.pth does not exist"),
        ({"model_id": "test_vit", "img_size": 30}, "does not divide into patches"),
        ({"student": "no_such_net"}, "--student and --student-img-size: timm knows no such model"),
        ({"student_weights": Path("nope.pth")}, "--student-weights nope.pth does not exist"),
        ({"student_unlabelled": [Path("nope")]}, "--student-unlabelled nope does not exist"),
        ({"student_img_size": 8}, r"--student-\.\.\.: --img-size: .* 16, found 8"),
        (
            {"student_kd_weight": 0, "student_feature_weight": 0},
            r"--student-\.\.\.: the teacher is not asked: kd_weight and feature_weight are both 0",
        ),
        ({"ssl": True, "ssl_img_size": 5}, r"--ssl-\.\.\.: --image-size: .* 8, found 5"),
    ],
)
def test_options__are_refused_before_the_first_step(
    tmp_path: Path, changes: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_crops(tmp_path / "crops", 6)
    values: dict[str, Any] = {"student": "test_efficientnet", "student_pretrained": False}
    with pytest.raises(TkError, match=message):
        train_distill(tiny_config(tmp_path / "crops", tmp_path / "run", **(values | changes)))
    assert not (tmp_path / "run" / "steps.json").exists()
    assert not steps_said(capsys.readouterr().err)


def test_data__a_class_with_two_samples(tmp_path: Path) -> None:
    crops = write_crops(tmp_path / "crops", 12)
    for path in sorted((crops / "digit 2").iterdir())[2:]:
        path.unlink()
    with pytest.raises(TkError, match="too few images") as caught:
        train_distill(tiny_config(crops, tmp_path / "run"))
    assert "digit 2: 2" in caught.value.found and "3" in caught.value.expected
    changes: dict[str, Any] = dict(min_per_class=2, random_floor=False)
    with pytest.raises(TkError, match="the test split has no patch of digit 2") as caught:
        train_distill(tiny_config(crops, tmp_path / "run", **changes))
    assert "--val-split 0" in caught.value.fix
    run = train_distill(tiny_config(crops, tmp_path / "run", val_split=0, **changes))
    warnings = read_json(run / "results.json")["warnings"]
    assert "few test patches of digit 2 (1): figures about it say little" in warnings
    assert any("classes are uneven" in text for text in warnings)


def test_weights__of_a_file_are_those_of_the_features(run: Path, tmp_path: Path) -> None:
    """A backbone of another run gives the features it gave there."""
    changes: dict[str, Any] = dict(weights=run / "backbone_random.pth", random_floor=False)
    out = tiny_config(run.parent / "crops", tmp_path / "run", **changes, pretrained=True)
    for step in ("split", "features"):
        train_distill(out.model_copy(update={"step": step}))
    theirs = np.load(run / "features_random.npy")
    assert np.allclose(np.load(tmp_path / "run" / "features.npy"), theirs, atol=1e-5)
    with pytest.raises(TkError, match="does not fit the backbone"):
        train_distill(out.model_copy(update={"step": "features", "model_id": "test_vit"}))
