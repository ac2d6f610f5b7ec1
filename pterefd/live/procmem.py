"""What /proc tells of one process's memory: mappings, entries by state, counters, owner.

A tid serves as well as a pid everywhere here: /proc/TID shows the mm of that very task, also where the
thread group's leader has already exited. Tasks that are gone raise ProcessLookupError or FileNotFoundError.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

I64 = npt.NDArray[np.int64]

GONE = (FileNotFoundError, ProcessLookupError)  # what is raised of a task that is gone

PAGE = 4096
USER_END = 1 << 47
SPAN_SHIFT, GIB_SHIFT, PGD_SHIFT = 21, 30, 39

# include/uapi/linux/fs.h
PAGEMAP_SCAN = 0xC0606610
PAGE_IS_FILE = 1 << 2
PAGE_IS_PRESENT = 1 << 3
PAGE_IS_SWAPPED = 1 << 4
PAGE_IS_PFNZERO = 1 << 5
PAGE_IS_HUGE = 1 << 6
PAGE_IS_GUARD = 1 << 8
_SCAN_ARG = struct.Struct("<12Q")  # struct pm_scan_arg
_REGIONS = 512  # one walk's worth: with room for more, 6.18 tells some regions twice

WINDOW = 4 << 30  # 2,048 spans: of empty PTE pages, whose walk fills no buffer, about two milliseconds

# Documentation/admin-guide/mm/pagemap.rst
_PM_PRESENT, _PM_SWAP, _PM_FILE, _PM_GUARD = 1 << 63, 1 << 62, 1 << 61, 1 << 58
_PM_PFN = (1 << 55) - 1
_PM_READ = 1 << 20  # bytes of pagemap read at once: 128 Ki entries, 512 MiB of address space


class Map(NamedTuple):
    """One line of maps. offset in bytes; path as the kernel prints it, "" for anonymous."""

    start: int
    end: int
    perms: str
    offset: int
    device: str
    inode: int
    path: str

    @property
    def prot(self) -> str:
        """rwx or -"""
        return self.perms[:3]

    @property
    def shared(self) -> bool:
        """MAP_SHARED"""
        return self.perms[3] == "s"


def read_maps(tid: int) -> list[Map]:
    """The mappings in ascending order, without [vsyscall], which is no mapping of the process."""
    with open(f"/proc/{tid}/maps", encoding="utf-8", errors="surrogateescape") as file:
        return list(parse_maps(file))


def count_maps(tid: int) -> int:
    """How many mappings there are, without [vsyscall]."""
    with open(f"/proc/{tid}/maps", "rb") as file:
        text = file.read()
    return text.count(b"\n") - text.endswith(b"[vsyscall]\n")


def parse_maps(lines: Iterable[str]) -> Iterator[Map]:
    """Lines of maps as Map; [vsyscall] is left out. ValueError for anything else."""
    for line in lines:
        parts = line.rstrip("\n").split(None, 5)
        start, end = parts[0].split("-")
        path = parts[5] if len(parts) > 5 else ""
        if path == "[vsyscall]":
            continue
        # the kernel writes a newline in a name as \012, and nothing else that way (fs/proc/task_mmu.c)
        path = path.replace("\\012", "\n")
        yield Map(int(start, 16), int(end, 16), parts[1], int(parts[2], 16), parts[3], int(parts[4]), path)


def read_vm_flags(tid: int) -> dict[int, frozenset[str]]:
    """VmFlags of smaps by the mapping's start: "nr" noreserve, "gd" growsdown, "lo" locked, "ac" accounted ..."""
    return {start: flags for start, (flags, _) in read_page_sizes(tid).items()}


def read_page_sizes(tid: int) -> dict[int, tuple[frozenset[str], int]]:
    """(VmFlags, KernelPageSize in bytes) of smaps by the mapping's start; hugetlb's pages ("ht") are more than PAGE."""
    found = {}
    start, size = 0, PAGE
    with open(f"/proc/{tid}/smaps", "rb") as file:
        for line in file:
            if line.startswith(b"KernelPageSize:"):
                size = int(line.split()[1]) << 10
            elif line.startswith(b"VmFlags:"):
                found[start] = frozenset(line.decode().split()[1:]), size
            elif b"-" in line[:17] and line[:1] in b"0123456789abcdef":
                start = int(line.split(b"-", 1)[0], 16)
    return found


# Of the fields after the name, see proc(5).
STAT_MINFLT, STAT_MAJFLT, STAT_STARTTIME, STAT_VSIZE, STAT_START_BRK = 10 - 3, 12 - 3, 22 - 3, 23 - 3, 47 - 3
STATUS_KB = ("VmPTE", "RssAnon", "RssFile", "RssShmem", "VmSwap")


@dataclass(slots=True)
class Status:
    """What is used of /proc/PID/status: name, owner, thread group, kB values (empty once the mm is gone)."""

    name: str = ""
    tgid: int = 0
    ppid: int = 0
    uid: int = 0
    gid: int = 0
    threads: int = 0
    state: str = ""
    thp_disabled: bool = False
    hugetlb_kb: int = 0
    kb: dict[str, int] = field(default_factory=dict)

    @property
    def rss_kb(self) -> int:
        """VmRSS."""
        return sum(self.kb.get(name, 0) for name in ("RssAnon", "RssFile", "RssShmem"))


def read_status(tid: int, proc: str = "/proc") -> Status:
    """Parse TID/status of a proc tree, the kernel's own unless another is named."""
    status = Status()
    with open(f"{proc}/{tid}/status", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            key, _, value = line.partition(":")
            if key in STATUS_KB:
                status.kb[key] = int(value.split()[0])
            elif key == "Name":
                status.name = value[1:].rstrip("\n")
            elif key == "Tgid":
                status.tgid = int(value)
            elif key == "PPid":
                status.ppid = int(value)
            elif key == "Uid":
                status.uid = int(value.split()[1])
            elif key == "Gid":
                status.gid = int(value.split()[1])
            elif key == "Threads":
                status.threads = int(value)
            elif key == "State":
                status.state = value.split()[0]
            elif key == "HugetlbPages":
                status.hugetlb_kb = int(value.split()[0])
            elif key == "THP_enabled":
                status.thp_disabled = int(value) == 0  # prctl(PR_SET_THP_DISABLE)
    return status


def read_stat(tid: int) -> list[str]:
    """The fields of /proc/TID/stat after the name; field N of proc(5) is at N - 3."""
    with open(f"/proc/{tid}/stat", encoding="utf-8", errors="surrogateescape") as file:
        return file.read().rpartition(")")[2].split()


def start_brk(tid: int) -> int:
    """Where the heap begins (stat field 47), 0 where it is not shown."""
    fields = read_stat(tid)
    return int(fields[STAT_START_BRK]) if len(fields) > STAT_START_BRK else 0


def tasks(pid: int) -> list[int]:
    """Tids of a process."""
    return [int(name) for name in os.listdir(f"/proc/{pid}/task")]


def command_line(tid: int) -> list[str]:
    """/proc/TID/cmdline, undecodable bytes kept readable."""
    with open(f"/proc/{tid}/cmdline", "rb") as file:
        raw = file.read(1 << 20)
    return [word.decode("utf-8", "backslashreplace") for word in raw.rstrip(b"\0").split(b"\0")] if raw else []


def oom_score_adj(tid: int) -> int:
    """/proc/TID/oom_score_adj"""
    with open(f"/proc/{tid}/oom_score_adj", encoding="ascii") as file:
        return int(file.read())


def is_32bit(tid: int) -> bool:
    """Whether the program is a 32-bit one, whose system calls the tracepoints do not show."""
    try:
        with open(f"/proc/{tid}/exe", "rb") as file:
            head = file.read(5)
    except OSError:
        return False
    return head[:4] == b"\x7fELF" and head[4:5] == b"\x01"


@dataclass(slots=True)
class Entries:
    """Runs of pages whose entries are set: start and end in bytes, categories as PAGE_IS_* bits."""

    start: I64
    end: I64
    categories: I64

    def _count(self, mask: npt.NDArray[np.bool_]) -> int:
        return int((self.end[mask] - self.start[mask]).sum()) // PAGE

    def where(self, mask: npt.NDArray[np.bool_]) -> Entries:
        """The runs of the mask."""
        return Entries(self.start[mask], self.end[mask], self.categories[mask])

    @property
    def is_zero(self) -> npt.NDArray[np.bool_]:
        """Which runs map the shared zero page."""
        return (self.categories & PAGE_IS_PFNZERO) != 0

    @property
    def present(self) -> int:
        """Entries with the present bit, the zero page's included."""
        return self._count((self.categories & PAGE_IS_PRESENT) != 0)

    @property
    def zero(self) -> int:
        """Entries that map the shared zero page."""
        return self._count(self.is_zero)

    @property
    def guard(self) -> int:
        """Guard markers."""
        return self._count((self.categories & PAGE_IS_GUARD) != 0)

    @property
    def swap(self) -> int:
        """Swap entries (guard markers, which pagemap shows as such too, left out)."""
        return self._count((self.categories & (PAGE_IS_SWAPPED | PAGE_IS_GUARD)) == PAGE_IS_SWAPPED)

    @property
    def huge_files(self) -> int:
        """Pages of files that PMD entries map."""
        both = PAGE_IS_HUGE | PAGE_IS_FILE
        return self._count((self.categories & both) == both)

    def tables(self) -> int:
        """Page-table pages that these entries need: spans + GiB slots + PGD slots (kernel-rules: 1)."""
        return sum(self.slots(shift) for shift in (SPAN_SHIFT, GIB_SHIFT, PGD_SHIFT))

    def slots(self, shift: int) -> int:
        """Distinct slots of 2**shift bytes that the runs (ascending, apart) touch."""
        if not len(self.start):
            return 0
        first, last = self.start >> shift, (self.end - 1) >> shift
        total = int((last - first + 1).sum())
        return total - int((first[1:] == last[:-1]).sum())

    def state_rows(self, shmem_ranges: Iterable[tuple[int, int]] = ()) -> list[StateRow]:
        """The runs as (start, end, entry) with the format's names; neighbours of one kind are joined.

        shmem_ranges: ranges [start, end) whose file pages are shmem's.
        """
        rows: list[StateRow] = []
        shmem = sorted(shmem_ranges)
        for start, end, bits in zip(self.start.tolist(), self.end.tolist(), self.categories.tolist(), strict=True):
            entry = entry_name(bits)
            huge = bits & PAGE_IS_HUGE != 0 and entry in ("anon", "zero")
            for low, high, kind in _shmem_pieces(start, end, shmem) if entry == "file" else [(start, end, entry)]:
                if rows and rows[-1].end == low and rows[-1][2:] == (kind, huge):
                    rows[-1] = StateRow(rows[-1].start, high, kind, huge)
                else:
                    rows.append(StateRow(low, high, kind, huge))
        return rows


class StateRow(NamedTuple):
    """Entries of [start, end) are all of one kind. huge: PMD entries map them."""

    start: int
    end: int
    entry: str
    huge: bool = False


def _shmem_pieces(start: int, end: int, ranges: list[tuple[int, int]]) -> list[tuple[int, int, str]]:
    """[start, end) cut at the borders of the shmem ranges."""
    pieces = []
    at = start
    for low, high in ranges:
        if high <= at or low >= end:
            continue
        if low > at:
            pieces.append((at, low, "file"))
            at = low
        pieces.append((at, min(high, end), "shmem"))
        at = min(high, end)
    if at < end:
        pieces.append((at, end, "file"))
    return pieces


def entry_name(categories: int) -> str:
    """The format's name of an entry with these PAGE_IS_* bits."""
    if categories & PAGE_IS_GUARD:
        return "guard"
    if categories & PAGE_IS_PRESENT:
        if categories & PAGE_IS_PFNZERO:
            return "zero"
        return "file" if categories & PAGE_IS_FILE else "anon"
    return "swap"


@cache
def scan_abilities() -> int:
    """PAGE_IS_* bits that the running kernel's PAGEMAP_SCAN reports; 0 without it (before Linux 6.7)."""
    wanted = PAGE_IS_FILE | PAGE_IS_PRESENT | PAGE_IS_SWAPPED | PAGE_IS_PFNZERO | PAGE_IS_HUGE
    fd = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    try:
        for bits in (wanted | PAGE_IS_GUARD, wanted):
            argument = bytearray(_SCAN_ARG.pack(96, 0, 0, PAGE, 0, 0, 0, 0, 0, 0, PAGE_IS_PRESENT, bits))
            try:
                fcntl.ioctl(fd, PAGEMAP_SCAN, argument)
            except OSError:
                continue
            return bits
    finally:
        os.close(fd)
    return 0


def address_of(memory: mmap.mmap) -> int:
    """Where a mapping of this process begins."""
    return int(np.frombuffer(memory, dtype=np.uint8).__array_interface__["data"][0])


@cache
def zero_pfn() -> int:
    """Number of the shared zero page's frame, 0 where it is not told (CAP_SYS_ADMIN): that of a page only read."""
    with mmap.mmap(-1, PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=mmap.PROT_READ) as page:
        assert page[0] == 0
        address = address_of(page)
        fd = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        try:
            (word,) = struct.unpack("<Q", os.pread(fd, 8, address // PAGE * 8))
        finally:
            os.close(fd)
    return int(word & _PM_PFN) if word & _PM_PRESENT else 0


def tells_zero_pages() -> bool:
    """Whether entries that map the zero page are told from others here."""
    return bool(scan_abilities() & PAGE_IS_PFNZERO) or (not scan_abilities() and zero_pfn() != 0)


def read_entries(tid: int, maps: list[Map] | None = None) -> Entries:
    """Every entry that is set, by PAGEMAP_SCAN where the kernel has it, else from the pagemap file.

    maps: the pagemap file is read mapping by mapping. PAGEMAP_SCAN does without, in one go for a task that stands
    still; with them it looks at WINDOW bytes at a time, as it holds the mmap_lock all the while.
    """
    fd = os.open(f"/proc/{tid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if scan_abilities():
            return _scan(fd, [(0, USER_END - PAGE)] if maps is None else windows(maps))
        return _read_pagemap(fd, ((m.start, m.end) for m in (maps if maps is not None else read_maps(tid))))
    finally:
        os.close(fd)


def read_ranges(fd: int, ranges: Iterable[tuple[int, int]]) -> Entries:
    """The entries that are set in ranges (ascending) alone. fd: of /proc/TID/pagemap."""
    return _scan(fd, ranges) if scan_abilities() else _read_pagemap(fd, ranges)


def windows(maps: Iterable[Map]) -> Iterator[tuple[int, int]]:
    """Ranges of WINDOW bytes at most that together hold all mappings (ascending)."""
    done = 0
    for mapping in maps:
        while done < mapping.end:
            start = max(done, mapping.start)
            done = min(start + WINDOW, USER_END - PAGE)
            yield start, done
            if done == USER_END - PAGE:
                return


def _scan(fd: int, ranges: Iterable[tuple[int, int]]) -> Entries:
    """All entries of the ranges by PAGEMAP_SCAN (fs/proc/task_mmu.c do_pagemap_scan)."""
    wanted, abilities = PAGE_IS_PRESENT | PAGE_IS_SWAPPED, scan_abilities()
    regions = np.empty((4 * _REGIONS, 3), dtype=np.int64)  # struct page_region: start, end, categories
    count = 0
    for start, end in ranges:
        at = start
        while at < end:
            if count + _REGIONS > len(regions):
                regions = np.concatenate((regions, np.empty_like(regions)))
            buffer = regions.__array_interface__["data"][0] + count * regions.strides[0]
            argument = bytearray(_SCAN_ARG.pack(96, 0, at, end, 0, buffer, _REGIONS, 0, 0, 0, wanted, abilities))
            count += fcntl.ioctl(fd, PAGEMAP_SCAN, argument)
            walked = _SCAN_ARG.unpack(argument)[4]
            if walked <= at:
                break
            at = walked
    return Entries(*np.ascontiguousarray(regions[:count].T))


def _read_pagemap(fd: int, ranges: Iterable[tuple[int, int]]) -> Entries:
    """All entries of the ranges from the pagemap file. The zero page is told by its frame, where frames are shown."""
    starts, ends, bits = [], [], []
    for start, end in ranges:
        at = start
        while at < end:
            raw = os.pread(fd, min(_PM_READ, (end - at) // PAGE * 8), at // PAGE * 8)
            if not raw:
                break
            words = np.frombuffer(raw, dtype="<u8")
            categories = _categories(words)
            cuts = np.flatnonzero(np.diff(categories)) + 1
            low = np.concatenate(([0], cuts))
            high = np.concatenate((cuts, [len(words)]))
            there = categories[low] != 0
            starts.append(at + low[there] * PAGE)
            ends.append(at + high[there] * PAGE)
            bits.append(categories[low[there]])
            at += len(words) * PAGE
    if not starts:
        return Entries(*(np.empty(0, dtype=np.int64) for _ in range(3)))
    return Entries(np.concatenate(starts), np.concatenate(ends), np.concatenate(bits))


def _categories(words: npt.NDArray[np.uint64]) -> I64:
    """pagemap words as PAGE_IS_* bits."""
    out = np.zeros(len(words), dtype=np.int64)
    for bit, category in (
        (_PM_PRESENT, PAGE_IS_PRESENT),
        (_PM_SWAP, PAGE_IS_SWAPPED),
        (_PM_FILE, PAGE_IS_FILE),
        (_PM_GUARD, PAGE_IS_GUARD),
    ):
        out |= np.where(words & np.uint64(bit), category, 0)
    if zero := zero_pfn():
        out[(out == PAGE_IS_PRESENT) & ((words & np.uint64(_PM_PFN)) == zero)] |= PAGE_IS_PFNZERO
    out[(out & (PAGE_IS_PRESENT | PAGE_IS_SWAPPED)) == 0] = 0
    return out


@dataclass(slots=True)
class Checkpoint:
    """What the kernel said of one mm that stood still: the fields of an `expect` row.

    huge_files: pages of files that PMD entries map, for which there are no rules.
    """

    fields: dict[str, int]
    huge_files: int
    entries: Entries


def read_checkpoint(tid: int) -> Checkpoint | None:
    """Counters and entry counts of the task's mm; None where it has none any more. The task must stand still."""
    try:
        status = read_status(tid)
        if "VmPTE" not in status.kb:
            return None
        fields = dict(status.kb)
        fields["vmas"] = count_maps(tid)
        entries = read_entries(tid)
    except GONE:
        return None
    except OSError as error:
        if error.errno in (errno.ESRCH, errno.EINVAL):
            return None
        raise
    fields["present_entries"] = entries.present
    fields["swap_entries"] = entries.swap
    if tells_zero_pages():
        fields["zero_entries"] = entries.zero
    if scan_abilities() & PAGE_IS_GUARD or not scan_abilities():
        fields["guard_entries"] = entries.guard
    huge_files = entries.huge_files if scan_abilities() else _huge_files_kb(tid) * 1024 // PAGE
    return Checkpoint(fields, huge_files, entries)


def _huge_files_kb(tid: int) -> int:
    """What smaps_rollup says of files in huge pages, for kernels whose entries do not tell."""
    wanted = ("ShmemPmdMapped", "FilePmdMapped")
    try:
        with open(f"/proc/{tid}/smaps_rollup", encoding="ascii", errors="replace") as file:
            return sum(int(line.split()[1]) for line in file if line.startswith(wanted))
    except OSError:
        return 0


_RECLAIM_COUNTS = (b"pswpout ", b"zswpout ", b"swpout_zero ", b"pglazyfreed ")


def read_reclaimed() -> bytes:
    """The machine's counts of pages swapped out, and of MADV_FREE's that vanished: equal, where none has since."""
    try:
        with open("/proc/vmstat", "rb") as file:
            return b"".join(line for line in file if line.startswith(_RECLAIM_COUNTS))
    except OSError:
        return b""
