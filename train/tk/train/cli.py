"""`tk data` and `tk train`: options come from the configuration beside each algorithm."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from tk.cli import group
from tk.train.data.steel.cli import add_steel_commands
from tk.train.detector.config import DetectorConfig
from tk.train.distill.config import DistillConfig
from tk.train.embedder.config import EmbedderConfig
from tk.train.grounding.config import GroundingConfig
from tk.train.run.arch import Arch, add_arch_command
from tk.train.run.options import command_class, make_command
from tk.train.sam2.config import Sam2Config
from tk.train.segmenter.config import SegmenterConfig
from tk.train.ssl.config import SslConfig
from tk.train.student.config import StudentConfig

data = group("Prepare data: generated scenes and steel, defects and patches, masks by SAM-2.")
train = group("Train a detector, segmenter or embedder; pre-train (ssl) or distill a backbone.")


class Kind(str, Enum):
    """What is drawn."""

    tools = "tools"
    steel = "steel"


@data.command()
def synth(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to make.")],
    kind: Annotated[Kind, typer.Option(help="What to draw, see above.")] = Kind.tools,
    images: Annotated[int, typer.Option(min=1, help="Number of pictures.")] = 100,
    size: Annotated[
        int | None,
        typer.Option(min=256, max=4000, help="tools: longer side, pixels; 640 if not given."),
    ] = None,
    balanced: Annotated[
        bool, typer.Option("--balanced", help="steel: each kind of defect as often as the others.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same pictures.")] = 0,
    workers: Annotated[int, typer.Option(min=1, help="Processes; does not change a pixel.")] = 1,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is in OUT.")] = False,
) -> None:
    """Draw pictures whose truth is known.

    \b
    tools:  scenes of eleven hand tools: OUT/images, OUT/annotations.json (COCO, RLE),
            OUT/crops/<class>/
    steel:  strips of rolled steel with four kinds of defects, as rare as Severstal's, in its
            layout: OUT/train.csv, OUT/train_images/; 1600x256 pixels

    \b
    Examples:  tk data synth scenes --images 200 --size 640 --seed 1 --workers 2
               tk data synth steel --kind steel --images 2000 --workers 2
    """
    from tk.runtime.errors import TkError

    if kind is Kind.steel:
        if size is not None:
            raise TkError("--size is for tools", expected="no --size: steel is 1600x256 pixels")
        from tk.train.data.steel.dataset import write_steel_dataset

        strips = write_steel_dataset(
            out, images=images, seed=seed, balanced=balanced, workers=workers, overwrite=overwrite
        )
        kinds = ", ".join(f"class {key}: {count}" for key, count in strips.per_class.items())
        print(f"{out}: {images} strips, {strips.without} without a defect; masks of {kinds}")
        print(f"next: tk data severstal {out} PREPARED")
        return
    if balanced:
        raise TkError("--balanced is for steel", fix="add --kind steel")
    from tk.train.data.synth.dataset import write_tools_dataset

    done = write_tools_dataset(
        out, images=images, size=size or 640, seed=seed, workers=workers, overwrite=overwrite
    )
    print(f"{out}: {done.images} {kind.value} scenes, {done.objects} objects")


@data.command()
def masks(
    root: Annotated[Path, typer.Argument(metavar="ROOT", help="Crops: ROOT/<class>/cropped/*.")],
    sam2_cfg: Annotated[
        str, typer.Option(help="Configuration of the sam2 package, by name or as a yaml file.")
    ] = "",
    sam2_ckpt: Annotated[
        str, typer.Option(help="Its .pt file; without --sam2_cfg a Hugging Face id or folder.")
    ] = "",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    batch_size: Annotated[int, typer.Option(min=1, help="Crops per call of the model.")] = 8,
    min_iou: Annotated[
        float, typer.Option(min=0, max=1, help="Masks the model itself rates lower are dropped.")
    ] = 0.5,
    min_area: Annotated[
        float, typer.Option(min=0, max=1, help="Masks below this share of the crop are dropped.")
    ] = 0.02,
    max_area: Annotated[
        float, typer.Option(min=0, max=1, help="Masks above this share of the crop are dropped.")
    ] = 0.98,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE", help="CSV: what became of each crop, and why.")
    ] = None,
    sheet: Annotated[
        Path | None, typer.Option(metavar="FILE", help="PNG: crops with their masks, for eyes.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Also replace broken, empty or wrong-size masks.")
    ] = False,
) -> None:
    """Make the missing masks of crops with SAM-2: ROOT/<class>/masks/{stem}_mask.png.

    Example: tk data masks crops --sam2_ckpt facebook/sam2.1-hiera-large --sheet masks.png
    """
    from tk.train.data.masks.generate import generate_masks
    from tk.train.data.masks.masker import LazyMasker
    from tk.train.data.masks.sam2 import open_masker
    from tk.train.embedder.data import find_crops

    _, crops = find_crops(root)
    done = generate_masks(
        root,
        LazyMasker(lambda: open_masker(sam2_cfg, sam2_ckpt, device)),
        crops,
        min_iou=min_iou,
        min_area=min_area,
        max_area=max_area,
        batch_size=batch_size,
        overwrite=overwrite,
        report=report,
        sheet=sheet,
    )
    print(f"{root}: {done.summary()}")


@data.command()
def digits(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to make.")],
    size: Annotated[
        int, typer.Option(min=8, max=1024, help="Side of the pictures; 8: as in the data set.")
    ] = 64,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is in OUT.")] = False,
) -> None:
    """Write 1797 real handwritten digits as crops, no network needed: OUT/<class>/cropped/.

    Example: tk data digits digits
    """
    from tk.train.data.digits import write_digits

    count = write_digits(out, size=size, overwrite=overwrite)
    print(f"{out}: {count} digits of 10 classes; next: tk train embedder --data {out} --out RUN")


add_steel_commands(data)


def _train_detector(config: DetectorConfig) -> Path:
    from tk.train.detector.train import train_detector

    return train_detector(config)


def _train_segmenter(config: SegmenterConfig) -> Path:
    from tk.train.segmenter.train import train_segmenter

    return train_segmenter(config)


def _train_embedder(config: EmbedderConfig) -> Path:
    from tk.train.embedder.train import train_embedder

    return train_embedder(config)


def _train_student(config: StudentConfig) -> Path:
    from tk.train.student.train import train_student

    return train_student(config)


def _train_grounding(config: GroundingConfig) -> Path:
    from tk.train.grounding.train import train_grounding

    return train_grounding(config)


def _train_sam2(config: Sam2Config) -> Path:
    from tk.train.sam2.train import train_sam2

    return train_sam2(config)


def _train_ssl(config: SslConfig) -> None:
    from tk.train.run.launch import speaks
    from tk.train.ssl.train import train_ssl

    best = train_ssl(config)
    if speaks():
        made = f"; backbone: {config.export_backbone}" if config.export_backbone else ""
        print(f"done: {best}{made}; next: tk train embedder --model_id ... --weights {best}")


def _reported(run: Callable[[Any], Path]) -> Callable[[Any], None]:
    def report(config: Any) -> None:
        checkpoint = run(config)
        from tk.train.run.launch import speaks

        if speaks():
            print(f"done: {checkpoint}; next: tk export {checkpoint} BUNDLE --images DIR")

    return report


def _add(name: str, config: Any, run: Callable[[Any], Path], help: str) -> None:
    command = make_command(config, _reported(run), help)
    train.command(name, cls=command_class(config), help=help)(command)


DETECTORS: dict[str, Arch] = {
    "compact": (
        DetectorConfig,
        _reported(_train_detector),
        """Train a detector on COCO data (images/ and annotations.json).

        \b
        compact:          one stage, plain convolutions; minutes on a CPU
        grounding-dino:   finds what a prompt names; see --arch grounding-dino --help
        """,
    ),
    "grounding-dino": (
        GroundingConfig,
        _reported(_train_grounding),
        """Train or fine-tune GroundingDINO on COCO data: class names become phrases.

        OUT/model is a Hugging Face folder, and what `tk export OUT BUNDLE` reads.

        \b
        Fine-tune released weights:  tk train detector --arch grounding-dino --data DATA --out RUN
                                       --model IDEA-Research/grounding-dino-tiny --size 1024
        A small one, from nothing:   ... --model small
        """,
    ),
}
"""`tk train detector --arch NAME`."""

SEGMENTERS: dict[str, Arch] = {
    "compact": (
        SegmenterConfig,
        _reported(_train_segmenter),
        """Train a box-prompted segmenter on COCO data with masks.

        \b
        compact:  plain convolutions on the resampled box; minutes on a CPU
        sam2:     SAM-2; see --arch sam2 --help
        """,
    ),
    "sam2": (
        Sam2Config,
        _reported(_train_sam2),
        """Train or fine-tune SAM-2 on COCO data with masks, prompted by boxes.

        OUT/model is a Hugging Face folder, and what `tk export OUT BUNDLE` reads.

        \b
        Fine-tune released weights:  tk train segmenter --arch sam2 --data DATA --out RUN
                                       --model facebook/sam2.1-hiera-tiny
        A small one, from nothing:   ... --model small
        """,
    ),
}
"""`tk train segmenter --arch NAME`."""

add_arch_command(train, "detector", DETECTORS)
add_arch_command(train, "segmenter", SEGMENTERS)
_add(
    "embedder",
    EmbedderConfig,
    _train_embedder,
    """Train an ArcFace embedder on crops: DATA/<class>/cropped/*, with optional masks.

    A run that was interrupted goes on with the same command. At the end OUT holds report.html,
    checkpoint_best.pth for `tk export`, and prototypes.npz with gallery.json: OUT is a gallery.

    \b
    Head only, minutes on a CPU:    tk train embedder --data CROPS --out RUN --freeze_backbone
                                      --model_id vit_small_patch16_dinov3.lvd1689m
    The whole network, two GPUs:    tk train embedder --data CROPS --out RUN --gpus 2
                                      --layer_decay 0.8 --ema_decay 0.999 --precision bfloat16
    From your own weights:          ... --model_id vit_small_patch16_224 --weights dino.pth
    Crops with wrong labels:        ... --sub_centers 3 (then look at outliers.csv)
    """,
)

_add(
    "student",
    StudentConfig,
    _train_student,
    """Train a small classifier from pixels: on labels, and on what a large one says.

    The teacher may be slow: it is not needed afterwards. It looks at the same view of each crop as
    the student, at its own resolution, and may also explain crops that nobody labelled. Without a
    teacher labels alone count; so a teacher can be trained too. A run that was interrupted goes on
    with the same command. OUT holds checkpoint_best.pth, results.json, predictions.npz.

    \b
    From a chain (backbone + head):  tk train student --data CROPS --out RUN
                                       --teacher_head head.pth --teacher_backbone backbone.pth
    Crops without labels as well:    ... --unlabelled MORE --teacher_views 4
    From an image classifier:        ... --teacher TEACHER/checkpoint_best.pth
    The control, labels alone:       tk train student --data CROPS --out CONTROL
    """,
)

SSL_HELP = """Pre-train a ViT on pictures without labels: DINO, or iBOT with masked patches.

    A run that was interrupted goes on with the same command. OUT holds params.json, metrics.jsonl,
    checkpoint_last.pt, checkpoint_best.pt (teacher, student, heads, centre, optimizer, random
    numbers), artifacts.json and plots/.

    \b
    A ViT-S/16 from nothing:     tk train ssl --train-dir PHOTOS --output-dir RUN
                                   --export-backbone RUN/backbone.pt
    A few thousand pictures:     ... --preset small --image-size 64 --patch-size 8
                                   --vit-embed-dim 192 --vit-depth 6
    From released weights:       ... --model vit_small_patch14_dinov2.lvd142m --pretrained
                                   --freeze-backbone-epochs 1 --freeze-blocks 8 --lr 1e-5
    With labels for a yardstick: ... --probe-dir LABELLED   (LABELLED/<class>/...)
    """
train.command("ssl", cls=command_class(SslConfig), help=SSL_HELP)(
    make_command(SslConfig, _train_ssl, SSL_HELP)
)

DISTILL_HELP = """Compare classifiers on a frozen backbone: probe, teacher, distilled student.

    From Severstal's strips, or from crops by class, to a table with exact parameters, accuracy
    with its interval over seeds, and controls: a student without distillation, a student as large
    as the teacher, a backbone with random weights. A step whose options and files are the same as
    before is skipped; an interrupted run goes on with the same command.

    \b
    Generated strips:            tk data synth steel --kind steel --images 400 --balanced
                                 tk train distill --data steel --out RUN
    Kaggle's strips:             ... --data steel --download
    Crops by class:              tk data digits digits
                                 tk train distill --data digits --out RUN
    With the file of the seed:   tk train distill --config config.yaml --out RUN
    Your own backbone:           ... --model_id vit_small_patch16_224 --weights backbone.pth
    Fine-tuned without labels:   ... --ssl --ssl_lr 1e-4
    A student that sees pixels:  ... --student mobilenetv4_conv_small
    One step again:              ... --step train --force

    \b
    The table is in RUN/results_table.md, all figures are in RUN/results.json; latency:
    tk bench table RUN. docs/distill.toml is a file for --config with every section.
    """


def _train_distill(config: DistillConfig) -> None:
    from tk.train.distill.pipeline import train_distill
    from tk.train.distill.tables import said

    run = train_distill(config)
    print(said(run))


train.command("distill", cls=command_class(DistillConfig), help=DISTILL_HELP)(
    make_command(DistillConfig, _train_distill, DISTILL_HELP)
)

COMMANDS: dict[str, typer.Typer] = {"data": data, "train": train}
