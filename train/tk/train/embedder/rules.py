"""Which class folders are left out or belong together: `--exclude` and `--merge`."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase

from tk.runtime.errors import TkError


def nfc(name: str) -> str:
    """Composed Unicode: macOS stores file names decomposed, keyboards type them composed."""
    return unicodedata.normalize("NFC", name)


def matches(name: str, pattern: str) -> bool:
    """Say whether a pattern names `name`: the same text, or a shell pattern, case-sensitive.

    Equal text counts first, for folders such as `Ключ [10]`.
    """
    return name == pattern or fnmatchcase(name, pattern)


class Exclusion:
    """Patterns of class folders (`group*`) and of files in them (`hammer/IMG_0*.jpg`)."""

    def __init__(self, patterns: Sequence[str]) -> None:
        self.patterns = [nfc(pattern) for pattern in patterns]
        self._unused = set(self.patterns)

    def excludes(self, name: str) -> bool:
        """Say whether a pattern matches `FOLDER` or `FOLDER/FILE` (NFC)."""
        found = [pattern for pattern in self.patterns if matches(name, pattern)]
        self._unused.difference_update(found)
        return bool(found)

    def check(self, folders: Collection[str]) -> None:
        """Call after every name was asked about.

        Raises:
            TkError: a pattern has matched nothing: probably a typing error.
        """
        if self._unused:
            raise TkError(
                "--exclude matches nothing: " + ", ".join(sorted(self._unused)),
                expected="a pattern of class folders or FOLDER/FILE; folders: "
                + ", ".join(sorted(folders)),
            )


def merged_classes(folders: Collection[str], merge: Sequence[str]) -> dict[str, str]:
    """Class of every folder: its own name, or the TO of the rule `FROM=TO` that names it.

    Args:
        folders: names of the class folders, NFC.
        merge: rules; FROM is a folder or a pattern of folders, TO any class name.

    Raises:
        TkError: a rule that is none, names no folder, or contradicts another.
    """
    classes = {folder: folder for folder in folders}
    named: dict[str, str] = {}
    for rule in merge:
        source, target = _parse(rule)
        exact = [source] if source in classes else []
        found = exact or [folder for folder in sorted(folders) if fnmatchcase(folder, source)]
        if not found:
            raise TkError(
                f"--merge {rule}: there is no class folder {source}",
                expected="one of " + ", ".join(sorted(folders)),
            )
        for folder in found:
            if named.setdefault(folder, target) != target:
                raise TkError(
                    f"--merge puts {folder} into two classes",
                    found=f"{named[folder]} and {target}",
                )
        classes.update(dict.fromkeys(found, target))
    for target in sorted(set(named.values())):
        # `a=b` and `b=c`: crops of `a` would be alone in a class named after the other folder.
        if classes.get(target, target) != target:
            raise TkError(
                f"--merge makes a class {target}, but folder {target} goes to {classes[target]}",
                fix=f"merge both into {classes[target]}",
            )
    return classes


def _parse(rule: str) -> tuple[str, str]:
    source, _, target = (part.strip() for part in nfc(rule).partition("="))
    if not source or not target:
        raise TkError("--merge is not a rule", expected="FROM=TO", found=rule)
    return source, target
