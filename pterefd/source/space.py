"""Where mappings lie in a simulated process: which addresses are taken, and where mmap puts the next one."""

from __future__ import annotations

from bisect import bisect_left, bisect_right

from pterefd.engine.layout import SPAN
from pterefd.source.schema import PAGE_SIZE

# With address space layout randomization off: arch/x86/mm/mmap.c mmap_base() for a stack limit of 8 MiB, and where
# the heap of a small position-independent program begins (ELF_ET_DYN_BASE, fs/binfmt_elf.c).
MMAP_BASE = 0x7FFF_F7FF_F000
MMAP_MIN = 0x10000  # vm.mmap_min_addr
HEAP_START = 0x5555_5555_9000


class Space:
    """The taken addresses of one mm.

    Invariant: [starts[i], ends[i]) ascend and do not touch each other.  brk_end: 0 before the first brk.
    """

    def __init__(self) -> None:
        self.starts: list[int] = []
        self.ends: list[int] = []
        self.brk_end = 0

    def copy(self) -> Space:
        """A forked child's."""
        other = Space()
        other.starts, other.ends, other.brk_end = self.starts.copy(), self.ends.copy(), self.brk_end
        return other

    def take(self, start: int, end: int) -> None:
        """[start, end) is mapped, whatever was there."""
        first = bisect_left(self.ends, start)
        last = bisect_right(self.starts, end)
        if first < last:
            start, end = min(start, self.starts[first]), max(end, self.ends[last - 1])
        self.starts[first:last] = [start]
        self.ends[first:last] = [end]

    def free(self, start: int, end: int) -> None:
        """[start, end) is unmapped, as far as it was mapped."""
        first = bisect_right(self.ends, start)
        last = bisect_left(self.starts, end)
        if first >= last:
            return
        starts, ends = [], []
        if self.starts[first] < start:
            starts, ends = [self.starts[first]], [start]
        if self.ends[last - 1] > end:
            starts, ends = [*starts, end], [*ends, self.ends[last - 1]]
        self.starts[first:last] = starts
        self.ends[first:last] = ends

    def is_free(self, start: int, end: int) -> bool:
        """Nothing is mapped in [start, end)."""
        return bisect_right(self.ends, start) >= bisect_left(self.starts, end)

    def place(self, length: int, huge: bool) -> int | None:
        """Where mmap puts `length` bytes: the highest gap below MMAP_BASE with room. None: there is none.

        huge: private anonymous memory, which begins at a multiple of 2 MiB where its length is one and there is room
        for that (mm/huge_memory.c thp_get_unmapped_area, Linux 6.7; only for such lengths from 6.13 on).
        """
        if huge and length % SPAN == 0:
            at = self._highest(length + SPAN)
            if at is not None:
                return (at + SPAN) & -SPAN
        return self._highest(length)

    def _highest(self, length: int) -> int | None:
        """The highest start of a free range of `length` bytes."""
        high = MMAP_BASE
        for i in range(bisect_left(self.starts, MMAP_BASE) - 1, -1, -1):
            if high - self.ends[i] >= length:
                return high - length
            high = min(high, self.starts[i])
        return high - length if high - MMAP_MIN >= length else None


def pages(length: int) -> int:
    """A length, rounded up to whole pages."""
    return -(-length // PAGE_SIZE) * PAGE_SIZE
