"""The folder of one run: config.json, metrics.jsonl, train.log and checkpoints."""

from __future__ import annotations

import os
import platform
import shutil
import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import orjson

from tk.runtime.errors import TkError
from tk.runtime.files import atomic_path, read_json, write_bytes, write_json

LIBRARIES = (
    "tk-vision",
    "torch",
    "torchvision",
    "timm",
    "numpy",
    "opencv-python-headless",
    "albumentations",
)


@dataclass(frozen=True)
class FileNames:
    """Names of the files in a run folder; those without a choice end like `last`."""

    last: str = "checkpoint_last.pth"
    best: str = "checkpoint_best.pth"
    metrics: str = "metrics.jsonl"
    config: str = "config.json"


RESULTS = (
    *("report.html", "prototypes.npz", "gallery.json", "outliers.csv", ".results.json"),
    *("artifacts.json", "results.json", "predictions.npz"),
)
"""What trainings make of their best weights at the end, beside the folder `PLOTS`."""

PLOTS = "plots"


class RunFolder:
    """Files of one training run under `path`.

    Args:
        names: of the files; default: those of `FileNames()`.
    """

    def __init__(self, path: Path, names: FileNames | None = None) -> None:
        names = names or FileNames()
        self.path = path
        self.config = path / names.config
        self.metrics = path / names.metrics
        self.log_file = path / "train.log"
        self.last = path / names.last
        self.best = path / names.best
        self.interrupt = self.kept("interrupt")

    def checkpoints(self) -> list[Path]:
        """Checkpoints of a run that lie here."""
        named = [path for path in (self.last, self.best) if path.exists()]
        return sorted({*named, *self.path.glob(self.kept("*").name)})

    def start(
        self, config: dict[str, Any], facts: dict[str, Any], *, overwrite: bool = False
    ) -> None:
        """Begin a new run: write config.json, remove the metrics and checkpoints of an old one.

        Raises:
            TkError: there is a run here already and `overwrite` is false; or results of something
                else, which this run would replace.
        """
        self._refuse_results()
        # Without a checkpoint there is nothing to go on with and nothing to lose.
        if self.checkpoints() and not overwrite:
            raise TkError(
                f"{self.path} holds a run already",
                fix="go on with --resume last, replace it with --overwrite, or change --out",
            )
        self.path.mkdir(parents=True, exist_ok=True)
        for path in (self.metrics, self.log_file, *self.checkpoints()):
            path.unlink(missing_ok=True)
        self.remove_results()
        self.write_config(config, facts)

    def _refuse_results(self) -> None:
        if self.metrics.exists() or self.checkpoints():
            return
        for name in (*RESULTS, PLOTS):
            if (self.path / name).exists():
                raise TkError(
                    f"{self.path} holds {name} of something else than a training",
                    expected=f"no {name}, or the {self.metrics.name} of its run beside it",
                    fix="change --out, or move it away",
                )

    def write_config(self, config: dict[str, Any], facts: dict[str, Any]) -> None:
        """Write the resolved configuration, facts of the run, and versions of the libraries."""
        content = {"config": config, "facts": facts, "versions": library_versions()}
        write_json(self.config, content)

    def remove_results(self) -> None:
        """Remove what was made from the weights of an older state of the run."""
        for name in RESULTS:
            (self.path / name).unlink(missing_ok=True)
        shutil.rmtree(self.path / PLOTS, ignore_errors=True)

    def take_over(self, checkpoint: Path) -> None:
        """Make this the folder of the run that goes on from a checkpoint.

        Raises:
            TkError: another run lies here.
        """
        origin = checkpoint.parent
        self.path.mkdir(parents=True, exist_ok=True)
        if origin.resolve() == self.path.resolve():
            return
        if self.checkpoints():
            raise TkError(
                f"{self.path} holds another run than the checkpoint {checkpoint}",
                fix=f"--out {origin}, or an --out without a run",
            )
        for name in (self.metrics.name, self.best.name):
            if (origin / name).exists():
                shutil.copyfile(origin / name, self.path / name)

    def mark_interrupted(self) -> None:
        """Give the last checkpoint a second name, `checkpoint_interrupt.pth`."""
        with atomic_path(self.interrupt) as temporary:
            try:
                os.link(self.last, temporary)
            except OSError:  # a file system without links
                shutil.copyfile(self.last, temporary)

    def kept(self, tag: str) -> Path:
        """Path of a checkpoint that stays: `checkpoint_ep005.pth`."""
        return self.path / f"checkpoint_{tag}{self.last.suffix}"

    def read_config(self) -> dict[str, Any]:
        """The resolved configuration of the run."""
        config: dict[str, Any] = read_json(self.config)["config"]
        return config

    def append_metrics(self, record: dict[str, Any]) -> None:
        """Add one line; a record has `step`; numbers that are not finite become null."""
        with open(self.metrics, "ab") as file:
            file.write(
                orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_SERIALIZE_NUMPY)
            )

    def read_metrics(self) -> list[dict[str, Any]]:
        """All whole lines; a line torn by a crash is left out."""
        if not self.metrics.exists():
            return []
        return [
            orjson.loads(line)
            for line in self.metrics.read_bytes().splitlines(keepends=True)
            if line.endswith(b"\n")
        ]

    def cut_metrics(self, step: int) -> None:
        """Forget what was measured after `step`: a resumed run measures it again."""
        kept = [record for record in self.read_metrics() if record["step"] <= step]
        write_bytes(self.metrics, b"".join(orjson.dumps(record) + b"\n" for record in kept))

    def log(self, text: str) -> None:
        """Add a line with the time of day to train.log."""
        self.path.mkdir(parents=True, exist_ok=True)
        with open(self.log_file, "a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")


def library_versions() -> dict[str, str]:
    """Versions of what a run depends on; libraries that are not installed are left out."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
