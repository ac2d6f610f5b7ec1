"""What the helpers with rights share: the socket that systemd hands over, who asks, and root's word on what is allowed.

Nothing beside the standard library and the errors: all of it runs with rights.
"""

from __future__ import annotations

import os
import pwd
import socket
import struct
import tomllib
from typing import Any, NamedTuple

from pterefd.errors import BadInput

LISTEN_FD = 3  # sd_listen_fds(3)


class Peer(NamedTuple):
    """Who is at the other end of a Unix socket."""

    pid: int
    uid: int
    gid: int


def given_socket(otherwise: str) -> socket.socket:
    """The one socket that systemd has opened, or accepted, for this process. BadInput, `otherwise`, without it."""
    if (os.environ.get("LISTEN_PID"), os.environ.get("LISTEN_FDS")) != (str(os.getpid()), "1"):
        raise BadInput(otherwise)
    return socket.socket(fileno=LISTEN_FD)


def peer_of(connection: socket.socket) -> Peer:
    """Who called connect(), as the kernel noted it then (SO_PEERCRED)."""
    told = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return Peer(*struct.unpack("3i", told))


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
