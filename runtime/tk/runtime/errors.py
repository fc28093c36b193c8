"""Errors that a user can act on: what happened, expected and found, and how to mend it."""

from __future__ import annotations


class TkError(Exception):
    """Bad usage or bad input; the command line prints it without a traceback and exits with 2.

    Args:
        what: one sentence, what went wrong and where.
        expected: what would have been right.
        found: what there was instead.
        fix: the command, option or package that mends it.
    """

    exit_code = 2

    def __init__(self, what: str, *, expected: str = "", found: str = "", fix: str = "") -> None:
        self.what, self.expected, self.found, self.fix = what, expected, found, fix
        parts = (("", what), ("expected: ", expected), ("found:    ", found), ("fix:      ", fix))
        super().__init__("\n  ".join(label + text for label, text in parts if text))


class CheckFailed(TkError):
    """A check said no (parity, hashes, a regression): exit code 1."""

    exit_code = 1


class EnvironmentLacks(TkError):
    """The machine lacks a package, a device or disk space: exit code 3."""

    exit_code = 3


class Interrupted(TkError):
    """Ctrl-C, after what was finished has been written; says what that is. Exit code 130."""

    exit_code = 130
