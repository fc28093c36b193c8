"""artifacts.json: what a run has written, with hashes and metadata."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from tk.runtime.files import read_json, sha256_file, write_json

FILE = "artifacts.json"


def note_artifact(folder: Path, name: str, path: Path, metadata: dict[str, Any]) -> None:
    """Add a file to `folder/artifacts.json`, in place of an older one of the same name.

    Args:
        folder: the run folder.
        name: what the file is (`checkpoint_last`, `exported_backbone`), whatever it is called.
        path: the file; written relative to the run folder if it lies in it, else absolute.
        metadata: plain JSON values.
    """
    entry = {
        "name": name,
        "path": _shown(path.resolve(), folder.resolve()),
        "sha256": sha256_file(path),
        "bytes": path.stat().st_size,
        "timestamp": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "metadata": metadata,
    }
    others = [other for other in read_artifacts(folder) if other["name"] != name]
    write_json(folder / FILE, sorted([*others, entry], key=lambda each: str(each["name"])))


def read_artifacts(folder: Path) -> list[dict[str, Any]]:
    """What is noted so far; nothing if nothing was written yet."""
    file = folder / FILE
    return list(read_json(file)) if file.exists() else []


def _shown(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)
