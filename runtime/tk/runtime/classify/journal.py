"""The journal of a run: one line per picture, flushed per batch, so that a kill loses nothing.

The first line says which model and which pictures it is of; a run of the same goes on after the
last whole line.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson

from tk.runtime.errors import TkError

JOURNAL = "journal.jsonl"


def pictures_digest(names: Sequence[str], files: Sequence[Path]) -> str:
    """SHA-256 of names, sizes and times of change: other pictures make it another run."""
    digest = hashlib.sha256()
    for name, file in zip(names, files, strict=True):
        try:
            stat = file.stat()
            state = f"{stat.st_size} {stat.st_mtime_ns}"
        except OSError:  # a link to nothing: a row with an error, like other unreadable pictures
            state = "unreadable"
        digest.update(f"{name}\0{state}\n".encode())
    return digest.hexdigest()


class Journal:
    """Records of a run, in the order of its pictures.

    Args:
        folder: gets `journal.jsonl`; made if needed.
        identity: of the run: what must be equal to go on with it.

    Attributes:
        done: records that are there.

    Raises:
        TkError: the folder holds the journal of another run.
    """

    def __init__(self, folder: Path, identity: dict[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / JOURNAL
        head = orjson.dumps(identity) + b"\n"
        found, lines, size = _whole_lines(self.path)
        if lines and found != head:
            raise TkError(
                f"{folder} holds what an interrupted run with other pictures or another model left",
                fix="choose another folder, or add --overwrite to begin anew",
            )
        self.done = max(0, lines - 1)
        self._file = open(self.path, "r+b" if lines else "wb")
        self._file.truncate(size)  # a line that a kill cut in two is done again
        self._file.seek(size)
        if not lines:
            self._file.write(head)

    def add(self, records: Sequence[dict[str, Any]]) -> None:
        """Write the records of a batch."""
        self._file.write(b"".join(orjson.dumps(record) + b"\n" for record in records))
        self._file.flush()
        self.done += len(records)

    def close(self) -> None:
        """Bring it to the disk."""
        if not self._file.closed:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()

    def lines(self) -> Iterator[bytes]:
        """Yield the records, one JSON line each; the journal must be closed."""
        with open(self.path, "rb") as file:
            next(file)
            yield from file


def _whole_lines(path: Path) -> tuple[bytes, int, int]:
    """The first line, the number of whole lines, and their bytes."""
    first, count, size = b"", 0, 0
    if path.is_file():
        with open(path, "rb") as file:
            for line in file:
                if line.endswith(b"\n"):
                    first, count, size = first or line, count + 1, size + len(line)
    return first, count, size
