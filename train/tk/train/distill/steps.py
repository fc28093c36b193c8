"""Steps that are skipped when nothing they depend on has changed.

`steps.json` holds, for every step, a hash of the options it reads and of its input files, and the
hashes of its outputs. A step runs again exactly when one of these differs. The entry is written
after the outputs, so that a killed step counts as not done; one that was killed goes on with what
it left behind, one whose inputs changed begins anew.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from tk.runtime.errors import TkError
from tk.runtime.files import read_json, sha256_file, write_json

REGISTRY, DIGESTS = "steps.json", ".digests.json"
RECIPE = 1
"""Part of every hash: a new number makes all steps run again, when what they compute changes."""


@dataclass(frozen=True)
class Step:
    """One step.

    Attributes:
        name: what the user calls it.
        title: what it does, for the user.
        run: does it; writes all `outputs`.
        options: the values it reads, plain JSON.
        inputs: files and folders it reads.
        outputs: files and folders it makes, in the run folder.
        partial: what a killed run may leave to go on with; removed when the step begins anew.
        cache: what knows by itself whether it still fits; removed when the step is forced, or its
            outputs are damaged.
        intact: says of outputs what their hashes do not.
    """

    name: str
    title: str
    run: Callable[[], None]
    options: Mapping[str, Any]
    inputs: Sequence[Path]
    outputs: Sequence[Path]
    partial: Sequence[Path] = ()
    cache: Sequence[Path] = ()
    intact: Callable[[], bool] = lambda: True


@dataclass
class Registry:
    """What was done in a run folder.

    Attributes:
        folder: the run folder.
        entries: step -> `key`, `state`, `outputs` (name -> hash), `seconds`.
    """

    folder: Path
    entries: dict[str, dict[str, Any]] = field(default_factory=dict)
    digests: dict[str, list[Any]] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path) -> Registry:
        """Read what an earlier command left; a damaged record counts as none."""
        return cls(folder, _read(folder / REGISTRY), _read(folder / DIGESTS))

    def perform(self, step: Step, *, force: bool = False) -> bool:
        """Run a step, unless it is done.

        Returns:
            whether it was run.

        Raises:
            TkError: an input is missing, or what the step itself raises.
        """
        self._check_inputs(step)
        key = self._key(step)
        entry = self.entries.get(step.name, {})
        same, done = entry.get("key") == key, entry.get("state") == "done"
        intact = not done or (self._intact(entry) and step.intact())
        if same and done and intact and not force:
            print(f"{step.name}: unchanged", file=sys.stderr)
            return False
        # A killed step whose inputs are the same goes on with what it left.
        for path in (*step.partial, *step.cache) if force or not intact else step.partial:
            if force or done or not same:
                _remove(path)
        print(f"{step.name}: {step.title}", file=sys.stderr)
        self._note(step.name, {"key": key, "state": "begun"})
        started = time.monotonic()
        step.run()
        outputs = {self._name(path): self.digest(path) for path in step.outputs}
        seconds = round(time.monotonic() - started, 1)
        self._note(step.name, {"key": key, "state": "done", "outputs": outputs, "seconds": seconds})
        return True

    def digest(self, path: Path) -> str:
        """SHA-256 of a file, or of the names and hashes of all files in a folder; "" for nothing.

        A file is read again only when its size or its time of change differ from what they were.
        """
        if path.is_file():
            return self._file(path)
        if not path.is_dir():
            return ""
        total = hashlib.sha256()
        for file in sorted(_walk(path)):
            total.update(f"{file.relative_to(path).as_posix()}\0{self._file(file)}\n".encode())
        return total.hexdigest()

    def _file(self, path: Path) -> str:
        stat, name = path.stat(), str(path)
        stamp = [stat.st_size, stat.st_mtime_ns]
        known = self.digests.get(name)
        if known and known[:2] == stamp:
            return str(known[2])
        value = sha256_file(path)
        self.digests[name] = [*stamp, value]
        return value

    def _key(self, step: Step) -> str:
        inputs = [[self._name(path), self.digest(path)] for path in step.inputs]
        record = {"recipe": RECIPE, "options": dict(step.options), "inputs": inputs}
        text = orjson.dumps(record, option=orjson.OPT_SORT_KEYS, default=str)
        return hashlib.sha256(text).hexdigest()

    def _intact(self, entry: dict[str, Any]) -> bool:
        return all(
            self.digest(self.folder / name) == value for name, value in entry["outputs"].items()
        )

    def _name(self, path: Path) -> str:
        """Path as the record has it: relative in the run folder, so that a run can be moved."""
        return os.path.relpath(path, self.folder) if path.is_relative_to(self.folder) else path.name

    def _note(self, name: str, entry: dict[str, Any]) -> None:
        self.entries[name] = entry
        write_json(self.folder / DIGESTS, self.digests)
        write_json(self.folder / REGISTRY, self.entries)

    def _check_inputs(self, step: Step) -> None:
        for path in step.inputs:
            if not path.exists():
                ours = path.is_relative_to(self.folder)
                raise TkError(
                    f"step {step.name} needs {path}",
                    found=f"a link to {path.readlink()}" if path.is_symlink() else "nothing there",
                    fix="run the steps before it: the same command without --step"
                    if ours
                    else "put it back, or give the path where it is",
                )


def without_paths(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that say what is computed: a file counts by what is in it, as an input."""
    return {name: v for name, v in settings.items() if not isinstance(v, (Path, list))}


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        found = read_json(path)
    except TkError:  # damaged: nothing is known, all is done again
        print(f"{path} is damaged: all steps run again", file=sys.stderr)
        return {}
    return found if isinstance(found, dict) else {}


def _walk(folder: Path) -> Iterable[Path]:
    seen: set[str] = set()
    for root, folders, files in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(root)) in seen:  # a link back into the folder
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(root, name) for name in files if not name.startswith("."))


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
