"""A gallery: class prototypes and reference embeddings, readable without pickle and without FAISS.

Layout of the folder:
    prototypes.npz   centroids (C, D), stacks (N, D), stack_labels (N,), id2cls unicode (C,),
                     cls2id JSON text
    gallery.json     embedder SHA-256, CropSpec, thresholds and how they were found, sources
"""

from __future__ import annotations

import io
import zipfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from tk.runtime.errors import TkError
from tk.runtime.files import atomic_folder, read_json, write_bytes, write_json
from tk.runtime.heads.embedder import Embedder
from tk.runtime.preprocess import CropSpec, spec_from_json

PROTOTYPES, FACTS = "prototypes.npz", "gallery.json"
SCHEMA = 1


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
    """

    classes: tuple[str, ...]
    centroids: NDArray[np.float32]
    stacks: NDArray[np.float32]
    stack_labels: NDArray[np.int64]
    embedder_sha256: str = ""
    crop: CropSpec | None = None
    thresholds: dict[str, float] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    def save(self, folder: Path, *, overwrite: bool = False) -> None:
        """Write the folder atomically."""
        with atomic_folder(folder, overwrite=overwrite) as temporary:
            write_bytes(temporary / PROTOTYPES, self.to_npz())
            crop = None if self.crop is None else asdict(self.crop)
            write_json(
                temporary / FACTS,
                {
                    "schema": SCHEMA,
                    "embedder_sha256": self.embedder_sha256,
                    "crop": crop,
                    "thresholds": self.thresholds,
                    "facts": self.facts,
                },
            )

    def to_npz(self) -> bytes:
        """Bytes of `prototypes.npz`."""
        file = io.BytesIO()
        np.savez_compressed(
            file,
            centroids=self.centroids,
            stacks=self.stacks,
            stack_labels=self.stack_labels,
            id2cls=np.asarray(self.classes, np.str_),
            cls2id=np.asarray(_json_text({name: i for i, name in enumerate(self.classes)})),
        )
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
        if self.embedder_sha256 and self.embedder_sha256 != embedder.sha256:
            raise TkError(
                "the gallery was made by another embedder: similarities would mean nothing",
                expected=f"embedder {self.embedder_sha256[:12]}",
                found=f"embedder {embedder.sha256[:12]}",
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
    keys = ("centroids", "stacks", "stack_labels", "id2cls")
    try:
        with np.load(path, allow_pickle=False) as archive:
            centroids, stacks, labels, names = (archive[key] for key in keys)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise TkError(
            f"{path} cannot be read as prototypes: {error}",
            expected="plain arrays " + ", ".join(keys) + " (no pickled objects)",
            fix="build the gallery again: tk gallery build",
        ) from None
    shapes_agree = (
        centroids.ndim == stacks.ndim == 2
        and len(centroids) == len(names)
        and centroids.shape[1] == stacks.shape[1]
        and labels.shape == (len(stacks),)
        and (not len(labels) or 0 <= labels.min() <= labels.max() < len(names))
    )
    if not shapes_agree or not np.isfinite(centroids).all() or not np.isfinite(stacks).all():
        raise TkError(
            f"the arrays of {path} contradict each other or are not finite",
            expected="centroids (C, D), stacks (N, D), stack_labels (N,) below C, id2cls (C,)",
            found=f"{centroids.shape}, {stacks.shape}, {labels.shape}, {names.shape}",
        )
    crop = facts.get("crop")
    return Gallery(
        classes=tuple(str(name) for name in names),
        centroids=centroids.astype(np.float32),
        stacks=stacks.astype(np.float32),
        stack_labels=labels.astype(np.int64),
        embedder_sha256=facts.get("embedder_sha256", ""),
        crop=None if crop is None else spec_from_json(CropSpec, crop),
        thresholds=facts.get("thresholds", {}),
        facts=facts.get("facts", {}),
    )


def _json_text(value: dict[str, int]) -> str:
    return orjson.dumps(value).decode()
