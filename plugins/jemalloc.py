"""Allocator churn in the manner of jemalloc: extents of arenas that decay from dirty to muzzy to retained.

By jemalloc's manual (jemalloc(3): opt.narenas, opt.dirty_decay_ms, opt.muzzy_decay_ms, opt.retain) and its sources
(decay.c, smoothstep.h, extent.c, pac.c): freed extents are dirty, and are used again first. Unused ones decay along a
smootherstep curve in 200 steps over dirty_decay_ms, oldest first: MADV_FREE makes them muzzy; over muzzy_decay_ms they
decay again, and MADV_DONTNEED makes them retained: the address space stays mapped, to be used again. With
muzzy_decay_ms 0, the default since 5.2 (10 s before), dirty extents go to retained at once. Extents are not merged
before they are retained; thread caches, and splitting of slabs, are left out.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from pydantic import Field

from pterefd.hookspecs import Emit, Tunables, Workload, hookimpl

PTEREFD_API = 1

PAGE, MIB, MS = 1 << 12, 1 << 20, 1_000_000
TICK_MS = 10
STEPS = 200  # SMOOTHSTEP_NSTEPS
BFP = 24  # SMOOTHSTEP_BFP
# 6x^5 - 15x^4 + 10x^3 in binary fixed point, x = i / STEPS
SMOOTHER = tuple(
    ((6 * i**5 - 15 * STEPS * i**4 + 10 * STEPS**2 * i**3) << BFP) // STEPS**5 for i in range(1, STEPS + 1)
)
SIZES = (1, 1, 1, 1, 2, 2, 3, 4, 5, 7, 8, 10, 16, 20, 32, 64)  # pages of an extent, drawn evenly: slabs and large ones


class JemallocTunables(Tunables):
    """Parameters."""

    arenas: int = Field(default=4, ge=1, le=4096, description="Arenas, each with memory of its own.")
    peak_mib: int = Field(default=64, ge=1, le=1 << 20, description="Live memory of an arena at a peak, MiB.")
    base_mib: int = Field(default=1, ge=0, le=1 << 20, description="Live memory of an arena between the peaks, MiB.")
    cycles: int = Field(default=2, ge=1, le=100_000, description="Peaks.")
    busy_ms: int = Field(default=2000, ge=20, le=86_400_000, description="Time of a peak, half up and half down, ms.")
    rest_ms: int = Field(default=23_000, ge=0, le=86_400_000, description="Time between two peaks, ms.")
    dirty_decay_ms: int = Field(default=10_000, ge=-1, le=3_600_000, description="opt.dirty_decay_ms; -1: never.")
    muzzy_decay_ms: int = Field(default=10_000, ge=-1, le=3_600_000, description="opt.muzzy_decay_ms; -1: never.")


class Extents:
    """Unused extents of one state: address -> pages, oldest first; and the same by size."""

    def __init__(self) -> None:
        self.by_age: dict[int, int] = {}
        self.by_size: list[tuple[int, int]] = []
        self.pages = 0

    def add(self, start: int, pages: int) -> None:
        """One more, the youngest."""
        self.by_age[start] = pages
        insort(self.by_size, (pages, start))
        self.pages += pages

    def remove(self, start: int) -> int:
        """Take one out; its pages."""
        pages = self.by_age.pop(start)
        del self.by_size[bisect_left(self.by_size, (pages, start))]
        self.pages -= pages
        return pages

    def take(self, pages: int) -> int | None:
        """The start of the smallest that fits; what is left of it stays. None: none fits."""
        at = bisect_left(self.by_size, (pages, 0))
        if at == len(self.by_size):
            return None
        start = self.by_size[at][1]
        have = self.remove(start)
        if have > pages:
            self.add(start + pages * PAGE, have - pages)
        return start


class Retained(Extents):
    """Those that are mapped and have no memory, merged with their neighbours."""

    def __init__(self) -> None:
        super().__init__()
        self._ends: dict[int, int] = {}  # end -> start

    def add(self, start: int, pages: int) -> None:
        """One more, with what lies before and behind it."""
        end = start + pages * PAGE
        if end in self.by_age:
            pages += self.remove(end)
        if start in self._ends:
            start = self._ends[start]
            pages += self.remove(start)
        super().add(start, pages)
        self._ends[start + pages * PAGE] = start

    def remove(self, start: int) -> int:
        """As of Extents."""
        pages = super().remove(start)
        del self._ends[start + pages * PAGE]
        return pages


class Decay:
    """How much of one state may stay (decay.c). Call `tick` at each step of it."""

    def __init__(self, decay_ms: int) -> None:
        self.step_ns = decay_ms * MS // STEPS
        self.next_ns = self.step_ns
        self._backlog = [0] * STEPS  # pages that came in each of the last steps, oldest first
        self._unpurged = 0

    def limit(self, pages: int) -> int:
        """Pages of those there are that may stay after this step."""
        self._backlog = [*self._backlog[1:], max(pages - self._unpurged, 0)]
        limit = sum(n * h for n, h in zip(self._backlog, SMOOTHER, strict=True)) >> BFP
        self._unpurged = max(limit, pages)
        return limit


class Arena:
    """One arena: live extents, and unused ones by state."""

    def __init__(self, tunables: JemallocTunables) -> None:
        self.live: list[tuple[int, int]] = []
        self.pages = 0  # live
        self.dirty, self.muzzy, self.retained = Extents(), Extents(), Retained()
        self.dirty_decay, self.muzzy_decay = Decay(tunables.dirty_decay_ms), Decay(tunables.muzzy_decay_ms)
        self.grow = 2 * MIB  # opt.retain: each region that is mapped is larger

    def allocate(self, emit: Emit, pages: int) -> None:
        """One more live extent, written."""
        start = self.dirty.take(pages) or self.muzzy.take(pages) or self.retained.take(pages)
        if start is None:
            start = emit.mmap(1, self.grow)
            self.retained.add(start, self.grow // PAGE)
            self.grow += max(self.grow // 4, 2 * MIB)
            start = self.retained.take(pages)
            assert start is not None
        emit.fault(1, start, pages * PAGE)
        self.live.append((start, pages))
        self.pages += pages

    def free(self, i: int) -> None:
        """Live extent i is not used any more."""
        self.live[i], self.live[-1] = self.live[-1], self.live[i]
        start, pages = self.live.pop()
        self.dirty.add(start, pages)
        self.pages -= pages

    def purge(self, emit: Emit, state: Extents, limit: int, muzzy: bool) -> None:
        """Give back the oldest extents until the limit holds: to muzzy, or to retained."""
        starts, lengths = [], []
        while state.pages > limit:
            start = next(iter(state.by_age))
            pages = state.remove(start)
            (self.muzzy if muzzy else self.retained).add(start, pages)
            starts.append(start)
            lengths.append(pages * PAGE)
        if starts:
            emit.madvise(1, np.array(starts), np.array(lengths), "free" if muzzy else "dontneed")


class Jemalloc(Workload):
    """Arenas whose live memory rises to a peak and falls to a base; what is freed is picked at random."""

    name = "jemalloc"
    Tunables = JemallocTunables
    tunables: JemallocTunables

    def events(self, emit: Emit, rng: np.random.Generator) -> Iterator[None]:
        """Ticks of 10 ms: in each, every arena allocates or frees, and decays where a step is due."""
        p = self.tunables
        arenas = [Arena(p) for _ in range(p.arenas)]
        emit.exec(1, "jemalloc")
        cycle_ms = p.busy_ms + p.rest_ms
        for ms in range(0, p.cycles * cycle_ms, TICK_MS):
            emit.at(ms * MS)
            into, half = ms % cycle_ms, p.busy_ms // 2
            for arena in arenas:
                if into < half:
                    goal = p.peak_mib * MIB * (into + TICK_MS) // half // PAGE
                    while arena.pages < goal:
                        arena.allocate(emit, SIZES[int(rng.integers(len(SIZES)))])
                elif into < p.busy_ms:
                    left = p.peak_mib - (p.peak_mib - p.base_mib) * min(into - half + TICK_MS, half) / half
                    while arena.live and arena.pages * PAGE > left * MIB:
                        arena.free(int(rng.integers(len(arena.live))))
                self._decay(emit, arena)
            yield
        emit.at(p.cycles * cycle_ms * MS)
        emit.exit(1)

    def _decay(self, emit: Emit, arena: Arena) -> None:
        """What is due of the steps of dirty and muzzy; a decay time of 0 keeps nothing, -1 everything."""
        p = self.tunables
        for decay_ms, state, decay, muzzy in (
            (p.dirty_decay_ms, arena.dirty, arena.dirty_decay, p.muzzy_decay_ms != 0),
            (p.muzzy_decay_ms, arena.muzzy, arena.muzzy_decay, False),
        ):
            if decay_ms == 0:
                arena.purge(emit, state, 0, muzzy)
            while decay_ms > 0 and decay.next_ns <= emit.now:
                decay.next_ns += max(decay.step_ns, 1)
                arena.purge(emit, state, decay.limit(state.pages), muzzy)


@hookimpl
def pterefd_register_workloads(register: Callable[[type[Workload]], Any]) -> None:
    """Called by pterefd when the plugin is loaded."""
    register(Jemalloc)
