"""`tk train distill`: from strips or patches to the table of classifiers, step by step."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tk.runtime.errors import Interrupted, TkError
from tk.runtime.files import locked, write_bytes, write_json
from tk.train.backbone import ImageEncoder
from tk.train.data.steel.layout import IMAGES, TABLE
from tk.train.data.steel.prepared import INDEX, PICTURES
from tk.train.distill.arrays import write_npy
from tk.train.distill.compare import FILES, compare_models
from tk.train.distill.config import DistillConfig
from tk.train.distill.extract import extract_features, keep_encoder, read_features
from tk.train.distill.fit import Recipe
from tk.train.distill.pictures import draw_pca
from tk.train.distill.split import Items, read_split, write_split
from tk.train.distill.steps import Registry, Step
from tk.train.distill.train import MODELS, PREDICTIONS, HeadTrainer

INFO = "class_info.json"


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
        write_json(run / "config.json", config.resolved())
        pipeline = Pipeline(config)
        registry = Registry.open(run)
        found = False
        for step in pipeline.steps():
            if config.step in ("", step.name):
                found = True
                _perform(registry, step, config.force)
        if not found:
            raise TkError(
                f"--step {config.step} is no step of this run",
                fix="ssl and ssl_features need --ssl; prepare and patches need strips",
            )
    return run


def _perform(registry: Registry, step: Step, force: bool) -> None:
    try:
        registry.perform(step, force=force)
    except KeyboardInterrupt:
        raise Interrupted(
            f"interrupted in step {step.name}", fix="the same command goes on with it"
        ) from None


def _told(lines: str, make: Callable[..., Any], source: Path, out: Path, **options: Any) -> None:
    """Make a folder of data and say on standard error what was found and what was left out."""
    from tk.train.data.steel import report

    summary = make(source, out, **options)
    found = getattr(report, lines)(out, summary)
    print("\n".join(line for line in found if not line.startswith("next:")), file=sys.stderr)


class Pipeline:
    """The steps of a run."""

    def __init__(self, config: DistillConfig) -> None:
        self.config, self.run = config, config.out
        self.info = self.run / INFO

    def steps(self) -> Iterator[Step]:
        """Yield the steps in their order; each is built when those before it are done."""
        config = self.config
        yield from self._patches()
        yield self._split()
        yield self._features()
        if config.random_floor:
            yield self._random_features()
        if config.ssl:
            from tk.train.distill.ssl import ssl_step

            yield ssl_step(config, self.info)
            yield self._ssl_features()
        yield self._train()
        yield self._compare()

    def items(self) -> Items:
        """The patches, when they are divided."""
        return read_split(self.info)

    def _kind(self) -> str:
        """What `--data` is: `strips`, `prepared` or `crops`; it may have to be fetched first."""
        config, data = self.config, self.config.source()
        if not data.is_dir():
            if not config.download:
                raise TkError(
                    f"{data} does not exist",
                    expected=f"{TABLE} and {IMAGES}/, a folder of tk data severstal, or "
                    "<class>/cropped/*",
                    fix=f"tk data synth {data} --kind steel, or --download to fetch Kaggle's",
                )
            from tk.train.data.steel.download import download_severstal

            download_severstal(data)
        if (data / TABLE).is_file():
            return "strips"
        return "prepared" if (data / INDEX).is_file() else "crops"

    def _patches(self) -> Iterator[Step]:
        config, kind = self.config, self._kind()
        self.crops = self.run / "patches" if kind != "crops" else config.source()
        prepared = self.run / "prepared" if kind == "strips" else config.source()
        if kind == "strips":
            yield self._prepare(prepared)
        if kind == "crops":
            return
        from tk.train.data.steel.patches import cut_patches

        options = {
            "target": config.target,
            "context": config.context,
            "max_per_image": config.max_per_image,
            "background": config.background,
        }
        yield Step(
            "patches",
            "a square round each defect",
            partial(
                _told, "patch_lines", cut_patches, prepared, self.crops,
                **options, workers=config.workers, overwrite=True,
            ),
            options,
            [prepared / INDEX, prepared / PICTURES],
            [self.crops],
        )  # fmt: skip

    def _prepare(self, prepared: Path) -> Step:
        from tk.train.data.steel.prepare import prepare_severstal

        config, data = self.config, self.config.source()
        options = {
            "min_contour_area": config.min_contour_area,
            "min_box": config.min_box,
            "skip_missing": config.skip_missing,
        }
        return Step(
            "prepare",
            "boxes of the masks",
            partial(
                _told, "prepare_lines", prepare_severstal, data, prepared,
                **options, workers=config.workers, overwrite=True,
            ),
            options,
            [data / TABLE, data / IMAGES],
            [prepared / INDEX, prepared / "annotations.json"],
        )  # fmt: skip

    def _split(self) -> Step:
        config = self.config
        options: dict[str, Any] = {
            "val": config.val_split,
            "test": config.test_split,
            "seed": config.split_seed,
            "least": config.min_per_class,
            "only": config.class_folders() if self.crops.parent == self.run else (),
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

    def _features(self) -> Step:
        config = self.config
        weights = [config.weights] if config.weights else []
        if not (config.pretrained or weights):
            print(
                "--no-pretrained without --weights: the backbone's weights are random",
                file=sys.stderr,
            )
        return self._extract(
            "features",
            f"features of {config.model_id}",
            partial(
                ImageEncoder,
                config.model_id,
                config.img_size,
                pretrained=config.pretrained,
                weights=config.weights,
            ),
            weights,
            "labels.npy",
        )

    def _random_features(self) -> Step:
        config = self.config
        build = partial(ImageEncoder, config.model_id, config.img_size)
        return self._extract("features_random", "the floor: random weights", build, [])

    def _ssl_features(self) -> Step:
        from tk.train.distill.ssl import backbone_file

        config, weights = self.config, backbone_file(self.run)
        build = partial(ImageEncoder, config.model_id, config.img_size, weights=weights)
        return self._extract(
            "features_ssl",
            "features of the fine-tuned backbone",
            build,
            [weights],
            "labels_ssl.npy",
        )

    def _extract(
        self,
        name: str,
        title: str,
        build: partial[ImageEncoder],
        weights: list[Path],
        labels: str = "",
    ) -> Step:
        """Make a step that writes NAME.npy and the backbone it is of."""
        kind = name.removeprefix("features").removeprefix("_")
        config, run = self.config, self.run
        backbone = run / (f"backbone_{kind}.pth" if kind else "backbone.pth")
        picture = run / (f"{kind}_features_pca.png" if kind else "features_pca.png")
        spec = config.image_spec()

        def work() -> None:
            items = self.items()
            with torch.random.fork_rng(devices=[]):
                # Where no weights are given: other random ones than those of the floor.
                torch.manual_seed(1 if kind == "random" else 0)
                encoder = build()
            extract_features(
                run,
                name,
                encoder,
                spec,
                items,
                batch_size=config.features_batch_size,
                device=config.device,
            )
            keep_encoder(backbone, encoder, spec)
            if labels:
                write_npy(run / labels, items.labels)
            found = read_features(run, name, len(items.files)).values
            held = np.asarray(items.split == "test")
            write_bytes(picture, draw_pca(found, items.labels, held, items.classes, title))

        outputs = [run / f"{name}.npy", run / f"{name}.json", backbone, picture]
        return Step(
            f"{kind}_features" if kind else "features",
            title,
            work,
            {
                "model_id": config.model_id,
                "img_size": config.img_size,
                "pretrained": build.keywords.get("pretrained", False),
                "batch_size": config.features_batch_size,
            },
            [self.info, self.crops, *weights],
            [*outputs, *([run / labels] if labels else [])],
            cache=[run / f"{name}.json"],
        )

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

        def work() -> None:
            compare_models(self.run, self.items(), name, settings)

        return Step(
            "compare",
            "figures, table and pictures",
            work,
            {"dataset": name, **settings},
            [self.info, self.run / PREDICTIONS, self.run / MODELS],
            [self.run / file for file in FILES],
        )
