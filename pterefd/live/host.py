"""This machine as a host: its processes as mms, what is known of each as of its last look and scan.

One thread calls look(); what it found is published whole, so that readers of one publication see one state. A pid is
the process that had it at the last look: what takes the pid anew later is another one, of another start time.
"""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, Protocol

from pterefd.errors import NoSuchMm, Refused
from pterefd.hookspecs import Cause, Kinds, Usage
from pterefd.live.memory import PROC, read_usage
from pterefd.live.view import LiveView
from pterefd.live.watch import Identity, Watch, Watched
from pterefd.views.rates import FaultRates

_VAIN_SECONDS = 2.0, 64.0  # until a request is made again that freed nothing: at first and at most


class Freer(Protocol):
    """What frees PTE pages of a running process."""

    def free(self, pid: int, start_time: int, kinds: Kinds, nbytes: int | None) -> tuple[int, int, int]:
        """Free up to nbytes (None: all) of these kinds in the process of this pid and start time.

        Returns bytes freed: empty, zero, mixed.  NoSuchMm where it has ended.  Refused where it may not be touched.
        """


class Numbers(NamedTuple):
    """Page-table memory of one process, in bytes. pgtables_bytes: as of the last look, the rest as of the last scan.

    pgtables_bytes: VmPTE.  empty_bytes: VmPTE less what entries explain.  unlocated_bytes: of mappings that the kernel
    does not show, never counted as empty.  age_seconds: since the scan; None before the first or where it may not be
    seen: the rest is 0 then.  told: whether this kernel tells zero pages: else zero and mixed are 0 and not known.
    """

    pgtables_bytes: int
    reclaimable_pt_bytes: int
    empty_bytes: int
    zero_bytes: int
    mixed_bytes: int
    unlocated_bytes: int
    age_seconds: float | None
    told: bool


@dataclass(frozen=True, slots=True)
class Row:
    """A process and what was seen of it over time, by the host's clock.

    last_fault_ns: of the look that first counted it, 0 where it has not faulted since the start.  freed: bytes, on
    request.  reclaimable_since_ns: of the scan since which it has had something without a break, 0 where there is none.
    """

    process: Watched
    last_fault_ns: int = 0
    reclaimable_since_ns: int = 0
    freed: int = 0


@dataclass(frozen=True)
class Published:
    """One state. at, time_ns: when, by the watch's and the host's clock.  rows: by pid, ascending.

    usage: of the machine.  limits: of cgroups that have one, bytes.
    """

    at: float
    time_ns: int
    rows: dict[int, Row]
    usage: Usage
    limits: dict[str, int]

    @cached_property
    def groups(self) -> tuple[str, ...]:
        """Paths of the cgroups that processes are in, ascending."""
        return tuple(sorted({row.process.cgroup for row in self.rows.values()} - {""}))

    def age_ns(self, row: Row) -> int:
        """Since the last scan of one that has been scanned."""
        return int((self.at - row.process.at) * 1e9)

    def in_group(self, group: str) -> Iterator[Watched]:
        """The processes of a cgroup and of those below it."""
        below = group.rstrip("/") + "/"
        for row in self.rows.values():
            if row.process.cgroup == group or row.process.cgroup.startswith(below):
                yield row.process

    def usage_of(self, group: str) -> Usage:
        """What the processes of a cgroup hold, each by itself: what they share counts for each. KeyError."""
        members = [one.facts for one in self.in_group(group)]
        if not members:
            raise KeyError(group)
        limit = self.limits.get(group, 0)
        total = limit or self.usage.total
        sums = {name: sum(getattr(one, name) for one in members) for name in ("anon", "file", "shmem", "vm_pte")}
        return Usage(
            total=total,
            free=max(0, total - sum(sums.values())),
            anon=sums["anon"],
            file=sums["file"],
            shmem=sums["shmem"],
            pgtables=sums["vm_pte"],
            limit=limit,
        )


class _Vain(NamedTuple):
    """A request that freed nothing, though a scan saw so many bytes of these kinds.

    until: of the watch's clock, not made again before.  pause: seconds.
    """

    kinds: Kinds
    until: float
    pause: float
    seen: int


class Snapshot(NamedTuple):
    """One publication, for the metrics. mms: how many.  usages: the machine's, as "", where it is shown."""

    view: LiveView
    mms: int
    published: Published
    usages: dict[str, Usage]

    def comm(self, pid: int) -> str:
        """The name of the mm's process."""
        return self.view.comm(pid)


class LiveHost:
    """The processes of this machine that a watch sees. look() is for one thread; the rest may be called by any.

    on_pressure: told by cause, group or None, and bytes wanted that memory is short; returns bytes freed.
    seed: of the randomness that plugins may use.  refused: how often nothing was freed for a reason, by its label.
    """

    kind = "live"

    def __init__(
        self,
        watch: Watch | None = None,
        *,
        freer: Freer | None = None,
        seed: int = 0,
        proc: Path = PROC,
        limit_of: Callable[[str], int] = lambda _group: 0,
    ) -> None:
        """watch: None: every process, within the default budget.  freer: None: freeing is off.

        proc: where the machine's meminfo and zoneinfo are read.  limit_of: memory.max of a cgroup, 0 for none.
        """
        self.watch = watch or Watch()
        self._freer = freer
        self.proc = proc
        self._limit_of = limit_of
        self._began = self.watch.clock()
        self._watching = threading.Lock()
        self._freed: Counter[Identity] = Counter()
        self._refusals: dict[Identity, str] = {}
        self._vain: dict[Identity, _Vain] = {}
        self.refused: Counter[str] = Counter()
        self._random = random.Random(seed)
        self.seed = seed
        self.on_pressure: Callable[[Cause, str | None, int], int] | None = None
        self._published = Published(self._began, 0, {}, read_usage(proc), {})

    def look(self) -> None:
        """Look at the processes, scan those that are due within the budget, publish."""
        with self._watching:
            self.watch.look()
            self._publish()

    def _publish(self) -> None:
        now = self.watch.clock()
        time_ns = int((now - self._began) * 1e9)
        before = self._published
        found = sorted(self.watch.processes.values(), key=lambda one: (one.pid, one.start_time))
        self._freed = Counter({one.identity: freed for one in found if (freed := self._freed[one.identity])})
        there = {one.identity for one in found}
        self._refusals = {identity: why for identity, why in self._refusals.items() if identity in there}
        self._vain = {identity: vain for identity, vain in self._vain.items() if identity in there}
        rows = {one.pid: _row(one, before, time_ns, self._freed[one.identity]) for one in found}
        groups = {one.cgroup for one in found} - {""}
        limits = {group: limit for group in groups if (limit := self._limit_of(group))}
        self._published = Published(now, time_ns, rows, read_usage(self.proc), limits)

    # ---- what was published last ----------------------------------------------------------------

    @property
    def published(self) -> Published:
        """The last state, whole."""
        return self._published

    @property
    def time_ns(self) -> int:
        """Nanoseconds since the start, of CLOCK_MONOTONIC."""
        return int((self.watch.clock() - self._began) * 1e9)

    @property
    def mms(self) -> int:
        """How many processes with memory there are."""
        return len(self._published.rows)

    def pids(self) -> list[int]:
        """Their pids, ascending."""
        return list(self._published.rows)

    def process(self, pid: int) -> Watched:
        """What is known of a process. NoSuchMm."""
        try:
            return self._published.rows[pid].process
        except KeyError:
            raise NoSuchMm(f"{pid}: no such process, or none that is watched") from None

    def numbers(self, pid: int) -> Numbers:
        """Page-table memory of a process. NoSuchMm."""
        one = self.process(pid)
        use = one.use
        if use is None:
            return Numbers(one.vm_pte, 0, 0, 0, 0, 0, None, True)
        return Numbers(
            one.vm_pte,
            use.reclaimable,
            use.empty,
            use.zero or 0,
            use.mixed or 0,
            use.unseen,
            one.age(self.watch.clock()),
            use.zero is not None,
        )

    def why_not_freed(self, pid: int) -> str:
        """Why the last act freed nothing from a process; "" where it did, or there was none. NoSuchMm."""
        return self._refusals.get(self.process(pid).identity, "")

    def group_of(self, pid: int) -> str:
        """The path of its cgroup; "" where there is none, or no such process."""
        row = self._published.rows.get(pid)
        return "" if row is None else row.process.cgroup

    def in_group(self, group: str) -> frozenset[int]:
        """Pids of a cgroup and of those below it."""
        return frozenset(one.pid for one in self._published.in_group(group))

    def view(self) -> LiveView:
        """All processes as last published."""
        return LiveView(self._published, self.time_ns, self._random)

    def view_for(
        self, rng: Callable[[], random.Random], rates: FaultRates, pids: frozenset[int] | None = None
    ) -> LiveView:
        """All processes, or these, as last published, for one decision of a plugin; rng makes its generator."""
        return LiveView(self._published, self.time_ns, rng, rates=rates, pids=pids)

    def snapshot(self) -> Snapshot:
        """All processes and the machine's memory, of one publication."""
        published = self._published
        view = LiveView(published, self.time_ns, self._random)
        usages = {"": published.usage} if published.usage.total else {}
        return Snapshot(view, len(published.rows), published, usages)

    # ---- freeing --------------------------------------------------------------------------------

    def free_ptes(self, pid: int, kinds: Kinds, nbytes: int | None) -> tuple[int, int, int]:
        """Free up to nbytes (None: all) of these kinds in the process of a pid, scan it anew and publish.

        Returns bytes freed: empty, zero, mixed.  NoSuchMm.  Refused where freeing is off, or not of this process.
        Whoever had nothing freed, though there seemed to be some, is left alone for 2, 4 and up to 64 seconds.
        """
        one = self.process(pid)
        if self._is_vain(one, kinds):
            return 0, 0, 0
        try:
            if self._freer is None:
                raise Refused(f"{pid}: freeing is off for this machine's processes ([live] freeing)", "off")
            freed = self._freer.free(pid, one.start_time, kinds, nbytes)
        except Refused as error:
            self.refused[error.label] += 1
            self._refusals[one.identity] = str(error)
            raise
        self._refusals.pop(one.identity, None)
        with self._watching:
            self._freed[one.identity] += sum(freed)
            self.watch.scan_now(one.identity)
            self._publish()
        self._learn(one, kinds, sum(freed))
        return freed

    def _is_vain(self, one: Watched, kinds: Kinds) -> bool:
        """Whether a request for these came to nothing lately; not where there is twice as much as then."""
        vain = self._vain.get(one.identity)
        return (
            vain is not None
            and kinds in vain.kinds
            and self.watch.clock() < vain.until
            and _seen_bytes(one, kinds) < 2 * vain.seen
        )

    def _learn(self, one: Watched, kinds: Kinds, freed: int) -> None:
        """What a request came to: each costs CPU time, and may have a process stand."""
        before = self._vain.pop(one.identity, None)
        seen = _seen_bytes(one, kinds)
        if freed or not seen:
            return
        pause = _VAIN_SECONDS[0] if before is None else min(2 * before.pause, _VAIN_SECONDS[1])
        self._vain[one.identity] = _Vain(kinds, self.watch.clock() + pause, pause, seen)
        why = f"{one.pid}: of {seen >> 10} kB nothing could be freed: asked again in {pause:g} s"
        self._refusals[one.identity] = why


def _seen_bytes(one: Watched, kinds: Kinds) -> int:
    """What the last scan saw of these kinds."""
    if one.use is None:
        return 0
    by_kind = {Kinds.EMPTY: one.use.empty, Kinds.ZERO: one.use.zero or 0, Kinds.MIXED: one.use.mixed or 0}
    return sum(number for kind, number in by_kind.items() if kind in kinds)


def _row(one: Watched, before: Published, time_ns: int, freed: int) -> Row:
    """A process with its past: what takes a pid anew has none."""
    row = before.rows.get(one.pid)
    has = one.use is not None and one.use.reclaimable > 0
    if row is None or row.process.identity != one.identity:
        new = bool(before.time_ns)  # who was there at the start may have faulted long before
        return Row(one, time_ns if new else 0, max(time_ns, 1) if has else 0, freed)
    faulted = one.facts.faults != row.process.facts.faults
    since = (row.reclaimable_since_ns or max(time_ns, 1)) if has else 0
    return Row(one, time_ns if faulted else row.last_fault_ns, since, freed)
