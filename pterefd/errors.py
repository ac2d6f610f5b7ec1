"""Errors that reach a user: one line that says what, where and why, and an exit code.

The command line catches `PterefdError` once and prints its text; the mount maps `errno`.
Anything else that escapes is a fault of pterefd itself (exit code 70, with a traceback in the log).
"""

from __future__ import annotations

import errno as _errno

EXIT_DONE = 0
EXIT_DIFFERS = 1
EXIT_BAD_INPUT = 2
EXIT_MISSING = 3
EXIT_PARTLY = 4
EXIT_FAULT = 70
COMPILER = "kernels"  # name of a thread that cannot be stopped: where it is left, Python may not end in its usual way


class PterefdError(Exception):
    """Base of every error with a message for the user.

    exit_code: what the command ends with.  errno: what a write or open on the mount answers.
    """

    exit_code = EXIT_FAULT
    errno = _errno.EIO


class BadInput(PterefdError):
    """A file, an argument or a value that cannot be used as it is."""

    exit_code = EXIT_BAD_INPUT
    errno = _errno.EINVAL


class TraceError(BadInput):
    """A trace that does not follow its format; the text names file and line (or row)."""


class Missing(PterefdError):
    """Something outside pterefd is missing: a program, a right, a mount, a free port."""

    exit_code = EXIT_MISSING
    errno = _errno.ENODEV


class Partly(PterefdError):
    """A part of the work was done; the text says which part was not, and why."""

    exit_code = EXIT_PARTLY


class NoSuchMm(PterefdError):
    """No mm with that pid."""

    exit_code = EXIT_BAD_INPUT
    errno = _errno.ESRCH


class Refused(PterefdError):
    """What was asked for is not to be done here, or to this process. label: why, in a word or two."""

    exit_code = EXIT_MISSING
    errno = _errno.EPERM

    def __init__(self, text: str, label: str) -> None:
        super().__init__(text)
        self.label = label
