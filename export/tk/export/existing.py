"""What lies where a bundle is to be: a bundle to add to, or what a killed export left behind."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tk.export.differences import NAMED, differences
from tk.export.model import ExportModel
from tk.export.produce import Product, write_file
from tk.export.reach import File
from tk.export.request import Request
from tk.runtime.bundle import MANIFEST, PARITY, Bundle
from tk.runtime.errors import TkError
from tk.runtime.files import read_json, refuse_existing, sha256_file, write_json
from tk.runtime.manifest import Manifest

AGAIN = "choose another folder, or add --overwrite to make it anew"


@dataclass(frozen=True)
class Existing:
    """A bundle that gets more files.

    Attributes:
        bundle: opened, every hash checked.
    """

    bundle: Bundle

    @property
    def precisions(self) -> set[str]:
        """Precisions of which it holds graphs."""
        return {a.precision for a in self.bundle.manifest.artifacts if a.kind == "onnx"}

    def must_match(self, model: ExportModel, identity: dict[str, Any], opset: int) -> None:
        """Refuse to put files of one model into the bundle of another.

        Args:
            model: to export.
            identity: of its checkpoint, as the manifest has it.
            opset: asked for.

        Raises:
            TkError: another checkpoint, canvas, crop, batch, opset, classes or settings (a prompt);
                names what is unequal.
        """
        found = differences(self.bundle.manifest, model, identity, opset)
        if not found:
            return
        named = found[:NAMED]
        options = [one.option for one in named]
        enough = len(named) == len(found) and all(options)
        more = f"; and {len(found) - NAMED} more" if len(found) > NAMED else ""
        raise TkError(
            f"{self.bundle.path} exists already, and cannot be added to: another "
            + ", ".join(one.what for one in named),
            found="; ".join(map(str, named)) + more,
            fix=f"add {' '.join(options)}; or {AGAIN}" if enough else AGAIN,
        )

    def graphs(self) -> dict[str, File]:
        """Part -> its float32 graph, as it lies in the bundle."""
        found = {}
        for artifact in self.bundle.manifest.artifacts:
            if artifact.kind == "onnx" and artifact.precision == "fp32":
                weights = artifact.weights and (self.bundle.path / artifact.weights).read_bytes()
                data = (self.bundle.path / artifact.file).read_bytes()
                found[artifact.part] = File(artifact, data, weights or b"")
        return found

    def finish(self, product: Product, parity: dict[str, Any], folder: Path) -> None:
        """Fill a folder with the old files and the new ones; it then takes the bundle's place.

        Args:
            product: the new files.
            parity: the report on them.
            folder: empty, or with candidates of searches in it.
        """
        old, manifest = self.bundle.path, self.bundle.manifest
        for name in {MANIFEST, *manifest.files, *(a.file for a in manifest.artifacts)}:
            if name not in (MANIFEST, PARITY):
                _link(old / name, folder / name)
        for file in product.files:
            write_file(file, folder)
        report = _joined(read_json(old / PARITY), parity, manifest)
        write_json(folder / PARITY, report)
        files = {**manifest.files, PARITY: sha256_file(folder / PARITY)}
        artifacts = (*manifest.artifacts, *(file.artifact for file in product.files))
        versions = report["exports"][-1]["versions"]
        joined = replace(manifest, artifacts=artifacts, files=files, versions=versions)
        write_json(folder / MANIFEST, joined.to_json())


def open_existing(out: Path, request: Request, *, overwrite: bool = False) -> Existing | None:
    """The bundle to add to; None where there is nothing, or a bundle to be replaced.

    Raises:
        TkError: there is something else, or a bundle that has all that is asked for.
        CheckFailed: a bundle whose files were changed.
    """
    there = (out / MANIFEST).is_file()
    refuse_existing(out, overwrite=overwrite or there, own=MANIFEST)
    if overwrite or not there:
        return None
    old = Existing(Bundle.open(out))
    if request.plans:
        raise _plans_come_otherwise(out, old, request)
    if old.precisions >= set(request.precisions):
        raise TkError(
            f"{out} exists already and holds {', '.join(sorted(old.precisions))}",
            found=f"asked for: {', '.join(request.precisions)}",
            fix="ask for another --precision to add it, or add --overwrite to make it anew",
        )
    return old


def _plans_come_otherwise(out: Path, old: Existing, request: Request) -> TkError:
    """What to type to get plans for graphs that lie in a bundle, or may be added to it."""
    lost = [name for name in request.precisions if name not in old.precisions]
    wanted = f" --precision {','.join(request.precisions)}"
    first = f"tk export SOURCE {out} --images DIR --precision {','.join(lost)}; then " * bool(lost)
    return TkError(
        f"{out} exists already; plans of a bundle are built from its graphs, without PyTorch",
        found=f"graphs in {', '.join(sorted(old.precisions))}",
        fix=f"{first}tk plan {out}{wanted}",
    )


def clear_leftovers(out: Path) -> None:
    """Remove what exports into `out` left that were killed; its lock must be held.

    A bundle that was being replaced in that very moment comes back.
    """
    out = out.resolve()  # where `atomic_folder` works
    pattern = re.compile(re.escape(f".{out.name}.") + r"[a-z0-9_]{8}\.(tmp|old)")
    found = [path for path in out.parent.iterdir() if pattern.fullmatch(path.name)]
    for path in sorted(found):
        if path.suffix == ".old" and not out.exists():
            os.replace(path, out)
        else:
            shutil.rmtree(path, ignore_errors=True)


def _link(source: Path, target: Path) -> None:
    """The same file at two places; a copy where the file system cannot."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _joined(old: dict[str, Any], new: dict[str, Any], manifest: Manifest) -> dict[str, Any]:
    """One report of two exports; `manifest` is that of the old one."""
    joined = {**old, **{key: value for key, value in new.items() if key not in old}}
    for key in ("verdicts", "figures", "refusals"):
        joined[key] = [*old.get(key, []), *new[key]]
    joined["precisions"] = {**old.get("precisions", {}), **new["precisions"]}
    joined["broken_images"] = sorted({*old.get("broken_images", []), *new["broken_images"]})
    joined["images"] = max(old["images"], new["images"])
    if notes := dict.fromkeys(report["note"] for report in (old, new) if "note" in report):
        joined["note"] = "; then ".join(notes)
    first = {
        "precisions": sorted({a.precision for a in manifest.artifacts}),
        "images": old["images"],
        "versions": manifest.versions,
    }
    joined["exports"] = [*old.get("exports", [first]), *new["exports"]]
    return joined
