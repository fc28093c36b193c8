"""The competition's data from Kaggle, by its official client, unpacked and whole or absent."""

from __future__ import annotations

import contextlib
import errno
import importlib
import io
import os
import shutil
import zipfile
from pathlib import Path
from typing import Any, Protocol

from tk.runtime.errors import CheckFailed, EnvironmentLacks
from tk.runtime.files import atomic_folder, refuse_existing
from tk.runtime.progress import progress
from tk.train.data.steel.layout import IMAGES, TABLE

COMPETITION = "severstal-steel-defect-detection"
_SITE = f"https://www.kaggle.com/competitions/{COMPETITION}"


class KaggleClient(Protocol):
    """What is used of `kaggle.api` (checked against kaggle 1.6.17 and 2.2.5)."""

    def authenticate(self) -> None:
        """Find the user's credentials; without any, raise OSError (1.x) or exit (2.x)."""

    def competition_download_files(
        self, competition: str, path: str | None = None, force: bool = False, quiet: bool = True
    ) -> None:
        """Fetch `<path>/<competition>.zip`; what is there already of it is not fetched again."""


def download_severstal(data: Path, *, overwrite: bool = False) -> int:
    """Fetch the data set (1.6 GB) and unpack it; the archive is removed.

    A download that was interrupted goes on where it stopped, as far as Kaggle's client can: the
    archive lies in a folder beside `data` (`.<name>.download`) until it is unpacked.

    Args:
        data: the folder to make; it appears only when it is whole.
        overwrite: replace `data` where it exists and is not empty.

    Returns:
        number of files unpacked.

    Raises:
        EnvironmentLacks: no client, no credentials, or Kaggle refuses or cannot be reached.
        CheckFailed: the archive is damaged, or not what the competition packs.
        TkError: `data` is not empty and `overwrite` is false.
    """
    refuse_existing(data, overwrite=overwrite, own=IMAGES)
    client = open_client()
    place = Path(os.path.abspath(data))  # "." has no name to put a word to
    waiting = place.with_name(f".{place.name}.download")
    waiting.mkdir(parents=True, exist_ok=True)
    archive = waiting / f"{COMPETITION}.zip"
    try:
        _fetch(client, waiting)
    finally:
        if not any(waiting.iterdir()):
            waiting.rmdir()
    if not archive.is_file():
        raise CheckFailed(
            "Kaggle's client did not leave the archive where it was told to",
            expected=str(archive),
            found=", ".join(sorted(path.name for path in waiting.glob("*"))) or "nothing",
        )
    with atomic_folder(data, overwrite=overwrite, own=IMAGES) as folder:
        count = _unpack(archive, folder)
    shutil.rmtree(waiting)
    return count


def open_client() -> KaggleClient:
    """Kaggle's client with the user's credentials.

    Raises:
        EnvironmentLacks: it is not installed, or finds no credentials.
    """
    try:
        # Importing it looks for credentials already: some editions raise here, some exit.
        with contextlib.redirect_stdout(io.StringIO()):
            client: KaggleClient = importlib.import_module("kaggle").api
            client.authenticate()
    except ImportError as error:
        raise EnvironmentLacks(
            f"tk data download needs Kaggle's client ({error})",
            fix="pip install 'tk-vision[kaggle]'; or fetch the archive with a browser from "
            f"{_SITE}/data and unpack it: train.csv and train_images/ are what is needed",
        ) from None
    except (OSError, ValueError, SystemExit) as error:
        raise EnvironmentLacks(
            "Kaggle's client finds no credentials",
            found=_line(error) if str(error) not in ("", "1") else "",
            fix="make a token at https://www.kaggle.com/settings/api; put it into KAGGLE_API_TOKEN "
            "or ~/.kaggle/access_token (older clients: kaggle.json into ~/.kaggle/, chmod 600), "
            f"and accept the rules at {_SITE}/rules",
        ) from None
    return client


def _fetch(client: KaggleClient, folder: Path) -> None:
    try:
        client.competition_download_files(COMPETITION, path=str(folder), quiet=False)
    except Exception as error:  # requests' and the client's own, which cannot be imported here
        if getattr(error, "errno", None) == errno.ENOSPC:
            raise
        status = getattr(getattr(error, "response", None), "status_code", None)
        status = status or getattr(error, "status", None)  # ApiException of kaggle 1.x
        fixes: dict[Any, str] = {
            401: "the token is not valid: make a new one at https://www.kaggle.com/settings/api",
            403: f"accept the rules of the competition, signed in, at {_SITE}/rules",
        }
        raise EnvironmentLacks(
            "Kaggle does not give the data",
            found=f"{type(error).__name__}: {_line(error)}",
            fix=fixes.get(status, "run the command again: it goes on where it stopped"),
        ) from None


def _unpack(archive: Path, folder: Path) -> int:
    try:
        with zipfile.ZipFile(archive) as packed:
            members = packed.infolist()
            _check_members([member.filename for member in members])
            with progress("unpack", len(members)) as bar:
                for member in members:
                    packed.extract(member, folder)  # checks the CRC, keeps inside the folder
                    bar.advance()
    except (zipfile.BadZipFile, EOFError) as error:
        archive.unlink()
        raise CheckFailed(
            "the archive from Kaggle is damaged and was removed",
            found=str(error),
            fix="run the command again",
        ) from None
    return sum(not member.is_dir() for member in members)


def _check_members(names: list[str]) -> None:
    if TABLE not in names or not any(name.startswith(f"{IMAGES}/") for name in names):
        raise CheckFailed(
            "the archive is not in the competition's layout",
            expected=f"{TABLE} and {IMAGES}/",
            found=", ".join(names[:5]) or "an empty archive",
        )


def _line(error: BaseException) -> str:
    """The text of an error on one line, not too long."""
    return " ".join(str(error).split())[:200]
