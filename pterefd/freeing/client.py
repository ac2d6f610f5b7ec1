"""The other end of the helper's socket: what a daemon, or `pterefd top`, has freed."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Sequence
from typing import Any

from pterefd.errors import Missing
from pterefd.freeing.work import Freed

_ANSWER_SECONDS = 60.0
_SENT = frozenset({"empty"})


class Helper:
    """A helper at a socket's path. One request at a time; connected when it is needed, and again where it was gone."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._connection: socket.socket | None = None

    def free(
        self,
        pid: int,
        start_time: int,
        *,
        spans: Sequence[tuple[int, int]] | None = None,
        kinds: Sequence[str] = ("empty", "zero"),
        most: int | None = None,
    ) -> Freed:
        """Have a process freed from; what is refused is in the answer. Missing where there is no helper.

        spans: where to look, None for everywhere.  most: bytes, None for all there is.
        """
        asked = {"pid": pid, "start_time": start_time, "spans": spans, "kinds": list(kinds), "most": most}
        with self._lock:
            try:
                answer = self._ask(json.dumps(asked).encode() + b"\n")
            except (OSError, ValueError) as error:
                self._connection = None
                reason = getattr(error, "strerror", None) or error
                raise Missing(f"free helper {self.path}: {reason}") from None
        return Freed(**{key: value for key, value in answer.items() if key not in _SENT})

    def _ask(self, line: bytes) -> dict[str, Any]:
        if self._connection is None:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            connection.settimeout(_ANSWER_SECONDS)
            connection.connect(self.path)
            self._connection = connection
        self._connection.sendall(line)
        answer = bytearray()
        while not answer.endswith(b"\n"):
            part = self._connection.recv(1 << 16)
            if not part:
                raise ConnectionResetError("it is gone")
            answer += part
        found = json.loads(answer)
        if not isinstance(found, dict):
            raise ValueError("its answer is none")
        return found
