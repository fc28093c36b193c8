"""Files that are whole or absent: atomic writes, atomic folders, hashes."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
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
def atomic_folder(path: Path, *, overwrite: bool = False, own: str = "") -> Iterator[Path]:
    """Yield a temporary folder beside `path`; it becomes `path` only if the body succeeds.

    A link stays a link: what it leads to is made, or replaced.

    Args:
        path: the folder to make.
        overwrite: replace it, see `refuse_existing`.
        own: how a folder that may be replaced is known, see `refuse_existing`.

    Raises:
        TkError: as `refuse_existing`.
    """
    refuse_existing(path, overwrite=overwrite, own=own)
    path = path.resolve()
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

    path = path.resolve()  # "." has no name to put a word to, and a link is not what is held
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


def refuse_existing(path: Path, *, overwrite: bool, own: str = "") -> None:
    """Refuse a folder that must not be made or replaced as a whole.

    Args:
        path: the folder to make.
        overwrite: whether it may be replaced.
        own: glob of a file that is in all results of the command and in no other folder, e.g.
            `manifest.json`. A folder without it is somebody's data and never replaced; "" knows
            none.

    Raises:
        TkError: a file; something is in the folder and is not to be replaced, or is not of this
            command; or the command works in that folder.
    """
    place = path.resolve()
    if Path.cwd().is_relative_to(place):
        raise TkError(
            f"{path} cannot be made anew: this command works in it",
            expected="a folder of its own for the results",
            found=f"{place} is the current folder, or one above it",
            fix="name another folder, or go elsewhere with cd and name this one from there",
        )
    if place.is_file():
        raise TkError(f"{path} is a file", expected="a folder", fix="choose another name")
    if not place.exists() or not any(place.iterdir()):
        return
    known = bool(own) and any(place.glob(own))
    if not overwrite:
        more = ", or add --overwrite to replace it" if known else ""
        raise TkError(f"{path} exists already", fix=f"choose another folder{more}")
    if not known:
        raise TkError(
            f"{path} is not replaced: this command did not make it",
            expected=f"an empty folder, or one with {own}" if own else "an empty folder",
            found=what_is_there(place),
            fix="choose another folder, or remove this one yourself",
        )


def refuse_inputs(out: Path, inputs: Mapping[str, Path | None]) -> None:
    """Refuse an output folder that is an input of the same command, or holds one.

    Args:
        out: the folder to make, or to replace.
        inputs: name for a person -> what is read; None is nothing.

    Raises:
        TkError: names the input.
    """
    place = out.resolve()
    for name, path in inputs.items():
        if path is None or not path.resolve().is_relative_to(place):
            continue
        raise TkError(
            f"{out} holds the input {name}",
            expected="a folder for the results that has nothing to do with what is read",
            found=f"{name} is {path}",
            fix="choose a folder beside it",
        )


def what_is_there(path: Path) -> str:
    """What lies at a path, in a few words for an error."""
    if not path.exists():
        return "no such folder"
    if path.is_file():
        return "a file"
    names = sorted(child.name for child in path.iterdir())
    return "a folder with " + (", ".join(names[:5]) + (" …" if len(names) > 5 else "") or "nothing")


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
