"""perf's samples and the tracer's marks, put together as the events of a trace."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from pterefd.live.procmem import Entries, entry_name
from pterefd.source.record.calls import PAGE, USER_END, Translator, pair_calls
from pterefd.source.record.checkpoints import add_checkpoints, add_vanished
from pterefd.source.record.lives import NOBODY, Contended, Lives
from pterefd.source.record.marks import Marks
from pterefd.source.record.opening import add_snapshot
from pterefd.source.record.perf import FAULTS
from pterefd.source.record.perfdata import MMAP2, PerfData
from pterefd.source.record.runs import joined
from pterefd.source.record.sizes import FileSizes, raise_to_accessed
from pterefd.source.record.table import ROWS, Group, Table

I64 = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

_FAULT_WRITE, _FAULT_USER = 2, 4  # X86_PF_WRITE, X86_PF_USER
_HEAP_STEP = 1 << 30  # heaps grow by less at a time, so that the steps cover them
_STACK_ROOM = 128 << 20  # so far the stack may grow down (arch/x86/mm/mmap.c: the least gap below it)


@dataclass(slots=True)
class Assembled:
    """A recording's events, and what there is to say about it.

    begin: the time (CLOCK_MONOTONIC, ns) that is 0 in the trace.  unmodelled: calls without an op, by name.
    dropped_faults: accesses that the kernel refused.
    """

    table: Table
    begin: int
    lost: int = 0
    untraced: int = 0
    stranded: int = 0
    dropped_faults: int = 0
    unmodelled: dict[str, int] = field(default_factory=dict)


def assemble(data: PerfData, marks: Marks, roots: list[int], *, complete: bool = True) -> Assembled:
    """Bring everything into one table.

    roots: the processes that the recording began with.  complete: every mapping is known (a tracer was there), so that
    an access elsewhere was refused.
    """
    table = Table()
    end = marks.end or None
    sides = [side for side in data.sides if end is None or side.t <= end]
    lives = Lives(marks, sides, roots)
    begin = min((mark.t for mark in marks.execs), default=0)
    for new in lives.execs:
        add_snapshot(table, new)
    for row in lives.rows:
        table.add(row.t, row.op, ROWS, pid=row.pid, **row.fields)
    pids = lives.pids(data.samples.tid, data.samples.t)
    if end is not None:
        pids[data.samples.t > end] = NOBODY
    translator = Translator(data, table, FileSizes().of)
    translator.translate(pair_calls(data, pids), [side for side in sides if side.kind == MMAP2])
    add_checkpoints(table, lives.checkpoints)
    dropped = _add_faults(table, data, pids, marks, lives, complete=complete)
    return Assembled(table, begin, data.lost, lives.untraced, lives.stranded, dropped, translator.unmodelled)


# ---- faults --------------------------------------------------------------------------------------


def _add_faults(
    table: Table,
    data: PerfData,
    pids: npt.NDArray[np.int32],
    marks: Marks,
    lives: Lives,
    *,
    complete: bool,
) -> int:
    """Faults of user addresses, less those that mapped nothing; returns how many of these there were."""
    rows, page, error = _faults(data, pids)
    drop = _refused(data, rows, page, marks) | _repeated(data, rows, page, error, marks)
    if complete:
        drop |= ((error & _FAULT_USER) == 0) & ~_ever_mapped(table, page)
    keep = ~drop
    rows, page, error = rows[keep], page[keep], error[keep]
    write = (error & _FAULT_WRITE) // _FAULT_WRITE
    seen = ((error & _FAULT_USER) != 0) & ~np.isin(page, [mark.addr for mark in marks.beyond_file])
    raise_to_accessed(table, data.samples.t[rows[seen]], pids[rows[seen]].astype(np.int64), page[seen])
    place, pid = _places(data, rows, page, write, lives.contended), pids[rows].astype(np.int64)
    read = write == 0
    add_vanished(table, lives.checkpoints, place[read], pid[read], page[read])
    table.add_group(joined(table, Group("fault", place, {"pid": pid, "addr": page, "write": write})))
    return int(drop.sum())


def _faults(data: PerfData, pids: npt.NDArray[np.int32]) -> tuple[I64, I64, I64]:
    """Sample rows of all faults that are booked on somebody, in the order of time, their pages and error codes."""
    parts = []
    for name in FAULTS:
        for index in data.event_indices(name):
            rows = np.flatnonzero((data.samples.event == index) & (pids != NOBODY))
            address = data.gather(name, "address", rows)
            user = (address >= 0) & (address < USER_END)
            rows, address = rows[user], address[user]
            parts.append((rows, address & -PAGE, data.gather(name, "error_code", rows)))
    rows, page, error = (np.concatenate([part[i] for part in parts]) for i in range(3))
    order = np.argsort(rows, kind="stable")
    return rows[order], page[order], error[order]


def _places(data: PerfData, rows: I64, page: I64, write: I64, contended: list[Contended]) -> I64:
    """Where faults stand in the order: at their time, but for those that a fork has held up.

    While a mapping is copied, faults in it wait (kernel/fork.c dup_mmap, vma_start_write). So what another thread last
    did before the fork was done, if it is a fault, may have come after it: the child's entries tell.
    """
    t = data.samples.t
    place = t[rows]
    tasks = {tid for fork in contended for tid in (fork.tid, *fork.others)}
    every = {tid: np.flatnonzero(data.samples.tid == tid) for tid in tasks}
    for fork in contended:
        own = every[fork.tid]
        before = int(np.searchsorted(t[own], fork.t)) - 1  # what the forking task did last before its call
        for tid in fork.others:
            last = int(np.searchsorted(t[every[tid]], fork.t)) - 1
            if last < 0 or before < 0 or every[tid][last] < own[before] or fork.entries is None:
                continue
            at = int(np.searchsorted(rows, every[tid][last]))
            if at < len(rows) and rows[at] == every[tid][last] and not _inherited(fork.entries, page[at], write[at]):
                place[at] = fork.t + 1
    return place


def _inherited(entries: Entries, page: int, write: int) -> bool:
    """Whether a child's entries have what a fault of its parent made: any entry, or for a write one of its own."""
    at = int(np.searchsorted(entries.start, page, side="right")) - 1
    if at < 0 or page >= entries.end[at]:
        return False
    return not write or entry_name(int(entries.categories[at])) in ("anon", "swap")


def _ever_mapped(table: Table, page: I64) -> Mask:
    """Which pages lie where anything was mapped at any time.

    The kernel's own accesses elsewhere were system calls with a bad address (EFAULT), of which no signal tells.
    """
    starts, ends = [], []
    for group in table.groups():
        columns = group.columns
        if group.op == "mmap":
            down = table.with_word(columns["flags"], "flags", "growsdown")
            starts.append(columns["addr"] - np.where(down, _STACK_ROOM, 0))
            ends.append(columns["addr"] + columns["len"])
        elif group.op == "mremap":
            starts.append(columns["new_addr"])
            ends.append(columns["new_addr"] + columns["new_len"])
        elif group.op == "brk":
            starts.append(columns["addr"] - _HEAP_STEP)
            ends.append(columns["addr"])
    if not starts:
        return np.zeros(len(page), dtype=np.bool_)
    return inside(np.concatenate(starts), np.concatenate(ends), page)


def inside(starts: I64, ends: I64, points: I64) -> Mask:
    """Which points lie in any of the ranges [start, end)."""
    order = np.argsort(starts, kind="stable")
    starts, reach = starts[order], np.maximum.accumulate(ends[order])
    at = np.searchsorted(starts, points, side="right") - 1
    return (at >= 0) & (points < reach[np.maximum(at, 0)])


def _by_task(data: PerfData, rows: I64, tids: set[int]) -> dict[int, I64]:
    """For each task, the places in `rows` of its samples."""
    tid = data.samples.tid[rows]
    return {task: np.flatnonzero(tid == task) for task in tids}


def _refused(data: PerfData, rows: I64, page: I64, marks: Marks) -> Mask:
    """Faults that were answered with SIGSEGV: of each, the last on that page before the signal."""
    drop = np.zeros(len(rows), dtype=np.bool_)
    places = _by_task(data, rows, {mark.tid for mark in marks.refused})
    t = data.samples.t[rows]
    for mark in marks.refused:
        own = places[mark.tid]
        last = int(np.searchsorted(t[own], mark.t)) - 1
        if last >= 0 and page[own[last]] == mark.addr:
            drop[own[last]] = True
    return drop


def _repeated(data: PerfData, rows: I64, page: I64, error: I64, marks: Marks) -> Mask:
    """Faults that a stop for a checkpoint broke off, and that were made again after it.

    A fault that waits for the disk is given up when its task is to stop (mm/filemap.c VM_FAULT_RETRY,
    fault_signal_pending): at the checkpoint it has mapped nothing yet. Its task has done nothing else in between; where
    it has, a brk, say, the page may have gone and come again.
    """
    drop = np.zeros(len(rows), dtype=np.bool_)
    stops = [(mark.t, tid) for mark in marks.checkpoints for tid in mark.stopped]
    places = _by_task(data, rows, {tid for _, tid in stops})
    every = {tid: np.flatnonzero(data.samples.tid == tid) for tid in places}
    t = data.samples.t[rows]
    for moment, tid in stops:
        own = places[tid]
        after = int(np.searchsorted(t[own], moment))
        if 0 < after < len(own):
            one, other = own[after - 1], own[after]
            if page[one] == page[other] and error[one] == error[other]:
                between = np.searchsorted(every[tid], rows[other]) - np.searchsorted(every[tid], rows[one])
                drop[one] |= between == 1
    return drop
