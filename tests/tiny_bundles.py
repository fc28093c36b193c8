"""Tiny but real bundles, written as ONNX text: they find, cut out and name a bright blob.

The detector boxes all pixels brighter than 128 in some channel, the segmenter gives exactly these
pixels, the embedder is the mean colour. So results on painted pictures are known in closed form,
and a runtime test needs neither PyTorch nor training.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx.parser
from numpy.typing import NDArray

from tk.runtime.backends.registry import BACKENDS
from tk.runtime.bundle import MANIFEST, PARITY, PROBE
from tk.runtime.files import read_json, sha256_file, write_json
from tk.runtime.gallery.gallery import Gallery
from tk.runtime.manifest import Artifact, Manifest, Part, TensorSpec, manifest_from_json
from tk.runtime.parity.parts import run_parts
from tk.runtime.preprocess import CropSpec, ImageSpec

SIDE = 64
HEAD = '<ir_version: 9, opset_import: ["" : 18]>'

BRIGHT = """
    rgb = Cast<to = 1> (image)
    last = Constant<value_ints = [-1]> ()
    grey = ReduceMax<keepdims = 0> (rgb, last)
    limit = Constant<value_float = 128.0> ()
"""

DETECTOR = (
    HEAD
    + f"""detector (uint8[B,{SIDE},{SIDE},3] image)
    => (float[B,1,4] boxes, float[B,1,1] scores) {{"""
    + BRIGHT
    + f"""
    above = Greater (grey, limit)
    on = Cast<to = 1> (above)
    one = Constant<value_ints = [1]> ()
    two = Constant<value_ints = [2]> ()
    columns = ReduceMax<keepdims = 0> (on, one)
    rows = ReduceMax<keepdims = 0> (on, two)
    up = Constant<value_floats = {[float(i + 1) for i in range(SIDE)]}> ()
    down = Constant<value_floats = {[float(SIDE - i) for i in range(SIDE)]}> ()
    side = Constant<value_float = {float(SIDE)}> ()
    cu = Mul (columns, up)
    cd = Mul (columns, down)
    ru = Mul (rows, up)
    rd = Mul (rows, down)
    x1 = ReduceMax (cu, one)
    xd = ReduceMax (cd, one)
    x0 = Sub (side, xd)
    y1 = ReduceMax (ru, one)
    yd = ReduceMax (rd, one)
    y0 = Sub (side, yd)
    flat = Concat<axis = 1> (x0, y0, x1, y1)
    boxes = Unsqueeze (flat, one)
    score = ReduceMax (columns, one)
    scores = Unsqueeze (score, one)
}}"""
)

ENCODER = (
    HEAD
    + f"""encoder (uint8[B,{SIDE},{SIDE},3] image) => (float[B,{SIDE},{SIDE}] features) {{"""
    + BRIGHT
    + """
    features = Sub (grey, limit)
}"""
)

DECODER = (
    HEAD
    + f"""decoder (float[1,{SIDE},{SIDE}] features, float[N,4] boxes)
    => (float[N,{SIDE},{SIDE}] logits, float[N] iou) {{
    one = Constant<value_ints = [1]> ()
    zero = Constant<value_float = 0.0> ()
    shares = ReduceMax<keepdims = 0> (boxes, one)
    nothing = Mul (shares, zero)
    iou = Exp (nothing)
    two = Constant<value_ints = [1, 2]> ()
    spread = Unsqueeze (nothing, two)
    logits = Add (features, spread)
}}"""
)

EMBEDDER = (
    HEAD
    + f"""embedder (uint8[B,{SIDE},{SIDE},3] image) => (float[B,3] embedding) {{
    rgb = Cast<to = 1> (image)
    axes = Constant<value_ints = [1, 2]> ()
    mean = ReduceMean<keepdims = 0> (rgb, axes)
    embedding = LpNormalization<axis = 1, p = 2> (mean)
}}"""
)

CLASSIFIER = (
    HEAD
    + f"""classifier (uint8[B,{SIDE},{SIDE},3] image)
    => (float[B,3] probabilities, float[B,3] logits) {{
    rgb = Cast<to = 1> (image)
    axes = Constant<value_ints = [1, 2]> ()
    mean = ReduceMean<keepdims = 0> (rgb, axes)
    scale = Constant<value_float = 32.0> ()
    logits = Div (mean, scale)
    probabilities = Softmax<axis = 1> (logits)
}}"""
)
"""Mean colour / 32 are the logits of red, green and blue."""

COLOURS = ("красный", "green", "blue/teal")

CROP = CropSpec(margin=0.0, background="mask", fill=(0, 0, 0))
IMAGE = TensorSpec("image", "uint8", ("B", SIDE, SIDE, 3))
FEATURES = TensorSpec("features", "float32", ("B", SIDE, SIDE))


def _part(inputs: tuple[TensorSpec, ...], *outputs: TensorSpec) -> Part:
    return Part(inputs, outputs, max_batch=3)


PARTS: dict[str, dict[str, tuple[str, Part]]] = {
    "detector": {
        "model": (
            DETECTOR,
            _part(
                (IMAGE,),
                TensorSpec("boxes", "float32", ("B", 1, 4)),
                TensorSpec("scores", "float32", ("B", 1, 1)),
            ),
        )
    },
    "segmenter": {
        "encoder": (ENCODER, _part((IMAGE,), FEATURES)),
        "decoder": (
            DECODER,
            _part(
                (
                    TensorSpec("features", "float32", (1, SIDE, SIDE)),
                    TensorSpec("boxes", "float32", ("N", 4)),
                ),
                TensorSpec("logits", "float32", ("N", SIDE, SIDE)),
                TensorSpec("iou", "float32", ("N",)),
            ),
        ),
    },
    "embedder": {
        "model": (EMBEDDER, _part((IMAGE,), TensorSpec("embedding", "float32", ("B", 3))))
    },
    "classifier": {
        "model": (
            CLASSIFIER,
            _part(
                (IMAGE,),
                TensorSpec("probabilities", "float32", ("B", 3)),
                TensorSpec("logits", "float32", ("B", 3)),
            ),
        )
    },
}


def write_tiny_bundle(folder: Path, task: str) -> Path:
    """Write the bundle of one task and return its folder."""
    folder.mkdir(parents=True)
    artifacts = []
    sessions = {}
    for name, (text, part) in PARTS[task].items():
        data = onnx.parser.parse_model(text).SerializeToString()
        file = f"{name}.fp32.onnx"
        (folder / file).write_bytes(data)
        digest = hashlib.sha256(data).hexdigest()
        artifacts.append(Artifact(file, digest, len(data), name, "onnx", "fp32"))
        backend = BACKENDS["onnxruntime-cpu"].load()
        sessions[name] = backend.open_session(data, file, "fp32", part, 1)
    inputs: dict[str, NDArray[Any]] = {"image": np.stack([blob((255, 9, 9)), blob((9, 9, 255))])}
    if task == "segmenter":
        inputs["boxes"] = np.asarray([[10, 10, 40, 30]], np.float32)
    outputs = run_parts(task, sessions, inputs)
    probe = {f"input/{name}": value for name, value in inputs.items()}
    for part_name, arrays in outputs.items():
        probe |= {f"output/{part_name}/{name}": value for name, value in arrays.items()}
    np.savez_compressed(folder / PROBE, allow_pickle=False, **probe)
    verdicts = [{"file": a.file, "backend": "onnxruntime-cpu", "passed": True} for a in artifacts]
    write_json(folder / PARITY, {"verdicts": verdicts})
    manifest = Manifest(
        task=task,
        image=ImageSpec(SIDE, SIDE),
        crop=CROP if task == "embedder" else None,
        parts={name: part for name, (_, part) in PARTS[task].items()},
        classes={"detector": ("blob",), "classifier": COLOURS}.get(task, ()),
        settings={"mask_frame": "canvas"} if task == "segmenter" else {},
        source={},
        versions={},
        licence="none",
        artifacts=tuple(artifacts),
        files={name: sha256_file(folder / name) for name in (PARITY, PROBE)},
    )
    write_json(folder / MANIFEST, manifest.to_json())
    return folder


def add_artifact(
    folder: Path, artifact: Artifact, data: bytes, verdicts: dict[str, bool] | None = None
) -> None:
    """Add a file to a bundle, with what the gate said of it by back end."""
    file = folder / artifact.file
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(data)
    parity = read_json(folder / PARITY)
    for backend, passed in (verdicts or {}).items():
        row = {"file": artifact.file, "backend": backend, "passed": passed}
        parity["verdicts"].append(row)
    write_json(folder / PARITY, parity)
    manifest = manifest_from_json(read_json(folder / MANIFEST), folder)
    added = replace(artifact, sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))
    artifacts = [*manifest.artifacts, added]
    files = {name: sha256_file(folder / name) for name in manifest.files}
    write_json(folder / MANIFEST, manifest.with_artifacts(artifacts, files).to_json())


def write_tiny_bundles(folder: Path) -> Path:
    """Write all bundles into FOLDER/{detector,segmenter,embedder,classifier}."""
    for task in PARTS:
        write_tiny_bundle(folder / task, task)
    return folder


def tiny_gallery(embedder_sha256: str = "") -> Gallery:
    """Three classes, told apart by colour."""
    vectors = np.eye(3, dtype=np.float32)
    labels = np.arange(3)
    return Gallery(("Красный", "green", "blue"), vectors, vectors, labels, embedder_sha256)


def blob(
    color: tuple[int, int, int], box: tuple[int, int, int, int] = (16, 16, 48, 32), side: int = SIDE
) -> NDArray[np.uint8]:
    """A dark square picture with one bright rectangle `box` (xyxy)."""
    picture = np.full((side, side, 3), 20, np.uint8)
    x0, y0, x1, y1 = box
    picture[y0:y1, x0:x1] = color
    return picture
