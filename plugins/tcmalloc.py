"""Allocator churn in the manner of tcmalloc: spans in a hugepage-aware filler, subreleased span by span.

By tcmalloc's documents "TCMalloc: design", "Temeraire: hugepage-aware allocator" (docs/design.md, docs/temeraire.md)
and tcmalloc/huge_page_filler.h: memory comes from the system in hugepages of 2 MiB out of regions of 1 GiB; spans of
tcmalloc pages (8 KiB) go into the hugepage with the shortest free range that fits, the fullest first; a background
thread releases at a rate (MallocExtension::SetBackgroundReleaseRate), free hugepages whole and then, from the hugepages
with the fewest used pages, each free range by itself (MADV_DONTNEED): subrelease. Allocations of a hugepage and more,
which have an allocator of their own, and huge pages of the kernel are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pydantic import Field

from pterefd.hookspecs import Emit, Tunables, Workload, hookimpl

PTEREFD_API = 1

MIB, HUGEPAGE, SECOND = 1 << 20, 1 << 21, 1_000_000_000
PAGE = 8192  # kPageSize
PAGES = HUGEPAGE // PAGE
FULL = (1 << PAGES) - 1
REGION = 1 << 30
SIZES = (1, 1, 1, 1, 2, 2, 4, 4, 8, 16, 32, 64)  # pages of a span, drawn evenly


class TcmallocTunables(Tunables):
    """Parameters."""

    peak_mib: int = Field(default=256, ge=1, le=1 << 20, description="Live memory at the peak of each cycle, MiB.")
    base_mib: int = Field(default=8, ge=0, le=1 << 20, description="Live memory between the peaks, MiB.")
    cycles: int = Field(default=4, ge=1, le=100_000, description="Peaks.")
    cycle_s: int = Field(default=8, ge=2, le=86_400, description="Time from peak to peak, s.")
    release_mib: int = Field(default=64, ge=0, le=1 << 20, description="Background release rate, MiB/s.")


@dataclass
class Hugepage:
    """A hugepage of the filler. free, released: bit i is page i; released ones are free and not backed."""

    start: int
    free: int = FULL
    released: int = FULL
    longest: int = PAGES
    used: int = field(default=0)

    def note(self) -> None:
        """Keep the longest free range and the number of used pages."""
        self.used = PAGES - self.free.bit_count()
        bits, self.longest = self.free, 0
        while bits:
            bits &= bits >> 1
            self.longest += 1

    def take(self, n: int) -> int:
        """Address of the first n free pages in one piece."""
        bits = self.free
        for _ in range(n - 1):
            bits &= bits >> 1
        at = (bits & -bits).bit_length() - 1
        mask = (1 << n) - 1 << at
        self.free &= ~mask
        self.released &= ~mask
        self.note()
        return self.start + at * PAGE

    def release(self) -> list[tuple[int, int]]:
        """(address, bytes) of every free range that is backed; they are not any more."""
        bits, ranges = self.free & ~self.released, []
        self.released |= bits
        while bits:
            at = (bits & -bits).bit_length() - 1
            n = (~(bits >> at) & (bits >> at) + 1).bit_length() - 1
            ranges.append((self.start + at * PAGE, n * PAGE))
            bits &= ~((1 << n) - 1 << at)
        return ranges


class Tcmalloc(Workload):
    """Live memory rises to a peak and falls to a base, again and again; what is freed is picked at random."""

    name = "tcmalloc"
    Tunables = TcmallocTunables
    tunables: TcmallocTunables

    def events(self, emit: Emit, rng: np.random.Generator) -> Iterator[None]:
        """Half of a cycle it rises, half it falls and rests; the background thread wakes every second."""
        p = self.tunables
        self._hugepages: list[Hugepage] = []
        self._region = (0, 0)
        live: list[tuple[Hugepage, int, int]] = []  # hugepage, address, pages
        size = 0
        emit.exec(1, "tcmalloc")
        for cycle in range(p.cycles):
            begin = cycle * p.cycle_s * SECOND
            for second in range(p.cycle_s):
                emit.at(begin + second * SECOND)
                rising = second < p.cycle_s // 2
                goal = p.peak_mib * MIB * (second + 1) // (p.cycle_s // 2) if rising else p.base_mib * MIB
                while rising and size < goal:
                    n = SIZES[int(rng.integers(len(SIZES)))]
                    live.append(self._allocate(emit, n))
                    size += n * PAGE
                while not rising and size > goal and live:
                    i = int(rng.integers(len(live)))
                    live[i], live[-1] = live[-1], live[i]
                    hugepage, address, n = live.pop()
                    hugepage.free |= (1 << n) - 1 << (address - hugepage.start) // PAGE
                    hugepage.note()
                    size -= n * PAGE
                emit.at(begin + second * SECOND + SECOND // 2)
                self._release(emit, p.release_mib * MIB)
                yield
        emit.at(p.cycles * p.cycle_s * SECOND)
        emit.exit(1)

    def _allocate(self, emit: Emit, n: int) -> tuple[Hugepage, int, int]:
        """A span of n pages, written."""
        fitting = [h for h in self._hugepages if h.longest >= n]
        if fitting:
            best = min(fitting, key=lambda h: (h.released != 0, h.longest, -h.used, h.start))
        else:
            best = self._new_hugepage(emit)
        address = best.take(n)
        emit.fault(1, address, n * PAGE)
        return best, address, n

    def _new_hugepage(self, emit: Emit) -> Hugepage:
        """From the region, upwards; a region is mapped without access, and each hugepage made accessible."""
        start, end = self._region
        if start == end:
            start = emit.mmap(1, REGION, prot="---")
            end = start + REGION
        self._region = (start + HUGEPAGE, end)
        emit.mprotect(1, start, HUGEPAGE, "rw-")
        self._hugepages.append(Hugepage(start))
        return self._hugepages[-1]

    def _release(self, emit: Emit, budget: int) -> None:
        """Give back up to about so many bytes: from the hugepages with the fewest used pages."""
        for hugepage in sorted(self._hugepages, key=lambda h: (h.used, h.start)):
            if budget <= 0:
                break
            for address, length in hugepage.release():
                emit.madvise(1, address, length, "dontneed")
                budget -= length


@hookimpl
def pterefd_register_workloads(register: Callable[[type[Workload]], Any]) -> None:
    """Called by pterefd when the plugin is loaded."""
    register(Tcmalloc)
