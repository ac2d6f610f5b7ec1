"""What takes a walk of tables and mappings to know: smaps, pte_pages, names of programs. Nothing changes anything.

A walk takes the host's lock for about a millisecond at a time, between batches: parts of a large mm may be of different
moments while events run, as in the kernel, which lets go of mmap_lock on the way.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pterefd.engine import layout as lo
from pterefd.errors import NoSuchMm
from pterefd.mm import smaps as sm

if TYPE_CHECKING:
    from pterefd.engine.state import State
    from pterefd.host.host import Host
    from pterefd.host.maps import VmaRow
    from pterefd.host.process import Process

I32 = npt.NDArray[np.int32]

SLICE_PAGES = 512  # PTE pages whose entries are counted under the lock at a time
SLICE_WALK = 4096  # PTE pages that are summed up under the lock at a time, where their entries are alike
MAPPING_COST = 16  # of a mapping, in such pages
SLICE_MAPPINGS = 1 << 16  # mappings, when only they are looked at
ROOM = 64  # rows of counts to begin with
SLICE_ROWS = 1024  # mappings whose swapped out shared memory is looked up under the lock at a time
RUNS = 4096  # runs of equal PTE pages handed out at a time
MOST_SPANS = 1 << 22  # 8 TiB of one file: of one that is mapped further, each page counts as mapped once
STALE = 10  # counts of mappings serve for so many times as long as they took to make

KINDS = {
    lo.K_DATA: "data",
    lo.K_EMPTY: "empty",
    lo.K_ZERO: "zero",
    lo.K_MIXED: "mixed",
    sm.RUN_HUGE: "huge",
    sm.RUN_HUGE_ZERO: "huge_zero",
}


class Smaps(NamedTuple):
    """What smaps says of a mapping, in bytes; all that is PSS in bytes << PSS_SHIFT, so that sums are the kernel's.

    fs/proc/task_mmu.c struct mem_size_stats.  locked: the PSS of locked memory.

    reclaimable_pt: PTE pages that free_ptes would free now; one that several mappings share counts for the lowest.
    """

    rss: int = 0
    shared_clean: int = 0
    shared_dirty: int = 0
    private_clean: int = 0
    private_dirty: int = 0
    anonymous: int = 0
    lazyfree: int = 0
    anon_huge: int = 0
    swap: int = 0
    pss: int = 0
    pss_dirty: int = 0
    pss_anon: int = 0
    pss_file: int = 0
    pss_shmem: int = 0
    swap_pss: int = 0
    locked: int = 0
    reclaimable_pt: int = 0


class PteRun(NamedTuple):
    """PTE pages that follow each other and are alike: start in bytes, number, entries each, name of their kind."""

    start: int
    pages: int
    mapped: int
    zero: int
    kind: str


@dataclass(slots=True)
class _Sharing:
    """How often pages are mapped, as of one publication.

    small: int32[n, 2], by record of S.shp.  folios: (index, maps).  objects: (spans, maps) by record of S.obj.
    """

    publication: int
    small: I32
    folios: tuple[I32, I32]
    objects: dict[int, tuple[I32, I32]]
    serves_until: float = 0.0


_NOTHING = np.zeros(0, dtype=np.int32), np.zeros((1, 512), dtype=np.int32)


class Walks:
    """The walks of one host."""

    def __init__(self, host: Host, state: State, names: dict[int, str]) -> None:
        self._host = host
        self._s = state
        self._names = names
        self._sharing: _Sharing | None = None

    # ---- smaps --------------------------------------------------------------------------------

    def smaps(self, pid: int) -> list[tuple[VmaRow, Smaps]]:
        """Each mapping of an mm, ascending, and what it holds. NoSuchMm, also where it ends meanwhile."""
        process = self._host.process(pid)
        rows = self._host.vmas(pid)
        sharing = self._count({row.obj for row in rows if row.obj})
        sums = np.zeros((len(rows), sm.SM_COLUMNS), dtype=np.int64)
        index, addr = 0, 0
        while index < len(rows):
            with self._host.looking():
                self._check(process)
                index, addr = self._slice(process.mm, rows, index, addr, sharing, sums)
        swapped: list[int] = []
        while len(swapped) < len(rows):
            with self._host.looking():
                self._check(process)
                swapped += [self._swapped(row) for row in rows[len(swapped) : len(swapped) + SLICE_ROWS]]
        reclaimable = self._reclaimable(pid, rows)
        result = []
        for row, values, shmem, pages in zip(rows, sums.tolist(), swapped, reclaimable, strict=True):
            values[sm.SM_SWAP] += shmem
            locked = values[sm.SM_PSS] if row.flags & {"locked", "lockonfault"} else 0
            result.append((row, Smaps._make([*values, locked, pages * lo.PAGE])))
        return result

    def _slice(
        self, mm: int, rows: list[VmaRow], index: int, addr: int, sharing: _Sharing, sums: npt.NDArray[np.int64]
    ) -> tuple[int, int]:
        """A millisecond's worth from address addr of mapping rows[index] on. Returns where it ended."""
        left = SLICE_WALK
        while index < len(rows) and left > 0:
            row = rows[index]
            if "pfnmap" in row.flags or "hugetlb" in row.flags:
                index, addr = index + 1, 0
                continue
            begin = max(addr, row.start)
            shift = (row.offset - row.start) >> lo.PAGE_SHIFT
            counts = (sharing.small, *sharing.folios, *sharing.objects.get(row.obj, _NOTHING))
            addr, left = sm.smaps_walk(self._s, mm, begin, row.end, shift, *counts, left, sums[index])
            left -= MAPPING_COST
            if addr >= row.end:
                index, addr = index + 1, 0
        return index, addr

    def _check(self, process: Process) -> None:
        """NoSuchMm where the process has another mm by now, or none."""
        if self._host.find(process.pid) is not process:  # exec makes another of the same serial
            raise NoSuchMm(f"no mm with pid {process.pid}")

    def _swapped(self, row: VmaRow) -> int:
        """mm/shmem.c shmem_swap_usage: bytes of the shared memory that a mapping shows which are in swap."""
        s = self._s
        if not row.obj or int(s.obj[row.obj, lo.O_KIND]) != lo.OBJ_SHMEM or not int(s.obj[row.obj, lo.O_NEVICTED]):
            return 0
        base, n = int(s.obj[row.obj, lo.O_EVICTED]), int(s.obj[row.obj, lo.O_EVICTED + 1])
        first = row.offset >> lo.PAGE_SHIFT
        last = first + ((row.end - row.start) >> lo.PAGE_SHIFT)
        begins = np.maximum(s.key[base : base + n], first)
        ends = np.minimum(s.val[base : base + n], last)
        return int(np.maximum(ends - begins, 0).sum()) * lo.PAGE

    def _reclaimable(self, pid: int, rows: list[VmaRow]) -> list[int]:
        """PTE pages that free_ptes would free, by mapping: each counts for the lowest that has a part of its span."""
        spans = self._host.reclaimable_spans(pid)
        usable = [i for i, row in enumerate(rows) if not row.flags & {"pfnmap", "hugetlb"}]
        ends = np.array([rows[i].end for i in usable], dtype=np.int64)
        counts = [0] * len(rows)
        owners = np.searchsorted(ends, spans, side="right")
        for place, number in zip(*(a.tolist() for a in np.unique(owners, return_counts=True)), strict=True):
            if place < len(usable):
                counts[usable[place]] = number
        return counts

    # ---- who else maps a page -----------------------------------------------------------------

    def _count(self, objects: set[int]) -> _Sharing:
        """How often pages are mapped, of these objects at least."""
        now = time.monotonic()
        sharing = self._sharing
        if sharing is None or (sharing.publication != self._host.publications and now >= sharing.serves_until):
            sharing = self._count_anon()
            self._sharing = sharing
        for obj in objects - sharing.objects.keys():
            sharing.objects[obj] = self._count_object(obj)
        took = time.monotonic() - now
        sharing.serves_until = max(sharing.serves_until, now + took + STALE * took)
        return sharing

    def _count_anon(self) -> _Sharing:
        s, publication = self._s, self._host.publications
        most, many = (int(s.g[lo.G_POOLS + pool * lo.POOL_COLUMNS]) for pool in (lo.POOL_SHARED, lo.POOL_FOLIO))
        small = np.zeros((max(most, 1), 2), dtype=np.int32)
        index = np.zeros(max(many, 1), dtype=np.int32)
        mapped = np.zeros((ROOM, 513), dtype=np.int32)
        row, found = 1, 0
        while row and (most > 1 or many > 1):
            mapped = _with_room(mapped, found)
            with self._host.looking():
                row, found = sm.count_anon(s, row, 512 * SLICE_PAGES, small, index, mapped, found)
        folio = int(found > 0)
        while folio:
            with self._host.looking():
                folio = sm.count_pmds(s, folio, 512 * SLICE_PAGES, index, mapped)
        return _Sharing(publication, small, (index, mapped), {})

    def _count_object(self, obj: int) -> tuple[I32, I32]:
        s = self._s
        mm, addr, reach = 1, 0, 0
        while mm:
            with self._host.looking():
                if int(s.obj[obj, lo.O_REFS]) <= 1:
                    return _NOTHING
                mm, addr, reach = sm.object_spans(s, obj, mm, addr, SLICE_MAPPINGS, reach)
        if reach > MOST_SPANS:
            return _NOTHING
        spans, counts = np.zeros(reach, dtype=np.int32), np.zeros((ROOM, 512), dtype=np.int32)
        mm, addr, found = 1, 0, 0
        while mm:
            counts = _with_room(counts, found)
            with self._host.looking():
                mm, addr, found = sm.count_object(s, obj, mm, addr, SLICE_PAGES, spans, counts, found)
        return spans, counts

    # ---- pte_pages ----------------------------------------------------------------------------

    def pte_pages(self, pid: int) -> Iterator[list[PteRun]]:
        """The mm's PTE pages in order of address, runs of equal neighbours as one, a part at a time. NoSuchMm."""
        process = self._host.process(pid)
        held: PteRun | None = None
        addr = 0
        runs: Any = np.empty((RUNS, sm.RUN_COLUMNS), dtype=np.int64)
        while addr < lo.ADDRESS_END:
            with self._host.looking():
                self._check(process)
                n, addr = sm.list_pages(self._s, process.mm, addr, 4 * SLICE_WALK, runs)
            part: list[PteRun] = []
            for start, pages, mapped, zero, kind in runs[:n].tolist():
                run = PteRun(start, pages, mapped, zero, KINDS[kind])
                # a run may go on where the last part ended
                if held is not None and held[2:] == run[2:] and held.start + held.pages * lo.SPAN == start:
                    held = held._replace(pages=held.pages + pages)
                    continue
                if held is not None:
                    part.append(held)
                held = run
            if part:
                yield part
        if held is not None:
            yield [held]

    # ---- places -------------------------------------------------------------------------------

    def start_stack(self, pid: int) -> int:
        """An address in the main stack, as mm->start_stack is, 0 without one. Kept, since it does not change."""
        process = self._host.process(pid)
        if process.start_stack == 0:
            with self._host.looking():
                self._check(process)
                top = int(sm.stack_top(self._s, process.mm))
            process.start_stack = top - lo.PAGE if top else 0
        return process.start_stack

    def program(self, pid: int) -> str:
        """Path of the lowest mapped file, which is the program; "" where none is mapped."""
        with self._host.looking():
            return self._names.get(int(sm.first_file(self._s, self._host.process(pid).mm)), "")

    def warm(self) -> None:
        """Call every kernel of the walks once: a first reader would compile it with the host's lock held."""
        s, none, most = self._s, np.zeros(1, dtype=np.int32), np.zeros((1, 513), dtype=np.int32)
        with self._host.looking():
            sm.count_anon(s, 1, 0, np.zeros((1, 2), dtype=np.int32), none, most, 0)
            sm.count_pmds(s, 1, 0, none, most)
            sm.object_spans(s, 0, 1, 0, 0, 0)
            sm.count_object(s, 0, 1, 0, 0, none, _NOTHING[1], 0)
        for pid in self._host.pids():
            self.smaps(pid)
            list(self.pte_pages(pid))
            self.start_stack(pid)
            self.program(pid)


def _with_room(counts: I32, found: int) -> I32:
    """The counts with room for one more than were found."""
    if found + 1 < len(counts):
        return counts
    more = np.zeros((2 * len(counts), counts.shape[1]), dtype=np.int32)
    more[: len(counts)] = counts
    return more
