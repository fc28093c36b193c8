"""`tk train distill`: from strips or patches to the table of classifiers, step by step."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from tk.runtime.errors import Interrupted, TkError
from tk.runtime.files import locked, read_json, write_json
from tk.train.data.steel.layout import CLASSES
from tk.train.data.steel.patches import PATCH_INDEX
from tk.train.distill.check import check_options
from tk.train.distill.compare import FILES, compare_models
from tk.train.distill.config import DistillConfig
from tk.train.distill.feature_steps import given_features, random_features, ssl_features
from tk.train.distill.fit import Recipe
from tk.train.distill.layout import INFO, MODELS, PREDICTIONS
from tk.train.distill.split import Items, read_split, write_split
from tk.train.distill.ssl import backbone_file, ssl_step
from tk.train.distill.steps import Registry, Step
from tk.train.distill.strips import crops_folder, strip_steps
from tk.train.distill.student import student_runs, student_steps
from tk.train.distill.train import HeadTrainer

CONFIG = "config.json"


def train_distill(config: DistillConfig) -> Path:
    """Run all steps that are not done, or the one that was asked for.

    Returns:
        the run folder; docs/defects.md lists what is in it.

    Raises:
        TkError: data or options that cannot be used.
        Interrupted: Ctrl-C; the same command goes on.
    """
    run = config.out
    run.mkdir(parents=True, exist_ok=True)
    with locked(run, busy=f"another tk train distill is at work in {run}"):
        for left in run.glob(".*.tmp"):  # of a command that was killed
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        if config.threads:
            torch.set_num_threads(config.threads)
        config = _with_recorded(config)
        check_options(config)
        if config.step == "all":  # of one step: when it is done
            write_json(run / CONFIG, config.resolved())
        pipeline = Pipeline(config)
        registry = Registry.open(run)
        found = False
        for step in pipeline.steps():
            # `--step student` means all of its seeds.
            if config.step in ("all", step.name, step.name.partition("_seed")[0]):
                found = True
                _perform(registry, step, config.force)
        if not found:
            raise TkError(
                f"--step {config.step} is no step of this run",
                fix="ssl and ssl_features need --ssl, student needs --student, prepare and patches "
                "need strips",
            )
        write_json(run / CONFIG, config.resolved())
    return run


def _with_recorded(config: DistillConfig) -> DistillConfig:
    """The options of one step: those not given are those that the run was made with.

    Else the step would be of another backbone, or another image size, than the steps before it.
    """
    path = config.out / CONFIG
    if config.step == "all" or not path.is_file():
        return config
    full = config.completed(read_json(path))
    before, now = config.resolved(), full.resolved()
    if taken := [f"{name}={now[name]}" for name in now if now[name] != before[name]]:
        print(f"options of {path}: {', '.join(taken)}", file=sys.stderr)
    return full


def _perform(registry: Registry, step: Step, force: bool) -> None:
    try:
        registry.perform(step, force=force)
    except KeyboardInterrupt:
        same = "the same command without --force" if force else "the same command"
        raise Interrupted(
            f"interrupted in step {step.name}", fix=f"{same} goes on with it"
        ) from None


class Pipeline:
    """The steps of a run."""

    def __init__(self, config: DistillConfig) -> None:
        self.config, self.run = config, config.out
        self.info = self.run / INFO

    def steps(self) -> Iterator[Step]:
        """Yield the steps in their order; each is built when those before it are done."""
        config = self.config
        yield from strip_steps(config)
        self.crops = crops_folder(config)
        yield self._split()
        yield given_features(config, self.crops)
        if config.random_floor:
            yield random_features(config, self.crops)
        if config.ssl:
            yield ssl_step(config)
            yield ssl_features(config, self.crops, backbone_file(self.run))
        yield self._train()
        yield from student_steps(config, self.crops)
        yield self._compare()

    def items(self) -> Items:
        """The patches, when they are divided."""
        return read_split(self.info)

    def _split(self) -> Step:
        config = self.config
        options: dict[str, Any] = {
            "val": config.val_split,
            "test": config.test_split,
            "seed": config.split_seed,
            "least": config.min_per_class,
            "only": self._only(),
        }

        def work() -> None:
            write_split(self.info, self.crops, **options)

        return Step(
            "split",
            "which patches are for training and which for the test",
            work,
            options,
            [self.crops],
            [self.info],
        )

    def _only(self) -> tuple[str, ...]:
        """Class folders of Severstal's patches that are asked for; of other crops: all."""
        if self.crops.parent == self.run or (self.crops / PATCH_INDEX).is_file():
            return self.config.class_folders()
        if set(self.config.class_ids) != set(CLASSES):
            raise TkError(
                "--class-ids chooses among Severstal's classes",
                found=f"{self.crops}, which tk data patches has not made",
                fix="move the folders of other classes away",
            )
        return ()

    def _train(self) -> Step:
        config, run = self.config, self.run
        of = ["features"]
        of += ["features_ssl"] if config.ssl else []
        of += ["features_random"] if config.random_floor else []
        teacher = Recipe(config.teacher_epochs, config.teacher_lr, config.head_batch_size)
        student = Recipe(
            config.distill_epochs,
            config.distill_lr,
            config.head_batch_size,
            config.temperature,
            config.alpha,
        )
        balanced = config.class_weights == "balanced"

        def work() -> None:
            HeadTrainer(
                run,
                self.items(),
                config.image_spec(),
                teacher,
                student,
                of=of,
                seeds=config.seeds,
                balanced=balanced,
            ).train()

        options = {"teacher": teacher.__dict__, "student": student.__dict__, "of": of}
        return Step(
            "train",
            "linear probes, teacher, students and controls",
            work,
            {**options, "seeds": config.seeds, "balanced": balanced},
            [self.info, *(run / f"{name}.{kind}" for name in of for kind in ("npy", "json"))],
            [run / MODELS, run / PREDICTIONS],
            partial=[run / MODELS],
        )

    def _compare(self) -> Step:
        config = self.config
        settings = {
            "model_id": config.model_id,
            "img_size": config.img_size,
            "seeds": config.seeds,
            "temperature": config.temperature,
            "alpha": config.alpha,
            "class_weights": config.class_weights,
        }
        name = config.source().resolve().name
        students = student_runs(config)
        said = [folder / "predictions.npz" for found in students.values() for folder in found]

        def work() -> None:
            compare_models(self.run, self.items(), name, settings, students)

        return Step(
            "compare",
            "figures, table and pictures",
            work,
            {"dataset": name, **settings},
            [self.info, self.run / PREDICTIONS, self.run / MODELS, *said],
            [self.run / file for file in FILES],
        )
