"""Cases of kernel-rules.md with the kernel's own figures: tables gained or lost by an operation."""

from __future__ import annotations

import pytest

from tests.build import Event, host, run

K, M, G = 1 << 10, 1 << 20, 1 << 30
B = 0x7000_0000_0000  # aligned to a PGD slot


def tables(profile: str, before: list[Event], then: list[Event], pid: int = 1) -> int:
    """Page-table pages gained by `then`."""
    machine = host(profile)
    run(machine, ("exec", 1), *before)
    start = machine.counters(pid).pgtables_bytes if pid == 1 else 0
    run(machine, *then)
    machine.validate()
    return (machine.counters(pid).pgtables_bytes - start) // 4096


def mapped(*ranges: tuple[int, int]) -> list[Event]:
    return [("mmap", 1, B + start, size) for start, size in ranges]


def written(start: int, size: int) -> Event:
    return ("fault", 1, B + start, size, 1)


def advise(start: int, size: int, advice: str) -> Event:
    return ("madvise", 1, B + start, size, advice)


CASES = {
    "first touch of a virgin PGD slot": (mapped((0, G)), [written(0, 4 * K)], 3),
    "mmap, mprotect, DONTNEED of untouched memory": (
        [],
        [*mapped((0, G)), ("mprotect", 1, B, G, "r--"), advise(0, G, "dontneed")],
        0,
    ),
    "DONTNEED of a whole span, 0.1": ([*mapped((0, 4 * M)), written(0, 4 * M)], [advise(0, 2 * M, "dontneed")], -1),
    "DONTNEED of an empty page frees it too, 0.1": (
        [*mapped((0, 4 * M)), written(0, 4 * M), advise(0, M, "dontneed"), advise(M, M, "dontneed")],
        [advise(0, 2 * M, "dontneed")],
        -1,
    ),
    "[1M,3M) empties two and frees none, 0.1": (
        [*mapped((0, 4 * M)), written(M, 2 * M)],
        [advise(M, 2 * M, "dontneed")],
        0,
    ),
    "coverage is judged per mapping, 0.2": (
        [
            *mapped((0, 4 * M)),
            ("mprotect", 1, B + M, M, "r--"),
            written(0, M),
            ("fault", 1, B + M, M, 0),
            written(2 * M, 2 * M),
        ],
        [advise(0, 4 * M, "dontneed")],
        -1,
    ),
    "516 PTE pages in 1G+8M, PMD and PUD stay, 0.3": (
        [*mapped((0, G + 8 * M)), written(0, G + 8 * M)],
        [advise(0, G + 8 * M, "dontneed")],
        -516,
    ),
    "MADV_FREE frees no table, 0.4": ([*mapped((0, 2 * M)), written(0, 2 * M)], [advise(0, 2 * M, "free")], 0),
    "a guard pins its page, 0.5": (
        [*mapped((0, 2 * M)), written(0, 2 * M), advise(0, 4 * K, "guard_install")],
        [advise(0, 2 * M, "dontneed")],
        0,
    ),
    "GUARD_INSTALL on nothing makes tables, section 8": (mapped((0, 2 * M)), [advise(0, 4 * K, "guard_install")], 3),
    "unmap the aligned middle span, 2.4": (
        [*mapped((0, 8 * M)), written(0, 8 * M)],
        [("munmap", 1, B + 2 * M, 2 * M)],
        -1,
    ),
    "unmap half a span, 2.4": ([*mapped((0, 4 * M)), written(0, 4 * M)], [("munmap", 1, B, M)], 0),
    "unmap the last span of the slot, 2.4": ([*mapped((0, 2 * M)), written(0, 2 * M)], [("munmap", 1, B, 2 * M)], -3),
    "mappings 5 GiB apart, first unmapped, 2.4": (
        [*mapped((0, 2 * M), (5 * G, 2 * M)), written(0, 4 * K), written(5 * G, 4 * K)],
        [("munmap", 1, B, 2 * M)],
        -2,
    ),
    "one munmap over both, 2.4": (
        [*mapped((0, 2 * M), (5 * G, 2 * M)), written(0, 4 * K), written(5 * G, 4 * K)],
        [("munmap", 1, B, 6 * G)],
        -5,
    ),
    "MAP_FIXED over 4 MiB alone, 2.4": ([*mapped((0, 4 * M)), written(0, 4 * M)], mapped((0, 4 * M)), -4),
    "mremap of 1 GiB, aligned, 2.5": (
        [*mapped((0, G)), written(0, G)],
        [("mremap", 1, B, G, (B + 4 * G, G, 0))],
        0,
    ),
    "mremap of 1 GiB to +2M, 2.5": (
        [*mapped((0, G)), written(0, G)],
        [("mremap", 1, B, G, (B + 4 * G + 2 * M, G, 0))],
        1,
    ),
    "mremap of 4M to an offset of 4K, 2.5": (
        [*mapped((0, 4 * M)), written(0, 4 * M)],
        [("mremap", 1, B, 4 * M, (B + 64 * M + 4 * K, 4 * M, 0))],
        1,
    ),
    "[1M,5M) to [65M,69M) is realigned, 2.5": (
        [*mapped((M, 4 * M)), written(M, 4 * M)],
        [("mremap", 1, B + M, 4 * M, (B + 65 * M, 4 * M, 0))],
        0,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_tables_on_6_18(name: str) -> None:
    before, then, gained = CASES[name]
    assert tables("v6.18", before, then) == gained


@pytest.mark.parametrize("profile", ["v5.19", "rfc-2022"])
def test_dontneed_frees_no_table_before_pt_reclaim(profile: str) -> None:
    before = [*mapped((0, 4 * M)), written(0, 4 * M)]
    assert tables(profile, before, [advise(0, 4 * M, "dontneed")]) == 0


def test_fork_copies_empty_pages_but_not_what_was_only_read() -> None:
    machine = host()
    run(
        machine,
        ("exec", 1),
        *mapped((0, 4 * M), (G, 2 * M)),
        written(0, 4 * M),
        advise(0, M, "dontneed"),
        advise(M, M, "dontneed"),
        ("fault", 1, B + G, 2 * M, 0),
        ("fork", 1, 0, 0, 2),
    )
    parent, child = machine.counters(1), machine.counters(2)
    # 2 + 1 PTE pages, 2 PMD, 1 PUD; the mapping that was only read is left out: one PTE and one PMD page less
    assert (parent.pgtables_bytes // 4096, child.pgtables_bytes // 4096) == (6, 4)
    assert (child.empty_bytes, child.zero_bytes, child.anon_bytes) == (4096, 0, 2 * M)
    machine.validate()


def test_the_mails_zero_page_case() -> None:
    """511 zero entries and one none is neither empty nor zero (kernel-rules.md, 0.12)."""
    machine = host("rfc-2022")
    run(machine, ("exec", 1), *mapped((0, 4 * M)), ("fault", 1, B, 2 * M - 4 * K, 0), ("fault", 1, B + 2 * M, 2 * M, 0))
    assert machine.counters(1).zero_bytes == 4096
    assert machine.counters(1).mixed_bytes == 4096
    run(machine, ("fault", 1, B + 2 * M - 4 * K, 4 * K, 0))
    assert (machine.counters(1).zero_bytes, machine.counters(1).mixed_bytes) == (8192, 0)
    run(machine, ("fault", 1, B + 4 * M - 4 * K, 4 * K, 1))
    assert (machine.counters(1).zero_bytes, machine.counters(1).mixed_bytes) == (4096, 0)
    machine.validate()
