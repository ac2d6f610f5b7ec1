"""Counted costs of directed programs, worked out by hand from docs/costs.md."""

from __future__ import annotations

import pytest

from pterefd.hookspecs import Kinds
from pterefd.mm.thp import thp_bits
from tests.build import Event, batch, host, run

K, M = 1 << 10, 1 << 20
B = 0x7000_0000_0000
MAP: list[Event] = [("exec", 1), ("mmap", 1, B, 8 * M)]


def write(at: int, size: int) -> Event:
    return ("fault", 1, B + at, size, 1)


def read(at: int, size: int) -> Event:
    return ("fault", 1, B + at, size, 0)


# name: (events, refcount updates, walker pairs)
CASES: dict[str, tuple[list[Event], int, int]] = {
    "512 writes: one entry set and one walk each": ([write(0, 2 * M)], 512, 512),
    "the same again: no fault, nothing": ([write(0, 2 * M), write(0, 2 * M)], 512, 512),
    # 512 set; then each zero entry is cleared and the copy set
    "reads, then writes": ([read(0, 2 * M), write(0, 2 * M)], 512 + 1024, 1024),
    # 512 set, 512 cleared by one walker
    "DONTNEED": ([write(0, 2 * M), ("madvise", 1, B, 2 * M, "dontneed")], 1024, 513),
    # an empty PTE page is walked all the same
    "DONTNEED twice": ([write(0, M), *[("madvise", 1, B, M, "dontneed")] * 2], 512, 258),
    # two PTE pages; every entry is cleared and set again
    "MADV_FREE": ([write(0, 4 * M), ("madvise", 1, B, 4 * M, "free")], 1024 + 2048, 1026),
    "mprotect of 16 pages": ([write(0, 2 * M), ("mprotect", 1, B, 64 * K, "r--")], 512 + 32, 513),
    # reclaim finds each page through the rmap; read in again: set over the swap entry, a fault each
    "out to swap and in": ([write(0, 64 * K), ("swap_out", 1, B, 64 * K, 0), write(0, 64 * K)], 16 + 32, 16 + 16 + 16),
    # populate: gup looks at each page, and faults each in
    "MADV_POPULATE_WRITE": ([("madvise", 1, B, 64 * K, "populate_write")], 16, 32),
    # 16 entries move by 4 KiB: cleared there, set here, one piece; then the source is unmapped: one walk, nothing left
    "mremap, entry by entry": (
        [write(0, 64 * K), ("mremap", 1, B, 64 * K, (B + (1 << 30) + 4 * K, 64 * K))],
        16 + 32,
        16 + 2 + 1,
    ),
    "munmap of a part": ([write(0, 2 * M), ("munmap", 1, B, M)], 512 + 256, 513),
    "guards over 8 pages, 4 of them set": (
        [write(0, 16 * K), ("madvise", 1, B, 32 * K, "guard_install")],
        4 + 4 * 2 + 4,
        4 + 1,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_costs(name: str) -> None:
    events, updates, walks = CASES[name]
    machine = host("v6.14" if "guards" in name else "rfc-2022")
    run(machine, *MAP, *events)
    c = machine.counters(1)
    assert (c.refcount_updates, c.walker_pairs) == (updates, walks)


def test_fork_is_counted_with_the_child() -> None:
    """512 entries set in the child, its PTE page and the parent's mapped once each."""
    machine = host("rfc-2022")
    run(machine, *MAP, write(0, 2 * M), ("fork", 1, 0, 0, 2))
    assert (machine.counters(2).refcount_updates, machine.counters(2).walker_pairs) == (512, 2)
    assert machine.counters(1).refcount_updates == 512


def test_locks_of_free_ptes() -> None:
    """Three empty PTE pages, one of them in a span of two mappings: four looks, four rmap locks, three pages."""
    machine = host("rfc-2022")
    run(machine, *MAP, write(0, 6 * M), ("madvise", 1, B, 6 * M, "dontneed"), ("mprotect", 1, B, M, "r--"))
    machine.free_ptes(1, Kinds.BOTH, None)
    c = machine.counters(1)
    assert (c.mmap_write_holds, c.rmap_locks, c.freed_on_request) == (4, 4, 3)
    run(machine, write(4 * M, 4 * K))
    assert machine.counters(1).allocated_again == 1


@pytest.mark.parametrize(("profile", "updates"), [("rfc-2022", 0), ("rfc-2022+cont_pte", 64)])
def test_contiguous_entries_are_unfolded(profile: str, updates: int) -> None:
    """DONTNEED of pages 20 to 43 of a 64-page folio: blocks 16..31 and 32..47 are unfolded, 32 updates each."""
    machine = host(profile)
    events = batch([*MAP, write(0, 4 * K), ("madvise", 1, B + 80 * K, 96 * K, "dontneed")])
    events.thp = thp_bits("always,256kB=always,2048kB=never")
    machine.run(events, 0, len(events))
    assert machine.counters(1).refcount_updates == 64 + 24 + updates
