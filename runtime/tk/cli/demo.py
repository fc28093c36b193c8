"""`tk demo`: public commands in a row, printed as they run, to be repeated by hand."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from tk.cli import single


@dataclass(frozen=True)
class Scale:
    """How much the demo draws and trains; numbers of steps, not times, so that it repeats.

    Attributes:
        scenes: generated scenes for training.
        references: scenes whose crops become the gallery.
        held_out: scenes that no training sees, for the results.
        detector, segmenter: optimizer steps.
        embedder: epochs.
        bench: images of the benchmark.
    """

    scenes: int
    references: int
    held_out: int
    detector: int
    segmenter: int
    embedder: int
    bench: int


FULL = Scale(600, 60, 40, 450, 900, 7, 8)
QUICK = Scale(60, 16, 4, 120, 150, 2, 2)


class Arch(str, Enum):
    """What finds and cuts out: models trained here, or shipped weights of the published kind."""

    compact = "compact"
    words = "grounding-dino-sam2"


SHIPPED = {"detector": "tk/grounding-dino-tools", "segmenter": "tk/sam2-tools"}
"""Small models that come with tk; `README.md` beside their weights says how they were made."""

PROMPT = "wrench . pliers . cutters . screwdriver . brace . opener ."
"""Last words of the names of the eleven generated tools."""


@dataclass(frozen=True)
class Step:
    """One command and the folder that it makes."""

    arguments: tuple[str, ...]
    makes: Path

    @property
    def line(self) -> str:
        """The command as a user types it."""
        return shlex.join(("tk", *self.arguments))


def steps(out: Path, scale: Scale, arch: Arch = Arch.compact) -> Iterator[Step]:
    """Yield the commands of the demo, in order."""
    scenes, runs, bundles, gallery = (
        out / name for name in ("scenes", "runs", "bundles", "gallery")
    )
    train, held_out = scenes / "train", scenes / "held-out"

    def step(makes: Path, *arguments: object) -> Step:
        return Step(tuple(str(argument) for argument in arguments), makes)

    drawn = (
        (train, scale.scenes, 768, 0),
        (scenes / "references", scale.references, 1024, 1),
        (held_out, scale.held_out, 1024, 7),  # not the seed that the settings were chosen on
    )
    for folder, number, size, seed in drawn:
        yield step(
            folder,
            *("data", "synth", folder, "--kind", "tools", "--images", number),
            *("--size", size, "--seed", seed, "--workers", 2),
        )
    if arch is Arch.compact:
        yield from _compact_trainings(train, runs, scale, step)
    yield step(
        runs / "embedder",
        *("train", "embedder", "--data_root", train / "crops", "--out_dir", runs / "embedder"),
        *("--model_id", "test_resnet", "--no-pretrained", "--img_size", 96),
        *("--crop_mode", "mask", "--batch", 32, "--lr", 3e-3, "--margin_warmup", 0.8),
        *("--val_split", 0.1, "--test_split", 0, "--precision", "auto"),
        *("--epochs", scale.embedder),
    )
    ready: dict[str, str] = SHIPPED if arch is Arch.words else {}
    for task in ("detector", "segmenter", "embedder"):
        images = train / "crops" if task == "embedder" else train / "images"
        source = ready.get(task, runs / task)
        yield step(bundles / task, "export", source, bundles / task, "--images", images)
    yield step(
        gallery,
        *("gallery", "build", scenes / "references" / "crops", gallery),
        *("--embedder", bundles / "embedder", "--segmenter", bundles / "segmenter"),
    )
    results = out / "out"
    prompt = ("--prompt", PROMPT) if arch is Arch.words else ()
    yield step(
        results,
        *("annotate", held_out / "images", results, "--bundles", bundles, "--gallery", gallery),
        *prompt,
    )
    yield step(results / "report.html", "report", results)
    yield step(
        out / "bench",
        *("bench", "annotator", out / "bench", "--images", held_out / "images"),
        *("--bundles", bundles, "--gallery", gallery, "--source", runs),
        *("--truth", held_out / "annotations.json", "--predictions", results / "predictions.json"),
        *("--limit", scale.bench, "--repeats", 2),
        *prompt,
    )


def _compact_trainings(
    train: Path, runs: Path, scale: Scale, step: Callable[..., Step]
) -> Iterator[Step]:
    yield step(
        runs / "detector",
        *("train", "detector", "--data", train, "--out", runs / "detector"),
        *("--single-class", "tool", "--size", 256, "--precision", "auto"),
        *("--steps", scale.detector),
    )
    yield step(
        runs / "segmenter",
        *("train", "segmenter", "--data", train, "--out", runs / "segmenter"),
        *("--precision", "auto", "--steps", scale.segmenter),
    )


def run_steps(out: Path, scale: Scale, arch: Arch = Arch.compact) -> None:
    """Run what is not finished yet; stop at the first command that fails.

    A step counts as finished when its very command line finished before, what it makes is still
    there, and no step before it had to run again.
    """
    record = out / ".finished.json"
    finished: list[str] = json.loads(record.read_text()) if record.is_file() else []
    done: list[str] = []
    fresh = True
    started = time.monotonic()
    for step in steps(out, scale, arch):
        print(f"\n$ {step.line}", flush=True)
        fresh = fresh and step.line in finished and step.makes.exists()
        if fresh:
            print(f"finished earlier: {step.makes}")
        else:
            _run(step)
        done.append(step.line)
        out.mkdir(parents=True, exist_ok=True)
        record.write_text(json.dumps(done, indent=1))
    print(
        f"\nThe whole chain took {time.monotonic() - started:.0f} s. Look at:\n"
        f"  {out}/out/report.html        the results as a page\n"
        f"  {out}/out/pictures/          boxes, masks and classes on held-out scenes\n"
        f"  {out}/out/predictions.json   the records\n"
        f"  {out}/bench/results.md       speed against PyTorch, equality, quality (printed above)\n"
        f"Now your own photos: tk annotate PHOTOS OUT --bundles {out}/bundles "
        f"--gallery {out}/gallery"
        + (f" --prompt {shlex.quote(PROMPT)}" if arch is Arch.words else "")
    )


def _run(step: Step) -> None:
    # What is there belongs to an older or unfinished run of this step; `report` replaces its page.
    again = step.makes.exists() and step.arguments[0] != "report"
    arguments = [*step.arguments, *(["--overwrite"] if again else [])]
    code = subprocess.run([sys.executable, "-m", "tk.cli", *arguments], check=False).returncode
    if code in (130, -2):
        from tk.runtime.errors import Interrupted

        raise Interrupted("interrupted; `tk demo` again goes on from the finished steps")
    if code:
        print(f"error: this command failed with exit code {code}:\n  {step.line}", file=sys.stderr)
        raise typer.Exit(code if code > 0 else 3)


def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything the demo makes.")] = Path("demo"),
    quick: Annotated[
        bool,
        typer.Option("--quick", help="A look at the mechanics in a minute or two; poor results."),
    ] = False,
    arch: Annotated[
        Arch,
        typer.Option(
            help="compact: all three models are trained here; grounding-dino-sam2: small models of "
            "these kinds that come with tk find tools by words and cut them out, less well."
        ),
    ] = Arch.compact,
) -> None:
    """Run the whole chain on generated scenes: draw, train, export, annotate, report, compare.

    Nothing here is special: every line that starts with $ is a command to repeat by hand. Run
    again, it reuses what is finished.
    """
    from tk.runtime.errors import EnvironmentLacks

    needed = ["torch", "timm", "onnx", "onnxruntime", "faiss"]
    needed += ["transformers"] if arch is Arch.words else []
    lacks = [name for name in needed if not _has(name)]
    if lacks:
        raise EnvironmentLacks(
            f"the demo trains and exports; missing: {', '.join(lacks)}",
            fix="pip install 'tk-vision[cpu,train,export]', or `make demo`",
        )
    run_steps(out, QUICK if quick else FULL, arch)


def _has(module: str) -> bool:
    from importlib.util import find_spec

    return find_spec(module) is not None


COMMANDS: dict[str, typer.Typer] = {"demo": single(demo)}
