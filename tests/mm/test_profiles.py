"""The mails' profiles: what each frees by itself and on request, against the series' own rules written out."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pterefd.engine import layout as lo
from pterefd.errors import BadInput
from pterefd.hookspecs import Kinds
from pterefd.host.host import Host
from pterefd.mm.profile import PROFILES, named
from tests.build import Event, host, run
from tests.mm.refcounts import Mm

K, M = 1 << 10, 1 << 20
B = 0x7000_0000_0000
OLDER = ("percpu-2022", "atomic-2021")
RFC = ("rfc-2022", "rfc-2022-empty", "rfc-2022-aligned", "rfc-2022-uffd")


def start(profile: str, *events: Event, size: int = 8 * M) -> Host:
    """A host with pid 1, that much anonymous memory at B, and then the events."""
    machine = host(profile)
    run(machine, ("exec", 1), ("mmap", 1, B, size), *events)
    return machine


def write(at: int, size: int) -> Event:
    return ("fault", 1, B + at, size, 1)


def read(at: int, size: int) -> Event:
    return ("fault", 1, B + at, size, 0)


def advise(at: int, size: int, advice: str) -> Event:
    return ("madvise", 1, B + at, size, advice)


def pte_pages(machine: Host, pid: int = 1) -> int:
    return machine.counters(pid).pte_bytes // 4096


# ---- what is freed without being asked for (kernel-rules.md, section 4.2) ---------------------------

# name: (events, PTE pages left under percpu-2022, atomic-2021, the other v5.19 ones)
CASES: dict[str, tuple[list[Event], int, int, int]] = {
    "DONTNEED of a whole span": ([write(0, 4 * M), advise(0, 2 * M, "dontneed")], 1, 1, 2),
    "DONTNEED of half a span, the other half set": ([write(0, 2 * M), advise(0, M, "dontneed")], 1, 1, 1),
    "DONTNEED in two halves": ([write(0, 2 * M), advise(0, M, "dontneed"), advise(M, M, "dontneed")], 0, 0, 1),
    "DONTNEED of [1M, 3M), all that was set": ([write(M, 2 * M), advise(M, 2 * M, "dontneed")], 0, 0, 2),
    "a span that two mappings share": (
        [write(0, 2 * M), ("mprotect", 1, B, M, "r--"), advise(0, 2 * M, "dontneed")],
        0,
        0,
        1,
    ),
    "512 zero entries are no empty page": ([read(0, 2 * M)], 1, 1, 1),
    "MADV_FREE of pages marks them": ([write(0, 2 * M), advise(0, 2 * M, "free")], 1, 1, 1),
    "MADV_FREE of swap entries clears them": (
        [write(0, 2 * M), ("swap_out", 1, B, 2 * M), advise(0, 2 * M, "free")],
        0,
        0,
        1,
    ),
    "reclaim drops clean MADV_FREE pages": (
        [write(0, 2 * M), advise(0, 2 * M, "free"), ("swap_out", 1, B, 2 * M, 1)],
        0,
        0,
        1,
    ),
    "... after a DONTNEED has switched the percpu_ref back": (
        [
            write(0, 2 * M),
            advise(M, M, "free"),
            advise(0, 512 * K, "dontneed"),
            ("swap_out", 1, B + 512 * K, 1536 * K, 1),
        ],
        1,
        0,
        1,
    ),
    "reclaim drops pages that no MADV_FREE has marked": (
        [write(0, 2 * M), ("swap_out", 1, B, 2 * M, 1)],
        1,
        0,
        1,
    ),
    "... after an MADV_FREE that marked nothing has switched it back": (
        [write(0, M), advise(0, M, "free"), advise(M, M, "free"), ("swap_out", 1, B, M, 1)],
        1,
        0,
        1,
    ),
    "... in a PTE page that was moved": (
        [
            write(0, 2 * M),
            advise(0, 2 * M, "free"),
            ("mremap", 1, B, 2 * M, (B + 16 * M, 2 * M, 0)),
            ("swap_out", 1, B + 16 * M, 2 * M, 1),
        ],
        0,
        0,
        1,
    ),
    "... in a PTE page made anew, whose percpu_ref is": (
        [
            write(0, 2 * M),
            advise(0, 2 * M, "free"),
            ("swap_out", 1, B, 2 * M, 1),
            write(0, 2 * M),
            ("swap_out", 1, B, 2 * M, 1),
        ],
        1,
        0,
        1,
    ),
    "what a snapshot says empties a page": ([write(0, 4 * K), ("state", 1, B, 4 * K, "none")], 1, 0, 1),
    "swapping out changes entries, it clears none": ([write(0, 2 * M), ("swap_out", 1, B, 2 * M)], 1, 1, 1),
    "munmap of the half that was set": ([write(0, M), ("munmap", 1, B, M)], 1, 0, 1),
    "a move of all entries out of a span that stays mapped": (
        [write(0, 16 * K), ("mremap", 1, B, 16 * K, (B + 16 * M, 16 * K, 0))],
        2,
        1,
        2,
    ),
    "a move of pages without entries": (
        [write(M, 4 * K), ("mremap", 1, B, 16 * K, (B + 16 * M, 16 * K, 0))],
        2,
        1,
        2,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_freed_without_being_asked_for(name: str) -> None:
    events, percpu, atomic, others = CASES[name]
    expected = {"percpu-2022": percpu, "atomic-2021": atomic, "v5.19": others} | dict.fromkeys(RFC, others)
    machines = {profile: start(profile, *events) for profile in expected}
    assert {profile: pte_pages(machine) for profile, machine in machines.items()} == expected
    for machine in machines.values():
        machine.validate()


def test_truncation_and_hole_punch_free_in_both_older_series() -> None:
    """unmap_mapping_range goes through zap_page_range_single, which asks for PTE pages to be freed (Apr 2022)."""
    for profile, left in (("percpu-2022", 0), ("atomic-2021", 0), ("rfc-2022", 1)):
        machine = host(profile)
        run(machine, ("exec", 1), ("mmap", 1, B, 2 * M, ("rw-", "shared,anonymous")))
        run(machine, ("fault", 1, B, 64 * K, 1), ("madvise", 1, B, 2 * M, "remove"))
        assert pte_pages(machine) == left, profile


def test_a_child_gets_no_empty_pte_page_from_the_atomic_series() -> None:
    """copy_pte_range allocates first; its own reference is the last where nothing was copied."""
    events = [
        write(0, 4 * K),
        ("mprotect", 1, B + M, M, "r--"),  # of the one span, the second mapping has no entry
        ("madvise", 1, B, M, "dontfork"),
        ("fork", 1, 0, 0, 2),
    ]
    assert pte_pages(start("rfc-2022", *events), 2) == 1
    assert pte_pages(start("atomic-2021", *events), 2) == 0


def again(*events: Event) -> int:
    """PTE pages made again after percpu-2022 freed two, at B + 2M and B + 4M, and then these events."""
    freed = [write(2 * M, 4 * M), advise(2 * M, 4 * M, "dontneed"), write(0, 4 * K)]
    return start("percpu-2022", *freed, *events).counters(1).allocated_again


def test_pages_made_again_are_counted_once_and_not_after_munmap() -> None:
    """What munmap would have freed on every kernel is not made again because of the profile."""
    assert again(write(2 * M, 4 * M), advise(2 * M, 4 * K, "dontneed"), write(2 * M, 4 * K)) == 2
    for start_of_hole, size, left in ((2 * M, 4 * M, 0), (3 * M, 3 * M, 1), (2 * M, 3 * M, 1), (3 * M, 2 * M, 2)):
        hole = B + start_of_hole
        assert again(("munmap", 1, hole, size), ("mmap", 1, hole, size), write(2 * M, 4 * M)) == left


def test_the_mails_program() -> None:
    """Touch 2 MiB and discard them, again and again: all but the present PTE page are freed, or none is."""
    steps = [event for i in range(64) for event in (write(i * 2 * M, 2 * M), advise(i * 2 * M, 2 * M, "dontneed"))]
    left = {name: pte_pages(start(name, *steps, size=128 * M)) for name in PROFILES}
    freed = ("v6.14", "v6.18", *OLDER)
    assert left == {name: 0 if name in freed else 64 for name in PROFILES}


# ---- what is freed on request (kernel-rules.md, section 4.1) --------------------------------------


def requested(machine: Host, pid: int = 1) -> tuple[int, int]:
    """(empty, zero) PTE pages that free_ptes frees; what it would free was said before, in files and view."""
    counters = machine.counters(pid)
    said = counters.reclaimable_pt_bytes
    assert machine.view().reclaimable_bytes[0] == said
    assert list(machine.view().ranking(Kinds.BOTH)) == ([pid] if said else [])
    empty, zero, _ = machine.free_ptes(pid, Kinds.BOTH, None)
    assert empty == counters.empty_bytes - counters.kept_empty_bytes
    assert zero == counters.zero_bytes - counters.kept_zero_bytes
    after = machine.counters(pid)
    assert (empty + zero, after.reclaimable_pt_bytes) == (said, 0)
    assert after.peak_reclaimable_bytes >= said
    machine.validate()
    return empty // 4096, zero // 4096


MIX = [
    read(0, 2 * M),  # zero
    read(2 * M, 2 * M - 4 * K),  # mixed: kept by every rule
    write(4 * M, 4 * K),  # data
    write(6 * M, 4 * K),
    advise(6 * M, M, "dontneed"),  # empty, where the profile did not free it
]


@pytest.mark.parametrize(
    ("profile", "freed"),
    [
        ("v5.19", (1, 1)),
        ("v6.18", (1, 1)),
        ("rfc-2022", (1, 1)),
        ("rfc-2022-empty", (1, 0)),
        ("rfc-2022-aligned", (1, 1)),
        ("rfc-2022-uffd", (1, 1)),
        ("percpu-2022", (0, 1)),
        ("atomic-2021", (0, 1)),
    ],
)
def test_what_is_freed_on_request(profile: str, freed: tuple[int, int]) -> None:
    assert requested(start(profile, *MIX)) == freed


def test_aligned_frees_only_spans_that_one_mapping_covers() -> None:
    events = [
        *MIX,
        ("mprotect", 1, B + M, 4 * K, "r--"),  # the zero page's span falls to three mappings
        ("mmap", 1, B + 16 * M, M),
        read(16 * M, M),
        advise(16 * M, M, "dontneed"),  # an empty page, half its span not mapped
    ]
    assert requested(start("rfc-2022", *events)) == (2, 1)
    assert requested(start("rfc-2022-aligned", *events)) == (1, 0)
    joined = [*events, ("mprotect", 1, B + M, 4 * K, "rw-")]
    assert requested(start("rfc-2022-aligned", *joined)) == (1, 1)


def test_userfaultfd_ranges_are_exempt_in_their_variant_alone() -> None:
    flags = ("rw-", "private,anonymous,uffd")
    events = [*MIX, ("mmap", 1, B + 16 * M, 3 * M, flags), read(16 * M, 3 * M), advise(18 * M, M, "dontneed")]
    assert requested(start("rfc-2022", *events)) == (2, 2)
    assert requested(start("rfc-2022-uffd", *events)) == (1, 1)
    # a moved mapping is registered no more, nor is a child's
    moved = [*events, ("mremap", 1, B + 16 * M, 3 * M, (B + 32 * M, 3 * M, 0))]
    assert requested(start("rfc-2022-uffd", *moved)) == (2, 2)
    machine = start("rfc-2022-uffd", ("mmap", 1, B, 2 * M, flags), write(0, 4 * K), ("fork", 1, 0, 0, 2))
    run(machine, ("exit", 1), ("madvise", 2, B, 2 * M, "dontneed"))
    assert requested(machine, 2) == (1, 0)


def test_userfaultfd_keeps_mappings_apart() -> None:
    flags = ("rw-", "private,anonymous,uffd")
    machine = start("v6.18", ("mmap", 1, B + 8 * M, M, flags), ("mmap", 1, B + 9 * M, M, flags))
    assert len(machine.vmas(1)) == 2


def test_walks_pass_over_raw_frames() -> None:
    """A PTE page of VM_PFNMAP mappings alone is not met; one that another mapping shares is (walk_page_test)."""
    machine = host("rfc-2022")
    run(machine, ("exec", 1), ("mmap", 1, B, 2 * M), ("mmap", 1, B + 4 * M, 4 * K))
    run(machine, read(0, 2 * M), read(4 * M, 4 * K), advise(4 * M, 4 * K, "dontneed"))
    assert machine.counters(1).reclaimable_pt_bytes == 2 * 4096
    s, mm = machine._s, machine.process(1).mm
    position = int(s.mm[mm, lo.M_VMAS])
    s.vma[s.val[position + 1], lo.V_FLAGS] |= lo.VM_PFNMAP  # as mmap of [vvar] makes it; only those have an object
    s.mm[mm, lo.M_PFN_LOW], s.mm[mm, lo.M_PFN_HIGH] = B + 4 * M, B + 4 * M + 4 * K
    run(machine, read(0, 4 * K))
    assert machine.counters(1).kept_empty_bytes == 4096
    assert requested(machine) == (0, 1)
    run(machine, ("mmap", 1, B + 5 * M, 4 * K))
    assert requested(machine) == (1, 0)


# ---- names ----------------------------------------------------------------------------------------


def test_options_stand_behind_a_plus_sign() -> None:
    assert named("atomic-2021+cont_pte").name == "atomic-2021+cont_pte"
    with pytest.raises(BadInput, match="no option 'huge'; there are: cont_pte"):
        named("rfc-2022+huge")
    with pytest.raises(BadInput, match="profile 'rfc\\+cont_pte': not one of v5.19, "):
        named("rfc+cont_pte")


# ---- any program at all -----------------------------------------------------------------------------

FIRST = (0x7000_0000_0000 >> 12) - 768  # one and a half spans below a PGD slot's end
PAGES = 2048
ELSEWHERE = FIRST + (1 << 20)
PLACES = [0, 1, 128, 255, 256, 511, 512, 767, 768, 769, 1024, 1279, 1280, 1535]
LENGTHS = [1, 128, 255, 256, 512, 513, 768, 1024]

PROGRAM = st.lists(
    st.tuples(
        st.sampled_from(
            ["map", "read", "write", "write", "dontneed", "dontneed", "free", "swap", "drop", "unmap", "move", "ask"]
        ),
        st.sampled_from(PLACES),
        st.sampled_from(LENGTHS),
        st.sampled_from([0, 0, 256, 512]),
    ),
    min_size=5,
    max_size=30,
)


class Both:
    """A machine and the series written out, given the same operations."""

    def __init__(self, profile: str) -> None:
        self.machine = host(profile)
        self.mm = Mm(profile, self.pieces)
        run(self.machine, ("exec", 1))

    def pieces(self, begin: int, end: int) -> Iterator[tuple[int, int]]:
        for row in self.machine.vmas(1):
            low, high = max(row.start >> 12, begin), min(row.end >> 12, end)
            if low < high:
                yield low, high

    def act(self, what: str, begin: int, pages: int, offset: int) -> None:
        end = begin + pages
        at, size = begin << 12, pages << 12
        if what == "map":
            self.mm.map(begin, end)
            run(self.machine, ("mmap", 1, at, size, ("rw-", "private,anonymous")))
        elif what in ("read", "write"):
            for low, high in list(self.pieces(begin, end)):
                self.mm.touch(low, high, what == "write")
                run(self.machine, ("fault", 1, low << 12, (high - low) << 12, int(what == "write")))
        elif what in ("dontneed", "free"):
            getattr(self.mm, what)(begin, end)
            run(self.machine, ("madvise", 1, at, size, what))
        elif what in ("swap", "drop"):
            self.mm.swap_out(begin, end, what == "drop")
            run(self.machine, ("swap_out", 1, at, size, int(what == "drop")))
        elif what == "unmap":
            self.mm.unmap(begin, end)
            run(self.machine, ("munmap", 1, at, size))
        elif what == "move":
            for low, high in list(self.pieces(begin, end))[:1]:
                to = ELSEWHERE + low - FIRST + offset
                self.mm.move(low, to, high - low)
                run(self.machine, ("mremap", 1, low << 12, (high - low) << 12, (to << 12, (high - low) << 12, 0)))

    def seen(self) -> dict[str, int]:
        """The machine's numbers, of PTE pages."""
        self.machine.validate()
        c = self.machine.counters(1)
        return {
            "tables": c.pte_bytes // 4096,
            "empty": c.empty_bytes // 4096,
            "zero": c.zero_bytes // 4096,
            "by itself": c.freed_by_itself,
            "on request": c.freed_on_request,
            "again": c.allocated_again,
            "updates": c.refcount_updates,
            "walks": c.walker_pairs,
            "rmap": c.rmap_locks,
            "holds": c.mmap_write_holds,
            "would free": c.reclaimable_pt_bytes // 4096,
        }

    def expected(self) -> dict[str, int]:
        """The same, counted by hand."""
        empty, zero = self.mm.kinds()
        would = copy.deepcopy(self.mm, {id(self): self})
        would.free_ptes()
        return {
            "tables": len(self.mm.tables),
            "empty": len(empty),
            "zero": len(zero),
            "by itself": self.mm.freed_by_itself,
            "on request": self.mm.freed_on_request,
            "again": self.mm.again,
            "updates": self.mm.updates,
            "walks": self.mm.walks,
            "rmap": self.mm.rmap_locks,
            "holds": self.mm.write_holds,
            "would free": would.freed_on_request - self.mm.freed_on_request,
        }


@pytest.mark.parametrize("profile", ["rfc-2022", "rfc-2022-empty", "rfc-2022-aligned", *OLDER])
@settings(max_examples=40, deadline=None)
@given(program=PROGRAM)
def test_programs_agree_with_the_series_written_out(profile: str, program: list[tuple[str, int, int, int]]) -> None:
    both = Both(profile)
    both.act("map", FIRST, PAGES, 0)
    for what, place, pages, offset in program:
        if what == "ask":
            both.mm.free_ptes()
            both.machine.free_ptes(1, Kinds.BOTH, None)
        else:
            both.act(what, FIRST + place, pages, offset)
        assert both.seen() == both.expected(), (what, place, pages, offset)
