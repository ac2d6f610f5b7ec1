"""This machine as a host: its processes as mms, what is known of each as of its last look and scan.

One thread calls look(); what it found is published whole, and readers of the same publication see one state. A pid is
the process that had it at the last look: what takes the pid anew later is another one, of another start time.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from pterefd.errors import NoSuchMm, Refused
from pterefd.hookspecs import Cause, Kinds
from pterefd.live import procmem
from pterefd.live.watch import DEFAULT_BUDGET, Watch, Watched

PAGE = procmem.PAGE


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
class Published:
    """One state: processes by pid, ascending. number: of the publication. at: the watch's clock."""

    number: int
    at: float
    processes: dict[int, Watched]


class LiveHost:
    """The processes of this machine that a watch sees. All but look() may be called by any thread.

    on_pressure: told that memory is short, by cause, group and bytes; returns bytes freed.
    seed: of plugins' randomness.
    """

    kind = "live"

    def __init__(
        self,
        watch: Watch | None = None,
        *,
        freer: Freer | None = None,
        seed: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """watch: its clock is `clock`; None: every process, within the default budget.  freer: None: freeing is off."""
        self._watch = watch or Watch(DEFAULT_BUDGET, clock=clock)
        self._freer = freer
        self._clock = clock
        self._began = clock()
        self._published = Published(0, self._began, {})
        self.seed = seed
        self.on_pressure: Callable[[Cause, str | None, int], int] = lambda _cause, _group, _bytes: 0

    def look(self) -> None:
        """Look at the processes, scan those that are due within the budget, publish. For one thread."""
        self._watch.look()
        found = sorted(self._watch.processes.values(), key=lambda one: (one.pid, one.start_time))
        self._published = Published(self._published.number + 1, self._clock(), {one.pid: one for one in found})

    # ---- what was published last ----------------------------------------------------------------

    @property
    def published(self) -> Published:
        """The last state, whole."""
        return self._published

    @property
    def time_ns(self) -> int:
        """Nanoseconds since the start, of CLOCK_MONOTONIC."""
        return int((self._clock() - self._began) * 1e9)

    @property
    def mms(self) -> int:
        """How many processes with memory there are."""
        return len(self._published.processes)

    def pids(self) -> list[int]:
        """Their pids, ascending."""
        return list(self._published.processes)

    def process(self, pid: int) -> Watched:
        """What is known of a process. NoSuchMm."""
        try:
            return self._published.processes[pid]
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
            one.age(self._clock()),
            use.zero is not None,
        )

    def group_of(self, pid: int) -> str:
        """The path of its cgroup; "" where there is none, or no such process."""
        one = self._published.processes.get(pid)
        return "" if one is None else one.cgroup

    def in_group(self, group: str) -> frozenset[int]:
        """Pids of a cgroup."""
        return frozenset(pid for pid, one in self._published.processes.items() if one.cgroup == group)

    # ---- freeing --------------------------------------------------------------------------------

    def free_ptes(self, pid: int, kinds: Kinds, nbytes: int | None) -> tuple[int, int, int]:
        """Free up to nbytes (None: all) of these kinds in the process of a pid.

        Returns bytes freed: empty, zero, mixed.  NoSuchMm.  Refused where freeing is off, or not of this process.
        """
        one = self.process(pid)
        if self._freer is None:
            raise Refused(f"{pid}: freeing is off on this machine's processes ([live] freeing)")
        return self._freer.free(pid, one.start_time, kinds, nbytes)
