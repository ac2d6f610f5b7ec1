"""Mounting through the helper that runs as root (pterefd/mounthelper), as a service without rights does.

The mount lives as long as the connection: when this process ends, however, the helper unmounts.
"""

from __future__ import annotations

import json
import os
import socket
from typing import Any

from pterefd.errors import Missing

PACKET_BYTES = 8192
ANSWER_SECONDS = 30.0


class Helped:
    """A connection to the helper at a socket's path. Missing, with the helper's reason, where it does not help."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._connection: socket.socket | None = None

    def mount(self, point: str, allow_other: bool) -> int:
        """Have it mounted; the descriptor of /dev/fuse that serves it."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.settimeout(ANSWER_SECONDS)
        try:
            connection.connect(self.path)
            connection.send(json.dumps({"mount": point, "allow_other": allow_other}).encode())
            data, devices, _, _ = socket.recv_fds(connection, PACKET_BYTES, 1)
        except OSError as e:
            connection.close()
            raise Missing(f"mount helper {self.path}: {e.strerror or e}") from None
        answer = _answer(data)
        if not devices:
            connection.close()
            raise Missing(f"mount helper {self.path}: {answer.get('refused', 'gave no answer; its log says why')}")
        os.set_inheritable(devices[0], False)  # the mount ends with this process, not with what it has started
        self._connection = connection
        return devices[0]

    def unmount(self) -> bool:
        """Have it unmounted; False where somebody was still inside, or the helper is gone."""
        if self._connection is None:
            return True
        with self._connection as connection:
            self._connection = None
            try:
                connection.send(b"{}")
                return _answer(connection.recv(PACKET_BYTES)).get("unmounted") == "clean"
            except OSError:
                return False


def _answer(data: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(data)
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}
