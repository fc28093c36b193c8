"""A gallery: class prototypes and reference embeddings, readable without pickle and without FAISS.

Layout of the folder:
    prototypes.npz   centroids (C, D), stacks (N, D), stack_labels (N,), id2cls unicode (C,),
                     cls2id JSON text; optional: sub_centroids (M, D), sub_labels (M,)
    gallery.json     SHA-256 of embedder or checkpoint, CropSpec, thresholds and how they were
                     found, sources
"""

from __future__ import annotations

import io
import zipfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import orjson
from numpy.typing import NDArray

from tk.runtime.errors import TkError
from tk.runtime.files import atomic_folder, read_json, refuse_existing, write_bytes, write_json
from tk.runtime.heads.embedder import Embedder
from tk.runtime.preprocess import CropSpec, spec_from_json

PROTOTYPES, FACTS = "prototypes.npz", "gallery.json"
SCHEMA = 1
SearchMode = Literal["centroid", "stack", "sub"]
MODES: tuple[SearchMode, ...] = ("centroid", "stack", "sub")
"""What an object is compared with: the mean of a class, its nearest reference, or its nearest
sub-prototype."""


@dataclass(frozen=True)
class Gallery:
    """Prototypes of C classes in D dimensions.

    Attributes:
        classes: (C,) names, NFC.
        centroids: (C, D) float32, unit length: the mean of a class.
        stacks: (N, D) float32, unit length: every reference.
        stack_labels: (N,) int64, the class of each reference.
        embedder_sha256: of the embedder that made them; "" when unknown (a bare npz).
        crop: how references were cut; None when unknown.
        thresholds: search mode -> similarity below which an object is `unknown`.
        facts: how thresholds were found, where references came from.
        sub_centroids: (M, D) float32, unit length: a few centres per class; None without them.
        sub_labels: (M,) int64, the class of each centre; None without them.
        checkpoint_sha256: of the checkpoint whose embeddings these are, when training made them;
            bundles exported from it fit.
    """

    classes: tuple[str, ...]
    centroids: NDArray[np.float32]
    stacks: NDArray[np.float32]
    stack_labels: NDArray[np.int64]
    embedder_sha256: str = ""
    crop: CropSpec | None = None
    thresholds: dict[str, float] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    sub_centroids: NDArray[np.float32] | None = None
    sub_labels: NDArray[np.int64] | None = None
    checkpoint_sha256: str = ""

    def vectors(self, mode: SearchMode) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """What a search mode compares with.

        Returns:
            (K, D) float32 unit vectors and (K,) int64, the class of each.

        Raises:
            TkError: no such mode, or this gallery has no sub-prototypes.
        """
        if mode == "centroid":
            return self.centroids, np.arange(len(self.classes))
        if mode == "stack":
            return self.stacks, self.stack_labels
        if mode != "sub":
            raise TkError("unknown search mode", expected=" or ".join(MODES), found=repr(mode))
        if self.sub_centroids is None or self.sub_labels is None:
            raise TkError(
                "the gallery has no sub-prototypes to search (--search sub)",
                fix="tk gallery build REFERENCES OUT --embedder BUNDLE --sub-prototypes 4",
            )
        return self.sub_centroids, self.sub_labels

    def save(self, folder: Path, *, overwrite: bool = False) -> None:
        """Write the folder atomically.

        Raises:
            TkError: as `refuse_no_gallery`.
        """
        refuse_no_gallery(folder, overwrite=overwrite)
        with atomic_folder(folder, overwrite=overwrite, own=FACTS) as temporary:
            self.write(temporary)

    def write(self, folder: Path) -> None:
        """Write the files of a gallery into a folder that holds other things too (a run)."""
        crop = None if self.crop is None else asdict(self.crop)
        facts = {
            "schema": SCHEMA,
            "embedder_sha256": self.embedder_sha256,
            "checkpoint_sha256": self.checkpoint_sha256,
            "crop": crop,
            "thresholds": self.thresholds,
            "facts": self.facts,
        }
        write_bytes(folder / PROTOTYPES, self.to_npz())
        write_json(folder / FACTS, facts)

    def to_npz(self) -> bytes:
        """Bytes of `prototypes.npz`."""
        arrays: dict[str, Any] = {
            "centroids": self.centroids,
            "stacks": self.stacks,
            "stack_labels": self.stack_labels,
            "id2cls": np.asarray(self.classes, np.str_),
            "cls2id": np.asarray(_json_text({name: i for i, name in enumerate(self.classes)})),
        }
        if self.sub_centroids is not None and self.sub_labels is not None:
            arrays |= {"sub_centroids": self.sub_centroids, "sub_labels": self.sub_labels}
        file = io.BytesIO()
        np.savez_compressed(file, **arrays)
        return file.getvalue()

    def check_embedder(self, embedder: Embedder) -> None:
        """Refuse an embedder whose vectors cannot be compared with this gallery's.

        Raises:
            TkError: another size, other weights, or crops cut another way.
        """
        fix = "build the gallery with this embedder: tk gallery build REFERENCES OUT --embedder DIR"
        if self.centroids.shape[1] != embedder.dimension:
            raise TkError(
                "gallery and embedder have different embedding sizes",
                expected=f"{embedder.dimension} (the embedder's)",
                found=f"{self.centroids.shape[1]} (the gallery's)",
                fix=fix,
            )
        source = str(embedder.manifest.source.get("sha256", ""))
        for kind, own, theirs in (
            ("embedder", self.embedder_sha256, embedder.sha256),
            # A bundle that does not say what it was made from gets the benefit of the doubt.
            ("checkpoint", source and self.checkpoint_sha256, source),
        ):
            if own and own != theirs:
                raise TkError(
                    "the gallery was made by another embedder: similarities would mean nothing",
                    expected=f"{kind} {own[:12]}",
                    found=f"{kind} {theirs[:12]}",
                    fix=fix,
                )
        if self.crop is not None and self.crop != embedder.crop:
            raise TkError(
                "gallery and embedder cut their crops differently",
                expected=str(embedder.crop),
                found=str(self.crop),
                fix=fix,
            )


def open_gallery(path: Path) -> Gallery:
    """Read a gallery folder, or a bare `prototypes.npz`.

    Raises:
        TkError: nothing of the kind there, another schema, or arrays that contradict each other.
    """
    if path.is_file():
        return _from_npz(path, {})
    if not (path / FACTS).is_file():
        raise TkError(
            f"{path} is not a gallery",
            expected=f"a folder with {FACTS} and {PROTOTYPES}, or a {PROTOTYPES}",
            fix=f"tk gallery build REFERENCES {path} --embedder BUNDLE",
        )
    facts = read_json(path / FACTS)
    if facts.get("schema") != SCHEMA:
        raise TkError(
            f"gallery {path} has another schema",
            expected=str(SCHEMA),
            found=str(facts.get("schema")),
            fix="build it again with this version of tk",
        )
    return _from_npz(path / PROTOTYPES, facts)


def _from_npz(path: Path, facts: dict[str, Any]) -> Gallery:
    arrays = _read_arrays(path)
    if not _agree(arrays):
        shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
        raise TkError(
            f"the arrays of {path} contradict each other or are not finite",
            expected="centroids (C, D), stacks (N, D), stack_labels (N,) below C, id2cls (C,), "
            "and both or none of sub_centroids (M, D), sub_labels (M,) below C",
            found=shapes,
        )
    crop = facts.get("crop")
    sub = "sub_centroids" in arrays
    return Gallery(
        classes=tuple(str(name) for name in arrays["id2cls"]),
        centroids=arrays["centroids"].astype(np.float32),
        stacks=arrays["stacks"].astype(np.float32),
        stack_labels=arrays["stack_labels"].astype(np.int64),
        embedder_sha256=facts.get("embedder_sha256", ""),
        checkpoint_sha256=facts.get("checkpoint_sha256", ""),
        crop=None if crop is None else spec_from_json(CropSpec, crop),
        thresholds=facts.get("thresholds", {}),
        facts=facts.get("facts", {}),
        sub_centroids=arrays["sub_centroids"].astype(np.float32) if sub else None,
        sub_labels=arrays["sub_labels"].astype(np.int64) if sub else None,
    )


def _read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    keys = ("centroids", "stacks", "stack_labels", "id2cls")
    try:
        with np.load(path, allow_pickle=False) as archive:
            extra = [key for key in ("sub_centroids", "sub_labels") if key in archive]
            return {key: archive[key] for key in (*keys, *extra)}
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise TkError(
            f"{path} cannot be read as prototypes: {error}",
            expected="plain arrays " + ", ".join(keys) + " (no pickled objects)",
            fix="build the gallery again: tk gallery build",
        ) from None


def _agree(arrays: dict[str, NDArray[Any]]) -> bool:
    """Whether shapes fit together, labels are classes, and vectors are finite."""
    centroids, names = arrays["centroids"], arrays["id2cls"]
    if centroids.ndim != 2 or names.shape != centroids.shape[:1]:
        return False
    if ("sub_centroids" in arrays) != ("sub_labels" in arrays):
        return False
    groups = [(arrays["stacks"], arrays["stack_labels"])]
    if "sub_centroids" in arrays:
        groups.append((arrays["sub_centroids"], arrays["sub_labels"]))
    labelled = all(
        rows.ndim == 2
        and rows.shape[1] == centroids.shape[1]
        and labels.shape == (len(rows),)
        and (not len(labels) or 0 <= labels.min() <= labels.max() < len(names))
        and np.isfinite(rows).all()
        for rows, labels in groups
    )
    return labelled and bool(np.isfinite(centroids).all())


def _json_text(value: dict[str, int]) -> str:
    return orjson.dumps(value).decode()


def refuse_no_gallery(folder: Path, *, overwrite: bool) -> None:
    """Refuse to replace what is no gallery, or a gallery among other things: a run has one, too.

    Raises:
        TkError: something is in the folder that is not to be replaced.
    """
    refuse_existing(folder, overwrite=overwrite, own=FACTS)
    there = {path.name for path in folder.iterdir()} if folder.exists() else set()
    if more := sorted(there - {FACTS, PROTOTYPES}):
        raise TkError(
            f"{folder} is not replaced: it holds more than a gallery",
            expected=f"{FACTS} and {PROTOTYPES} alone",
            found=", ".join(more[:5]),
            fix="choose another folder, or remove this one yourself",
        )
