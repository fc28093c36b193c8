"""`tk data download` against stand-ins with the API and the habits of kaggle 1.6.17 and 2.2.5.

Both editions were read (2.2.5 was also run against a local server): 1.x raises OSError while it is
imported without credentials, 2.x swallows that, and prints and exits in `authenticate()`.
"""

from __future__ import annotations

import errno
import inspect
import subprocess
import sys
import zipfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest

from tk.runtime.errors import CheckFailed, EnvironmentLacks, TkError
from tk.train.data.steel.download import COMPETITION, KaggleClient, download_severstal

PARAMETERS = ("competition", "path", "force", "quiet")
"""Of `KaggleApi.competition_download_files`, as both editions begin; 2.x adds `unzip`."""
FILES = {"train.csv": b"ImageId,ClassId,EncodedPixels\n", "train_images/a.jpg": b"picture"}


class StandIn:
    """What `kaggle.api` is, without a network."""

    def __init__(self, files: dict[str, bytes] = FILES) -> None:
        self.files = files
        self.error: BaseException | None = None
        self.resumed = False

    def authenticate(self) -> None:
        """Credentials are there."""

    def competition_download_files(
        self, competition: str, path: str | None = None, force: bool = False, quiet: bool = True
    ) -> None:
        assert competition == COMPETITION and path is not None and not force
        archive = Path(path) / f"{competition}.zip"
        self.resumed = archive.exists()
        if self.error is not None:
            archive.write_bytes(b"PK half of it")
            raise self.error
        with zipfile.ZipFile(archive, "w") as packed:
            for name, content in self.files.items():
                packed.writestr(name, content)


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    made = StandIn()
    monkeypatch.setitem(sys.modules, "kaggle", SimpleNamespace(api=made))
    return made


def refused(status: int) -> Exception:
    """As `requests.HTTPError` of 2.x: the answer hangs on it."""
    error = ConnectionError("You must accept this competition's rules")
    error.response = SimpleNamespace(status_code=status)  # type: ignore[attr-defined]
    return error


def test_download__unpacked_and_the_archive_gone(client: StandIn, tmp_path: Path) -> None:
    assert download_severstal(tmp_path / "steel") == 2
    found = {
        path.relative_to(tmp_path).as_posix(): path.read_bytes()
        for path in tmp_path.rglob("*")
        if path.is_file()
    }
    assert found == {f"steel/{name}": content for name, content in FILES.items()}
    with pytest.raises(TkError, match="exists already"):
        download_severstal(tmp_path / "steel")
    client.files = {**FILES, "train_images/b.jpg": b"another"}
    assert download_severstal(tmp_path / "steel", overwrite=True) == 3


def test_download__into_the_folder_one_stands_in(
    client: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "notes.txt").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TkError, match="works in it"):
        download_severstal(Path("."))
    assert download_severstal(Path("steel")) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt", "steel"]


def test_download__goes_on_where_it_stopped(client: StandIn, tmp_path: Path) -> None:
    client.error = OSError("connection lost")
    with pytest.raises(EnvironmentLacks, match="connection lost") as caught:
        download_severstal(tmp_path / "steel")
    assert "goes on" in caught.value.fix
    assert not (tmp_path / "steel").exists()
    client.error = None
    assert download_severstal(tmp_path / "steel") == 2
    assert client.resumed
    assert [path.name for path in tmp_path.iterdir()] == ["steel"]


@pytest.mark.parametrize(("status", "fix"), [(403, "/rules"), (401, "not valid")])
def test_download__refused(client: StandIn, tmp_path: Path, status: int, fix: str) -> None:
    client.error = refused(status)
    with pytest.raises(EnvironmentLacks) as caught:
        download_severstal(tmp_path / "steel")
    assert fix in caught.value.fix
    assert "accept this competition's rules" in caught.value.found


def test_download__a_full_disk_is_not_kaggles_fault(client: StandIn, tmp_path: Path) -> None:
    client.error = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(OSError, match="No space left"):
        download_severstal(tmp_path / "steel")


def print_and_exit() -> None:
    print("Authentication required to call the Kaggle API.")
    raise SystemExit(1)


def not_found() -> None:
    raise OSError("Could not find kaggle.json.")


@pytest.mark.parametrize("way", [print_and_exit, not_found])
def test_download__no_credentials(
    client: StandIn,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    way: Callable[[], None],
) -> None:
    monkeypatch.setattr(client, "authenticate", way)
    with pytest.raises(EnvironmentLacks, match="credentials") as caught:
        download_severstal(tmp_path / "steel")
    assert "https://www.kaggle.com/settings/api" in caught.value.fix
    assert "~/.kaggle" in caught.value.fix and "/rules" in caught.value.fix
    assert capsys.readouterr().out == ""
    assert not list(tmp_path.iterdir())


def test_download__first_edition_raises_on_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site" / "kaggle"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise OSError('Could not find kaggle.json.')\n")
    monkeypatch.syspath_prepend(str(package.parent))
    monkeypatch.delitem(sys.modules, "kaggle", raising=False)
    with pytest.raises(EnvironmentLacks, match="credentials") as caught:
        download_severstal(tmp_path / "steel")
    assert caught.value.found == "Could not find kaggle.json."


def test_download__without_the_client(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['kaggle'] = None\n"
        f"sys.argv[1:] = ['data', 'download', {str(tmp_path / 'steel')!r}]\n"
        "from tk.cli import run; run()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert "pip install 'tk-vision[kaggle]'" in done.stderr
    assert not list(tmp_path.iterdir())


def test_download__damaged_archive(client: StandIn, tmp_path: Path) -> None:
    fetch = client.competition_download_files

    def damaged(
        competition: str, path: str | None = None, force: bool = False, quiet: bool = True
    ) -> None:
        fetch(competition, path, force, quiet)
        archive = Path(str(path)) / f"{COMPETITION}.zip"
        archive.write_bytes(archive.read_bytes().replace(b"picture", b"pictuRe"))

    client.competition_download_files = damaged  # type: ignore[method-assign]
    with pytest.raises(CheckFailed, match="damaged"):
        download_severstal(tmp_path / "steel")
    assert not (tmp_path / "steel").exists()
    assert not list(tmp_path.rglob("*.zip"))


@pytest.mark.parametrize("files", [{}, {"readme.txt": b"x"}, {"train.csv": b"x"}])
def test_download__another_archive(
    client: StandIn, tmp_path: Path, files: dict[str, bytes]
) -> None:
    client.files = files
    with pytest.raises(CheckFailed, match="layout"):
        download_severstal(tmp_path / "steel")
    assert not (tmp_path / "steel").exists()


def test_download__archive_does_not_leave_its_folder(client: StandIn, tmp_path: Path) -> None:
    client.files = {**FILES, "../../outside.txt": b"x"}
    download_severstal(tmp_path / "steel")
    assert not (tmp_path / "outside.txt").exists()
    assert not (tmp_path.parent / "outside.txt").exists()


def test_stand_in__has_the_parameters_of_both_editions() -> None:
    for kind in (StandIn, KaggleClient):
        names = list(inspect.signature(kind.competition_download_files).parameters)
        assert tuple(names[1:]) == PARAMETERS


@pytest.mark.skipif(find_spec("kaggle") is None, reason="Kaggle's client is not installed")
def test_stand_in__has_the_parameters_of_the_installed_client() -> None:
    code = (
        "import inspect, kaggle\n"
        "print(*inspect.signature(kaggle.api.competition_download_files).parameters)\n"
        "print(callable(kaggle.api.authenticate))"
    )
    environment = {"KAGGLE_USERNAME": "nobody", "KAGGLE_KEY": "0", "HOME": "/nonexistent"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    parameters, callable_ = done.stdout.split("\n")[:2]
    assert tuple(parameters.split()[: len(PARAMETERS)]) == PARAMETERS
    assert callable_ == "True"
