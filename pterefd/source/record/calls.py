"""System calls from their tracepoints: entry and return paired, then turned into events of the trace.

Each kind of call is turned as a whole, by columns. A call takes its place in the order at its return (order.py says
where not).
"""

from __future__ import annotations

import errno
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pterefd.source.record.lives import NOBODY
from pterefd.source.record.order import Claimed, Freed, settle
from pterefd.source.record.perf import SYSCALLS
from pterefd.source.record.perfdata import PerfData, Side
from pterefd.source.record.table import ABSENT, Group, Table

I64 = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

PAGE = 4096
USER_END = 1 << 47

# include/uapi/asm-generic/mman-common.h, mman.h
ADVICE_NAMES = {
    **dict(enumerate(("normal", "random", "sequential", "willneed", "dontneed"))),
    **dict(enumerate(("free", "remove", "dontfork", "dofork", "mergeable", "unmergeable", "hugepage"), 8)),
    **dict(enumerate(("nohugepage", "dontdump", "dodump", "wipeonfork", "keeponfork", "cold", "pageout"), 15)),
    **dict(enumerate(("populate_read", "populate_write", "dontneed_locked", "collapse"), 22)),
    100: "hwpoison",
    101: "soft_offline",
    102: "guard_install",
    103: "guard_remove",
}
_MAP_NAMES = (
    (0x20, "anonymous"),
    (0x8000, "populate"),
    (0x4000, "noreserve"),
    (0x100, "growsdown"),
    (0x2000, "locked"),
    (0x40000, "hugetlb"),
    (0x20000, "stack"),
)
_MAP_TYPE, _MAP_PRIVATE, _MAP_DROPPABLE, _MAP_ANONYMOUS, _MAP_NORESERVE = 0x0F, 0x02, 0x08, 0x20, 0x4000
_MAP_POPULATE, _MAP_NONBLOCK = 0x8000, 0x10000
_MREMAP_DONTUNMAP = 4
_KEPT_ERRORS = {
    "madvise": ("ENOMEM", "EINVAL", "EAGAIN", "EBUSY", "EIO", "EFAULT", "EINTR"),
    "mprotect": ("ENOMEM", "EACCES"),
    "mlock": ("ENOMEM", "EAGAIN"),
    "munlock": ("ENOMEM",),
}

_PR_SET_THP_DISABLE = 41

# What there is no op for, and what to say of it.
UNMODELLED = {
    "process_madvise": "process_madvise: its ranges are not recorded",
    "userfaultfd": "userfaultfd: what its handler maps is not recorded",
    "remap_file_pages": "remap_file_pages is not modelled",
}


@dataclass(slots=True)
class Calls:
    """Completed calls of one name.

    entry, exit: sample rows (entry -1 where it is not recorded).  pid: on which they are booked.  result: as returned.
    """

    name: str
    entry: I64
    exit: I64
    pid: npt.NDArray[np.int32]
    result: I64

    def select(self, mask: Mask) -> Calls:
        """Those of the mask."""
        return Calls(self.name, self.entry[mask], self.exit[mask], self.pid[mask], self.result[mask])

    @property
    def failed(self) -> Mask:
        """IS_ERR_VALUE of the result."""
        return (self.result < 0) & (self.result >= -4095)

    def __len__(self) -> int:
        return len(self.exit)


def pair_calls(data: PerfData, pids: npt.NDArray[np.int32]) -> dict[str, Calls]:
    """Every call that returned and is booked on somebody, by name.

    A task is in one call at a time, so an entry belongs to the next of the task's samples that is a return.
    """
    code = np.full(len(data.events) + 1, 0, dtype=np.int16)  # +number entry, -number return, 0 anything else
    for number, name in enumerate(SYSCALLS, 1):
        for index in data.event_indices(f"syscalls:sys_enter_{name}"):
            code[index] = number
        for index in data.event_indices(f"syscalls:sys_exit_{name}"):
            code[index] = -number
    samples = data.samples
    kind = code[samples.event]
    rows = np.flatnonzero(kind)
    rows = rows[np.argsort(samples.tid[rows], kind="stable")]
    kind, tid = kind[rows], samples.tid[rows]
    calls = {}
    for number, name in enumerate(SYSCALLS, 1):
        at = np.flatnonzero(kind == -number)
        if not len(at):
            continue
        entry = np.full(len(at), -1, dtype=np.int64)
        with_entry = (at > 0) & (kind[at - 1] == number) & (tid[at - 1] == tid[at])
        entry[with_entry] = rows[at[with_entry] - 1]
        if data.event_indices(f"syscalls:sys_enter_{name}"):
            at, entry = at[with_entry], entry[with_entry]
        leave = rows[at]
        found = Calls(name, entry, leave, pids[leave], data.gather(f"syscalls:sys_exit_{name}", "ret", leave))
        calls[name] = found.select(found.pid != NOBODY)
    return calls


class Translator:
    """Turns calls into groups of events."""

    def __init__(self, data: PerfData, table: Table, sizes: Callable[[str, int], int]) -> None:
        """sizes: size of a file by path and inode, ABSENT where it is not known."""
        self._data = data
        self._table = table
        self._sizes = sizes
        self.unmodelled: dict[str, int] = {}
        self._mappings: dict[int, list[Side]] = defaultdict(list)
        self._groups: list[Group] = []
        self._freed: list[Freed] = []
        self._claimed: list[Claimed] = []

    def translate(self, calls: dict[str, Calls], mappings: list[Side]) -> None:
        """Add the events of all calls to the table. mappings: perf's records of mappings, in the order of time."""
        for side in mappings:
            self._mappings[side.tid].append(side)
        for name, some in calls.items():
            if not len(some):
                continue
            if name in UNMODELLED:
                self._count_unmodelled(some)
            elif hasattr(self, f"_{name}"):
                getattr(self, f"_{name}")(some)
        self._detaches(calls)
        settle(self._freed, self._claimed)
        for group in self._groups:
            self._table.add_group(group)

    def _argument(self, calls: Calls, name: str) -> I64:
        return self._data.gather(f"syscalls:sys_enter_{calls.name}", name, calls.entry)

    def _count_unmodelled(self, calls: Calls) -> None:
        done = int((calls.result >= 0).sum())
        if done:
            self.unmodelled[calls.name] = self.unmodelled.get(calls.name, 0) + done

    def _group(self, op: str, calls: Calls, **columns: Any) -> Group:
        """Events placed at the calls' returns; they go into the table when the order of all is settled."""
        group = Group(op, self._data.samples.t[calls.exit], {"pid": calls.pid.astype(np.int64), **columns})
        self._groups.append(group)
        return group

    def _frees(self, calls: Calls, group: Group, start: I64, length: I64) -> None:
        """These calls give ranges back."""
        self._freed.append(Freed(group, self._data.samples.t[calls.entry], start, start + length))

    def _claims(self, group: Group, start: I64, length: I64) -> None:
        """These calls were given ranges."""
        self._claimed.append(Claimed(group.columns["pid"], group.place, start, start + length))

    def _errno(self, calls: Calls) -> I64:
        """Column `errno`: the name's number, absent where the call succeeded."""
        out = np.full(len(calls), -1, dtype=np.int64)
        for code in np.unique(calls.result[calls.failed]).tolist():
            name = errno.errorcode.get(-code)
            if name is not None:
                out[calls.result == code] = self._table.numbers("errno", [name])[0]
        return out

    def _prot(self, bits: I64) -> I64:
        words = [("r" if p & 1 else "-") + ("w" if p & 2 else "-") + ("x" if p & 4 else "-") for p in range(8)]
        return self._table.numbers("prot", words)[bits & 7]

    # -- mappings -------------------------------------------------------------------------------

    def _mmap(self, calls: Calls) -> None:
        calls = calls.select(~calls.failed & (calls.result >= 0))
        if not len(calls):
            return
        bits = self._argument(calls, "flags")
        bits[(bits & _MAP_NONBLOCK) != 0] &= ~_MAP_POPULATE  # mm/mmap.c do_mmap: together they populate nothing
        droppable = (bits & _MAP_TYPE) == _MAP_DROPPABLE
        bits[droppable] += _MAP_PRIVATE - _MAP_DROPPABLE + _MAP_NORESERVE
        columns = {
            "addr": calls.result,
            "len": _up(self._argument(calls, "len")),
            "prot": self._prot(self._argument(calls, "prot")),
        }
        paths = np.full(len(calls), -1, dtype=np.int64)
        offset = np.full(len(calls), ABSENT, dtype=np.int64)
        size = np.full(len(calls), ABSENT, dtype=np.int64)
        files = np.flatnonzero((bits & _MAP_ANONYMOUS) == 0)
        if len(files):
            offset[files] = self._argument(calls, "off")[files]
            found = [self._file_of(calls, int(row), columns) for row in files.tolist()]
            names = [None if side is None else self._table.file_name(side.text, side.inode) for side in found]
            paths[files] = [-1 if name is None else self._table.words["path"].number(name) for name in names]
            size[files] = [ABSENT if side is None else self._sizes(side.text, side.inode) for side in found]
            zero = files[[side is not None and side.text == "/dev/zero" for side in found]]
            bits[zero] |= _MAP_ANONYMOUS  # drivers/char/mem.c mmap_zero
        columns |= {"flags": self._flags(bits), "path": paths, "offset": offset, "file_size": size}
        self._claims(self._group("mmap", calls, **columns), columns["addr"], columns["len"])
        for advice in ("wipeonfork", "dontdump"):  # what do_mmap gives a droppable mapping beside
            number = self._table.numbers("advice", [advice])[0]
            advised = np.full(len(calls), number, dtype=np.int64)
            self._ranges("madvise", calls, columns["addr"], columns["len"], droppable, advice=advised)

    def _file_of(self, calls: Calls, row: int, columns: dict[str, I64]) -> Side | None:
        """perf's record of the mapping that this call made: by the same task, during the call, over the range."""
        samples = self._data.samples
        begin, end = int(samples.t[calls.entry[row]]), int(samples.t[calls.exit[row]])
        start = int(columns["addr"][row])
        return self._mapping(int(samples.tid[calls.exit[row]]), begin, end, start)

    def _mapping(self, tid: int, begin: int, end: int, addr: int) -> Side | None:
        sides = self._mappings.get(tid, [])
        low, high = 0, len(sides)
        while low < high:
            middle = (low + high) // 2
            if sides[middle].t < begin:
                low = middle + 1
            else:
                high = middle
        for side in sides[low:]:
            if side.t > end:
                break
            if side.addr <= addr < side.addr + side.len:
                return side
        return None

    def _flags(self, bits: I64) -> I64:
        """Column `flags` of mmap(2)'s flags."""
        out = np.empty(len(bits), dtype=np.int64)
        for value in np.unique(bits).tolist():
            names = ["private" if value & _MAP_TYPE == _MAP_PRIVATE else "shared"]
            names += [name for bit, name in _MAP_NAMES if value & bit]
            out[bits == value] = self._table.numbers("flags", [",".join(names)])[0]
        return out

    def _munmap(self, calls: Calls) -> None:
        calls = calls.select(~calls.failed)
        if len(calls):
            addr, length = self._argument(calls, "addr"), _up(self._argument(calls, "len"))
            self._frees(calls, self._group("munmap", calls, addr=addr, len=length), addr, length)

    def _mremap(self, calls: Calls) -> None:
        calls = calls.select(~calls.failed & (calls.result >= 0))
        if not len(calls):
            return
        old, new = _up(self._argument(calls, "old_len")), _up(self._argument(calls, "new_len"))
        twice = int((old == 0).sum())  # a second mapping of a shared one
        if twice:
            self.unmodelled["mremap"] = twice
            keep = old != 0
            calls, old, new = calls.select(keep), old[keep], new[keep]
        flags = self._argument(calls, "flags")
        addr = self._argument(calls, "addr")
        group = self._group(
            "mremap",
            calls,
            addr=addr,
            len=old,
            new_addr=calls.result,
            new_len=new,
            dontunmap=((flags & _MREMAP_DONTUNMAP) != 0).astype(np.int64),
        )
        self._frees(calls, group, addr, old)
        self._claims(group, calls.result, new)

    def _brk(self, calls: Calls) -> None:
        """The heap's end is what brk returns, also where it refused: then it is where it was."""
        end = _up(calls.result)
        order = np.lexsort((calls.exit, calls.pid))
        same = np.zeros(len(calls), dtype=np.bool_)
        same[order[1:]] = (end[order[1:]] == end[order[:-1]]) & (calls.pid[order[1:]] == calls.pid[order[:-1]])
        keep = ~same & (end > 0)
        calls = calls.select(keep)
        self._group("brk", calls, addr=end[keep])

    def _mprotect(self, calls: Calls) -> None:
        addr, length, keep = self._range(calls, "start", "len")
        keep &= ~calls.failed | self._failed_with(calls, _KEPT_ERRORS["mprotect"])
        prot = self._prot(self._argument(calls, "prot"))
        self._ranges("mprotect", calls, addr, length, keep, prot=prot)

    _pkey_mprotect = _mprotect

    def _madvise(self, calls: Calls) -> None:
        addr, length, keep = self._range(calls, "start", "len_in")
        behavior = self._argument(calls, "behavior")
        names = np.full(len(calls), -1, dtype=np.int64)
        # Every advice goes mapping by mapping, so that an error may come after a part of the range was done.
        keep &= ~calls.failed | self._failed_with(calls, _KEPT_ERRORS["madvise"])
        for value in np.unique(behavior).tolist():
            name = ADVICE_NAMES.get(value)
            if name is None:
                continue
            names[behavior == value] = self._table.numbers("advice", [name])[0]
        self._ranges("madvise", calls, addr, length, keep & (names >= 0), advice=names)

    # -- locking --------------------------------------------------------------------------------

    def _mlock(self, calls: Calls) -> None:
        self._lock("mlock", calls, np.zeros(len(calls), dtype=np.int64))

    def _mlock2(self, calls: Calls) -> None:
        self._lock("mlock", calls, self._argument(calls, "flags") & 1)

    def _munlock(self, calls: Calls) -> None:
        self._lock("munlock", calls, None)

    def _lock(self, op: str, calls: Calls, onfault: I64 | None) -> None:
        """mm/mlock.c do_mlock: the start is rounded down, not refused."""
        start = self._argument(calls, "start")
        addr = start & -PAGE
        length = _up(self._argument(calls, "len") + (start & (PAGE - 1)))
        keep = _valid(addr, length) & (~calls.failed | self._failed_with(calls, _KEPT_ERRORS[op]))
        extra = {} if onfault is None else {"onfault": onfault}
        self._ranges(op, calls, addr, length, keep, **extra)

    def _mlockall(self, calls: Calls) -> None:
        done = calls.select(~calls.failed)
        if len(done):
            flags = self._argument(done, "flags")
            columns = {name: flags >> bit & 1 for bit, name in enumerate(("current", "future", "onfault"))}
            self._group("mlockall", done, **columns)

    def _munlockall(self, calls: Calls) -> None:
        done = calls.select(~calls.failed)
        if len(done):
            self._group("munlockall", done)

    def _mbind(self, calls: Calls) -> None:
        """Which policy it is stands in memory, and does not matter: MPOL_DEFAULT (mode 0) is none."""
        addr, length, keep = self._range(calls, "start", "len")
        policy = (self._argument(calls, "mode") != 0).astype(np.int64)
        self._ranges("mbind", calls, addr, length, keep & ~calls.failed, policy=policy)

    def _prctl(self, calls: Calls) -> None:
        """kernel/sys.c: of its many options only PR_SET_THP_DISABLE is about page tables."""
        about = calls.select((self._argument(calls, "option") == _PR_SET_THP_DISABLE) & (calls.result == 0))
        if len(about):
            self._group("thp", about, disabled=(self._argument(about, "arg2") != 0).astype(np.int64))

    # -- System V shared memory -------------------------------------------------------------------

    def _shmat(self, calls: Calls) -> None:
        """A shared mapping of the segment; perf's record of it says how long it is."""
        samples = self._data.samples
        for row in np.flatnonzero(calls.result > 0).tolist():
            begin, end = int(samples.t[calls.entry[row]]), int(samples.t[calls.exit[row]])
            addr = int(calls.result[row])
            side = self._mapping(int(samples.tid[calls.exit[row]]), begin, end, addr)
            if side is None:
                self.unmodelled["shmat"] = self.unmodelled.get("shmat", 0) + 1
                continue
            fields: dict[str, Any] = {"pid": int(calls.pid[row]), "addr": addr, "len": side.addr + side.len - addr}
            fields |= {"prot": "rw-" if side.prot & 2 else "r--", "flags": "shared", "offset": 0}
            fields["path"] = self._table.file_name(side.text, side.inode)
            self._table.add(end, "mmap", 1, **fields, file_size=side.len)

    def _detaches(self, calls: dict[str, Calls]) -> None:
        """shmdt names only the start; how long the segment is was learnt when it was attached, there, last before.

        By the process itself, else by whom it was forked from.
        """
        detached, attached = calls.get("shmdt"), calls.get("shmat")
        if detached is None or not len(detached):
            return
        lengths: dict[int, list[tuple[int, int, int]]] = defaultdict(list)
        samples = self._data.samples
        for row in range(len(attached) if attached is not None else 0):
            assert attached is not None
            begin, end = int(samples.t[attached.entry[row]]), int(samples.t[attached.exit[row]])
            addr = int(attached.result[row])
            side = self._mapping(int(samples.tid[attached.exit[row]]), begin, end, addr)
            if side is not None:
                lengths[addr].append((end, int(attached.pid[row]), side.addr + side.len - addr))
        starts = self._argument(detached, "shmaddr")
        for row in np.flatnonzero(detached.result == 0).tolist():
            t, pid, addr = int(samples.t[detached.entry[row]]), int(detached.pid[row]), int(starts[row])
            found = [some for some in lengths[addr] if some[0] <= t]
            if not found:
                self.unmodelled["shmdt"] = self.unmodelled.get("shmdt", 0) + 1
                continue
            length = max(found, key=lambda some: (some[1] == pid, some[0]))[2]
            self._table.add(t, "munmap", 1, pid=pid, addr=addr, len=length)

    # -- ranges ---------------------------------------------------------------------------------

    def _range(self, calls: Calls, start: str, length: str) -> tuple[I64, I64, Mask]:
        """Address and length (rounded up) of a call, and whether the kernel can have taken them."""
        addr, pages = self._argument(calls, start), _up(self._argument(calls, length))
        return addr, pages, _valid(addr, pages)

    def _ranges(self, op: str, calls: Calls, addr: I64, length: I64, keep: Mask, **columns: I64) -> None:
        kept = calls.select(keep)
        if len(kept):
            some = {name: values[keep] for name, values in columns.items()}
            self._group(op, kept, addr=addr[keep], len=length[keep], **some, errno=self._errno(kept))

    def _failed_with(self, calls: Calls, names: tuple[str, ...]) -> Mask:
        return np.isin(calls.result, [-getattr(errno, name) for name in names])


def _up(values: I64) -> I64:
    """PAGE_ALIGN"""
    return (values + (PAGE - 1)) & -PAGE


def _valid(addr: I64, length: I64) -> Mask:
    """Page-aligned, not empty, within the user's half."""
    return (addr >= 0) & (addr % PAGE == 0) & (length > 0) & (length <= USER_END - np.minimum(addr, USER_END))
