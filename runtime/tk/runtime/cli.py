"""Commands of the runtime: doctor, verify, gallery, annotate, classify, report: without PyTorch."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tk.cli import single
from tk.runtime.classify.cli import classify
from tk.runtime.gallery.cli import gallery
from tk.runtime.options import (
    AsJson,
    BackendOption,
    DeviceOption,
    Overwrite,
    PrecisionOption,
    Search,
    SearchOption,
    Threads,
    print_json,
)

if TYPE_CHECKING:
    from tk.runtime.verify import VerifyRow


class AssignMode(str, Enum):
    """How classes are given."""

    unique = "unique"
    greedy = "greedy"
    free = "free"


class NmsBy(str, Enum):
    """What decides between two boxes that overlap."""

    score = "score"
    area = "area"


def doctor(as_json: AsJson = False) -> None:
    """Show what this machine has and lacks, and the commands that get it.

    Python, CPU, GPUs, back ends with versions, packages; for a plain CPU, a computer with an
    NVIDIA GPU (CUDA 12 or 13) and a Jetson.
    """
    from dataclasses import asdict

    from tk.runtime.doctor import examine
    from tk.runtime.machine import this_machine

    lines = examine()
    if as_json:
        print_json([asdict(line) for line in lines])
        return
    marks = {"ok": "ok     ", "missing": "MISSING", "none": "-      "}
    for line in lines:
        if line.state in marks:
            print(f"{marks[line.state]}  {line.topic:<9} {line.name:<18} {line.text}")
    print(f"\nThis is {this_machine().kind}. What runs models on one:")
    for line in lines:
        if line.state == "advice":
            print(f"  {line.text}  # {line.name}")


def verify(
    bundle: Annotated[Path, typer.Argument(help="Folder that `tk export` wrote.")],
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
    backend: BackendOption = "auto",
    record: Annotated[
        bool,
        typer.Option(
            "--record",
            help="Let pairs that `tk export` could not judge be used, if they pass here.",
        ),
    ] = False,
    threads: Threads = 0,
    as_json: AsJson = False,
) -> None:
    """Check a bundle on this machine: every hash, then parity with the probe. No PyTorch needed.

    Runs every precision on every back end that this machine has, and says why it passes others by.
    Exit code 1 when a hash is wrong, or a figure of what is in use or was asked for.

    Example: tk verify bundles/detector --backend openvino --record
    """
    from tk.runtime.errors import CheckFailed
    from tk.runtime.verify import record as keep
    from tk.runtime.verify import verify as run

    opened, rows = run(bundle, threads, device=device, precision=precision, backend=backend)
    added = keep(opened, rows) if record else []
    if as_json:
        print_json([line for row in rows for line in _figures(row)])
    else:
        count = len(opened.manifest.artifacts) + len(opened.manifest.files) + 1
        print(f"{bundle}: {opened.manifest.task}, {count} files, all hashes match")
        for row in rows:
            _show(row)
        for pair in added:
            print(f"  recorded: {pair}")
    asked = (precision, backend) != ("auto", "auto")
    wrong = [row for row in rows if not row.passed and (row.judged or asked)]
    if wrong:
        pairs = ", ".join(f"{row.precision} on {row.backend}" for row in wrong)
        raise CheckFailed(
            f"bundle {bundle} does not give the answers of its PyTorch model here", found=pairs
        )


def _figures(row: VerifyRow) -> list[dict[str, Any]]:
    """One dict per figure; one without figures for a pair that did not run."""
    pair = {
        "precision": row.precision,
        "backend": row.backend,
        "in_use": row.judged,
        "skipped": row.skipped,
    }
    if row.skipped:
        return [pair]
    return [
        {
            **pair,
            "part": part,
            "file": row.files[part],
            "output": measure.output,
            "metric": measure.metric,
            "value": measure.value,
            "threshold": measure.threshold,
            "passed": measure.passed,
        }
        for part, measures in row.measures.items()
        for measure in measures
    ]


def _show(row: VerifyRow) -> None:
    pair = f"{row.precision} on {row.backend}"
    if row.skipped:
        print(f"  -    {pair}: not here ({row.skipped})")
        return
    for part, measures in row.measures.items():
        for measure in measures:
            verdict = "ok  " if measure.passed else "FAIL"
            print(f"  {verdict} {pair}: {part}/{measure.output} {measure}")
    if not row.judged:
        advice = "--record lets it be used" if row.passed else "it stays out of use"
        print(f"       {pair} was not judged when the bundle was exported: {advice}")


def annotate(
    images: Annotated[
        Path,
        typer.Argument(metavar="IMAGES", help="Folder of photos (with sub-folders), or one."),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the results.")],
    gallery: Annotated[
        Path, typer.Option(help="Gallery folder, prototypes.npz, or reference pictures.")
    ],
    bundles: Annotated[
        Path | None, typer.Option(help="Folder with detector/, segmenter/ and embedder/.")
    ] = None,
    detector: Annotated[Path | None, typer.Option(help="Detector bundle.")] = None,
    segmenter: Annotated[Path | None, typer.Option(help="Segmenter bundle.")] = None,
    embedder: Annotated[Path | None, typer.Option(help="Embedder bundle.")] = None,
    prompt: Annotated[
        str | None,
        typer.Option(help='What a text detector looks for: "wrench . pliers ." [the baked, tool.]'),
    ] = None,
    box_threshold: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Drop proposals scored below.")
    ] = 0.25,
    text_threshold: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Tokens scored above it make the phrase.")
    ] = 0.25,
    nms_iou: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Drop the weaker of two boxes overlapping more.")
    ] = 0.5,
    nms_by: Annotated[
        NmsBy, typer.Option(help="Which of two boxes is the weaker: by score, or by area.")
    ] = NmsBy.score,
    max_boxes: Annotated[int, typer.Option(min=1, help="At most so many per picture.")] = 100,
    search: SearchOption = Search.centroid,
    assign: Annotated[
        AssignMode,
        typer.Option(help="unique: each class once per picture, optimal; greedy; free: repeats."),
    ] = AssignMode.unique,
    unknown_threshold: Annotated[
        float | None,
        typer.Option(min=-1.0, max=1.0, help="Similarity below it is `unknown` [gallery's own]."),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Photos that share a batch.")] = 4,
    limit: Annotated[int, typer.Option(min=0, help="Only the first so many photos, 0: all.")] = 0,
    max_pixels: Annotated[
        int, typer.Option(min=1, help="Larger photos become records with an error.")
    ] = 500_000_000,
    masks: Annotated[bool, typer.Option(help="Write mask_rle.")] = True,
    pictures: Annotated[bool, typer.Option(help="Draw boxes, masks and classes.")] = True,
    picture_size: Annotated[int, typer.Option(min=16, help="Longer side of drawings, px.")] = 1600,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
    backend: BackendOption = "auto",
    threads: Threads = 0,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Find, cut out and name the objects in a folder of photos.

    Writes OUT/predictions.json, OUT/timings.csv, OUT/summary.json and OUT/pictures/. A photo that
    cannot be read becomes a record with `error`, and the run goes on.

    Example: tk annotate photos out --bundles demo/bundles --gallery demo/gallery
    """
    from tk.runtime.annotate.annotator import AnnotateOptions, Models
    from tk.runtime.annotate.annotator import annotate as run
    from tk.runtime.heads.detector import DetectorOptions
    from tk.runtime.heads.text_detector import TextOptions

    options = AnnotateOptions(
        detector=DetectorOptions(box_threshold, nms_iou, max_boxes, nms_by.value),
        text=TextOptions(prompt, text_threshold),
        search=search.value,
        assign=assign.value,
        unknown_threshold=unknown_threshold,
        batch_size=batch_size,
        device=device,
        precision=precision,
        backend=backend,
        threads=threads,
        masks=masks,
        pictures=pictures,
        picture_size=picture_size,
        max_pixels=max_pixels,
        limit=limit,
    )
    models = Models(
        _bundle("detector", detector, bundles),
        _bundle("segmenter", segmenter, bundles),
        _bundle("embedder", embedder, bundles),
    )
    summary = run(images, out, models, gallery, options, overwrite=overwrite)
    if as_json:
        print_json(summary)
        return
    print(
        f"{summary['images']} photos, {summary['detections']} objects "
        f"({summary['unknown']} unknown), {summary['errors']} unreadable, "
        f"{summary['seconds']:.1f} s"
    )
    for session in summary["sessions"]:
        print(f"  {session['name']} on {session['backend']}: {session['why']}")
    print(f"  search: {summary['search']}")
    print(f"results: {out}/predictions.json, timings.csv, pictures/; look: tk report {out}")


def _bundle(task: str, own: Path | None, bundles: Path | None) -> Path:
    from tk.runtime.errors import TkError

    if own is not None:
        return own
    if bundles is None:
        raise TkError(f"no {task} given", fix=f"add --bundles DIR, or --{task} BUNDLE")
    return bundles / task


def report(
    results: Annotated[Path, typer.Argument(help="Folder that `tk annotate` wrote.")],
    title: Annotated[str, typer.Option(help="Heading of the page.")] = "Annotation results",
) -> None:
    """Write RESULTS/report.html: thumbnails, classes and scores, most doubtful first."""
    from tk.runtime.annotate.output import PREDICTIONS, picture_names
    from tk.runtime.records import load_predictions
    from tk.runtime.report import write_report

    predictions = load_predictions(results / PREDICTIONS)
    names = picture_names([record["image"] for record in predictions])

    def picture(name: str) -> str | None:
        return names[name] if (results / names[name]).is_file() else None

    path = write_report(predictions, results / "report.html", pictures=picture, title=title)
    print(path)


COMMANDS: dict[str, typer.Typer] = {
    "doctor": single(doctor),
    "verify": single(verify),
    "gallery": gallery,
    "annotate": single(annotate),
    "classify": single(classify),
    "report": single(report),
}
