"""Checkpoints and the bundles that were made from them: the same weights on both sides."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tk.runtime.bundle import Bundle
from tk.runtime.errors import TkError
from tk.runtime.files import sha256_file
from tk.runtime.preprocess import CropSpec, ImageSpec

CHECKPOINTS = ("checkpoint_best.pth", "checkpoint_last.pth")


@dataclass(frozen=True)
class Source:
    """A PyTorch model in float32 and evaluation mode, and what its checkpoint says.

    Attributes:
        model: the network, as its training wrote it.
        image: the canvas that it sees.
        crop: how objects are cut out for it.
        classes: of its class axis.
        settings: of the bundle: which rectangle the logits of a mask cover.
    """

    model: Any
    image: ImageSpec
    crop: CropSpec | None
    classes: tuple[str, ...]
    settings: dict[str, Any]


def checkpoint_of(run: Path, bundle: Path, task: str) -> tuple[Path, Bundle]:
    """Find the checkpoint of a run folder that a bundle was made from.

    Args:
        run: a run folder of `tk train`, or a checkpoint.
        bundle: what `tk export` made of it.
        task: of both.

    Raises:
        TkError: no checkpoint there, or the bundle was made from another one.
    """
    there = [run] if run.is_file() else [run / name for name in CHECKPOINTS]
    there = [path for path in there if path.is_file()]
    if not there:
        raise TkError(
            f"{run} holds no checkpoint",
            expected=" or ".join(CHECKPOINTS),
            fix="--source takes the folder with the runs detector/, segmenter/ and embedder/",
        )
    opened = Bundle.open(bundle, task)
    wanted = str(opened.manifest.source.get("sha256", ""))
    hashes = {path: sha256_file(path) for path in there}
    for path, digest in hashes.items():
        if digest == wanted:
            return path, opened
    raise TkError(
        f"the {task} bundle was not made from the checkpoint given: nothing could be compared",
        expected=f"a checkpoint with SHA-256 {wanted[:12] or 'unknown'}…",
        found=", ".join(f"{path.name} {digest[:12]}…" for path, digest in hashes.items()),
        fix=f"tk export {run} {bundle} --images DIR --overwrite",
    )


def open_sources(runs: Path, bundles: Path) -> dict[str, Source]:
    """Load the three models of a chain, after checking that the bundles were made from them.

    Args:
        runs: folder with the runs `detector`, `segmenter` and `embedder`.
        bundles: folder with the bundles of the same names.

    Returns:
        Task -> source.

    Raises:
        TkError: something is missing, or a bundle belongs to another checkpoint.
    """
    from tk.train.detector.model import load_detector
    from tk.train.embedder.train import load_embedder
    from tk.train.segmenter.model import load_segmenter

    loaders: dict[str, Any] = {
        "detector": load_detector,
        "segmenter": load_segmenter,
        "embedder": load_embedder,
    }
    # All hashes first: a wrong pair should be refused before anything is loaded.
    pairs = {task: checkpoint_of(runs / task, bundles / task, task) for task in loaders}
    return {
        task: _source(loaders[task](path), bundle.manifest.settings)
        for task, (path, bundle) in pairs.items()
    }


def _source(loaded: tuple[Any, dict[str, Any]], settings: dict[str, Any]) -> Source:
    from tk.train.run.checkpoint import classes_of, crop_spec_of, image_spec_of

    model, state = loaded[0].float().eval(), loaded[1]
    return Source(model, image_spec_of(state), crop_spec_of(state), classes_of(state), settings)
