"""`tk gallery`: build, evaluate and search class prototypes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tk.cli import group
from tk.runtime.options import (
    AsJson,
    DeviceOption,
    Overwrite,
    Search,
    SearchOption,
    Threads,
    print_json,
)

if TYPE_CHECKING:  # `tk gallery --help` must be quick
    from tk.runtime.heads.embedder import Embedder
    from tk.runtime.heads.segmenter import Segmenter

EmbedderOption = Annotated[Path, typer.Option("--embedder", help="Bundle of the embedder.")]
SegmenterOption = Annotated[
    Path | None,
    typer.Option("--segmenter", help="Bundle that cuts masked pictures out as `tk annotate` will."),
]
ThresholdOption = Annotated[
    float | None,
    typer.Option(min=-1.0, max=1.0, help="Similarity below it is `unknown` [gallery's own]."),
]
GalleryArgument = Annotated[Path, typer.Argument(help="Gallery folder, or prototypes.npz.")]

gallery = group("Class prototypes: what `tk annotate` compares objects with.")


def _heads(
    embedder: Path, segmenter: Path | None, device: str, threads: int
) -> tuple[Embedder, Segmenter | None]:
    from tk.runtime.bundle import Bundle
    from tk.runtime.heads.embedder import Embedder
    from tk.runtime.heads.segmenter import Segmenter

    head = Embedder(Bundle.open(embedder, "embedder"), device=device, threads=threads)
    if segmenter is None:
        return head, None
    bundle = Bundle.open(segmenter, "segmenter")
    return head, Segmenter(bundle, device=device, threads=threads)


@gallery.command("build")
def gallery_build(
    references: Annotated[
        Path, typer.Argument(help="REFERENCES/<class>/[cropped/]*.jpg, several per class.")
    ],
    out: Annotated[Path, typer.Argument(help="Gallery folder to make.")],
    embedder: EmbedderOption,
    segmenter: SegmenterOption = None,
    false_rejections: Annotated[
        float, typer.Option(min=0.0, max=0.5, help="Share of true objects `unknown` may take.")
    ] = 0.02,
    sub_prototypes: Annotated[
        int, typer.Option(min=0, max=1000, help="Centres per class for --search sub, 0: none.")
    ] = 0,
    device: DeviceOption = "auto",
    threads: Threads = 0,
    seed: Annotated[int, typer.Option(help="Of held-out references and sub-prototypes.")] = 0,
    overwrite: Overwrite = False,
) -> None:
    """Embed reference pictures, make prototypes, and calibrate the `unknown` threshold.

    Masks are honoured: `<class>/cutouts/{stem}_cutout.png`, `<class>/masks/{stem}_mask.png`, or the
    alpha channel of the reference itself.

    With --segmenter they only say where the object is: it is cut out by the model, so prototypes
    and threshold are made of what `tk annotate` will see.

    Example: tk gallery build crops gallery --embedder demo/bundles/embedder
    """
    from tk.runtime.files import refuse_inputs
    from tk.runtime.gallery.build import build_gallery
    from tk.runtime.gallery.gallery import refuse_no_gallery

    inputs = {"REFERENCES": references, "--embedder": embedder, "--segmenter": segmenter}
    refuse_inputs(out, inputs)
    refuse_no_gallery(out, overwrite=overwrite)
    head, cutter = _heads(embedder, segmenter, device, threads)
    built, report = build_gallery(
        references,
        head,
        cutter,
        false_rejections=false_rejections,
        seed=seed,
        sub_prototypes=sub_prototypes,
    )
    built.save(out, overwrite=overwrite)
    print(f"{out}: {len(built.classes)} classes, {report.references} references")
    for sentence in report.skipped:
        print(f"  skipped: {sentence}")
    facts = built.facts["calibration"]
    if "measured" not in facts:
        print(f"  threshold: {facts['method']}")
        return
    for mode, threshold in built.thresholds.items():
        print(
            f"  {mode}: unknown below {threshold:.3f}, accuracy {facts[f'accuracy_{mode}']:.3f} on "
            f"{facts['held_out']} held-out, {_rejections(facts['measured'][mode])}"
        )


def _rejections(measured: dict[str, Any]) -> str:
    if not measured["of"]:
        return "false rejections not measured"
    low, high = measured["interval"]
    return f"false rejections {measured['false_rejections']:.3f} ({low:.3f} to {high:.3f})"


@gallery.command("evaluate")
def gallery_evaluate(
    gallery: GalleryArgument,
    references: Annotated[
        Path, typer.Argument(help="REFERENCES/<class>/[cropped/]*.jpg, not seen by the gallery.")
    ],
    embedder: EmbedderOption,
    segmenter: SegmenterOption = None,
    search: SearchOption = Search.centroid,
    unknown_threshold: ThresholdOption = None,
    device: DeviceOption = "auto",
    threads: Threads = 0,
    as_json: AsJson = False,
) -> None:
    """Measure how well a gallery names pictures of known classes, and what it turns away.

    Classes that are not in the gallery are outsiders: `unknown` is the right answer for them.

    Example: tk gallery evaluate gallery other-crops --embedder demo/bundles/embedder
    """
    from tk.runtime.gallery.evaluate import evaluate_gallery
    from tk.runtime.gallery.gallery import open_gallery
    from tk.runtime.gallery.table import evaluation_lines

    opened = open_gallery(gallery)
    head, cutter = _heads(embedder, segmenter, device, threads)
    figures = evaluate_gallery(
        opened,
        references,
        head,
        cutter,
        search=search.value,
        threshold=unknown_threshold,
        device=device,
    )
    if as_json:
        print_json(figures)
        return
    for line in evaluation_lines(figures):
        print(line)


@gallery.command("search")
def gallery_search(
    gallery: GalleryArgument,
    images: Annotated[list[Path], typer.Argument(help="Pictures of one object each, or folders.")],
    embedder: EmbedderOption,
    segmenter: SegmenterOption = None,
    search: SearchOption = Search.centroid,
    unknown_threshold: ThresholdOption = None,
    top: Annotated[int, typer.Option(min=1, help="Classes to show per picture.")] = 5,
    device: DeviceOption = "auto",
    threads: Threads = 0,
    as_json: AsJson = False,
) -> None:
    """Rank the classes of a gallery by similarity to pictures of single objects.

    A mask is taken from an alpha channel, or from `cutouts/` or `masks/` beside the picture.

    Example: tk gallery search gallery wrench.png --embedder demo/bundles/embedder
    """
    from tk.runtime.gallery.gallery import open_gallery
    from tk.runtime.gallery.query import rank_pictures

    opened = open_gallery(gallery)
    head, cutter = _heads(embedder, segmenter, device, threads)
    found = rank_pictures(
        opened,
        images,
        head,
        cutter,
        search=search.value,
        threshold=unknown_threshold,
        device=device,
        top=top,
    )
    if as_json:
        print_json(found)
        return
    for answer in found:
        ranked = ", ".join(f"{row['class']} {row['similarity']:.3f}" for row in answer["ranked"])
        print(f"{answer['image']}: {answer['class']}  ({ranked or answer['error']})")
