"""Bundles of the models of a distillation run: exported once, again when a checkpoint changed."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from tk.export.sources.registry import open_source
from tk.export.write import write_bundle
from tk.runtime.bundle import Bundle
from tk.runtime.errors import TkError
from tk.runtime.files import sha256_file
from tk.train.classifier.checkpoint import Loaded, load_classifier, load_encoder
from tk.train.classifier.cost import head_multiply_adds, multiply_adds
from tk.train.classifier.heads import count_parameters
from tk.train.classifier.model import FeatureClassifier
from tk.train.distill.results import Row

FOLDER = "bundles"


@dataclass(frozen=True)
class Model:
    """One row's model from pixels.

    Attributes:
        row: of results.json.
        network: what it is made of, for a person; rows with equal networks cost the same.
        parameters: of the whole chain.
        mflops: millions of floating-point operations per picture (two per multiply-add).
        same_as: name of the row whose measurement holds for this one too; its own where it is
            measured itself.
    """

    row: Row
    network: str
    parameters: int
    mflops: float
    same_as: str


def describe_chains(run: Path, rows: list[Row]) -> list[Model]:
    """Say of every row what runs from pixels to class.

    Raises:
        TkError: a checkpoint is missing or damaged.
    """
    costs: dict[str, tuple[int, float]] = {}
    first: dict[str, str] = {}
    models = []
    for row in rows:
        loaded = load_classifier(run / row.checkpoint)
        shape = loaded.architecture
        trunk = f"{shape.model_id} at {shape.img_size}"
        if trunk not in costs:
            costs[trunk] = _trunk(run / row.backbone if row.backbone else None, loaded)
        weights, mflops = costs[trunk]
        layers = (shape.features, *shape.head.hidden, len(loaded.classes))
        network = f"{trunk} + {'-'.join(map(str, layers))}"
        head = loaded.model.head
        inside = 2 * head_multiply_adds(head) / 1e6
        same = first.setdefault(network, row.name)
        parameters = weights + count_parameters(head)
        models.append(Model(row, network, parameters, mflops + inside, same))
    return models


def _trunk(backbone: Path | None, loaded: Loaded) -> tuple[int, float]:
    """Parameters and MFLOPs of a backbone."""
    if backbone is not None:
        encoder = load_encoder(backbone)[0]
    elif isinstance(loaded.model, FeatureClassifier):
        raise TkError("results.json names a head without its backbone", fix="run compare again")
    else:
        encoder = loaded.model.encoder
    return count_parameters(encoder), 2 * multiply_adds(encoder) / 1e6


def export_head(run: Path, row: Row, max_batch: int) -> Bundle:
    """Bundle of a head alone."""
    return _export(run, run / FOLDER / "heads" / row.name, row.checkpoint, "", None, max_batch)


def export_chain(run: Path, row: Row, images: Path, max_batch: int) -> Bundle:
    """Bundle that sees pixels: backbone and head in one graph, or a student."""
    out = run / FOLDER / "chains" / row.name
    return _export(run, out, row.checkpoint, row.backbone, images, max_batch)


def _export(
    run: Path, out: Path, checkpoint: str, backbone: str, images: Path | None, max_batch: int
) -> Bundle:
    """Export, unless the bundle is there and of this very checkpoint.

    A head names its backbone by digest and is refused with another one, so its own hash says
    whether a chain is still the same.
    """
    source = run / checkpoint
    if not source.is_file():
        raise TkError(
            f"{source} does not exist, but results.json names it",
            fix="tk train distill with the options of this run makes what is missing",
        )
    if (found := _unchanged(out, sha256_file(source), max_batch)) is not None:
        return found
    print(f"export {out.relative_to(run)}", file=sys.stderr)
    model = open_source(source, max_batch, backbone=run / backbone if images and backbone else None)
    write_bundle(model, out, images, overwrite=True)
    return Bundle.open(out, "classifier")


def _unchanged(out: Path, sha256: str, max_batch: int) -> Bundle | None:
    if not out.is_dir():
        return None
    try:
        bundle = Bundle.open(out, "classifier")
    except TkError as error:
        print(f"{out.name} is exported again: {error.what}", file=sys.stderr)
        return None
    manifest = bundle.manifest
    same = manifest.source.get("sha256") == sha256
    return bundle if same and manifest.parts["model"].max_batch >= max_batch else None
