"""Why a process was not touched, or not now."""

from __future__ import annotations

import errno

from pterefd import errors


class Refused(errors.Refused):
    """This process is not to be touched as it is."""

    def __init__(self, label: str, text: str) -> None:
        super().__init__(text, label)


class PutOff(errors.Refused):
    """Not now: something has to be waited out, or changed meanwhile."""

    exit_code = errors.EXIT_PARTLY
    errno = errno.EAGAIN

    def __init__(self, label: str, text: str) -> None:
        super().__init__(text, label)
