"""Who had which mm when: processes, threads and their numbers in the trace, from forks, execs and exits in order.

A vfork child (or any other process that shares an mm) acts on its parent's mm until it has one of its own, so what
it does is booked on the owner's pid. Between an exec's point of no return and its end a task acts on a mm that the
exec's snapshot describes: what it does there is left out.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from pterefd.live.procmem import Entries
from pterefd.source.record.marks import CheckpointMark, CloneMark, ExecMark, Marks
from pterefd.source.record.perfdata import COMM, EXIT, FORK, Side

NOBODY = -1

# Order of what bears one and the same time.
_FORK, _COMM_EXEC, _EXEC, _CHECKPOINT, _EXIT = range(5)


@dataclass(slots=True, eq=False)
class LivingMm:
    """An mm: the pid in the trace that it is booked on, and the processes that have it."""

    owner: int
    users: set[int]


@dataclass(slots=True, eq=False)
class Process:
    """A process (thread group) while it lives. pid: its number in the trace.  mm: None before the first exec."""

    pid: int
    mm: LivingMm | None
    tids: dict[int, int]  # living threads: tid -> number in the trace


@dataclass(slots=True)
class Row:
    """An event that is not one of perf's samples."""

    t: int
    op: str
    pid: int
    fields: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Exec:
    """A new mm of pid at t: its snapshot is yet to be written out."""

    t: int
    pid: int
    mark: ExecMark


@dataclass(slots=True)
class Checkpoint:
    """A checkpoint of the mm of pid."""

    t: int
    pid: int
    mark: CheckpointMark


@dataclass(slots=True)
class Contended:
    """A fork at t by task tid, while the process had other threads. entries: what the child has inherited."""

    t: int
    tid: int
    others: list[int]
    entries: Entries | None


class Lives:
    """The result: rows for the trace, and for every tid the pid on which its doings are booked, over time."""

    def __init__(self, marks: Marks, sides: list[Side], roots: list[int]) -> None:
        """roots: processes that were there from the beginning (the command, or the pid that was attached to).

        untraced: how many tasks perf saw being made and the tracer did not.
        """
        self.rows: list[Row] = []
        self.execs: list[Exec] = []
        self.checkpoints: list[Checkpoint] = []
        self.contended: list[Contended] = []  # forks of processes that had other threads
        self.stranded = 0  # processes whose shared mm was the property of one that went on to another
        self._processes: dict[int, Process] = {}
        self._tgid: dict[int, int] = {}
        self._next = 1
        self._spans: dict[int, tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
        for root in roots:
            self._add_process(root, None)
        events, self.untraced = _in_order(marks, sides)
        for _, _, event in sorted(events, key=lambda item: item[:2]):
            self._step(event)

    def _step(self, event: Any) -> None:
        if isinstance(event, _Clone):
            self._clone(event)
        elif isinstance(event, ExecMark):
            self._exec(event)
        elif isinstance(event, CheckpointMark):
            self._checkpoint(event)
        elif event.kind == COMM:
            self._book(event.tid, event.t, NOBODY)
        else:
            self._exit(event.tid, event.t)

    # -- steps --------------------------------------------------------------------------------

    def _number(self) -> int:
        number = self._next
        self._next += 1
        return number

    def _add_process(self, tgid: int, mm: LivingMm | None) -> Process:
        pid = self._number()
        process = self._processes[tgid] = Process(pid, mm, {tgid: pid})
        self._tgid[tgid] = tgid
        return process

    def _book(self, tid: int, t: int, pid: int) -> None:
        times, pids = self._spans[tid]
        times.append(t)
        pids.append(pid)

    def _clone(self, clone: _Clone) -> None:
        parent = self._processes.get(self._tgid.get(clone.mark.parent, clone.mark.parent))
        if parent is None:
            return
        child, tgid, t = clone.mark.child, clone.mark.tgid, clone.t
        if tgid in self._processes and tgid == self._tgid.get(clone.mark.parent):
            self._add_thread(parent, tgid, child, t)
            return
        process = self._add_process(tgid, parent.mm)
        if parent.mm is None:
            return
        if not clone.mark.shares_mm and len(parent.tids) > 1:
            others = [tid for tid in parent.tids if tid != clone.mark.parent]
            self.contended.append(Contended(t, clone.mark.parent, others, clone.mark.entries))
        if clone.mark.shares_mm:
            parent.mm.users.add(tgid)
        else:
            process.mm = LivingMm(process.pid, {tgid})
            self.rows.append(Row(t, "fork", parent.mm.owner, {"child": process.pid}))
        assert process.mm is not None
        self._book(child, t, process.mm.owner)

    def _add_thread(self, process: Process, tgid: int, tid: int, t: int) -> None:
        number = self._number()
        process.tids[tid] = number
        self._tgid[tid] = tgid
        if process.mm is not None:
            self._book(tid, t, process.mm.owner)
            self.rows.append(Row(t, "thread", process.mm.owner, {"tid": number}))

    def _exec(self, mark: ExecMark) -> None:
        process = self._processes.get(mark.tgid)
        if process is None:  # its parent's call was not seen: a process of its own
            process = self._add_process(mark.tgid, None)
        self._drop_threads(process, mark)
        if process.mm is not None:
            self._leave_mm(process, mark.tgid, mark.t, exiting=False)
        process.mm = LivingMm(process.pid, {mark.tgid})
        self._book(mark.tgid, mark.t, process.pid)
        for tid in mark.threads:
            self._add_thread(process, mark.tgid, tid, mark.t)
        self.execs.append(Exec(mark.t, process.pid, mark))

    def _drop_threads(self, process: Process, mark: ExecMark) -> None:
        """Of the threads only the one that called exec is left, and has the process's own tid now."""
        for tid, number in list(process.tids.items()):
            if tid != mark.tgid:
                del process.tids[tid]
                self._tgid.pop(tid, None)
                self._book(tid, mark.t, NOBODY)
                if process.mm is not None and not mark.attached:
                    self.rows.append(Row(mark.t - 1, "thread_exit", process.mm.owner, {"tid": number}))
        process.tids[mark.tgid] = process.pid
        self._tgid[mark.tgid] = mark.tgid

    def _leave_mm(self, process: Process, tgid: int, t: int, *, exiting: bool) -> None:
        """A process leaves its mm. The last one out ends it; an exec of the owner ends it for whoever is left."""
        mm = process.mm
        assert mm is not None
        mm.users.discard(tgid)
        if mm.users and (exiting or mm.owner != process.pid):
            return
        for other in mm.users:
            self.stranded += 1
            left = self._processes[other]
            left.mm = None
            for tid in left.tids:
                self._book(tid, t, NOBODY)
        if exiting or mm.owner != process.pid:
            self.rows.append(Row(t, "exit", mm.owner))

    def _checkpoint(self, mark: CheckpointMark) -> None:
        process = self._processes.get(mark.tgid)
        if process is not None and process.mm is not None:
            self.checkpoints.append(Checkpoint(mark.t, process.mm.owner, mark))

    def _exit(self, tid: int, t: int) -> None:
        tgid = self._tgid.pop(tid, None)
        process = self._processes.get(tgid) if tgid is not None else None
        if tgid is None or process is None or tid not in process.tids:
            return
        number = process.tids.pop(tid)
        self._book(tid, t, NOBODY)
        if process.tids:
            if process.mm is not None:
                self.rows.append(Row(t, "thread_exit", process.mm.owner, {"tid": number}))
            return
        del self._processes[tgid]
        if process.mm is not None:
            self._leave_mm(process, tgid, t, exiting=True)

    # -- the result -----------------------------------------------------------------------------

    def pids(self, tid: npt.NDArray[np.int32], t: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
        """The pid in the trace on which each sample is booked, NOBODY where it is left out. t ascends."""
        out = np.full(len(tid), NOBODY, dtype=np.int32)
        order = np.argsort(tid, kind="stable")
        ordered = tid[order]
        cuts = np.flatnonzero(ordered[1:] != ordered[:-1]) + 1
        bounds = [0, *cuts.tolist(), len(tid)] if len(tid) else []
        for start, end in pairwise(bounds):
            span = self._spans.get(int(ordered[start]))
            if span is None:
                continue
            rows = order[start:end]
            where = np.searchsorted(np.array(span[0], dtype=np.int64), t[rows], side="right") - 1
            booked = np.array(span[1], dtype=np.int32)[where]
            booked[where < 0] = NOBODY
            out[rows] = booked
        return out

    def alive(self) -> list[int]:
        """Pids whose mm is still there at the end."""
        return sorted({process.mm.owner for process in self._processes.values() if process.mm is not None})


@dataclass(slots=True)
class _Clone:
    """A clone at the time at which the kernel made the task."""

    t: int
    mark: CloneMark


def _in_order(marks: Marks, sides: list[Side]) -> tuple[list[tuple[int, int, Any]], int]:
    """(time, order at equal times, event): the tracer's marks, at perf's exact times where it has them.

    The second answer: how many tasks' beginnings only perf has.
    """
    forks: dict[int, list[Side]] = defaultdict(list)
    exits: dict[int, list[Side]] = defaultdict(list)
    for side in sides:
        if side.kind == FORK:
            forks[side.tid].append(side)
        elif side.kind == EXIT:
            exits[side.tid].append(side)
    events: list[tuple[int, int, Any]] = []
    for clone in marks.clones:
        seen = _latest(forks[clone.child], clone.t)
        t = seen.t if seen is not None else clone.t
        events.append((t, _FORK, _Clone(t, clone)))
    events += [(mark.t, _EXEC, mark) for mark in marks.execs]
    events += [(mark.t, _CHECKPOINT, mark) for mark in marks.checkpoints]
    events += [(side.t, _COMM_EXEC, side) for side in sides if side.kind == COMM and side.exec]
    events += [(side.t, _EXIT, side) for side in sides if side.kind == EXIT]
    for gone in marks.exits:  # perf lost it
        if _latest(exits[gone.tid], gone.t) is None:
            events.append((gone.t, _EXIT, Side(EXIT, gone.t, 0, gone.tid)))
    return events, sum(len(left) for left in forks.values())


def _latest(sides: list[Side], t: int) -> Side | None:
    """The last of a task's records up to t; it is taken, with those before it."""
    found = None
    while sides and sides[0].t <= t:
        found = sides.pop(0)
    return found
