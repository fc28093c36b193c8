"""Models by id: shipped with tk, in the hub's cache on this machine, else from the network."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tk.runtime.errors import EnvironmentLacks, TkError

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
TIMEOUT = 5.0
"""Seconds to wait for the hub's first answer: without a network this must not feel like a hang."""

SMALL_FILES = ("*.json", "*.txt", "*.model", "README.md", "LICENSE*")
WEIGHTS = ("*.safetensors", "*.bin")
"""Safe tensors first: `.bin` files are fetched only from a repository that has no others."""

SHIPPED = Path(__file__).with_name("shipped")
"""Folders of small trained models, `tk/NAME` each; their README.md says how they were made."""

LOCAL_FIX = "give a local folder with its config.json and weights"


def is_hub_id(given: str) -> bool:
    """Whether a text reads `organisation/model` and cannot be a path with a missing last part."""
    if shipped(given) is not None:
        return True
    return HUB_ID.fullmatch(given) is not None and not Path(given).parent.exists()


def shipped(given: str) -> Path | None:
    """Folder of a model that comes with tk, such as `tk/sam2-tools`; None for any other text."""
    names = {f"tk/{folder.parent.name}": folder.parent for folder in SHIPPED.glob("*/config.json")}
    return names.get(given)


def fetch(hub_id: str) -> Path:
    """Folder of a model on this machine, fetched once from the hub if it must be.

    Args:
        hub_id: `organisation/model`; of `tk`, what was shipped is taken.

    Raises:
        EnvironmentLacks: no network, or huggingface_hub is not installed.
        TkError: the hub has no such model, or does not give it without a token.
    """
    own = shipped(hub_id)
    if own is not None:
        return own
    try:
        import huggingface_hub
    except ModuleNotFoundError:
        raise EnvironmentLacks(
            f"{hub_id} is a hub id, and the package huggingface_hub is not installed",
            fix="pip install 'tk-vision[export]', or " + LOCAL_FIX,
        ) from None
    cached = _cached(hub_id)
    if cached is not None:
        return cached
    try:
        # Asked by itself first: it fails at once where snapshot_download would try many times.
        info = huggingface_hub.HfApi().model_info(hub_id, timeout=TIMEOUT)
        names = [sibling.rfilename for sibling in info.siblings or ()]
        safe = any(name.endswith(".safetensors") for name in names)
        return Path(
            huggingface_hub.snapshot_download(
                hub_id, allow_patterns=[*SMALL_FILES, WEIGHTS[0 if safe else 1]]
            )
        )
    except Exception as error:  # the hub's client and its HTTP library raise dozens of types
        raise _explained(hub_id, error) from error


def _cached(hub_id: str) -> Path | None:
    """A whole model in the cache; a snapshot of only its configuration does not count."""
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    for pattern in WEIGHTS:
        try:
            # The patterns of the download: a snapshot counts as whole only by what was asked for.
            found = huggingface_hub.snapshot_download(
                hub_id, allow_patterns=[*SMALL_FILES, pattern], local_files_only=True
            )
        except LocalEntryNotFoundError:
            continue
        folder = Path(found)
        if (folder / "config.json").is_file() and any(folder.glob(pattern)):
            return folder
    return None


def _explained(hub_id: str, error: Exception) -> TkError:
    from huggingface_hub import errors

    reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    if isinstance(error, errors.GatedRepoError):
        return TkError(
            f"the hub gives {hub_id} only to people who accepted its licence",
            found=reason,
            fix=f"accept it on https://huggingface.co/{hub_id}, then `hf auth login` or set "
            f"HF_TOKEN; or {LOCAL_FIX}",
        )
    if isinstance(error, errors.RepositoryNotFoundError | errors.HFValidationError):
        return TkError(
            f"there is no folder {hub_id} here, and the hub shows no model of that name",
            found=reason,
            fix=f"check the spelling; a private model needs `hf auth login` or HF_TOKEN; "
            f"or {LOCAL_FIX}",
        )
    return EnvironmentLacks(
        f"{hub_id} could not be fetched: it is no local folder, not in the cache of the hub on "
        "this machine, and the hub could not be reached",
        found=f"{type(error).__name__}: {reason}",
        fix=f"connect to a network, or {LOCAL_FIX}",
    )


def licence_of(folder: Path) -> str:
    """Licence of the weights as the folder states it; "not stated" when it does not.

    Looks at the header of README.md (`license:`, `license_name:`), then at config.json, then for a
    licence file.
    """
    from tk.runtime.files import read_json

    header = _header(folder / "README.md")
    for key in ("license_name", "license"):
        if header.get(key) and header[key] != "other":
            return header[key]
    config: Any = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    if isinstance(config, dict) and isinstance(config.get("license"), str):
        return str(config["license"])
    files = sorted(file.name for file in folder.glob("LICENSE*"))
    return f"see {files[0]} of the model" if files else header.get("license", "not stated")


def _header(readme: Path) -> dict[str, str]:
    """Flat `key: value` lines between the two `---` of a model card."""
    if not readme.is_file():
        return {}
    text = readme.read_text(encoding="utf-8", errors="replace")
    found = re.match(r"---\s*\n(.*?)\n---", text, re.DOTALL)
    lines = found.group(1).splitlines() if found else []
    pairs = (line.partition(":") for line in lines if ":" in line and not line.startswith(" "))
    return {key.strip(): value.strip().strip("'\"") for key, _, value in pairs}
