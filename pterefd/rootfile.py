"""Files by which root says what a helper with rights may do for others."""

from __future__ import annotations

import os
import pwd
import tomllib
from typing import Any

from pterefd.errors import BadInput


def read_tables(path: str, name: str) -> list[tuple[str, dict[str, Any]]]:
    """The [[name]] tables of a file, each with where it stands. BadInput, in one line; nothing is allowed then.

    The file is root's, or of whom this process runs as, and written by nobody else.
    """
    try:
        with open(path, "rb") as f:
            status = os.fstat(f.fileno())
            if status.st_uid not in (0, os.geteuid()) or status.st_mode & 0o022:
                raise BadInput(f"{path}: must be root's and written by nobody else")
            given = tomllib.load(f)
    except (OSError, ValueError) as e:
        raise BadInput(f"{path}: {getattr(e, 'strerror', None) or e}") from None
    tables = given.get(name, [])
    if given.keys() - {name} or not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise BadInput(f"{path}: consists of [[{name}]] tables")
    return [(f"{path}: {name}.{number}", table) for number, table in enumerate(tables)]


def uid_of(where: str, user: Any) -> int:
    """The number of a user's name. BadInput."""
    try:
        return pwd.getpwnam(user).pw_uid
    except (KeyError, TypeError):
        raise BadInput(f"{where}: there is no user {user!r}") from None
