"""Where the view's numbers come from: a mounted tree, or this machine's own processes."""

from __future__ import annotations

import heapq
import os
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from pterefd.errors import Missing
from pterefd.freeing.work import Request, free
from pterefd.live import procmem
from pterefd.live.procmem import Status
from pterefd.live.watch import Watch
from pterefd.names import printable


@dataclass(frozen=True, slots=True)
class Row:
    """A process, sizes in bytes. key: pid, and what else tells it from others."""

    key: tuple[int, int]
    comm: str
    vm_pte: int
    reclaimable: int
    empty: int
    zero: int
    mixed: int
    rss: int

    @property
    def pid(self) -> int:
        return self.key[0]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """rows: those with most to give back, most first.  The sums are over all processes.  waiting: not measured yet."""

    rows: list[Row]
    processes: int
    vm_pte: int
    reclaimable: int
    waiting: int = 0
    not_seen: int = 0


class Source(Protocol):
    """Somewhere processes are."""

    title: str

    def snapshot(self, most: int) -> Snapshot:
        """As it is now, with at most so many rows. Missing where it is gone."""

    def free(self, row: Row) -> str:
        """Give back what a process has; what came of it, as a line."""


class Mounted:
    """The processes of a mounted tree."""

    def __init__(self, point: str) -> None:
        self._point = point
        self.title = point

    def snapshot(self, most: int) -> Snapshot:
        """Reads two files of each process, and three more of each that is shown."""
        try:
            os.stat(f"{self._point}/sys/pterefd")
            names = [name for name in os.listdir(self._point) if name.isdecimal()]
        except OSError:
            raise Missing(f"{self._point}: the pterefd that was mounted there is gone") from None
        found: list[tuple[int, int, Status]] = []
        for name in names:
            with suppress(OSError, ValueError):  # gone meanwhile
                status = procmem.read_status(int(name), self._point)
                found.append((self._number(name, "reclaimable_pt_bytes"), int(name), status))
        shown = heapq.nlargest(most, found, key=lambda each: (each[0], -each[1]))
        return Snapshot(
            [row for row in (self._row(*each) for each in shown) if row is not None],
            len(found),
            sum(status.kb["VmPTE"] << 10 for _, _, status in found),
            sum(reclaimable for reclaimable, _, _ in found),
        )

    def _row(self, reclaimable: int, pid: int, status: Status) -> Row | None:
        try:
            empty, zero, mixed = (self._number(pid, f"pt_reclaim/{kind}_bytes") for kind in ("empty", "zero", "mixed"))
        except (OSError, ValueError):
            return None
        vm_pte, rss = status.kb["VmPTE"] << 10, status.rss_kb << 10
        return Row((pid, 0), printable(status.name), vm_pte, reclaimable, empty, zero, mixed, rss)

    def _number(self, pid: str | int, name: str) -> int:
        with open(f"{self._point}/{pid}/{name}", encoding="ascii") as file:
            return int(file.read())

    def free(self, row: Row) -> str:
        """By sys/vm/free_ptes, as anybody would."""
        try:
            before = self._number(row.pid, "reclaimable_pt_bytes")
            with open(f"{self._point}/sys/vm/free_ptes", "w", encoding="ascii") as file:
                file.write(str(row.pid))
            after = self._number(row.pid, "reclaimable_pt_bytes")
        except OSError as error:
            return f"{row.pid} {row.comm}: {error.strerror}"
        return f"{row.pid} {row.comm}: freed {(before - after) >> 10} kB of page tables"


class Live:
    """This machine's own processes, scanned within a budget."""

    def __init__(self, budget: float) -> None:
        self._watch = Watch(budget)
        self.title = "this machine"

    def snapshot(self, most: int) -> Snapshot:
        """Scans who is due."""
        self._watch.look()
        known = self._watch.processes
        rows = [
            Row(
                key,
                use.comm,
                each.vm_pte,
                use.reclaimable,
                use.empty,
                use.zero or 0,
                use.mixed or 0,
                use.rss,
            )
            for key, each in known.items()
            if (use := each.use) is not None and not each.why
        ]
        not_seen = sum(bool(each.why) for each in known.values())
        return Snapshot(
            heapq.nlargest(most, rows, key=lambda row: (row.reclaimable, row.vm_pte, -row.pid)),
            len(known),
            sum(each.vm_pte for each in known.values()),
            sum(row.reclaimable for row in rows),
            len(known) - len(rows) - not_seen,
            not_seen,
        )

    def free(self, row: Row) -> str:
        """As `pterefd free` does, with the rights that this process has."""
        freed = free(Request(*row.key))
        why = freed.refused or freed.put_off
        if not freed.stops:
            return f"{row.pid} {row.comm}: nothing was freed" + (f": {why}" if why else "")
        return f"{row.pid} {row.comm}: freed {freed.freed >> 10} kB of page tables, in {freed.stops} short stops"
