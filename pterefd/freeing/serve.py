"""The helper that frees for daemons without rights: one request at a time, each looked at against the table.

A request is a line of JSON, {"pid", "start_time", "spans": [[start, end], ...] or null, "kinds", "most"}; so is the
answer.
What a daemon says is looked at anew here: it can have nothing done but what the table allows, to whom it allows.
"""

from __future__ import annotations

import json
import os
import selectors
import socket
import sys
import time
from collections import deque
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from pterefd.errors import BadInput, PterefdError
from pterefd.freeing.errors import Refused
from pterefd.freeing.table import Entry, table
from pterefd.freeing.work import KINDS, Freed, Request, free
from pterefd.live import procmem
from pterefd.live.scan import read_cgroup, start_time
from pterefd.privileged import peer_of

MOST_BYTES = 8 << 20  # of a request
MOST_SPANS = 1 << 16
MOST_SECONDS = 10.0  # of a request: what is left is for the next one
MOST_CONNECTIONS = 64
_SEND_SECONDS = 1.0  # an answer is small: who does not take it is left
_KEYS = {"pid", "start_time", "spans", "kinds", "most"}
_MINUTE = 60.0


class Server:
    """Serves connections of a listening Unix socket. path: of the table."""

    def __init__(self, listener: socket.socket, path: str) -> None:
        self._listener = listener
        self._path = path
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ)
        self._parts: dict[socket.socket, bytearray] = {}
        self._acts: dict[Entry, deque[float]] = {}

    def serve(self) -> None:
        """For ever."""
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is self._listener:
                    self._accept()
                else:
                    assert isinstance(key.fileobj, socket.socket)
                    self._read(key.fileobj)

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        if len(self._parts) == MOST_CONNECTIONS:
            connection.close()
            return
        connection.settimeout(_SEND_SECONDS)
        self._parts[connection] = bytearray()
        self._selector.register(connection, selectors.EVENT_READ)

    def _read(self, connection: socket.socket) -> None:
        """Take in what has come, one request at a time: who asks waits for the answer, and others come in between."""
        try:
            part = connection.recv(1 << 16)
            parts = self._parts[connection]
            parts += part
            line, end, rest = parts.partition(b"\n") if b"\n" in part else (parts, b"", b"")
            if not part or len(parts) > MOST_BYTES or rest:
                self._close(connection)
            elif end:
                self._parts[connection] = bytearray()
                connection.sendall(json.dumps(self.answer(bytes(line), peer_of(connection).uid)).encode() + b"\n")
        except OSError:
            self._close(connection)

    def _close(self, connection: socket.socket) -> None:
        self._selector.unregister(connection)
        del self._parts[connection]
        connection.close()

    def answer(self, line: bytes, uid: int) -> dict[str, Any]:
        """Do what a line asks for, for a user. Always an answer: with `refused`, why nothing was done."""
        pid = 0
        try:
            asked = _parsed(line)
            pid = asked["pid"]
            entry = self._entry(asked, uid)
            self._count(entry)
            freed = free(
                Request(
                    pid,
                    asked["start_time"],
                    asked["spans"],
                    tuple(asked["kinds"]),
                    most=asked["most"],
                    stop=entry.stop,
                    seconds=MOST_SECONDS,
                    writers=entry.writers,
                )
            )
        except PterefdError as error:
            freed = Freed(pid, refused=str(error), label=getattr(error, "label", "request"))
        _log(freed, uid)
        return asdict(freed)

    def _entry(self, asked: dict[str, Any], uid: int) -> Entry:
        """The entry of the table that allows it. Refused."""
        pid = asked["pid"]
        try:
            status = procmem.read_status(pid)
            facts = status.name, read_cgroup(pid), status.uid
            same = start_time(pid) == asked["start_time"]
        except procmem.GONE:
            same = False
        if not same:
            raise Refused("gone", f"{pid}: no such process any more")
        entry = next((entry for entry in table(self._path) if entry.fits(uid, *facts)), None)
        if entry is None:
            raise Refused("table", f"{pid}: {self._path} does not allow uid {uid} to have {status.name} freed from")
        return entry

    def _count(self, entry: Entry) -> None:
        """One act more. Refused where there were too many within a minute."""
        acts = self._acts.setdefault(entry, deque())
        now = time.monotonic()
        while acts and now - acts[0] > _MINUTE:
            acts.popleft()
        if len(acts) >= entry.rate:
            raise Refused("rate", f"more than {entry.rate} acts a minute")
        acts.append(now)


def _parsed(line: bytes) -> dict[str, Any]:
    """A request, its spans as pairs of numbers. BadInput."""
    try:
        asked = json.loads(line)
    except (ValueError, RecursionError):
        raise BadInput("not a request") from None
    if not isinstance(asked, dict) or asked.keys() != _KEYS:
        raise BadInput(f"a request has {', '.join(sorted(_KEYS))}")
    for key in ("pid", "start_time"):
        if not _is_number(asked[key]) or asked[key] <= 0:
            raise BadInput(f"{key} is a number greater than 0")
    if asked["most"] is not None and not _is_number(asked["most"]):
        raise BadInput("most is a number of bytes or null")
    kinds = asked["kinds"]
    if not isinstance(kinds, list) or not kinds or not all(kind in KINDS for kind in kinds):
        raise BadInput(f"kinds are of {', '.join(KINDS)}")
    if asked["spans"] is not None:
        asked["spans"] = _spans(asked["spans"])
    return asked


def _spans(given: Any) -> tuple[tuple[int, int], ...]:
    if not isinstance(given, list) or len(given) > MOST_SPANS:
        raise BadInput(f"spans are a list of {MOST_SPANS} pairs at most")
    end = 0
    for pair in given:
        if not isinstance(pair, list) or len(pair) != 2 or not all(map(_is_number, pair)):
            raise BadInput("spans are pairs of numbers")
        if not end <= pair[0] < pair[1] <= procmem.USER_END:
            raise BadInput("spans are in ascending order, apart, and below 2^47")
        end = pair[1]
    return tuple((low, high) for low, high in given)


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _log(freed: Freed, uid: int) -> None:
    text = (
        f"{freed.pid}: {freed.freed >> 10} kB for uid {uid}, {freed.stops} stops of {freed.longest_stop * 1000:.1f} ms"
    )
    if reason := freed.refused or freed.put_off:
        text += f"; {reason}"
    say(text)


def say(text: str) -> None:
    """One line of the log."""
    with suppress(OSError):
        print(f"pterefd-free: {text}", file=sys.stderr, flush=True)


def listen(path: str) -> socket.socket:
    """A socket at a path, for its owner alone. BadInput."""
    if os.path.lexists(path):
        if not _is_dead(path):
            raise BadInput(f"{path}: is there already")
        os.unlink(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        listener.bind(path)
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}") from None
    finally:
        os.umask(before)
    listener.listen(16)
    return listener


def _is_dead(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
    return False
