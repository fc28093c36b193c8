"""The file behind cached features: which rows are done, and what they were made from.

FOLDER/NAME.npy    (rows, size) float32, an ordinary NumPy file
FOLDER/NAME.json   the sidecar: the key, the shape and the rows that are done

Data are on disk before the sidecar says so: whatever kills the process, the next one goes on
from the last rows that were finished, and ends with the same bytes.
"""

from __future__ import annotations

import glob
import io
import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tk.runtime.errors import EnvironmentLacks, TkError
from tk.runtime.files import read_json, write_json

SAVE_EVERY = 2.0
"""Seconds of work that a kill may cost: writing through to the disk has its price too."""

_ITEM = np.dtype(np.float32).itemsize

Block = tuple[int, int]
"""Rows start..stop that go through the backbone together."""


def bytes_needed(rows: int, size: int) -> int:
    """Size on disk of the features of `rows` canvases, `size` numbers each."""
    return len(_header(rows, size)) + rows * size * _ITEM


def most_views(samples: int, size: int, gigabytes: float) -> int:
    """Most views of each of `samples` crops whose features fit into `gigabytes` (10^9 bytes)."""
    room = int(gigabytes * 1e9) - len(_header(samples, size))
    return max(0, room // max(1, samples * size * _ITEM))


@dataclass(frozen=True)
class FeatureFile:
    """The file of one cache and its sidecars.

    Attributes:
        folder, name, rows, size, batch_size, key: see `cache_features`.
    """

    folder: Path
    name: str
    rows: int
    size: int
    batch_size: int
    key: Any

    @property
    def data(self) -> Path:
        """The array."""
        return self.folder / f"{self.name}.npy"

    @property
    def blocks(self) -> list[Block]:
        """All rows, in slices that never change."""
        starts = range(0, self.rows, self.batch_size)
        return [(start, min(start + self.batch_size, self.rows)) for start in starts]

    def sidecar(self, rank: int) -> Path:
        """Progress of one process; that of the first says what all had done at the start."""
        return self.folder / (f"{self.name}.{rank}.json" if rank else f"{self.name}.json")

    def prepare(self, views: int) -> None:
        """Take over what was done before, by any number of processes, or begin anew."""
        self.folder.mkdir(parents=True, exist_ok=True)
        others = self._parts()
        reason = self._unusable()
        self._check_room(views)
        if not reason:
            done = {block for path in (self.sidecar(0), *others) for block in self.done(path)}
            if others:
                self.save(0, sorted(done))
        elif self.data.exists():
            print(f"features {self.name}: made anew, {reason}", file=sys.stderr)
        # Before the data are: no sidecar may speak of a file that it does not describe.
        for path in others + ([self.sidecar(0)] if reason else []):
            path.unlink(missing_ok=True)
        if reason:
            self._create()
            self.save(0, [])

    def _parts(self) -> list[Path]:
        """Sidecars of the other processes, of this run or of one that was killed."""
        files = self.folder.glob(f"{glob.escape(self.name)}.*.json")
        return [path for path in files if path.name.split(".")[-2].isdecimal()]

    def _unusable(self) -> str:
        """Why the files cannot be used; empty when they can."""
        try:
            differing = self._differing(read_json(self.sidecar(0)))
            if differing:
                return f"it was made with other options: {', '.join(differing)}"
            with open(self.data, "rb") as file:
                header = file.read(len(_header(self.rows, self.size)))
            whole = self.data.stat().st_size == bytes_needed(self.rows, self.size)
        except (TkError, KeyError, TypeError, AttributeError, OSError):
            return "there is no record of what it was made from"
        if not whole or header != _header(self.rows, self.size):
            return "the file is not whole"
        return ""

    def _differing(self, found: Any) -> list[str]:
        """Names of what a sidecar says otherwise; raises if it is no sidecar."""
        now, key = self._facts(), found["key"]
        names = [name for name in {**key, **self.key} if key.get(name) != self.key.get(name)]
        return names + [name for name in now if name != "key" and now[name] != found.get(name)]

    def _facts(self) -> dict[str, Any]:
        return {
            "key": self.key,
            "rows": self.rows,
            "size": self.size,
            "batch_size": self.batch_size,
            "dtype": "float32",
        }

    def _check_room(self, views: int) -> None:
        needed, room = bytes_needed(self.rows, self.size), shutil.disk_usage(self.folder).free
        if self.data.exists():
            # What it holds is there already, or will be given back; the rest of it is a hole.
            room += self.data.stat().st_blocks * 512
        if needed <= room:
            return
        fits = most_views(max(1, self.rows // max(1, views)), self.size, room / 1e9)
        raise EnvironmentLacks(
            f"there is no room for the features of {self.name} in {self.folder}",
            expected=f"{needed / 1e9:.2f} GB",
            found=f"{room / 1e9:.2f} GB",
            fix=(f"--feature_views {fits}, or " if fits else "")
            + "--feature_views 0 to run the backbone in every epoch",
        )

    def _create(self) -> None:
        """Make the file in its full length, a hole for now."""
        self.data.unlink(missing_ok=True)  # not truncated: another process may have it mapped
        try:
            with open(self.data, "wb") as file:
                file.write(_header(self.rows, self.size))
                file.truncate(bytes_needed(self.rows, self.size))
        except OSError as error:
            raise _disk(self.data, error) from None

    def todo(self) -> list[Block]:
        """Blocks that no process had done at the start."""
        found = self.sidecar(0)
        if not found.exists():
            raise TkError(
                f"{found} is missing",
                expected="one run folder that all processes share",
                fix="give an --out on a file system that all machines see",
            )
        done = set(self.done(found))
        return [block for block in self.blocks if block not in done]

    def done(self, path: Path) -> list[Block]:
        """Blocks that a sidecar lists; none if it is broken or speaks of something else."""
        try:
            found = read_json(path)
            if self._differing(found):
                return []
            ranges = [(int(start), int(stop)) for start, stop in found["done"]]
        except (TkError, KeyError, TypeError, ValueError, AttributeError, OSError):
            return []
        return [b for b in self.blocks if any(s <= b[0] and b[1] <= e for s, e in ranges)]

    def save(self, rank: int, done: Sequence[Block]) -> None:
        """Write the sidecar of a process; rows in neighbouring blocks become one range."""
        ranges: list[list[int]] = []
        for start, stop in done:
            if ranges and ranges[-1][1] == start:
                ranges[-1][1] = stop
            else:
                ranges.append([start, stop])
        count = sum(stop - start for start, stop in ranges)
        write_json(self.sidecar(rank), {**self._facts(), "rows_done": count, "done": ranges})

    def finish(self) -> None:
        """Say that all is done; all processes have said so."""
        self.save(0, self.blocks)
        for path in self._parts():
            path.unlink(missing_ok=True)

    def writer(self, rank: int) -> FeatureWriter:
        """Open the file for the blocks of one process."""
        return FeatureWriter(self, rank)


class FeatureWriter:
    """Writes blocks and, now and then and at the end, which of them are safe on disk.

    Ordinary writes: on a full disk a store to a memory map would kill the process.
    """

    def __init__(self, store: FeatureFile, rank: int) -> None:
        self.store, self.rank = store, rank
        self.done = store.done(store.sidecar(0)) if rank == 0 else []
        self.saved = time.monotonic()

    def __enter__(self) -> FeatureWriter:
        self.file = open(self.store.data, "r+b")
        return self

    def write(self, block: Block, features: NDArray[np.float32]) -> None:
        """Write `features: (stop - start, size)` at rows start..stop."""
        header = len(_header(self.store.rows, self.store.size))
        try:
            self.file.seek(header + block[0] * self.store.size * _ITEM)
            self.file.write(np.ascontiguousarray(features, "<f4").tobytes())
        except OSError as error:
            raise _disk(self.store.data, error) from None
        self.done.append(block)
        if time.monotonic() - self.saved >= SAVE_EVERY:
            self._save()

    def _save(self) -> None:
        try:
            self.file.flush()
            os.fsync(self.file.fileno())
            self.store.save(self.rank, sorted(self.done))
        except OSError as error:
            raise _disk(self.store.data, error) from None
        self.saved = time.monotonic()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            # Also after an error or Ctrl-C: what was finished until then counts. Not after a
            # failed write: what is on the disk then, nobody knows.
            if kind is None or not issubclass(kind, EnvironmentLacks):
                self._save()
        finally:
            self.file.close()


def _disk(path: Path, error: OSError) -> TkError:
    return EnvironmentLacks(
        f"{path} cannot be written: {error.strerror or error}",
        fix="make room and start again: it goes on where it was; or fewer --feature_views",
    )


def _header(rows: int, size: int) -> bytes:
    buffer = io.BytesIO()
    about = {"descr": "<f4", "fortran_order": False, "shape": (rows, size)}
    np.lib.format.write_array_header_1_0(buffer, about)  # type: ignore[no-untyped-call]
    return buffer.getvalue()
