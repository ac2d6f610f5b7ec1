"""How much page-table memory of a running process is empty or zero, seen from outside without stopping it.

The kernel shows entries, not tables. What is known is VmPTE (PTE, PMD and PUD pages together), and which entries are
set; the entries explain so many tables, each huge page keeps one deposited PTE page (__do_huge_pmd_anonymous_page,
pgtable_trans_huge_deposit), and what VmPTE has beyond that holds no entry at all: empty PTE pages, and the PMD and PUD
pages above nothing else. Where these lie is not known; zero PTE pages and their like are located.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pterefd.errors import Missing, NoSuchMm, PterefdError
from pterefd.live import procmem
from pterefd.live.procmem import (
    GIB_SHIFT,
    PAGE,
    PAGE_IS_FILE,
    PAGE_IS_GUARD,
    PAGE_IS_HUGE,
    PAGE_IS_PFNZERO,
    PGD_SHIFT,
    SPAN_SHIFT,
    Entries,
    Map,
)
from pterefd.names import printable

I64 = npt.NDArray[np.int64]
PTRS_PER_PTE = 512
_ATTEMPTS = 4  # until VmPTE is the same before and after the entries were read
# Without PAGEMAP_SCAN every page of every mapping is 8 bytes to read: about a second for so much.
READABLE_BYTES = 1 << 40


class NotSeen(PterefdError):
    """A process that is there and cannot be seen; the text says why, `reason` in a word: rights, size."""

    exit_code = Missing.exit_code

    def __init__(self, text: str, reason: str = "") -> None:
        super().__init__(text)
        self.reason = reason


class NotThere(NotSeen):
    """What was asked for is no process, or has no memory."""

    exit_code = NoSuchMm.exit_code


@dataclass(frozen=True, slots=True)
class Spans:
    """PTE pages that hold entries, ascending: number of the span, and of its entries how many are of a kind (int64[n]).

    zero: the zero page.  guard: guard markers.  other: everything else.
    """

    number: I64
    zero: I64
    guard: I64
    other: I64

    @property
    def is_zero(self) -> npt.NDArray[np.bool_]:
        """All 512 entries map the zero page."""
        return self.zero == PTRS_PER_PTE

    @property
    def is_mixed(self) -> npt.NDArray[np.bool_]:
        """Zero page and nothing else, but not everywhere."""
        return (self.zero > 0) & (self.zero < PTRS_PER_PTE) & (self.guard + self.other == 0)

    @property
    def is_guarded(self) -> npt.NDArray[np.bool_]:
        """Guard markers keep it, beside the zero page at most."""
        return (self.guard > 0) & (self.other == 0)


@dataclass(frozen=True, slots=True)
class TableUse:
    """Page-table memory of one process, in bytes; pid and start_time (clock ticks after boot) say whose it is.

    vm_pte: VmPTE.  explained: tables that entries need.  deposited: one PTE page for each huge page.
    empty: tables without any entry.  zero: PTE pages of 512 zero pages.  mixed: of zero pages and none.
    guard: PTE pages that guard markers keep; beyond the mail's kinds, as mixed is.
    unseen: tables that may belong to mappings which the kernel does not show (VM_PFNMAP), not counted as empty.
    rss: RssAnon + RssFile + RssShmem.  zero, mixed: None where this kernel does not tell zero pages.
    steady: VmPTE did not change meanwhile.  comm, cgroup: fit to be shown (names.printable).
    """

    pid: int
    start_time: int
    comm: str
    uid: int
    cgroup: str
    vm_pte: int
    explained: int
    deposited: int
    empty: int
    zero: int | None
    mixed: int | None
    guard: int
    unseen: int
    rss: int
    swap: int
    steady: bool

    @property
    def reclaimable(self) -> int:
        """reclaimable_pt_bytes: empty and zero."""
        return self.empty + (self.zero or 0)


@dataclass(frozen=True, slots=True)
class Seen:
    """What was measured, and what it was measured from."""

    use: TableUse
    maps: list[Map]
    spans: Spans


def pids() -> list[int]:
    """Every process here, ascending."""
    return sorted(int(name) for name in os.listdir("/proc") if name.isdecimal())


def scan(pid: int) -> Seen | None:
    """Measure one process; None where it has no memory of its own (a kernel thread, a zombie).

    NoSuchMm where there is no such process. NotSeen where there is, and it may not or cannot be looked at.
    """
    try:
        return _scan(pid)
    except procmem.GONE:
        raise NoSuchMm(f"{pid}: no such process") from None
    except PermissionError as error:
        text = f"{pid}: {error.strerror}: its entries are for its owner and for CAP_SYS_PTRACE"
        raise NotSeen(text, "rights") from None
    except OSError as error:
        if error.errno == errno.EINVAL:  # its mm is gone meanwhile
            return None
        raise


def _scan(pid: int) -> Seen | None:
    began = start_time(pid)
    tid = with_memory(pid)
    if tid is None:
        return None
    for _ in range(_ATTEMPTS):
        before = procmem.read_status(tid)
        if "VmPTE" not in before.kb:
            return None
        maps = procmem.read_maps(tid)
        if not procmem.scan_abilities():
            _check_readable(pid, maps)
        entries = procmem.read_entries(tid, maps)
        hidden = _hidden(tid, maps, before)
        after = procmem.read_status(tid)
        if after.kb.get("VmPTE") == before.kb["VmPTE"]:
            break
    if start_time(pid) != began or "VmPTE" not in after.kb:
        raise NoSuchMm(f"{pid}: ended while it was looked at")
    spans, use = _tables(after.kb["VmPTE"] << 10, entries, hidden)
    told = procmem.tells_zero_pages()
    return Seen(
        TableUse(
            pid=pid,
            start_time=began,
            comm=printable(after.name),
            uid=after.uid,
            cgroup=printable(read_cgroup(tid)),
            vm_pte=after.kb["VmPTE"] << 10,
            zero=int(spans.is_zero.sum()) * PAGE if told else None,
            mixed=int(spans.is_mixed.sum()) * PAGE if told else None,
            guard=int(spans.is_guarded.sum()) * PAGE,
            rss=after.rss_kb << 10,
            swap=after.kb.get("VmSwap", 0) << 10,
            steady=after.kb["VmPTE"] == before.kb["VmPTE"],
            **use,
        ),
        maps,
        spans,
    )


def with_memory(pid: int) -> int | None:
    """The pid, or where its first thread has exited (pthread_exit) another of its threads; None: it has no memory."""
    tids = (tid for tid in procmem.tasks(pid) if "VmPTE" in procmem.read_status(tid).kb)
    return pid if "VmPTE" in procmem.read_status(pid).kb else next(tids, None)


def start_time(pid: int) -> int:
    """When it began, in clock ticks after boot: with its pid, what tells it from any other."""
    return int(procmem.read_stat(pid)[procmem.STAT_STARTTIME])


def read_cgroup(pid: int) -> str:
    """Its cgroup's path: of v2 where it is in one, else of v1's memory controller; "" where there is none."""
    found = ""
    try:
        with open(f"/proc/{pid}/cgroup", encoding="utf-8", errors="surrogateescape") as file:
            for line in file:
                number, controllers, path = line.rstrip("\n").split(":", 2)
                if "memory" in controllers.split(","):
                    return path
                if number == "0":
                    found = path
    except OSError:
        pass
    return found


def _check_readable(pid: int, maps: list[Map]) -> None:
    size = sum(mapping.end - mapping.start for mapping in maps)
    if size > READABLE_BYTES:
        raise NotSeen(
            f"{pid}: {size >> 40} TiB are mapped, and without PAGEMAP_SCAN (Linux 6.7) each page of them would be read",
            "size",
        )


# ---- what pagemap does not show as it is -------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Hidden:
    """huge_tlb: (start, end, bytes of a page) of hugetlb mappings, which have no PTE pages.

    unseen: (start, end) of mappings that PAGEMAP_SCAN passes over (pagemap_scan_test_walk: VM_PFNMAP).
    """

    huge_tlb: list[tuple[int, int, int]]
    unseen: list[tuple[int, int]]


def _hidden(pid: int, maps: list[Map], status: procmem.Status) -> _Hidden:
    """By smaps only where something in maps or status asks for it: smaps walks the tables."""
    unseen = [(m.start, m.end) for m in maps if m.path.startswith("[vvar")]
    if not any(_may_be_a_device(mapping.path) for mapping in maps) and not status.hugetlb_kb:
        return _Hidden([], unseen)
    told = procmem.read_page_sizes(pid)
    huge_tlb = []
    for mapping in maps:
        flags, size = told.get(mapping.start, (frozenset(), PAGE))
        if "ht" in flags:
            huge_tlb.append((mapping.start, mapping.end, size))
        elif "pf" in flags and not mapping.path.startswith("[vvar"):
            unseen.append((mapping.start, mapping.end))
    return _Hidden(huge_tlb, unseen)


_DEVICES = ("/dev/", "/sys/", "/proc/", "/dmabuf:", "/drm", "/i915", "anon_inode:")
_MEMORY = ("/dev/shm/", "/dev/zero")  # noqa: S108


def _may_be_a_device(path: str) -> bool:
    """Whether what is mapped may be memory of a device: page frames without a struct page."""
    return path.startswith(_DEVICES) and not path.startswith(_MEMORY)


def _tables(vm_pte: int, entries: Entries, hidden: _Hidden) -> tuple[Spans, dict[str, int]]:
    """PTE pages with entries, and the bytes of tables: explained, deposited, empty, unseen."""
    # A run of PAGEMAP_SCAN may go over the border of two mappings.
    borders = {border for start, end, _ in hidden.huge_tlb for border in (start, end)}
    entries = cut(entries, np.array(sorted(borders), dtype=np.int64))
    huge = (entries.categories & PAGE_IS_HUGE) != 0
    tlb = np.zeros(len(huge), dtype=bool)
    no_pmd = np.zeros(len(huge), dtype=bool)
    for start, end, size in hidden.huge_tlb:
        inside = (entries.start >= start) & (entries.end <= end)
        tlb |= inside
        no_pmd |= inside & (size >= 1 << GIB_SHIFT)
    small = ~huge & ~tlb
    spans = count_spans(entries if small.all() else entries.where(small))
    deposits = entries.where(huge & ~tlb & ((entries.categories & PAGE_IS_FILE) == 0))
    deposited = PAGE * deposits.slots(SPAN_SHIFT)
    upper = (entries.where(~no_pmd) if no_pmd.any() else entries).slots(GIB_SHIFT) + entries.slots(PGD_SHIFT)
    explained = PAGE * (len(spans.number) + upper)
    unexplained = max(0, vm_pte - explained - deposited)  # below: it changed meanwhile, or is none of the kinds known
    unseen = min(unexplained, PAGE * _may_have(hidden.unseen, entries))
    return spans, {
        "explained": explained,
        "deposited": deposited,
        "empty": unexplained - unseen,
        "unseen": unseen,
    }


def cut(entries: Entries, borders: I64) -> Entries:
    """The runs, none of which goes over one of the borders (ascending)."""
    if not len(borders):
        return entries
    low = np.searchsorted(borders, entries.start, side="right")
    inside = np.searchsorted(borders, entries.end, side="left") - low
    over = np.flatnonzero(inside > 0)  # few, where there are many runs: the others stay as they are
    pieces = inside[over] + 1
    run = np.repeat(over, pieces)
    number = np.arange(len(run)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    behind = low[run] + number  # number of the border at which a piece ends, but for a run's last
    start = np.where(number == 0, entries.start[run], borders[behind - 1])
    end = np.where(number == inside[run], entries.end[run], borders[np.minimum(behind, len(borders) - 1)])
    place = np.repeat(over - np.arange(len(over)), pieces)

    def merged(whole: I64, parts: I64) -> I64:
        return np.insert(np.delete(whole, over), place, parts)

    return Entries(
        merged(entries.start, start), merged(entries.end, end), merged(entries.categories, entries.categories[run])
    )


def _span_borders(entries: Entries) -> I64:
    """Borders of spans that runs go over, ascending."""
    first, last = entries.start >> SPAN_SHIFT, (entries.end - 1) >> SPAN_SHIFT
    count = last - first
    number = np.arange(int(count.sum())) - np.repeat(np.cumsum(count) - count, count)
    return (np.repeat(first, count) + number + 1) << SPAN_SHIFT


def _may_have(ranges: list[tuple[int, int]], entries: Entries) -> int:
    """Tables at most that mappings which are not seen have beyond those that entries explain."""
    total = 0
    for shift in (SPAN_SHIFT, GIB_SHIFT, PGD_SHIFT):
        slots: set[int] = set()
        for start, end in ranges:
            slots.update(range(start >> shift, ((end - 1) >> shift) + 1))
        first, last = entries.start >> shift, (entries.end - 1) >> shift
        for slot in slots:
            at = int(np.searchsorted(last, slot))
            total += at == len(first) or int(first[at]) > slot
    return total


def count_spans(entries: Entries) -> Spans:
    """What each PTE page of the runs (ascending, apart, none of a PMD entry) holds."""
    if not len(entries.start):
        return Spans(*(np.empty(0, dtype=np.int64) for _ in range(4)))
    pieces = cut(entries, _span_borders(entries))
    number, pages, categories = pieces.start >> SPAN_SHIFT, (pieces.end - pieces.start) // PAGE, pieces.categories
    begins = np.flatnonzero(np.concatenate(([True], number[1:] != number[:-1])))
    all_pages = np.add.reduceat(pages, begins)
    zero, guard = (
        np.add.reduceat(np.where(mask, pages, 0), begins) if mask.any() else np.zeros(len(begins), dtype=np.int64)
        for mask in (
            (categories & (PAGE_IS_PFNZERO | PAGE_IS_GUARD)) == PAGE_IS_PFNZERO,
            (categories & PAGE_IS_GUARD) != 0,
        )
    )
    return Spans(number[begins], zero, guard, all_pages - zero - guard)


def scan_all(wanted: Sequence[int] | None = None) -> Iterator[Seen | NotSeen]:
    """These processes, or None: every one that has memory; what is seen of each, or why it was not seen.

    Of all, those that end meanwhile are left out.
    """
    for pid in dict.fromkeys(wanted) if wanted is not None else pids():
        try:
            seen = scan(pid)
        except NotSeen as error:
            yield error
            continue
        except NoSuchMm as error:
            if wanted is not None:
                yield NotThere(str(error))
            continue
        if seen is not None:
            yield seen
        elif wanted is not None:
            yield NotThere(f"{pid}: no memory of its own: a kernel thread, or a process that has ended")
