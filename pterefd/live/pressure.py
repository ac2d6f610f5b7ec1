"""When memory of this machine, or of a cgroup, is short: its marks, PSI triggers as oomd uses them, memory.events."""

from __future__ import annotations

import os
import select
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from pterefd.hookspecs import Cause
from pterefd.live.memory import PROC, missing_bytes, read_zones
from pterefd.live.procmem import PAGE

# Documentation/accounting/psi.rst: microseconds of stall within a window. Without CAP_SYS_RESOURCE a window is a
# multiple of 2 s (kernel/sched/psi.c psi_trigger_create).
_STALLS = {
    Cause.LOW: ("some 150000 1000000", "some 300000 2000000"),
    Cause.OOM: ("full 100000 1000000", "full 200000 2000000"),
}
# Documentation/admin-guide/cgroup-v2.rst, memory.events: what of it says what.
_EVENTS = {Cause.OOM: ("oom",), Cause.LOW: ("high", "max")}


class Short(NamedTuple):
    """Memory is short. group: of a cgroup, None: of the machine.  bytes: that are missing."""

    cause: Cause
    group: str | None
    bytes: int


class Stalls:
    """PSI triggers on a pressure file: readable as POLLPRI where tasks have waited for memory for too long.

    refused: why there are none of a kind, in one line each.
    """

    def __init__(self, file: Path = PROC / "pressure" / "memory") -> None:
        self.refused: list[str] = []
        self._fds: dict[int, Cause] = {}
        for cause, triggers in _STALLS.items():
            try:
                self._fds[_trigger(file, triggers)] = cause
            except OSError as error:
                self.refused.append(f"{file}: no trigger `{triggers[0]}`: {error.strerror}")

    def register(self, poll: select.poll) -> None:
        """Have a poll wake for them."""
        for fd in self._fds:
            poll.register(fd, select.POLLPRI)

    def raised(self, ready: Iterable[tuple[int, int]]) -> set[Cause]:
        """Of what a poll has returned."""
        return {self._fds[fd] for fd, events in ready if fd in self._fds and events & select.POLLPRI}

    def close(self) -> None:
        """Take the triggers back."""
        while self._fds:
            os.close(self._fds.popitem()[0])


def _trigger(file: Path, triggers: tuple[str, ...]) -> int:
    fd = os.open(file, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        for trigger in triggers[:-1]:
            with suppress(OSError):
                os.write(fd, trigger.encode() + b"\0")
                return fd
        os.write(fd, triggers[-1].encode() + b"\0")
    except OSError:
        os.close(fd)
        raise
    return fd


def machine_short(causes: set[Cause], proc: Path = PROC) -> list[Short]:
    """Whether the machine's memory is short, the worse last. causes: what its triggers have said.

    Where tasks wait although free memory is above its marks, as much is missing as kswapd would take in one go
    (mm/vmscan.c kswapd_shrink_node): its high marks.
    """
    zones = read_zones(proc)
    missing = missing_bytes(zones)
    wanted = missing or PAGE * sum(zone.high for zone in zones)
    found = [Short(Cause.LOW, None, wanted)] if missing or Cause.LOW in causes else []
    return [*found, Short(Cause.OOM, None, wanted)] if Cause.OOM in causes else found


class Cgroups:
    """Limits and events of cgroups of version 2. root: where they are mounted, None: nowhere, or without memory."""

    def __init__(self, root: Path | None) -> None:
        self.root = root
        self._counts: dict[str, dict[str, int]] = {}

    def limit(self, group: str) -> int:
        """memory.max in bytes; 0 where there is none."""
        return self._number(group, "memory.max")

    def _number(self, group: str, file: str) -> int:
        with suppress(OSError, ValueError):
            if self.root is not None:
                return int((self.root / group.lstrip("/") / file).read_text())
        return 0

    def short(self, groups: Iterable[str]) -> list[Short]:
        """What has happened since the last call to these cgroups and to those above them, the worse last."""
        if self.root is None:
            return []
        found = []
        counts = {group: counted for group in sorted(_lines(groups)) if (counted := self._events(group))}
        for group, counted in counts.items():
            before = self._counts.get(group, counted)  # what was before the first look is past
            for cause, names in _EVENTS.items():
                if any(counted.get(name, 0) > before.get(name, 0) for name in names):
                    found.append(Short(cause, group, self._excess(group)))
        self._counts = counts
        return sorted(found, key=lambda short: short.cause is Cause.OOM)

    def _events(self, group: str) -> dict[str, int]:
        """memory.events of the cgroup itself, without those of the ones below where the kernel tells them apart."""
        assert self.root is not None
        directory = self.root / group.lstrip("/")
        for name in ("memory.events.local", "memory.events"):
            with suppress(OSError, ValueError):
                lines = (directory / name).read_text().splitlines()
                return {key: int(value) for key, value in map(str.split, lines)}
        return {}

    def _excess(self, group: str) -> int:
        """What it holds beyond memory.high, or a page: at memory.max it holds nothing beyond."""
        high = self._number(group, "memory.high")
        return max(self._number(group, "memory.current") - high, PAGE) if high else PAGE


def _lines(groups: Iterable[str]) -> set[str]:
    """The cgroups and all above them but the root, which has no limits."""
    return {str(path) for group in groups for each in [PurePosixPath(group)] for path in (each, *each.parents)} - {
        "/",
        ".",
    }


def find_cgroups(mountinfo: Path = PROC / "self" / "mountinfo") -> Path | None:
    """Where cgroup v2 is mounted with the memory controller; None where it is not."""
    for root in _mounts(mountinfo):
        with suppress(OSError):
            if "memory" in (root / "cgroup.controllers").read_text().split():
                return root
    return None


def _mounts(mountinfo: Path) -> Iterator[Path]:
    """proc_pid_mountinfo(5): the mount point is the fifth field, the type the first behind the dash."""
    with suppress(OSError):
        for line in mountinfo.read_text().splitlines():
            fields = line.split()
            if fields[fields.index("-") + 1] == "cgroup2":
                yield Path(fields[4].encode().decode("unicode_escape"))
