"""The mounts that may be asked for: a file that only root writes, read anew for each connection."""

from __future__ import annotations

import os
import pwd
import re
import tomllib
from dataclasses import dataclass
from typing import Any

from pterefd.errors import BadInput

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
    try:
        with open(path, "rb") as f:
            status = os.fstat(f.fileno())
            if status.st_uid != 0 or status.st_mode & 0o022:
                raise BadInput(f"{path}: must be root's and written by nobody else")
            given = tomllib.load(f)
    except (OSError, ValueError) as e:
        raise BadInput(f"{path}: {getattr(e, 'strerror', None) or e}") from None
    if given.keys() - {"mount"} or not isinstance(given.get("mount", []), list):
        raise BadInput(f"{path}: consists of [[mount]] tables")
    return [_entry(f"{path}: mount.{number}", entry) for number, entry in enumerate(given.get("mount", []))]


def _entry(where: str, given: Any) -> Entry:
    if not isinstance(given, dict) or given.keys() - _KEYS or not {"point", "user"} <= given.keys():
        raise BadInput(f"{where}: takes point, user and allow_other")
    point, user, allow_other = given["point"], given["user"], given.get("allow_other", False)
    if not isinstance(point, str) or not plain(point):
        raise BadInput(f"{where}: point {point!r} is not a plain absolute path")
    if not isinstance(allow_other, bool):
        raise BadInput(f"{where}: allow_other {allow_other!r} is not true or false")
    try:
        return Entry(point, pwd.getpwnam(user).pw_uid, allow_other)
    except (KeyError, TypeError):
        raise BadInput(f"{where}: there is no user {user!r}") from None


def plain(point: str) -> bool:
    """Absolute, no empty component, no . or .. among them, nothing that a line of the log would not show."""
    names = point.split("/")
    return names[0] == "" and len(names) > 1 and not {"", ".", ".."} & set(names[1:]) and point.isprintable()
