"""Write a bundle: graphs, gate, probe, manifest; all of it or nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from tk.export.existing import clear_leftovers, open_existing
from tk.export.gate import Verdict, summarise
from tk.export.graph import OPSET
from tk.export.model import ExportModel
from tk.export.pictures import Pictures, load_inputs
from tk.export.produce import Producer, Product, write_file
from tk.export.request import Request
from tk.runtime.backends.base import Arrays
from tk.runtime.bundle import MANIFEST, PARITY, PROBE
from tk.runtime.files import atomic_folder, locked, sha256_file, write_json
from tk.runtime.manifest import Artifact, Manifest
from tk.runtime.parity.parts import chained_inputs

PROBE_IMAGES = 2

PROBE_NEIGHBOURS = 16
"""The same for an embedder, whose pictures are each other's neighbours: at 224 pixels 2.4 MB."""
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")
LIBRARIES = (
    *("tk-vision", "torch", "onnx", "onnxscript", "onnxruntime", "numpy", "timm"),
    *("transformers", "tokenizers"),
)


def write_bundle(
    model: ExportModel,
    out: Path,
    images: Path | None,
    *,
    overwrite: bool = False,
    opset: int = OPSET,
    request: Request | None = None,
) -> list[str]:
    """Export a model and prove it; or add to a bundle of the same checkpoint what it lacks.

    Args:
        model: what to export.
        out: the bundle folder to make, or to add precisions to.
        images: folder of real images for the gate, and for calibration; what else it may be for
            models that see no images: `load_inputs`.
        overwrite: replace an existing bundle; nothing else is ever replaced.
        opset: of the ONNX files: 18, or 17 for TensorRT 8.6.
        request: precisions and kinds of files; float32 ONNX without.

    Returns:
        What was made and measured: a few lines per precision, then one per figure.

    Raises:
        CheckFailed: a graph or a figure is not fit to ship; nothing is kept.
        EnvironmentLacks: plans are asked for where they cannot be built.
        TkError: another export writes there; or what is there cannot be added to.
    """
    request = request or Request()
    request.check_machine()
    open_existing(out, request, overwrite=overwrite)  # before any work
    pictures = load_inputs(model, images, request.images_to_calibrate)
    busy = f"another tk export is writing {out}"
    with locked(out, busy=busy):
        clear_leftovers(out)
        old = open_existing(out, request, overwrite=overwrite)
        if old is not None:
            old.must_match(model, identity(model.checkpoint), opset)
        replace = overwrite or old is not None
        with atomic_folder(out, overwrite=replace, own=MANIFEST) as folder:
            producer = Producer(model, pictures, opset, request, folder)
            graphs = producer.make_float32() if old is None else old.graphs()
            for precision in request.precisions[1:]:
                if old is None or precision not in old.precisions:
                    producer.lower(precision, graphs)
            product = producer.product
            if old is None:
                _finish(model, pictures, product, folder, request)
            else:
                old.finish(product, _parity_json(product, pictures, request), folder)
    return [*pictures.lines(), *product.summary, *summarise(product.judgement.verdicts)]


def _finish(
    model: ExportModel, pictures: Pictures, product: Product, folder: Path, request: Request
) -> None:
    """Write everything; the manifest last."""
    for file in product.files:
        write_file(file, folder)
    write_json(folder / PARITY, _parity_json(product, pictures, request))
    np.savez_compressed(folder / PROBE, allow_pickle=False, **_probe(model, pictures.gate))
    for name, content in model.files.items():
        (folder / name).write_bytes(content)
    files = {name: sha256_file(folder / name) for name in (PARITY, PROBE, *model.files)}
    files |= {
        file.artifact.weights: hashlib.sha256(file.weights).hexdigest()
        for file in product.files
        if file.weights
    }
    artifacts = [file.artifact for file in product.files]
    write_json(folder / MANIFEST, _manifest(model, artifacts, files).to_json())


def _probe(model: ExportModel, canvases: NDArray[Any]) -> Arrays:
    """Real inputs and what PyTorch makes of them, for `tk verify` on machines without PyTorch.

    Parts run on what the part before them gave; intermediate features are not stored, because
    they are megabytes and the last part's answers prove them too.
    """
    probe: Arrays = {}
    given: Arrays = {}
    for name, part in model.parts.items():
        fed = part.feed(canvases, _probe_rows(model, name, len(canvases)))
        outside = {key: value for key, value in fed.items() if key not in given}
        probe |= {f"input/{key}": value for key, value in outside.items()}
        found = part.run(chained_inputs(part.spec, given | outside))
        given |= outside | found
        last = name == list(model.parts)[-1]
        probe |= {f"output/{name}/{key}": value for key, value in found.items() if last}
    return probe


def _probe_rows(model: ExportModel, name: str, pictures: int) -> int:
    """As many as the part takes; one where a later part takes its answers one by one."""
    if model.task == "embedder":
        return min(PROBE_NEIGHBOURS, max(PROBE_IMAGES, pictures))
    given = {spec.name for spec in model.parts[name].spec.outputs}
    later = list(model.parts.values())[list(model.parts).index(name) + 1 :]
    taken = [spec for part in later for spec in part.spec.inputs if spec.name in given]
    if any(spec.shape[:1] == (1,) for spec in taken):
        return 1
    return min(PROBE_IMAGES, model.parts[name].spec.max_batch)


def _parity_json(product: Product, pictures: Pictures, request: Request) -> dict[str, Any]:
    verdicts = product.judgement.verdicts
    pairs = sorted({(v.file, v.backend) for v in verdicts})
    report: dict[str, Any] = {
        "reference": "float32 PyTorch, eager, CPU",
        "images": len(pictures.gate),
        "exports": [
            {
                "precisions": sorted({file.artifact.precision for file in product.files}),
                "images": len(pictures.gate),
                "versions": library_versions(),
            }
        ],
        **({"note": pictures.note} if pictures.note else {}),
        "broken_images": list(pictures.broken),
        "verdicts": [
            {
                "file": file,
                "backend": backend,
                "passed": all(
                    v.measure.passed for v in verdicts if (v.file, v.backend) == (file, backend)
                ),
            }
            for file, backend in pairs
        ],
        "refusals": [asdict(refusal) for refusal in product.judgement.refusals],
        "precisions": product.precisions,
        "figures": [_figure_json(verdict) for verdict in verdicts],
    }
    if request.images_to_calibrate:
        report["calibration"] = {
            "method": request.method,
            "images": len(pictures.calibration),
            "shared_with_gate": pictures.shared,
        }
    return report


def _figure_json(verdict: Verdict) -> dict[str, Any]:
    measure = verdict.measure
    return {
        "file": verdict.file,
        "backend": verdict.backend,
        "part": verdict.part,
        "test": verdict.test,
        "batch": verdict.batch,
        "output": measure.output,
        "metric": measure.metric,
        "value": measure.value,
        "threshold": measure.threshold,
        "passed": measure.passed,
    }


def _manifest(model: ExportModel, artifacts: Sequence[Artifact], files: dict[str, str]) -> Manifest:
    source = {
        **model.source,
        **identity(model.checkpoint),
        "parameters": model.parameters,
    }
    return Manifest(
        task=model.task,
        image=model.image,
        crop=model.crop,
        parts={name: part.spec for name, part in model.parts.items()},
        classes=model.classes,
        settings=model.settings,
        source=source,
        versions=library_versions(),
        licence=model.licence,
        artifacts=tuple(artifacts),
        files=files,
    )


def identity(checkpoint: Path) -> dict[str, Any]:
    """Name and hash of a checkpoint; for a folder, of its configuration and weights."""
    if checkpoint.is_file():
        return {"file": checkpoint.name, "sha256": sha256_file(checkpoint)}
    files = [
        file
        for file in sorted(checkpoint.iterdir())
        if file.is_file() and (file.suffix in WEIGHTS or file.name == "config.json")
    ]
    hashes = {file.name: sha256_file(file) for file in files}
    whole = hashlib.sha256(orjson.dumps(hashes)).hexdigest()
    return {"file": checkpoint.name, "sha256": whole, "files": hashes}


def library_versions() -> dict[str, str]:
    """What is installed of the libraries that an export depends on."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
