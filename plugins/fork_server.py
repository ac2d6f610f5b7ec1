"""A fork server: a parent with a heap, and children that fork from it, write to a part of it, and exit.

The pattern of Redis saving a snapshot, of prefork web servers, of Android's zygote. Page tables of what is anonymous
are copied at each fork (mm/memory.c copy_page_range), so each child has nearly the parent's VmPTE at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from pydantic import Field

from pterefd.hookspecs import Emit, Tunables, Workload, hookimpl

PTEREFD_API = 1

PAGE, MIB, MS = 1 << 12, 1 << 20, 1_000_000
CHUNK = 1 << 16


class ForkServerTunables(Tunables):
    """Parameters."""

    heap_mib: int = Field(default=256, ge=1, le=1 << 16, description="Heap of the parent, all written, MiB.")
    children: int = Field(default=50, ge=1, le=100_000, description="Children in all.")
    at_once: int = Field(default=8, ge=1, le=10_000, description="Children that live at a time, at most.")
    every_ms: int = Field(default=100, ge=0, le=3_600_000, description="Time between two forks, ms.")
    life_ms: int = Field(default=500, ge=1, le=3_600_000, description="How long a child lives, ms.")
    written_share: float = Field(default=0.05, ge=0, le=1, description="Share of the heap's pages that a child writes.")
    scratch_mib: int = Field(default=4, ge=0, le=1 << 20, description="Memory of its own that a child writes, MiB.")


class ForkServer(Workload):
    """Children of one parent, each with pages of its own in the end."""

    name = "fork_server"
    Tunables = ForkServerTunables
    tunables: ForkServerTunables

    def highest_pid(self) -> int:
        """The parent is 1, the children count on."""
        return 1 + self.tunables.children

    def events(self, emit: Emit, rng: np.random.Generator) -> Iterator[None]:
        """Forks and exits, by their time."""
        p = self.tunables
        emit.exec(1, "server")
        start = emit.brk(1)
        emit.brk(1, start + p.heap_mib * MIB)
        emit.fault(1, start, p.heap_mib * MIB)
        ends: list[int] = []
        due: list[tuple[int, int, bool]] = []
        for number in range(p.children):
            begin = number * p.every_ms * MS
            if number >= p.at_once:
                begin = max(begin, ends[number - p.at_once])
            ends.append(begin + p.life_ms * MS)
            due += [(begin, 2 + number, True), (ends[-1], 2 + number, False)]
        due.sort(key=lambda item: (item[0], item[2]))  # an end makes room for a beginning at the same time
        for time_ns, pid, begins in due:
            emit.at(max(time_ns, emit.now))
            if not begins:
                emit.exit(pid)
                continue
            emit.fork(1, pid)
            pages = p.heap_mib * MIB // PAGE
            written = rng.permutation(pages)[: int(pages * p.written_share)]
            for first in range(0, len(written), CHUNK):
                emit.fault(pid, start + PAGE * written[first : first + CHUNK])
                yield
            if p.scratch_mib:
                emit.fault(pid, emit.mmap(pid, p.scratch_mib * MIB), p.scratch_mib * MIB)
            yield
        emit.exit(1)


@hookimpl
def pterefd_register_workloads(register: Callable[[type[Workload]], Any]) -> None:
    """Called by pterefd when the plugin is loaded."""
    register(ForkServer)
