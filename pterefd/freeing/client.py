"""The other end of the helper's socket: what a daemon has freed."""

from __future__ import annotations

import json
import select
import socket
import threading
from typing import Any

from pterefd.errors import Refused
from pterefd.freeing.errors import PutOff
from pterefd.freeing.work import KINDS, Freed
from pterefd.hookspecs import Kinds

_ANSWER_SECONDS = 60.0


class Freer:
    """A helper at a socket's path, as a live host asks it. One request at a time.

    Connected when it is needed, and again where it was gone.  log: told what each request came to.
    """

    def __init__(self, path: str, log: Any) -> None:
        self.path = path
        self._log = log
        self._lock = threading.Lock()
        self._connection: socket.socket | None = None

    def free(self, pid: int, start_time: int, kinds: Kinds, nbytes: int | None) -> tuple[int, int, int]:
        """Free up to nbytes (None: all there is) of these kinds; bytes freed: empty, zero, mixed.

        Refused, with the reason, where nothing was freed: the helper's, or that there is none.
        """
        names = [name for name in KINDS if Kinds[name.upper()] in kinds]
        asked = {"pid": pid, "start_time": start_time, "spans": None, "kinds": names, "most": nbytes}
        with self._lock:
            try:
                freed = Freed(**self._ask(json.dumps(asked).encode() + b"\n"))
            except (OSError, ValueError, TypeError) as error:
                self._drop()
                reason = getattr(error, "strerror", None) or error
                raise Refused(f"{pid}: free helper {self.path}: {reason}", "helper") from None
        why = freed.refused or freed.put_off
        if freed.stops:
            fields = {"pid": pid, "bytes": freed.freed, "stops": freed.stops, "back": freed.back}
            self._log.info(
                "freed", **fields, longest_stop=round(freed.longest_stop, 6), **({"then": why} if why else {})
            )
        if why and not freed.freed:
            raise Refused(why, freed.label) if freed.refused else PutOff(freed.label, why)
        return freed.empty, freed.zero, freed.mixed

    def missing(self) -> str:
        """Why nobody can be asked now; "" where a helper is there."""
        with self._lock:
            try:
                self._connected()
            except OSError as error:
                self._drop()
                return f"free helper {self.path}: {error.strerror or error}"
        return ""

    def close(self) -> None:
        """Leave the helper."""
        with self._lock:
            self._drop()

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _connected(self) -> socket.socket:
        """The connection, made anew where the helper has left it: it was ended and began again."""
        if self._connection is not None and select.select([self._connection], [], [], 0)[0]:
            self._drop()  # nothing is owed: only an end can be read
        if self._connection is None:
            self._connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._connection.settimeout(_ANSWER_SECONDS)
            self._connection.connect(self.path)
        return self._connection

    def _ask(self, line: bytes) -> dict[str, Any]:
        connection = self._connected()
        connection.sendall(line)
        answer = bytearray()
        while not answer.endswith(b"\n"):
            part = connection.recv(1 << 16)
            if not part:
                raise ConnectionResetError("it is gone")
            answer += part
        found = json.loads(answer)
        if not isinstance(found, dict):
            raise ValueError("its answer is none")
        return found
