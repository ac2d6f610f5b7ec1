"""Who asks: the process behind a request, and what of its own it may see.

FUSE names the calling thread by its id in the daemon's pid namespace, 0 where that does not see it. The daemon may be
root, so it reads the kernel's /proc for nobody but the process itself, and nothing that it could not read itself.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Own:
    """A process that asks, or a thread of it.

    tgid: in the daemon's pid namespace.  level: of its own pid namespace below the daemon's, 0: the same.
    number, thread: its tgid and the id of the thread, in its own.  name: the number, as a path has it.
    directory: below the daemon's /proc.
    """

    tgid: int
    level: int
    number: int
    thread: int
    name: str
    directory: str


class Callers:
    """Who asks. context: (uid, gid, thread id) of the request being served, all in the daemon's namespaces.

    proc: the kernel's own, where the daemon sees itself.
    """

    CACHE_SECONDS = 0.1  # a sweep over thousands of pids asks thousands of times who it is
    CACHE_SIZE = 4096

    def __init__(self, context: Callable[[], tuple[int, int, int]], proc: str = "/proc") -> None:
        self.proc = proc
        self._context = context
        self._cache: dict[int, tuple[float, Own | None]] = {}
        try:
            self._same_namespace = os.readlink(f"{proc}/self") == str(os.getpid())
        except OSError:
            self._same_namespace = False

    def own(self) -> Own | None:
        """The calling thread, as it was at most CACHE_SECONDS ago; None where it cannot be seen from here."""
        tid = self._context()[2]
        now = time.monotonic()
        known = self._cache.get(tid)
        if known is not None and known[0] > now:
            return known[1]
        own = self._look_up(tid)
        if len(self._cache) >= self.CACHE_SIZE:
            self._cache.clear()
        self._cache[tid] = (now + self.CACHE_SECONDS, own)
        return own

    def _look_up(self, tid: int) -> Own | None:
        if not tid or not self._same_namespace:
            return None  # FUSE says 0 of a thread that the daemon's pid namespace does not see
        try:
            return self._own(NsIds.of(self.slurp(f"{tid}/status")))
        except OSError:
            return None  # hidepid

    def _own(self, ids: NsIds) -> Own:
        return Own(ids.tgid[0], len(ids.tgid) - 1, ids.tgid[-1], ids.pid[-1], str(ids.tgid[-1]), str(ids.tgid[0]))

    def path(self, own: Own, name: str = "") -> str:
        """Where the daemon finds a file of the calling process. EACCES for any other process.

        Looked up anew: ids of threads come again. While the request is served the calling thread waits, and
        cannot end.
        """
        now = self._look_up(self._context()[2])
        if now is None or now.tgid != own.tgid:
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        return f"{self.proc}/{own.directory}/{name}"

    def read(self, own: Own, name: str) -> bytes:
        """A whole file of the calling process. EACCES where it could not open it: what it hides from its user."""
        path = self.path(own, name)
        self._check_mode(path)
        return self.slurp(f"{own.directory}/{name}")

    def names(self, own: Own, name: str) -> list[str]:
        """What a directory of the calling process lists: fs/proc/fd.c:proc_fd_permission() refuses it none."""
        return os.listdir(self.path(own, name))

    def _check_mode(self, path: str) -> None:
        uid, status = self._context()[0], os.stat(path)
        if uid and not status.st_mode & (0o400 if uid == status.st_uid else 0o004):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))

    def is_calling(self, tid: int) -> bool:
        """Whether this is the thread whose request is being served."""
        return self._context()[2] == tid

    def slurp(self, name: str) -> bytes:
        """A whole file of the kernel's /proc, unchecked."""
        with open(f"{self.proc}/{name}", "rb", buffering=0) as file:
            return file.readall()

    def as_seen(self, pid: int, level: int) -> int:
        """The number of a process of the daemon's pid namespace in one `level` below, 0 where it is not seen there."""
        try:
            tgid = NsIds.of(self.slurp(f"{pid}/status")).tgid
        except OSError:
            return 0
        return tgid[level] if len(tgid) > level else 0


@dataclass(frozen=True, slots=True)
class NsIds:
    """Lines NStgid, NSpid, NSpgid and NSsid of a status file: a number for each pid namespace, outermost first."""

    tgid: list[int]
    pid: list[int]
    pgid: list[int]
    sid: list[int]

    @classmethod
    def of(cls, status: bytes) -> NsIds:
        """Of the text of a status file. A kernel without pid namespaces writes none of them: there is one."""
        at = status.find(b"\nNStgid:") + 1
        if not at:
            numbers = dict(line.partition(b":")[::2] for line in status.splitlines())
            return cls([int(numbers[b"Tgid"])], [int(numbers[b"Pid"])], [], [])
        return cls(*([int(word) for word in line.split()[1:]] for line in status[at:].split(b"\n", 4)[:4]))


def nobody() -> tuple[int, int, int]:
    """A context where nobody is known to ask."""
    return 0, 0, 0
