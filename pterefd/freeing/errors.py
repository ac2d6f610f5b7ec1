"""Why a process was not touched, or not now."""

from __future__ import annotations

from pterefd.errors import Missing, Partly


class Refused(Missing):
    """This process is not to be touched as it is. label: a word or two for a metric."""

    def __init__(self, label: str, text: str) -> None:
        super().__init__(text)
        self.label = label


class PutOff(Partly):
    """Not now: something has to be waited out, or changed meanwhile."""

    def __init__(self, label: str, text: str) -> None:
        super().__init__(text)
        self.label = label
