"""One simulated machine: runs events on its mms under one lock, and publishes what changed."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pterefd.engine import layout as lo
from pterefd.engine.arena import Limits, make_state
from pterefd.engine.charge import settle_all, slack
from pterefd.engine.pools import take_obj
from pterefd.engine.publish import forget_dirty, mark_dirty, publish
from pterefd.engine.validate import validate_folios, validate_groups, validate_mm, validate_near
from pterefd.errors import BadInput, NoSuchMm
from pterefd.hookspecs import Kinds, Usage
from pterefd.host import counters, maps
from pterefd.host.counters import MmCounters
from pterefd.host.memory import ADMIN_RESERVE_KB, Kill, Memory, default_min_free_kbytes, oom_badness, oom_score
from pterefd.host.pressure import OnPressure, Pressure
from pterefd.host.process import Process
from pterefd.host.ranking import Ranking
from pterefd.host.stalls import Averages
from pterefd.host.view import KEPT, RECLAIMABLE, RSS, TABLES, HostView
from pterefd.host.walks import Walks
from pterefd.mm import events as ev
from pterefd.mm.fork import exit_mm, fork, new_mm
from pterefd.mm.free_ptes import (
    free_mixed,
    free_ptes,
    free_spans,
    list_reclaimable,
    note_all_kept,
    note_kept,
    note_missed,
    note_walk,
)
from pterefd.mm.overcommit import may_fork
from pterefd.mm.populate import lock_all, mbind
from pterefd.mm.profile import Profile
from pterefd.mm.step import STOP_CORRECTED, STOP_FULL, STOP_OUTSIDE, STOP_PRESSURE, run_events
from pterefd.views.rates import FaultRates

SLICE_EVENTS = 8192  # events between two publications; about a millisecond of single-page events
SLICE_PAGES = 16384  # PTE pages that a reclaim frees under the lock at a time
LISTED_SPANS = 16384  # reclaimable PTE pages that are listed under the lock at a time
SNAPSHOT_TRIES = 8  # without the lock, before a reader of everything takes it
SLICE_SLOTS = 1024  # PMD pages that a search for mixed PTE pages looks through under the lock at a time

_STOP_SESSION = -1  # beside STOP_*: the event is the session's
# what Python runs of a process
_LIFE = (
    *(ev.OP_EXEC, ev.OP_FORK, ev.OP_EXIT, ev.OP_THREAD, ev.OP_THREAD_EXIT),
    *(ev.OP_THP, ev.OP_MLOCKALL, ev.OP_MUNLOCKALL, ev.OP_MBIND),
)
TOTALS = (*RSS, lo.M_E + lo.E_SWAP, *TABLES, lo.M_LOCKED_VM)  # what totals() sums up
AMPLE_PAGES = 1 << 30  # totalpages where nothing is accounted: every score is that of a small task

SYSV = "/SYSV"  # how the names of System V segments begin

_KINDS_OF_OBJECT = (
    ("[vdso]", lo.OBJ_VDSO),
    ("[vvar", lo.OBJ_VVAR),
    ("/dev/zero", lo.OBJ_DEV_ZERO),
    ("/dev/shm/", lo.OBJ_SHMEM),  # noqa: S108 - a mapped path's name, nothing is opened
    ("/memfd:", lo.OBJ_SHMEM),
    (SYSV, lo.OBJ_SHMEM),
)


def kind_of_path(path: str) -> int:
    """OBJ_* of a mapped path, as far as its name tells; 0 objects for [heap], [stack], [anon...]: -1."""
    for prefix, kind in _KINDS_OF_OBJECT:
        if path.startswith(prefix):
            return kind
    return -1 if path.startswith("[") else lo.OBJ_FILE


_OWNER = ("uid", "gid", "oom_score_adj")


class Snapshot(NamedTuple):
    """A host at one moment. mms: how many.  usages: by group, the host's as ""; empty where nothing is accounted."""

    view: HostView
    mms: int
    processes: dict[int, Process]
    usages: dict[str, Usage]

    def comm(self, pid: int) -> str:
        """The name of the mm's process."""
        return self.processes[pid].comm


class EventError(BadInput):
    """An event that stops a host. index: from 0 in its trace."""

    def __init__(self, index: int, reason: str) -> None:
        super().__init__(f"event {index}: {reason}")
        self.index = index
        self.reason = reason


class Host:
    """A machine of simulated mms.

    on_teardown(process, counters) is called just before an mm goes (exit, exec, kill), with the lock held.
    on_pressure(cause, group or None, bytes wanted) is asked for page tables at the low mark and before a kill,
    without the lock; it returns bytes freed.  on_kill(kill) is told of each act of the OOM killer, without the lock.
    memory: what the machine has; None: as much as it takes, and nothing is accounted.
    """

    kind = "simulated"

    def __init__(
        self, profile: Profile, *, limits: Limits | None = None, seed: int = 0, memory: Memory | None = None
    ) -> None:
        self.profile = profile
        self.limits = limits or Limits()
        self.lock = threading.Lock()
        self.ranking = Ranking()
        self.on_teardown: Callable[[Process, MmCounters], None] | None = None
        self.on_pressure: OnPressure | None = None
        self.on_kill: Callable[[Kill], None] | None = None
        self.events_total: dict[str, int] = dict.fromkeys(ev.OPS, 0)
        self.strict = False
        self.time_ns = 0
        self.corrections = 0
        self._waiting = 0
        self._s = make_state(self.limits)
        self._seq = np.zeros(1, dtype=np.int64)
        self._publication = 0  # odd while processes, rows and groups do not belong together
        self._published: Any = np.zeros((64, lo.MM_COLUMNS), dtype=np.int64)
        self._processes: dict[int, Process] = {}
        self._serials = itertools.count(1)
        self._object_names: dict[int, str] = {}
        # by the identity of a trace's list of paths, which is kept, so that no other list gets its identity
        self._objects: dict[int, tuple[list[str], npt.NDArray[np.int64]]] = {}
        self.seed = seed
        self._rng = random.Random(seed)
        self._pressure = Pressure(self, self._s, memory) if memory is not None else None
        self._published_groups: Any = self._groups()
        self.walks = Walks(self, self._s, self._object_names)

    # ---- running events -----------------------------------------------------------------------

    def run(self, batch: ev.Batch, begin: int, end: int) -> int:
        """Run events [begin, end) of a batch, in slices, and publish after each.

        Returns the index of the first event not run: end, or that of an `expect` or `free_ptes`,
        which are the session's.
        """
        index = begin
        if begin < end and int(batch.pid[begin:end].max()) > self.limits.pid_max:
            raise EventError(batch.first + begin, f"a pid above {self.limits.pid_max}, the host's limit")
        done = 0
        while index < end:
            if self.panicked is not None:
                self._s.g[lo.G_LOST] += end - index
                return end
            with self.lock:
                try:
                    index, why = self._run_slice(batch, index, min(end, index + SLICE_EVENTS), done)
                    done = int(self._s.g[lo.G_DONE])
                finally:
                    self._publish()
            if why == STOP_PRESSURE and self._pressure is not None:
                self._pressure.relieve(int(batch.pid[index if done else index - 1]))
            elif why == _STOP_SESSION:
                break
            while self._waiting:  # locks are not fair: let whoever waits have it
                time.sleep(0.00005)
        return index

    def _run_slice(self, batch: ev.Batch, begin: int, end: int, done: int) -> tuple[int, int]:
        """Events [begin, end) with the lock held. Returns the index reached, and why it ended there: STOP_*."""
        objects = self._objects_of(batch)
        index = begin
        while index < end:
            start = index
            index, why = run_events(
                self._s,
                batch.t,
                batch.pid,
                batch.op,
                batch.addr,
                batch.len,
                batch.arg,
                batch.err,
                batch.ext,
                objects,
                index,
                end,
                not self.strict,
                done,
            )
            done = 0
            self._count(batch.op[start:index])
            if why == STOP_FULL:
                pool = lo.POOL_NAMES[int(self._s.g[lo.G_FULL]) - 1]
                raise EventError(batch.first + index - 1, f"the host's limit of {pool} is reached")
            if why == STOP_OUTSIDE:
                raise EventError(batch.first + index - 1, "access outside every mapping")
            if why == STOP_CORRECTED:
                self.corrections += 1
                if self._pressure is not None and self._is_short(int(batch.pid[index - 1])):
                    why = STOP_PRESSURE
                    self._s.g[lo.G_DONE] = 0
                    break
            elif why == STOP_PRESSURE:
                break
            elif index < end:
                if not self._event(batch, index):
                    why = _STOP_SESSION
                    break
                self._count(batch.op[index : index + 1])
                index += 1
                if self._pressure is not None and self._is_short(int(batch.pid[index - 1])):
                    why = STOP_PRESSURE
                    self._s.g[lo.G_DONE] = 0
                    break
        self._tick(batch, begin, index)
        return index, why

    def _is_short(self, pid: int) -> bool:
        """Is a mark passed, of the host or of the pid's group, once all is told?"""
        settle_all(self._s)
        process = self._processes.get(pid)
        return int(slack(self._s, process.mm if process is not None else 0)) < 0

    def _tick(self, batch: ev.Batch, begin: int, end: int) -> None:
        """The host's clock follows the events [begin, end), or the one at begin that is the session's."""
        self.time_ns = max(self.time_ns, int(batch.t[begin : max(end, begin + 1)].max(initial=0)))

    def _count(self, ops: npt.NDArray[np.uint8]) -> None:
        for code, number in enumerate(np.bincount(ops).tolist()):
            if number:
                self.events_total[ev.OPS[code]] += number

    def _event(self, batch: ev.Batch, i: int) -> bool:
        """An event that kernels leave to Python. False where it is the session's."""
        op, pid, arg = int(batch.op[i]), int(batch.pid[i]), int(batch.arg[i])
        now = max(int(batch.t[i]), 0)
        self._s.g[lo.G_NOW] = max(int(self._s.g[lo.G_NOW]), now)
        if max(pid, arg if op == ev.OP_FORK else 0) > self.limits.pid_max:
            raise EventError(batch.first + i, f"a pid above {self.limits.pid_max}, the host's limit")
        if batch.err[i] and op in (ev.OP_EXEC, ev.OP_FORK, ev.OP_EXIT, ev.OP_THREAD, ev.OP_THREAD_EXIT):
            return True  # a call that failed has made and ended nothing
        if self._s.pids[pid] == lo.KILLED and op in _LIFE:
            self._lose(op, pid, arg)
            return True
        if op == ev.OP_EXEC:
            self._exec(pid, batch.side[arg], now, batch.thp, batch.group)
        elif op == ev.OP_THP:
            self._set_thp(pid, arg != 0)
        elif op in (ev.OP_MLOCKALL, ev.OP_MUNLOCKALL):
            self._lock_all(pid, op, arg, failed=bool(batch.err[i]))
        elif op == ev.OP_MBIND:
            self._bind(pid, int(batch.addr[i]), int(batch.len[i]), arg, failed=bool(batch.err[i]))
        elif op == ev.OP_FORK:
            self._fork(pid, arg, now)
        elif op == ev.OP_EXIT:
            self._exit(pid)
        elif op in (ev.OP_THREAD, ev.OP_THREAD_EXIT):
            process = self._processes.get(pid)
            if process is not None:
                (process.tids.add if op == ev.OP_THREAD else process.tids.discard)(arg)
        else:
            return False
        return True

    def _lose(self, op: int, pid: int, arg: int) -> None:
        """An event of a process that the OOM killer took: its children do not start; its exit frees the pid."""
        self._s.g[lo.G_LOST] += 1
        if op == ev.OP_FORK:
            self._s.pids[arg] = lo.KILLED
        elif op == ev.OP_EXIT:
            self._s.pids[pid] = 0

    def _objects_of(self, batch: ev.Batch) -> npt.NDArray[np.int64]:
        """int64: the S.obj record of each of the trace's paths; 0 for what is no object."""
        _, known = self._objects.get(id(batch.paths), (None, np.zeros(0, dtype=np.int64)))
        if len(known) < len(batch.paths) or len(known) == 0:
            new = [self._new_object(path) for path in batch.paths[len(known) :]]
            known = np.concatenate([known, np.array(new, dtype=np.int64)])
            self._objects[id(batch.paths)] = (batch.paths, known)
        return known

    def _new_object(self, path: str) -> int:
        kind = kind_of_path(path)
        if kind < 0:
            return 0
        obj = int(take_obj(self._s))
        self._s.obj[obj, lo.O_KIND] = kind
        self._s.obj[obj, lo.O_SIZE] = -1
        self._s.obj[obj, lo.O_KNOWN] = int(kind == lo.OBJ_SHMEM)
        self._s.obj[obj, lo.O_ONE_BY_ONE] = path.startswith(SYSV)  # ipc/shm.c shm_vm_ops
        self._s.obj[obj, lo.O_REFS] = 1  # the name's own: a path's object lives as long as its trace
        self._object_names[obj] = path
        return obj

    # ---- processes ----------------------------------------------------------------------------

    def _exec(self, pid: int, fields: dict[str, Any], now: int, thp: int, group: str) -> None:
        old = self._processes.get(pid)
        if old is not None:
            group = old.group
            thp |= int(self._s.mm[old.mm, lo.M_THP]) & lo.THP_DISABLED  # MMF_INIT_MASK: exec keeps it
            self._teardown(old)
        number = self._pressure.group_id(group) if self._pressure is not None else 0
        mm = int(new_mm(self._s, pid, self.profile.flags, thp, number))
        given = {name: fields[name] for name in _OWNER if fields.get(name) is not None}
        if old is not None:  # what the event does not say is as before
            given = {name: getattr(old, name) for name in _OWNER} | given
        cmdline = list(fields.get("cmdline") or [])
        serial = next(self._serials) if old is None else old.serial
        process = Process(pid, mm, serial, fields["comm"], cmdline, start_ns=now, group=group, **given)
        if old is not None:
            process.ppid, process.start_ns, process.exec_number = old.ppid, old.start_ns, old.exec_number + 1
        self._appear(process)

    def _fork(self, pid: int, child: int, now: int) -> None:
        parent = self._processes.get(pid)
        if parent is None:
            self._s.g[lo.G_SKIPPED] += 1
            return
        if self._pressure is not None and not may_fork(self._s, parent.mm):
            self._s.g[lo.G_LOST] += 1
            self._s.g[lo.G_REFUSED_MAPS] += 1
            self._s.pids[child] = lo.KILLED  # it does not start
            return
        mm = int(fork(self._s, parent.mm, child))
        self._appear(parent.child(child, mm, next(self._serials), now))

    def _set_thp(self, pid: int, disabled: bool) -> None:
        """prctl(PR_SET_THP_DISABLE)."""
        process = self._processes.get(pid)
        if process is None:
            self._s.g[lo.G_SKIPPED] += 1
            return
        thp = int(self._s.mm[process.mm, lo.M_THP])
        self._s.mm[process.mm, lo.M_THP] = thp | lo.THP_DISABLED if disabled else thp & ~lo.THP_DISABLED

    def _lock_all(self, pid: int, op: int, how: int, *, failed: bool) -> None:
        """mlockall(how), munlockall. Where they fail they have done nothing."""
        process = self._processes.get(pid)
        if process is None:
            self._s.g[lo.G_SKIPPED] += 1
        elif not failed:
            flags = lo.VM_LOCKED_MASK if how & ev.MCL_ONFAULT else lo.VM_LOCKED
            touched = op == ev.OP_MUNLOCKALL or how & ev.MCL_CURRENT or not how & ev.MCL_FUTURE
            current = (flags if how & ev.MCL_CURRENT else 0) if touched else -1
            lock_all(self._s, process.mm, current, flags if how & ev.MCL_FUTURE else 0)
            mark_dirty(self._s, process.mm)

    def _bind(self, pid: int, addr: int, length: int, policy: int, *, failed: bool) -> None:
        """mbind. Where it fails it has changed no mapping (holes are looked for first)."""
        process = self._processes.get(pid)
        if process is None:
            self._s.g[lo.G_SKIPPED] += 1
        elif not failed:
            mbind(self._s, process.mm, addr, addr + length, lo.VM_POLICY if policy else 0)
            mark_dirty(self._s, process.mm)

    def _appear(self, process: Process) -> None:
        """A new mm is published before anybody can see its pid."""
        mark_dirty(self._s, process.mm)
        self._publish(whole=False)
        self._processes[process.pid] = process
        row = self._s.mm[process.mm]
        self.ranking.set(process.pid, counters.from_row(row).reclaimable_pt_bytes // lo.PAGE)

    def _exit(self, pid: int) -> None:
        self._publication |= 1
        process = self._processes.pop(pid, None)
        if process is None:
            self._s.g[lo.G_SKIPPED] += 1
            return
        self._teardown(process)

    def _teardown(self, process: Process) -> None:
        if self.on_teardown is not None:
            note_kept(self._s, process.mm)
            self.on_teardown(process, counters.from_row(self._s.mm[process.mm]))
        self._publish(whole=False)  # a record in the list of changes may be another mm's next
        self.ranking.set(process.pid, 0)
        exit_mm(self._s, process.mm)

    # ---- publication --------------------------------------------------------------------------

    @contextmanager
    def looking(self) -> Iterator[None]:
        """The lock, for whoever comes in between two slices."""
        self._waiting += 1
        try:
            self.lock.acquire()
        finally:
            self._waiting -= 1
        self._s.g[lo.G_NOW] = max(int(self._s.g[lo.G_NOW]), self.time_ns)  # time may have moved on without an event
        try:
            yield
        finally:
            self.lock.release()

    def answers(self, seconds: float) -> bool:
        """Whether the lock is to be had within so long; it is held for a millisecond at a time."""
        self._waiting += 1
        try:
            if not self.lock.acquire(timeout=seconds):
                return False
        finally:
            self._waiting -= 1
        self.lock.release()
        return True

    @contextmanager
    def changing(self) -> Iterator[None]:
        """The lock, for who changes something between two slices; told to the groups and published at the end."""
        with self.looking():
            try:
                yield
            finally:
                self._publish()

    def _publish(self, *, whole: bool = True) -> None:
        """Show what has changed. whole: False where a process is about to come or go, and another call follows."""
        s = self._s
        self._publication |= 1
        if self._pressure is not None:
            settle_all(s)
            self._pressure.rearm()
        top = int(s.g[lo.G_POOLS + lo.POOL_MM * lo.POOL_COLUMNS])
        if top > len(self._published):
            grown = np.zeros((max(top, 2 * len(self._published)), lo.MM_COLUMNS), dtype=np.int64)
            grown[: len(self._published)] = self._published
            self._published = grown
        note_all_kept(s)
        publish(s, self._seq, self._published)
        changed = s.dirty[: int(s.g[lo.G_NDIRTY])]
        for pid, *pages in s.mm[changed][:, (lo.M_PID, *RECLAIMABLE, *KEPT)].tolist():
            if pid in self._processes:
                self.ranking.set(pid, pages[0] + pages[1] - pages[2] - pages[3])
        forget_dirty(s)
        self._published_groups = self._groups()
        if whole:
            self._publication += 1

    def _groups(self) -> Any:
        return self._s.grp[: int(self._s.g[lo.G_GROUPS])].copy()

    def _read(self, index: Any) -> Any:
        """A consistent copy of published rows."""
        while True:
            before = int(self._seq[0])
            rows = self._published[index].copy()
            if before & 1 == 0 and int(self._seq[0]) == before:
                return rows
            time.sleep(0)

    @property
    def publications(self) -> int:
        """Changes with each publication; odd while one is being written."""
        return int(self._seq[0])

    def published_rows(self, pids: frozenset[int] | None, columns: tuple[int, ...]) -> Any:
        """int64[n, columns]: of the rows of all mms, or of these, as last published, ascending by pid."""
        living = self._processes.copy()
        if pids is not None:
            living = {pid: living[pid] for pid in pids if pid in living}
        order = np.fromiter(living, dtype=np.int64, count=len(living)).argsort()
        mms = np.fromiter((process.mm for process in living.values()), dtype=np.int64, count=len(living))[order]
        return self._read(np.ix_(mms[mms < len(self._published)], np.array(columns, dtype=np.intp)))

    # ---- reading ------------------------------------------------------------------------------

    def view(self) -> HostView:
        """All mms as last published."""
        return HostView(self, self.time_ns, self._rng)

    def view_for(
        self, rng: Callable[[], random.Random], rates: FaultRates, pids: frozenset[int] | None = None
    ) -> HostView:
        """All mms, or these, as last published, for one decision of a plugin; rng makes its generator."""
        return HostView(self, self.time_ns, rng, rates=rates, pids=pids)

    def snapshot(self) -> Snapshot:
        """All mms with their names, and what the host and its groups hold, from one publication.

        Waits for a slice of a batch at most: who publishes without pause is asked, through the lock, to let it in.
        """
        for _ in range(SNAPSHOT_TRIES):
            before = self._publication
            if before & 1 == 0:
                found = self._snapshot()
                if self._publication == before:
                    return found
            time.sleep(0.0001)
        with self.looking():
            return self._snapshot()

    def _snapshot(self) -> Snapshot:
        groups, view, processes = self._published_groups, self.view(), self._processes.copy()
        usages: dict[str, Usage] = {}
        if self._pressure is not None:
            then = replace(self._s, grp=groups)
            usages = {name: self._pressure.usage(name, then) for name in ("", *self._pressure.groups)}
        return Snapshot(view, len(view.pid), processes, usages)

    def group_of(self, pid: int) -> str:
        """The mm's group; "" for none, and where there is no such mm."""
        process = self._processes.get(pid)
        return process.group if process is not None else ""

    def in_group(self, group: str) -> frozenset[int]:
        """Living mms of a group."""
        return frozenset(process.pid for process in self.living() if process.group == group)

    def oom_score_adjs(self, pids: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
        """int64[n]: oom_score_adj of each; 0 for one that has ended."""
        processes = (self._processes.get(pid) for pid in pids.tolist())
        return np.fromiter((p.oom_score_adj if p else 0 for p in processes), dtype=np.int64, count=len(pids))

    @property
    def mms(self) -> int:
        """How many are living."""
        return len(self._processes)

    def pids(self) -> list[int]:
        """Living mms, ascending."""
        return sorted(self._processes.copy())

    def process(self, pid: int) -> Process:
        """NoSuchMm where there is none."""
        try:
            return self._processes[pid]
        except KeyError:
            raise NoSuchMm(f"no mm with pid {pid}") from None

    def counters(self, pid: int) -> MmCounters:
        """The mm's numbers as last published; never waits for a batch."""
        row = self._read(self.process(pid).mm)
        if int(row[lo.M_PID]) != pid:  # it ended meanwhile, and its record is another's
            raise NoSuchMm(f"no mm with pid {pid}")
        return counters.from_row(row)

    def counters_now(self, mm: int) -> MmCounters:
        """The numbers of an mm's record as they stand; the caller has the lock."""
        return counters.from_row(self._s.mm[mm])

    def find(self, pid: int) -> Process | None:
        """The process of a pid, None where there is none."""
        return self._processes.get(pid)

    def living(self) -> list[Process]:
        """All processes, in no order."""
        return list(self._processes.copy().values())

    def vmas(self, pid: int) -> list[maps.VmaRow]:
        """The mm's mappings, in order. Takes the lock."""
        with self.looking():
            mappings = maps.copied(self._s, self.process(pid).mm, self._object_names)
        return maps.rows(mappings)

    @property
    def outside(self) -> int:
        """Accesses outside every mapping so far."""
        return int(self._s.g[lo.G_OUTSIDE])

    @property
    def skipped(self) -> dict[str, int]:
        """Events that had no effect, by reason."""
        g = self._s.g
        names = {"no_mm": lo.G_SKIPPED, "refused": lo.G_REFUSED, "hugetlb": lo.G_HUGETLB, "outside": lo.G_OUTSIDE}
        return {name: int(g[column]) for name, column in names.items()}

    def validate(self) -> None:
        """Recompute every counter from the entries; ValidationError where one differs."""
        with self.looking():
            for process in self._processes.values():
                validate_mm(self._s, process.mm)
            mms = [process.mm for process in self._processes.values()]
            validate_folios(self._s, mms)
            validate_near(self._s)
            if self._pressure is not None:
                settle_all(self._s)
                validate_groups(self._s, mms)

    # ---- memory -------------------------------------------------------------------------------

    @property
    def memory(self) -> Memory | None:
        """What the machine has; None where nothing is accounted."""
        return self._pressure.memory if self._pressure is not None else None

    @property
    def groups(self) -> list[str]:
        """Names of the groups that the host has."""
        return self._pressure.groups if self._pressure is not None else []

    def usage(self, group: str | None = None) -> Usage:
        """What the host (None) or a group holds. BadInput where there is no such group, or nothing is accounted."""
        if self._pressure is None:
            raise BadInput("this host accounts no memory: [host] memory is not set")
        return self._pressure.usage(group)

    @property
    def kills(self) -> list[Kill]:
        """What the OOM killer has done, in order."""
        return list(self._pressure.kills) if self._pressure is not None else []

    @property
    def panicked(self) -> str | None:
        """Why the machine has panicked; its events are lost from then on."""
        return self._pressure.panicked if self._pressure is not None else None

    @property
    def lost(self) -> int:
        """Events of mms that were killed or mappings that were refused."""
        return int(self._s.g[lo.G_LOST])

    @property
    def vmstat(self) -> dict[str, int]:
        """Counts since the start, by the kernel's names; refused_maps is pterefd's own."""
        g = self._s.g
        swap_ins = int(g[lo.G_SWAP_INS])
        counts = {"pgfault": int(g[lo.G_FAULTS]), "pgmajfault": int(g[lo.G_MAJOR]) + swap_ins, "pswpin": swap_ins}
        if self._pressure is not None:
            counts |= self._pressure.vmstat.copy()
        return counts | {"refused_maps": int(g[lo.G_REFUSED_MAPS])}

    @property
    def made_again_bytes(self) -> int:
        """PTE pages that were freed short of munmap and made again since, in bytes, of all mms that there were."""
        return sum(self.away_classes) * lo.PAGE

    @property
    def away_classes(self) -> list[int]:
        """PTE pages made again after they were freed short of munmap: [c] those away for 2**(c-1) to 2**c ms."""
        return self._s.g[lo.G_AWAY : lo.G_AWAY + lo.AWAY_CLASSES].tolist()

    @property
    def stalls(self) -> Averages:
        """How long events have waited for direct reclaim."""
        return self._pressure.stalls.averages() if self._pressure is not None else Averages(0.0, 0.0, 0.0, 0)

    @property
    def committed(self) -> tuple[int, int]:
        """(bytes, limit in mode 2): Committed_AS and CommitLimit; without accounts of memory the limit is 0."""
        g = self._s.g
        return int(g[lo.G_COMMITTED]) * lo.PAGE, (int(g[lo.G_COMMIT_LIMIT]) + (ADMIN_RESERVE_KB >> 2)) * lo.PAGE

    def totals(self) -> MmCounters:
        """What all mms hold together, as last published: each sum counts what two of them map twice."""
        row = np.zeros(lo.MM_COLUMNS, dtype=np.int64)
        row[list(TOTALS)] = self.published_rows(None, TOTALS).sum(axis=0)
        return counters.from_row(row)

    def oom_score(self, pid: int) -> int:
        """What PID/oom_score shows."""
        process = self.process(pid)
        c = self.counters(pid)
        total = self._pressure.totalpages(0) if self._pressure is not None else AMPLE_PAGES
        pages = (c.rss_bytes // lo.PAGE, c.swap_bytes // lo.PAGE, c.pgtables_bytes // lo.PAGE)
        return oom_score(oom_badness(*pages, process.oom_score_adj, total), total)

    def set_oom_score_adj(self, pid: int, value: int) -> None:
        """A write to PID/oom_score_adj."""
        self.process(pid).oom_score_adj = value

    def knob(self, name: str) -> int:
        """A knob of sys/vm (VmKnobs). BadInput where nothing is accounted."""
        if self._pressure is None:
            raise BadInput(f"{name}: this host accounts no memory: [host] memory is not set")
        value = getattr(self._pressure.knobs, name)
        return int(default_min_free_kbytes(self._pressure.memory.zones) if value is None else value)

    def set_knob(self, name: str, value: int) -> None:
        """Set a knob of sys/vm; it has its effect from the next event on."""
        if self._pressure is None:
            raise BadInput(f"{name}: this host accounts no memory: [host] memory is not set")
        with self.looking():
            setattr(self._pressure.knobs, name, value)
            self._pressure.apply_knobs()

    def drop_caches(self) -> int:
        """Pages of files that nobody maps leave the page cache. How many."""
        return self._pressure.drop_caches() if self._pressure is not None else 0

    # ---- changing -----------------------------------------------------------------------------

    def free_ptes(self, pid: int, kinds: Kinds, nbytes: int | None) -> tuple[int, int, int]:
        """Free empty, zero and mixed PTE pages of one mm, up to nbytes (None: all), and publish.

        Returns (bytes of empty pages, of zero pages, of mixed pages) freed. NoSuchMm where there is no such mm.
        """
        left = (1 << 40) if nbytes is None else -(-nbytes // lo.PAGE)
        empty = zero = 0
        self.process(pid)
        begins = True
        while left > 0 and kinds & Kinds.BOTH:
            with self.looking():
                process = self._processes.get(pid)
                if process is None:
                    break
                if begins:
                    note_walk(self._s, process.mm)
                    begins = False
                e, z = free_ptes(self._s, process.mm, Kinds.EMPTY in kinds, Kinds.ZERO in kinds, min(left, SLICE_PAGES))
                mark_dirty(self._s, process.mm)
                self._publish()
            empty, zero, left = empty + e, zero + z, left - e - z
            if e + z == 0:
                break
        mixed = self._free_mixed(pid, left, begins) if Kinds.MIXED in kinds else 0
        return empty * lo.PAGE, zero * lo.PAGE, mixed * lo.PAGE

    def _free_mixed(self, pid: int, left: int, begins: bool) -> int:
        """Up to `left` mixed PTE pages of one mm; there is no bit for them, so its PTE pages are walked."""
        freed = at = 0
        while freed < left and at < lo.ADDRESS_END:
            with self.looking():
                process = self._processes.get(pid)
                if process is None:
                    break
                if begins:
                    note_walk(self._s, process.mm)
                    begins = False
                number, at = free_mixed(self._s, process.mm, at, min(left - freed, SLICE_PAGES), SLICE_SLOTS)
                if number:
                    mark_dirty(self._s, process.mm)
                    self._publish()
            freed += number
        return freed

    def reclaimable_spans(self, pid: int) -> npt.NDArray[np.int64]:
        """int64[n], ascending: start of each span of the mm whose PTE page free_ptes would free now. NoSuchMm."""
        process = self.process(pid)
        parts: list[npt.NDArray[np.int64]] = []
        addr = 0
        while addr < lo.ADDRESS_END:  # 20 ns each: a slice holds the lock for less than a millisecond
            part = np.empty(LISTED_SPANS, dtype=np.int64)
            with self.looking():
                if self.find(pid) is not process:
                    raise NoSuchMm(f"no mm with pid {pid}")
                n, addr = list_reclaimable(self._s, process.mm, addr, part)
            parts.append(part[:n])
        return np.concatenate(parts)

    def free_spans(self, pid: int, spans: npt.NDArray[np.int64]) -> tuple[int, int]:
        """Free the PTE pages of these spans that are reclaimable, and publish. Bytes as of free_ptes. NoSuchMm."""
        with self.looking():
            mm = self.process(pid).mm
            empty, zero = free_spans(self._s, mm, spans)
            mark_dirty(self._s, mm)
            self._publish()
        return empty * lo.PAGE, zero * lo.PAGE

    def freed_spans(self, process: Process, spans: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        """uint8[n]: what became of each span's PTE page, which was freed: mm.free_ptes GONE, MISSED or MADE_AGAIN.

        Precondition: called by the thread that runs the events, or with the lock held (on_teardown).
        """
        became = np.zeros(len(spans), dtype=np.uint8)
        note_missed(self._s, process.mm, spans, became)
        return became

    def take_away(self, pid: int) -> None:
        """The OOM killer took pid: its mm goes, later events of it are lost. The caller is changing()."""
        self._publication |= 1
        self._teardown(self._processes.pop(pid))
        self._s.pids[pid] = lo.KILLED

    def set_unlocated(self, pid: int, pages: int) -> None:
        """A snapshot could not place this many PTE pages of the mm: shown, never counted as freeable."""
        with self.looking():
            mm = self.process(pid).mm
            self._s.mm[mm, lo.M_UNLOCATED] = pages
            mark_dirty(self._s, mm)
            self._publish()
