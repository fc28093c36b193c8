"""The PyTorch models that bundles were made from: the same weights on both sides."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tk.benchmarks.torch_models import (
    Compact,
    CompactSegmenter,
    GroundingDino,
    Sam2,
    TorchDetector,
    TorchEmbedder,
    TorchModels,
    TorchSegmenter,
)
from tk.runtime.bundle import Bundle
from tk.runtime.errors import TkError
from tk.runtime.files import sha256_file
from tk.runtime.heads.text_detector import TextOptions
from tk.runtime.preprocess import CropSpec

CHECKPOINTS = ("checkpoint_best.pth", "checkpoint_last.pth")


def source_of(run: Path, bundle: Path, task: str) -> tuple[Path, Bundle]:
    """Find what a bundle was made from.

    Args:
        run: a run folder of `tk train`, a checkpoint, or a Hugging Face folder; may be missing when
            the bundle is of a model that comes with tk.
        bundle: what `tk export` made of it.
        task: of both.

    Returns:
        The checkpoint or folder, and the bundle.

    Raises:
        TkError: nothing there, or the bundle was made from something else.
    """
    from tk.export.write import identity

    opened = Bundle.open(bundle, task)
    facts = opened.manifest.source
    there = _candidates(run, str(facts.get("name") or facts.get("model_id")))
    if not there:
        raise TkError(
            f"{run} holds no checkpoint",
            expected=" or ".join(CHECKPOINTS) + ", or a Hugging Face folder with config.json",
            fix="--source takes the folder with the runs detector/, segmenter/ and embedder/",
        )
    wanted = str(facts.get("sha256", ""))
    hashes = {path: str(identity(path)["sha256"]) for path in there}
    for path, digest in hashes.items():
        # Of a folder, an export names all of it or its only file of weights.
        files = path.glob("*.safetensors") if path.is_dir() else ()
        if wanted in (digest, *(sha256_file(file) for file in files)):
            return path, opened
    raise TkError(
        f"the {task} bundle was not made from the checkpoint given: nothing could be compared",
        expected=f"a checkpoint with SHA-256 {wanted[:12] or 'unknown'}…",
        found=", ".join(f"{path.name} {digest[:12]}…" for path, digest in hashes.items()),
        fix=f"tk export {run} {bundle} --images DIR --overwrite",
    )


def _candidates(run: Path, exported: str) -> list[Path]:
    """Checkpoints and model folders in `run`; and the model `exported` if it comes with tk."""
    from tk.train.pretrained.hub import shipped
    from tk.train.pretrained.load import RESULT

    files = [run] if run.is_file() else [run / name for name in CHECKPOINTS]
    there = [path for path in files if path.is_file()]
    there += [path for path in (run, run / RESULT) if (path / "config.json").is_file()]
    own = shipped(exported)
    return there if own is None else [*there, own]


def open_models(runs: Path, bundles: Path, text: TextOptions) -> TorchModels:
    """Load the three models of a chain, after checking that the bundles were made from them.

    Args:
        runs: folder with the runs or model folders `detector`, `segmenter` and `embedder`.
        bundles: folder with the bundles of the same names.
        text: prompt and threshold of a text detector.

    Raises:
        TkError: something is missing, or a bundle belongs to another model.
    """
    # All hashes first: a wrong pair should be refused before anything is loaded.
    tasks = ("detector", "segmenter", "embedder")
    (detector, d), (segmenter, s), (embedder, e) = (
        source_of(runs / task, bundles / task, task) for task in tasks
    )
    return TorchModels(
        _detector(detector, d, text), _segmenter(segmenter, s), _embedder(embedder, e)
    )


def _detector(path: Path, bundle: Bundle, text: TextOptions) -> TorchDetector:
    manifest = bundle.manifest
    if path.is_dir():
        return _grounding_dino(path, bundle, text)
    from tk.train.detector.model import load_detector

    return Compact(_ready(load_detector, path), manifest.image, manifest.classes)


def _grounding_dino(path: Path, bundle: Bundle, text: TextOptions) -> GroundingDino:
    from transformers import AutoTokenizer, GroundingDinoImageProcessor, GroundingDinoProcessor

    from tk.export.grounding.load import load_model

    loaded = load_model(path)
    tokenizers: Any = AutoTokenizer  # the library's methods carry no types
    join: Any = GroundingDinoProcessor
    tokenizer = tokenizers.from_pretrained(path, local_files_only=True)
    processor = join(GroundingDinoImageProcessor(), tokenizer)
    spec = bundle.manifest.image
    return GroundingDino(loaded.network, processor, spec, loaded.mean, loaded.std, text)


def _segmenter(path: Path, bundle: Bundle) -> TorchSegmenter:
    manifest = bundle.manifest
    if path.is_dir():
        from transformers import Sam2Model

        from tk.export.sources.sam2 import normalisation
        from tk.train.pretrained.load import load_pretrained

        return Sam2(load_pretrained(Sam2Model, path), manifest.image, *normalisation(path))
    from tk.train.segmenter.model import load_segmenter

    whole = manifest.settings["mask_frame"] == "canvas"
    margin = None if whole else float(manifest.settings["frame_margin"])
    return CompactSegmenter(_ready(load_segmenter, path), manifest.image, margin)


def _embedder(path: Path, bundle: Bundle) -> TorchEmbedder:
    from tk.train.embedder.train import load_embedder

    manifest = bundle.manifest
    return TorchEmbedder(_ready(load_embedder, path), manifest.image, manifest.crop or CropSpec())


def _ready(load: Callable[[Path], tuple[Any, dict[str, Any]]], path: Path) -> Any:
    return load(path)[0].float().eval()
