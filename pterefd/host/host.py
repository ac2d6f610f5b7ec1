"""One simulated machine: runs events on its mms under one lock, and publishes what changed."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from pterefd.engine import layout as lo
from pterefd.engine.arena import Limits, make_state
from pterefd.engine.pools import take_obj
from pterefd.engine.publish import forget_dirty, publish
from pterefd.engine.validate import validate_folios, validate_mm
from pterefd.errors import BadInput, NoSuchMm
from pterefd.hookspecs import Cause, Kinds
from pterefd.host import counters, maps
from pterefd.host.counters import MmCounters
from pterefd.host.process import Process
from pterefd.host.ranking import Ranking
from pterefd.host.view import KEPT, RECLAIMABLE, HostView
from pterefd.mm import events as ev
from pterefd.mm.fork import exit_mm, fork, new_mm
from pterefd.mm.free_ptes import free_mixed, free_ptes, note_all_kept, note_kept, note_walk
from pterefd.mm.profile import Profile
from pterefd.mm.step import STOP_CORRECTED, STOP_FULL, STOP_OUTSIDE, mark_dirty, run_events

SLICE_EVENTS = 8192  # events between two publications; about a millisecond of single-page events
SLICE_PAGES = 16384  # PTE pages that a reclaim frees under the lock at a time
SLICE_SLOTS = 1024  # PMD pages that a search for mixed PTE pages looks through under the lock at a time

_KINDS_OF_OBJECT = (
    ("[vdso]", lo.OBJ_VDSO),
    ("[vvar", lo.OBJ_VVAR),
    ("/dev/zero", lo.OBJ_DEV_ZERO),
    ("/dev/shm/", lo.OBJ_SHMEM),  # noqa: S108 - a mapped path's name, nothing is opened
    ("/memfd:", lo.OBJ_SHMEM),
    ("/SYSV", lo.OBJ_SHMEM),
)


def kind_of_path(path: str) -> int:
    """OBJ_* of a mapped path, as far as its name tells; 0 objects for [heap], [stack], [anon...]: -1."""
    for prefix, kind in _KINDS_OF_OBJECT:
        if path.startswith(prefix):
            return kind
    return -1 if path.startswith("[") else lo.OBJ_FILE


class EventError(BadInput):
    """An event that stops a host. index: from 0 in its trace."""

    def __init__(self, index: int, reason: str) -> None:
        super().__init__(f"event {index}: {reason}")
        self.index = index
        self.reason = reason


class Host:
    """A machine of simulated mms.

    on_teardown(process, counters) is called just before an mm goes (exit, exec), with the lock held.
    """

    kind = "simulated"

    def __init__(self, profile: Profile, *, limits: Limits | None = None, seed: int = 0) -> None:
        self.profile = profile
        self.limits = limits or Limits()
        self.lock = threading.Lock()
        self.ranking = Ranking()
        self.on_teardown: Callable[[Process, MmCounters], None] | None = None
        self.on_pressure: Callable[[Cause, str | None, int], int] | None = None
        self.events_total: dict[str, int] = dict.fromkeys(ev.OPS, 0)
        self.strict = False
        self.time_ns = 0
        self.corrections = 0
        self._waiting = 0
        self._s = make_state(self.limits)
        self._seq = np.zeros(1, dtype=np.int64)
        self._published: Any = np.zeros((64, lo.MM_COLUMNS), dtype=np.int64)
        self._processes: dict[int, Process] = {}
        self._object_names: dict[int, str] = {}
        # by the identity of a trace's list of paths, which is kept, so that no other list gets its identity
        self._objects: dict[int, tuple[list[str], npt.NDArray[np.int64]]] = {}
        self.seed = seed
        self._rng = random.Random(seed)

    # ---- running events -----------------------------------------------------------------------

    def run(self, batch: ev.Batch, begin: int, end: int) -> int:
        """Run events [begin, end) of a batch, in slices, and publish after each.

        Returns the index of the first event not run: end, or that of an `expect` or `free_ptes`,
        which are the session's.
        """
        index = begin
        if begin < end and int(batch.pid[begin:end].max()) > self.limits.pid_max:
            raise EventError(batch.first + begin, f"a pid above {self.limits.pid_max}, the host's limit")
        while index < end:
            with self.lock:
                try:
                    index, ours = self._run_slice(batch, index, min(end, index + SLICE_EVENTS))
                finally:
                    self._publish()
            if not ours:
                break
            while self._waiting:  # locks are not fair: let whoever waits have it
                time.sleep(0.00005)
        return index

    def _run_slice(self, batch: ev.Batch, begin: int, end: int) -> tuple[int, bool]:
        """Events [begin, end) with the lock held. Returns the index reached, and whether to go on."""
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
            )
            self._count(batch.op[start:index])
            if why == STOP_FULL:
                pool = lo.POOL_NAMES[int(self._s.g[lo.G_FULL]) - 1]
                raise EventError(batch.first + index - 1, f"the host's limit of {pool} is reached")
            if why == STOP_OUTSIDE:
                raise EventError(batch.first + index - 1, "access outside every mapping")
            if why == STOP_CORRECTED:
                self.corrections += 1
            elif index < end:
                if not self._event(batch, index):
                    self._tick(batch, begin, index)
                    return index, False
                self._count(batch.op[index : index + 1])
                index += 1
        self._tick(batch, begin, index)
        return index, True

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
        if max(pid, arg if op == ev.OP_FORK else 0) > self.limits.pid_max:
            raise EventError(batch.first + i, f"a pid above {self.limits.pid_max}, the host's limit")
        if batch.err[i] and op in (ev.OP_EXEC, ev.OP_FORK, ev.OP_EXIT, ev.OP_THREAD, ev.OP_THREAD_EXIT):
            return True  # a call that failed has made and ended nothing
        if op == ev.OP_EXEC:
            self._exec(pid, batch.side[arg], now, batch.thp)
        elif op == ev.OP_THP:
            self._set_thp(pid, arg != 0)
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
        self._s.obj[obj, lo.O_REFS] = 1  # the name's own: a path's object lives as long as its trace
        self._object_names[obj] = path
        return obj

    # ---- processes ----------------------------------------------------------------------------

    def _exec(self, pid: int, fields: dict[str, Any], now: int, thp: int) -> None:
        old = self._processes.get(pid)
        if old is not None:
            thp |= int(self._s.mm[old.mm, lo.M_THP]) & lo.THP_DISABLED  # MMF_INIT_MASK: exec keeps it
            self._teardown(old)
        mm = int(new_mm(self._s, pid, self.profile.flags, thp))
        given = {name: fields[name] for name in ("uid", "gid", "oom_score_adj") if fields.get(name) is not None}
        process = Process(pid, mm, fields["comm"], list(fields.get("cmdline") or []), start_ns=now, **given)
        if old is not None:
            process.ppid, process.start_ns, process.exec_number = old.ppid, old.start_ns, old.exec_number + 1
        self._appear(process)

    def _fork(self, pid: int, child: int, now: int) -> None:
        parent = self._processes.get(pid)
        if parent is None:
            self._s.g[lo.G_SKIPPED] += 1
            return
        mm = int(fork(self._s, parent.mm, child))
        self._appear(parent.child(child, mm, now))

    def _set_thp(self, pid: int, disabled: bool) -> None:
        """prctl(PR_SET_THP_DISABLE)."""
        process = self._processes.get(pid)
        if process is None:
            self._s.g[lo.G_SKIPPED] += 1
            return
        thp = int(self._s.mm[process.mm, lo.M_THP])
        self._s.mm[process.mm, lo.M_THP] = thp | lo.THP_DISABLED if disabled else thp & ~lo.THP_DISABLED

    def _appear(self, process: Process) -> None:
        """A new mm is published before anybody can see its pid."""
        mark_dirty(self._s, process.mm)
        self._publish()
        self._processes[process.pid] = process
        row = self._s.mm[process.mm]
        self.ranking.set(process.pid, counters.from_row(row).reclaimable_pt_bytes // lo.PAGE)

    def _exit(self, pid: int) -> None:
        process = self._processes.pop(pid, None)
        if process is None:
            self._s.g[lo.G_SKIPPED] += 1
            return
        self._teardown(process)

    def _teardown(self, process: Process) -> None:
        if self.on_teardown is not None:
            note_kept(self._s, process.mm)
            self.on_teardown(process, counters.from_row(self._s.mm[process.mm]))
        self._publish()  # a record in the list of changes may be another mm's next
        self.ranking.set(process.pid, 0)
        exit_mm(self._s, process.mm)

    # ---- publication --------------------------------------------------------------------------

    @contextmanager
    def _asked(self) -> Iterator[None]:
        """The lock, for whoever comes in between two slices."""
        self._waiting += 1
        try:
            self.lock.acquire()
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self.lock.release()

    def _publish(self) -> None:
        s = self._s
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

    def _read(self, index: Any) -> Any:
        """A consistent copy of published rows."""
        while True:
            before = int(self._seq[0])
            rows = self._published[index].copy()
            if before & 1 == 0 and int(self._seq[0]) == before:
                return rows
            time.sleep(0)

    def published_rows(self, pids: frozenset[int] | None, columns: tuple[int, ...]) -> Any:
        """int64[n, columns]: of the rows of all mms, or of these, as last published, ascending by pid."""
        living = self._processes.copy()
        if pids is not None:
            living = {pid: living[pid] for pid in pids if pid in living}
        order = np.fromiter(living, dtype=np.int64, count=len(living)).argsort()
        mms = np.fromiter((process.mm for process in living.values()), dtype=np.int64, count=len(living))[order]
        return self._read(np.ix_(mms[mms < len(self._published)], np.array(columns)))

    # ---- reading ------------------------------------------------------------------------------

    def view(self) -> HostView:
        """All mms as last published."""
        return HostView(self, self.time_ns, self._rng)

    def group_of(self, pid: int) -> str:
        """The mm's group; "" for none, and where there is no such mm."""
        return getattr(self._processes.get(pid), "group", "")

    def in_group(self, group: str) -> frozenset[int]:
        """Living mms of a group."""
        return frozenset(
            pid for pid, process in self._processes.copy().items() if getattr(process, "group", "") == group
        )

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

    def vmas(self, pid: int) -> list[maps.VmaRow]:
        """The mm's mappings, in order. Takes the lock."""
        with self._asked():
            return maps.rows(self._s, self.process(pid).mm, self._object_names)

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
        with self._asked():
            for process in self._processes.values():
                validate_mm(self._s, process.mm)
            validate_folios(self._s, [process.mm for process in self._processes.values()])

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
            with self._asked():
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
            with self._asked():
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

    def set_unlocated(self, pid: int, pages: int) -> None:
        """A snapshot could not place this many PTE pages of the mm: shown, never counted as freeable."""
        with self._asked():
            mm = self.process(pid).mm
            self._s.mm[mm, lo.M_UNLOCATED] = pages
            mark_dirty(self._s, mm)
            self._publish()
