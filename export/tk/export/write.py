"""Write a bundle: graphs, gate, probe, manifest; all of it or nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from tk.export.gate import Verdict, outside, run_gate, summarise
from tk.export.graph import OPSET, Graph, to_onnx
from tk.export.model import ExportModel
from tk.export.weights import SUFFIX
from tk.runtime.backends.base import Arrays
from tk.runtime.bundle import MANIFEST, PARITY, PROBE
from tk.runtime.errors import CheckFailed, TkError
from tk.runtime.files import atomic_folder, sha256_file, write_json
from tk.runtime.images import find_images, read_image
from tk.runtime.manifest import Artifact, Manifest
from tk.runtime.parity import chained_inputs
from tk.runtime.preprocess import ImageSpec, fit, spec_to_json

GATE_IMAGES = 16
"""Real images that the gate looks at; more only repeat the same arithmetic."""

PROBE_IMAGES = 2
REFERENCE = "onnxruntime-cpu"
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")
LIBRARIES = (
    *("tk-vision", "torch", "onnx", "onnxscript", "onnxruntime", "numpy", "timm"),
    *("transformers", "tokenizers"),
)


def load_canvases(folder: Path, spec: ImageSpec) -> NDArray[np.uint8]:
    """Put real images on the model's canvas, spread over the folder; unreadable ones are passed by.

    Returns:
        (n, H, W, 3) uint8, n <= GATE_IMAGES.

    Raises:
        TkError: not one readable image.
    """
    files = find_images(folder)
    step = max(1, len(files) // GATE_IMAGES)
    canvases = []
    for file in files[::step]:
        try:
            canvases.append(fit(spec, read_image(file))[0])
        except TkError:
            continue  # a broken file among the images proves nothing about the model
        if len(canvases) == GATE_IMAGES:
            break
    if not canvases:
        raise TkError(f"no readable image in {folder}: the gate needs real images")
    return np.stack(canvases)


def write_bundle(
    model: ExportModel,
    out: Path,
    images: Path,
    *,
    overwrite: bool = False,
    opset: int = OPSET,
) -> list[str]:
    """Export a model and prove it.

    Args:
        model: what to export.
        out: the bundle folder to make.
        images: folder of real images for the gate.
        overwrite: replace an existing bundle.
        opset: of the ONNX files: 18, or 17 for TensorRT 8.6.

    Returns:
        What was measured, one line per figure.

    Raises:
        CheckFailed: a graph or a figure is not fit to ship; nothing is kept.
    """
    canvases = load_canvases(images, model.image)
    with atomic_folder(out, overwrite=overwrite) as folder:
        graphs = {name: _graph(model, name, canvases, folder, opset) for name in model.parts}
        verdicts = run_gate(model, graphs, canvases)
        lines = summarise(verdicts)
        if not _all_proved(verdicts):
            failed = "\n    ".join(line for line in lines if line.startswith("FAIL"))
            raise CheckFailed(
                f"{out.name} does not give the answers of its PyTorch model; nothing was kept",
                found=failed,
                fix="report this model: the graph of a float32 export should be equal",
            )
        write_json(folder / PARITY, _parity_json(verdicts, len(canvases)))
        np.savez_compressed(folder / PROBE, allow_pickle=False, **_probe(model, canvases))
        for name, content in model.files.items():
            (folder / name).write_bytes(content)
        files = {name: sha256_file(folder / name) for name in (PARITY, PROBE, *model.files)}
        for artifact, graph in graphs.values():
            files |= {
                file: hashlib.sha256(data).hexdigest()
                for file, data in outside(artifact, graph).items()
            }
        artifacts = [artifact for artifact, _ in graphs.values()]
        write_json(folder / MANIFEST, _manifest(model, artifacts, files).to_json())
    return lines


def _graph(
    model: ExportModel, name: str, canvases: NDArray[np.uint8], folder: Path, opset: int
) -> tuple[Artifact, Graph]:
    part = model.parts[name]
    facts = {
        "tk.task": model.task,
        "tk.part": name,
        "tk.image": orjson.dumps(spec_to_json(model.image)).decode(),
        "tk.crop": orjson.dumps(spec_to_json(model.crop) if model.crop else None).decode(),
        "tk.classes": orjson.dumps(model.classes).decode(),
    }
    file = f"{name}.fp32.onnx"
    graph = to_onnx(part, part.feed(canvases, 2), facts, opset, file)
    about: dict[str, Any] = {"opset": opset}
    (folder / file).write_bytes(graph.data)
    if graph.weights:
        about["weights"] = file + SUFFIX
        (folder / (file + SUFFIX)).write_bytes(graph.weights)
    digest = hashlib.sha256(graph.data).hexdigest()
    size = len(graph.data) + len(graph.weights)
    return Artifact(file, digest, size, name, "onnx", "fp32", about), graph


def _probe(model: ExportModel, canvases: NDArray[np.uint8]) -> Arrays:
    """Real inputs and what PyTorch makes of them, for `tk verify` on machines without PyTorch.

    Parts run on what the part before them gave; intermediate features are not stored, because
    they are megabytes and the last part's answers prove them too.
    """
    probe: Arrays = {}
    given: Arrays = {}
    for name, part in model.parts.items():
        fed = part.feed(canvases, _probe_rows(model, name))
        outside = {key: value for key, value in fed.items() if key not in given}
        probe |= {f"input/{key}": value for key, value in outside.items()}
        found = part.run(chained_inputs(part.spec, given | outside))
        given |= outside | found
        last = name == list(model.parts)[-1]
        probe |= {f"output/{name}/{key}": value for key, value in found.items() if last}
    return probe


def _probe_rows(model: ExportModel, name: str) -> int:
    """One row for a part whose answers a later part takes one by one: else they would not fit."""
    given = {spec.name for spec in model.parts[name].spec.outputs}
    later = list(model.parts.values())[list(model.parts).index(name) + 1 :]
    taken = [spec for part in later for spec in part.spec.inputs if spec.name in given]
    return 1 if any(spec.shape[:1] == (1,) for spec in taken) else PROBE_IMAGES


def _all_proved(verdicts: Sequence[Verdict]) -> bool:
    """Whether every file passed on some back end; a pair that failed is kept out of use.

    A float32 graph has to pass on ONNX Runtime, which computes what the graph says; another back
    end may reach the right answer from a wrong graph by simplifying it.
    """
    judged = {(v.file, v.backend) for v in verdicts}
    passed = judged - {(v.file, v.backend) for v in verdicts if not v.measure.passed}
    return all(
        (file, REFERENCE) in passed
        if ".fp32." in file and (file, REFERENCE) in judged
        else file in {name for name, _ in passed}
        for file, _ in judged
    )


def _parity_json(verdicts: Sequence[Verdict], images: int) -> dict[str, Any]:
    pairs = sorted({(v.file, v.backend) for v in verdicts})
    return {
        "reference": "float32 PyTorch, eager, CPU",
        "images": images,
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
        "figures": [
            {
                "file": v.file,
                "backend": v.backend,
                "part": v.part,
                "test": v.test,
                "batch": v.batch,
                "output": v.measure.output,
                "metric": v.measure.metric,
                "value": v.measure.value,
                "threshold": v.measure.threshold,
                "passed": v.measure.passed,
            }
            for v in verdicts
        ],
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
        versions=_versions(),
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


def _versions() -> dict[str, str]:
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
