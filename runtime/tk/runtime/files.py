"""Files that are whole or absent: atomic writes, atomic folders, hashes."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson

from tk.runtime.errors import TkError


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it takes the place of `path` only if the body succeeds.

    A crash, a full disk or Ctrl-C leaves the previous file as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; it becomes `path` only if the body succeeds.

    Raises:
        TkError: `path` exists, is not empty, and `overwrite` is false.
    """
    refuse_existing(path, overwrite=overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    temporary.chmod(0o755)  # mkdtemp makes it private; a bundle is meant to be read by others
    try:
        yield temporary
        if path.exists():
            # Set aside, not deleted: a kill between the two renames must not cost the old folder.
            aside = temporary.with_suffix(".old")
            os.replace(path, aside)
            os.replace(temporary, path)
            shutil.rmtree(aside, ignore_errors=True)
        else:
            os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def locked(path: Path, *, busy: str = "") -> Iterator[None]:
    """Hold `path` against other processes that ask likewise, by a file `.NAME.lock` beside it.

    The lock goes with the process, however it ends; the empty file stays.

    Args:
        path: to hold; it need not exist.
        busy: what to say when another process holds it; "" waits for it.

    Raises:
        TkError: with `busy`.
    """
    import fcntl

    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.with_name(f".{path.name}.lock")
    descriptor = os.open(file, os.O_CREAT | os.O_RDWR, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (fcntl.LOCK_NB if busy else 0))
        except BlockingIOError:
            raise TkError(busy, fix="wait until it is done, or choose another folder") from None
        yield
    finally:
        os.close(descriptor)


def refuse_existing(path: Path, *, overwrite: bool) -> None:
    """Raise when `path` is a file, or a folder with something in it that was not to be replaced."""
    if path.is_dir() and (overwrite or not any(path.iterdir())):
        return
    if path.exists():
        raise TkError(
            f"{path} exists already",
            fix="choose another folder, or add --overwrite to replace it",
        )


def write_bytes(path: Path, data: bytes) -> None:
    """Write a whole file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, value: Any) -> None:
    """Write indented UTF-8 JSON atomically; numpy values are allowed, NaN becomes null."""
    options = orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE
    write_bytes(path, orjson.dumps(value, option=options))


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        TkError: the file is missing or is not JSON.
    """
    try:
        return orjson.loads(path.read_bytes())
    except FileNotFoundError:
        raise TkError(f"{path} does not exist") from None
    except orjson.JSONDecodeError as error:
        raise TkError(f"{path} is not valid JSON: {error}") from None


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()
