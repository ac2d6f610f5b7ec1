"""Pid namespaces below the daemon's: which process has a number there.

The kernel tells of each process its numbers in its own pid namespace and in those above it (NStgid), and of a
namespace the one above it (NS_GET_PARENT). So a number of a namespace is looked for among all processes.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator

from pterefd.procfs.caller import NsIds

NS_GET_PARENT = 0xB702  # include/uapi/linux/nsfs.h

Namespace = tuple[int, int]  # device and inode


class PidNamespaces:
    """Of the processes of a /proc."""

    def __init__(self, proc: str) -> None:
        self._proc = proc
        self._known: dict[tuple[Namespace, int], int] = {}  # a hint: what had a number when it was looked for

    def of(self, pid: int) -> Namespace:
        """The pid namespace that a process is in. OSError."""
        status = os.stat(f"{self._proc}/{pid}/ns/pid")
        return status.st_dev, status.st_ino

    def processes(self, namespace: Namespace, level: int) -> dict[int, int]:
        """The processes that are seen in a namespace so many levels below the daemon's: pid there, pid here."""
        above: dict[Namespace, tuple[Namespace, ...]] = {}
        found = {}
        for name in os.listdir(self._proc):
            if name.isdecimal():
                number = self._number(int(name), namespace, level, above)
                if number is not None:
                    found[number] = int(name)
        return dict(sorted(found.items()))

    def process(self, number: int, namespace: Namespace, level: int) -> int | None:
        """The process of a number there, by its pid here; None where there is none."""
        pid = self._known.get((namespace, number))
        if pid is not None and self._number(pid, namespace, level, {}) == number:
            return pid
        there = self.processes(namespace, level)
        self._known = {(namespace, seen): pid for seen, pid in there.items()}
        return there.get(number)

    def _number(
        self, pid: int, namespace: Namespace, level: int, above: dict[Namespace, tuple[Namespace, ...]]
    ) -> int | None:
        """Its pid there, None where it is not seen there. above: what is known of namespaces."""
        try:
            with open(f"{self._proc}/{pid}/status", "rb", buffering=0) as file:
                numbers = NsIds.of(file.readall()).tgid
            if len(numbers) <= level:
                return None
            own = self.of(pid)
            if own != namespace and namespace not in above.setdefault(own, tuple(self._above(pid))):
                return None
        except OSError:
            return None  # it has ended
        return numbers[level]

    def _above(self, pid: int) -> Iterator[Namespace]:
        """The namespaces above that of a process, up to the daemon's."""
        at = os.open(f"{self._proc}/{pid}/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
        try:
            while True:
                try:
                    parent = fcntl.ioctl(at, NS_GET_PARENT)
                except PermissionError:
                    return  # above the daemon's
                os.close(at)
                at = parent
                status = os.fstat(at)
                yield status.st_dev, status.st_ino
        finally:
            os.close(at)
