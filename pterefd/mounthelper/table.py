"""The mounts that may be asked for: a file that only root writes, read anew for each connection."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from pterefd.errors import BadInput
from pterefd.privileged import read_tables, uid_of

TABLE = "/etc/pterefd/mounts.toml"
_KEYS = {"point", "user", "allow_other"}


@dataclass(frozen=True, slots=True)
class Entry:
    """A [[mount]] of the table. point: absolute; a last component of * stands for any one name.

    user: who may mount there.  allow_other: whether the others may be let in.
    """

    point: str
    user: int
    allow_other: bool

    def fits(self, point: str) -> bool:
        """Whether point is meant."""
        directory, _, name = self.point.rpartition("/")
        if name != "*":
            return point == self.point
        return re.fullmatch(re.escape(directory) + r"/[A-Za-z0-9_:-][A-Za-z0-9_.:-]*", point) is not None


def table(path: str) -> list[Entry]:
    """The mounts that may be asked for. BadInput, in one line; nothing is allowed then."""
    return [_entry(where, given) for where, given in read_tables(path, "mount")]


def _entry(where: str, given: dict[str, Any]) -> Entry:
    if given.keys() - _KEYS or not {"point", "user"} <= given.keys():
        raise BadInput(f"{where}: takes point, user and allow_other")
    point, user, allow_other = given["point"], given["user"], given.get("allow_other", False)
    if not isinstance(point, str) or not plain(point):
        raise BadInput(f"{where}: point {point!r} is not a plain absolute path")
    if not isinstance(allow_other, bool):
        raise BadInput(f"{where}: allow_other {allow_other!r} is not true or false")
    return Entry(point, uid_of(where, user), allow_other)


def plain(point: str) -> bool:
    """Absolute, no empty component, no . or .. among them, nothing that a line of the log would not show."""
    names = point.split("/")
    return names[0] == "" and len(names) > 1 and not {"", ".", ".."} & set(names[1:]) and point.isprintable()
