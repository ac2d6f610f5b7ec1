"""A recording that perf made elsewhere, without a tracer: what stops would have told is worked out from its events.

What execve maps is known from perf's records of mappings, whether a child shares its parent's mm from the flags of the
call that made it. Which entries the loader set is a guess (the top of the stack, and what it wrote), and there are no
checkpoints but those that the notes hold.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pterefd import outputs
from pterefd.errors import BadInput, Partly
from pterefd.live.procmem import Map, StateRow
from pterefd.source.meta import TraceMeta
from pterefd.source.record.assemble import Assembled, assemble
from pterefd.source.record.calls import PAGE, UNMODELLED, USER_END
from pterefd.source.record.marks import CheckpointMark, CloneMark, ExecMark, Marks, Snapshot
from pterefd.source.record.perfdata import COMM, EXIT, FORK, MMAP2, PerfData, PerfDataError, Side
from pterefd.source.record.script import Moment, Notes, read_notes
from pterefd.source.writer import TraceWriter

I64 = npt.NDArray[np.int64]

_CLONE_VM = 0x100
_MAP_SHARED = 1
_STACK_TOP_PAGES = 2  # arguments, environment and what the loader puts below them: mostly that many


def _to_stderr(text: str) -> None:
    print(f"pterefd: {text}", file=sys.stderr, flush=True)


def import_perf(
    file: Path,
    output: Path,
    *,
    maps: Path | None = None,
    force: bool = False,
    progress: Callable[[int, int | None], None] | None = None,
    say: Callable[[str], None] = _to_stderr,
) -> None:
    """Turn a perf.data into a trace.

    maps: notes.txt of the script that `record --script` prints, or a copy of /proc/PID/maps.  say: told what is not
    known or missing.  BadInput: a file that is none, is damaged, or is not of x86_64.  Partly: events were lost.
    """
    outputs.check(output, force=force, ending=".parquet", inputs=[file, *([maps] if maps is not None else [])])
    notes = read_notes(maps) if maps is not None else Notes()
    data = PerfData(file)
    if data.texts["arch"] not in ("x86_64", ""):
        raise BadInput(f"{file}: was recorded on {data.texts['arch']}, only x86_64 can be read")
    marks, roots = Reconstruction(data, notes).marks()
    if not marks.execs:
        raise PerfDataError(f"{file}: shows no process from its beginning; --maps FILE tells what was there")
    assembled = assemble(data, marks, roots, complete=False)
    if any(mark.attached for mark in marks.execs):
        say("what the process had in memory before is not known: page tables count from there on")
    meta = TraceMeta(
        arch="x86_64",
        page_size=PAGE,
        kernel_release=data.texts["osrelease"] or notes.release,
        kernel_config=notes.config,
        thp=notes.thp or None,
        perf_version=data.texts["version"] or None,
    )
    _write(assembled, output, meta, force=force, progress=progress)
    truncated = data.truncated_at
    data.close()
    for name, count in sorted(assembled.unmodelled.items()):
        say(f"{count} times {UNMODELLED.get(name, name + ': not recorded')}: tables may differ from there on")
    if assembled.lost:
        raise Partly(f"{file}: perf lost {assembled.lost} events: the trace {output} has gaps")
    if truncated is not None:
        raise Partly(f"{file}: ends in the middle of a record, at byte {truncated}: the trace {output} ends there")


def _write(
    assembled: Assembled,
    output: Path,
    meta: TraceMeta,
    *,
    force: bool,
    progress: Callable[[int, int | None], None] | None,
) -> None:
    total = sum(len(group) for group in assembled.table.groups())
    done = 0
    with TraceWriter(output, meta, force=force) as writer:
        for arrays, count in assembled.table.pieces(assembled.begin):
            writer.add_arrays(arrays, count)
            done += count
            if progress is not None:
                progress(done, total)


class Reconstruction:
    """The marks that a tracer would have made, from perf's records."""

    def __init__(self, data: PerfData, notes: Notes) -> None:
        self._data = data
        self._notes = notes
        self._sides = data.sides
        data.sides = [side for side in data.sides if side.t > 0]  # those of time 0 tell what was there before

    def marks(self) -> tuple[Marks, list[int]]:
        """Marks, and the processes that the recording begins with."""
        marks = Marks()
        moments = self._notes.moments
        if moments:
            self._attached(marks, moments)
        elif not any(side.kind == COMM and side.exec for side in self._data.sides):
            self._attached(marks, self._synthesized())
        self._add_execs(marks)
        self._add_clones(marks)
        marks.execs.sort(key=lambda mark: mark.t)
        roots = [mark.tgid for mark in marks.execs if mark.attached]
        if not roots and marks.execs:
            roots = [marks.execs[0].tgid]
        return marks, roots

    # -- processes that were there ------------------------------------------------------------------

    def _attached(self, marks: Marks, moments: list[Moment]) -> None:
        """A snapshot of each process in the notes, and what its status said as checkpoints."""
        begin = int(self._data.samples.t[0]) if len(self._data.samples) else 0
        known: set[int] = set()
        for moment in moments:
            pid = moment.pid or (int(self._data.samples.pid[0]) if len(self._data.samples) else 0)
            if not moment.maps or not pid:
                continue
            if pid not in known:
                known.add(pid)
                t = max(begin, moment.t0)
                threads = [tid for tid in moment.tasks if tid != pid]
                marks.execs.append(ExecMark(t, pid, pid, _snapshot_of(moment), attached=True, threads=threads))
            if moment.kb:
                window = {"t0": moment.t0, "t1": moment.t1} if moment.t0 and moment.t1 else {}
                fields = {**moment.kb, "vmas": len(moment.maps), **window}
                marks.checkpoints.append(CheckpointMark(moment.t1 or begin, pid, fields))

    def _synthesized(self) -> list[Moment]:
        """What perf itself wrote down of a running process when it attached (records of time 0)."""
        moments: dict[int, Moment] = {}
        for side in self._sides:
            if side.t == 0 and side.pid > 0:
                moment = moments.setdefault(side.pid, Moment(side.pid))
                if side.kind == MMAP2 and side.addr < USER_END:  # not [vsyscall]
                    moment.maps.append(_map_of(side))
                elif side.kind == COMM and side.tid == side.pid:
                    moment.name = side.text
                if side.tid not in moment.tasks:
                    moment.tasks.append(side.tid)
        return list(moments.values())

    # -- execs --------------------------------------------------------------------------------------

    def _add_execs(self, marks: Marks) -> None:
        sides = self._data.sides
        returns = self._times("syscalls:sys_exit_execve") + self._times("syscalls:sys_exit_execveat")
        breaks = self._heap_ends()
        for number, side in enumerate(sides):
            if side.kind != COMM or not side.exec:
                continue
            end = min((t for t, tid in returns if tid == side.tid and t > side.t), default=0)
            mapped = [_map_of(other) for other in _mappings_after(sides, number, side.tid, end)]
            maps = _overlaid(mapped)
            end = end or (side.t + 1)
            snapshot = Snapshot(side.text, [], None, None, None, maps, self._loaded(side.tid, side.t, end, maps))
            snapshot.brk_start = next((value for t, tid, value in breaks if tid == side.tid and t > end), 0)
            marks.execs.append(ExecMark(end, side.pid, side.tid, snapshot))

    def _times(self, event: str) -> list[tuple[int, int]]:
        """(time, tid) of every sample of an event."""
        samples = self._data.samples
        found = []
        for index in self._data.event_indices(event):
            rows = np.flatnonzero(samples.event == index)
            found += list(zip(samples.t[rows].tolist(), samples.tid[rows].tolist(), strict=True))
        return found

    def _heap_ends(self) -> list[tuple[int, int, int]]:
        """(time, tid, result) of every brk."""
        name = "syscalls:sys_exit_brk"
        samples = self._data.samples
        found = []
        for index in self._data.event_indices(name):
            rows = np.flatnonzero(samples.event == index)
            values = self._data.gather(name, "ret", rows).tolist()
            found += list(zip(samples.t[rows].tolist(), samples.tid[rows].tolist(), values, strict=True))
        return found

    def _loaded(self, tid: int, begin: int, end: int, maps: list[Map]) -> list[StateRow]:
        """Entries that the loader has set: what it wrote to, and the top of the stack."""
        pages = set()
        samples = self._data.samples
        name = "exceptions:page_fault_kernel"
        low, high = np.searchsorted(samples.t, (begin, end))
        for index in self._data.event_indices(name):
            rows = low + np.flatnonzero((samples.event[low:high] == index) & (samples.tid[low:high] == tid))
            if len(rows):
                pages |= set((self._data.gather(name, "address", rows) & -PAGE).tolist())
        for mapping in maps:
            if mapping.path == "[stack]":
                pages |= {mapping.end - PAGE * (i + 1) for i in range(_STACK_TOP_PAGES)}
        inside = [page for page in sorted(pages) if any(m.start <= page < m.end for m in maps)]
        return [StateRow(page, page + PAGE, "anon") for page in inside]

    # -- forks --------------------------------------------------------------------------------------

    def _add_clones(self, marks: Marks) -> None:
        calls = self._clone_calls()
        for side in self._data.sides:
            if side.kind != FORK:
                continue
            thread = side.pid == side.ppid
            shared = thread or self._shares(side, calls.get(side.ptid, []))
            marks.clones.append(CloneMark(side.t, side.ptid, side.tid, side.pid, shared))

    def _clone_calls(self) -> dict[int, list[tuple[int, str, int]]]:
        """By task, in the order of time: (time, name of the event, flags of clone) of calls that make tasks."""
        samples = self._data.samples
        calls: dict[int, list[tuple[int, str, int]]] = {}
        for call in ("clone", "clone3", "fork", "vfork"):
            for kind in ("enter", "exit"):
                event = f"syscalls:sys_{kind}_{call}"
                for index in self._data.event_indices(event):
                    rows = np.flatnonzero(samples.event == index)
                    flags = [0] * len(rows)
                    if call == "clone" and kind == "enter":
                        flags = self._data.gather(event, "clone_flags", rows).tolist()
                    for t, tid, bits in zip(samples.t[rows].tolist(), samples.tid[rows].tolist(), flags, strict=True):
                        calls.setdefault(tid, []).append((t, f"{kind} {call}", bits))
        for some in calls.values():
            some.sort()
        return calls

    def _shares(self, side: Side, calls: list[tuple[int, str, int]]) -> bool:
        """Whether a child has its parent's mm: by the call's name and flags; clone3's flags are not recorded.

        There, a parent that goes on only after the child's exec or end has called as vfork does.
        """
        before = [call for call in calls if call[0] <= side.t]
        if not before:
            return False
        _, name, flags = before[-1]
        if name == "enter clone":
            return bool(flags & _CLONE_VM)
        if name != "enter clone3":
            return name == "enter vfork"
        back = next((t for t, other, _ in calls if t > side.t and other == "exit clone3"), None)
        gone = next((s.t for s in self._data.sides if s.t > side.t and s.tid == side.tid and _ends_sharing(s)), None)
        return back is not None and gone is not None and gone < back


def _ends_sharing(side: Side) -> bool:
    return side.kind == EXIT or (side.kind == COMM and side.exec)


def _snapshot_of(moment: Moment) -> Snapshot:
    comm = moment.name or "unknown"
    return Snapshot(comm, [], moment.uid, moment.gid, None, moment.maps, [], brk_start=moment.start_brk)


def _map_of(side: Side) -> Map:
    """perf's record of a mapping as a line of maps."""
    prot = ("r" if side.prot & 1 else "-") + ("w" if side.prot & 2 else "-") + ("x" if side.prot & 4 else "-")
    perms = prot + ("s" if side.flags & _MAP_SHARED else "p")
    named = side.text != "//anon"
    return Map(side.addr, side.addr + side.len, perms, side.offset, "", side.inode, side.text if named else "")


def _mappings_after(sides: list[Side], number: int, tid: int, end: int) -> list[Side]:
    """The task's mappings from record `number` to the time `end` (0: to its next exec)."""
    found = []
    for side in sides[number + 1 :]:
        if end and side.t > end:
            break
        if side.tid != tid:
            continue
        if side.kind != MMAP2:
            break
        found.append(side)
    return found


def _overlaid(mapped: list[Map]) -> list[Map]:
    """What is left of mappings of which later ones were made over earlier ones; ascending."""
    maps: list[Map] = []
    for new in mapped:
        left = []
        for old in maps:
            if old.end <= new.start or new.end <= old.start:
                left.append(old)
                continue
            if old.start < new.start:
                left.append(old._replace(end=new.start))
            if new.end < old.end:
                moved = new.end - old.start if old.inode else 0
                left.append(old._replace(start=new.end, offset=old.offset + moved))
        maps = [*left, new]
    return sorted(maps)
