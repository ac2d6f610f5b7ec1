"""When memory runs short: the order of reclaim, from kswapd to the OOM killer. kernel-rules.md, section 6.

mm/page_alloc.c __alloc_pages_slowpath, mm/vmscan.c balance_pgdat and get_scan_count, mm/memcontrol.c try_charge_memcg,
mm/oom_kill.c out_of_memory. Differs from Linux: kswapd takes no time, so it is behind only where nothing is left for
it; which pages are hot is not known, so the mm that has not faulted for longest gives first.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from pterefd.engine import layout as lo
from pterefd.engine.charge import NEVER, anon_pages, settle_all, swap_pages, used_pages
from pterefd.errors import BadInput
from pterefd.hookspecs import Cause, Usage
from pterefd.host.memory import (
    SWAP_CLUSTER_MAX,
    USER_RESERVE_KB,
    Kill,
    Marks,
    Memory,
    commit_limit,
    host_watermarks,
    oom_badness,
)
from pterefd.host.stalls import Stalls
from pterefd.mm.evict import drop_unmapped, evict_object, is_locked, mark_mapped, take_pages

if TYPE_CHECKING:
    from pterefd.engine.state import State
    from pterefd.host.host import Host

MAX_RECLAIM_RETRIES = 16  # rounds without progress before reclaim gives up
SLICE = 4096  # pages that reclaim takes under the lock at a time
HOST = 0  # the host's own record of S.grp

_COUNTS = (
    *(f"pg{what}_{who}" for what in ("steal", "scan") for who in ("kswapd", "direct")),
    *("pswpout", "allocstall", "kswapd_wakeups", "oom_kill", "drop_pagecache"),
)

OnPressure = Callable[[Cause, str | None, int], int]  # cause, group, bytes wanted -> bytes freed


class Pressure:
    """The memory of one host: what is used of it, and what happens at its marks.

    Host.on_pressure is asked first: at the low mark before kswapd, and before the OOM killer. Methods that change
    something are called without the host's lock.
    """

    def __init__(self, host: Host, state: State, memory: Memory) -> None:
        self._host = host
        self._s = state
        self.memory = memory
        self.knobs = memory.knobs
        self.vmstat: Counter[str] = Counter(
            dict.fromkeys(_COUNTS, 0)
        )  # every key from the start: it is copied unlocked
        self.kills: list[Kill] = []
        self.panicked: str | None = None
        self._names = ["", *(group.name for group in memory.groups)]
        self._ids = {name: number for number, name in enumerate(self._names)}
        self._failing = False  # kswapd has given up
        self._relieving = threading.Lock()
        self.stalls = Stalls(time.monotonic_ns)  # of direct reclaim
        state.g[lo.G_ACCOUNT] = 1
        state.g[lo.G_GROUPS] = len(self._names)
        if len(self._names) > len(state.grp):
            raise BadInput(f"{len(self._names)} groups: more than the host's limit of {len(state.grp)}")
        for number, group in enumerate(memory.groups, 1):
            limit = 0 if group.limit_bytes is None else group.limit_bytes // lo.PAGE
            state.grp[number, lo.C_LIMIT] = limit
            state.grp[number, lo.C_STOP] = limit or NEVER
        self.marks = Marks(0, 0, 0, 0)
        self.apply_knobs()

    # ---- what is set --------------------------------------------------------------------------

    def apply_knobs(self) -> None:
        """What follows from the knobs: marks, commit limit. The caller has the lock, or nobody else runs."""
        knobs, g = self.knobs, self._s.g
        total = self.memory.managed_pages
        self.marks = host_watermarks(self.memory, knobs)
        g[lo.G_TOTAL] = total + self.memory.swap_pages
        g[lo.G_OVERCOMMIT] = knobs.overcommit_memory
        g[lo.G_COMMIT_LIMIT] = commit_limit(total, self.memory.swap_pages, knobs.overcommit_ratio)
        g[lo.G_USER_RESERVE] = USER_RESERVE_KB >> 2
        g[lo.G_MAX_MAP_COUNT] = knobs.max_map_count
        self._failing = False
        self.arm()

    def group_id(self, name: str) -> int:
        """Record of a group in S.grp; BadInput where there is none of that name."""
        if name not in self._ids:
            raise BadInput(f"no group {name!r}; there are: {', '.join(self._names[1:]) or 'none'}")
        return self._ids[name]

    def group_name(self, number: int) -> str:
        """Name of a group's record, "" of the host's own."""
        return self._names[number]

    @property
    def groups(self) -> list[str]:
        """Names of the groups."""
        return self._names[1:]

    # ---- what is used -------------------------------------------------------------------------

    def _free(self) -> int:
        return self.memory.managed_pages - int(used_pages(self._s, HOST))

    def _swap_free(self) -> int:
        return self.memory.swap_pages - int(swap_pages(self._s, HOST))

    def _excess(self, group: int) -> int:
        """Pages by which a group is above its limit."""
        limit = int(self._s.grp[group, lo.C_LIMIT])
        return int(used_pages(self._s, group)) - limit if limit else 0

    def usage(self, name: str | None, state: State | None = None) -> Usage:
        """What the host (None) or a group holds, as last settled; state: as one says that has another S.grp."""
        group = self.group_id(name or "")
        s = self._s if state is None else state
        row = s.grp[group].tolist()
        total = row[lo.C_LIMIT] or self.memory.managed_pages
        pages = (
            total,
            max(total - int(used_pages(s, group)), 0),
            int(anon_pages(s, group)),
            row[lo.C_FILE],
            row[lo.C_SHMEM],
            row[lo.C_TABLES],
            self.memory.swap_pages,
            max(self.memory.swap_pages - int(swap_pages(s, group)), 0),
            self.marks.min,
            self.marks.low,
            self.marks.high,
            row[lo.C_LIMIT],
        )
        return Usage(*(count * lo.PAGE for count in pages))

    def arm(self) -> None:
        """Set the mark at which events stop: low; while kswapd is behind, a little below what is free, down to min."""
        marks, total = self.marks, self.memory.managed_pages
        free = self._free()
        if free >= marks.low:
            self._failing = False
        stop = marks.low
        if self._failing:
            stop = max(min(marks.low, free) - max((marks.low - marks.min) // 4, SWAP_CLUSTER_MAX), marks.min)
        self._s.grp[HOST, lo.C_STOP] = total - stop

    def rearm(self) -> None:
        """What was published may have freed memory: kswapd is awake again above low. Says nothing while it is short."""
        if self._free() >= self.marks.low:
            self.arm()
        for group in range(1, len(self._names)):
            if self._s.grp[group, lo.C_LIMIT] and self._excess(group) <= 0:
                self._s.grp[group, lo.C_STOP] = self._s.grp[group, lo.C_LIMIT]

    # ---- at a mark ----------------------------------------------------------------------------

    def relieve(self, pid: int) -> None:
        """Memory is short, or a group at its limit, after an event of pid: reclaim, and in the end kill.

        One at a time: a second replay finds what the first one has freed.
        """
        with self._relieving:
            process = self._host.find(pid)
            if process is not None and process.group:
                self._relieve_group(self.group_id(process.group), pid)
            if self._free() < self.marks.low:
                self._wake_kswapd()
            if self._free() < self.marks.min:
                self._alloc_slowpath(pid)
            self.arm()

    def _wake_kswapd(self) -> None:
        """Below low: whoever is asked first, then kswapd, until high."""
        self.vmstat["kswapd_wakeups"] += 1
        wanted = self.marks.high - self._free()
        self._ask(Cause.LOW, HOST, wanted)
        wanted = self.marks.high - self._free()
        if wanted > 0:
            self._shrink(HOST, wanted, "kswapd")
        self._failing = self._free() < self.marks.low

    def _alloc_slowpath(self, pid: int) -> None:
        """Below min: direct reclaim, what is asked before a kill, a kill; until min is there again."""
        while self._free() < self.marks.min and self.panicked is None:
            self.vmstat["allocstall"] += 1
            wanted = max(self.marks.min - self._free(), SWAP_CLUSTER_MAX)
            with self.stalls.stalled():
                self._shrink(HOST, wanted, "direct")
            if self._free() >= self.marks.min:
                return
            if self._ask(Cause.OOM, HOST, self.marks.min - self._free()) and self._free() >= self.marks.min:
                return
            self._out_of_memory(HOST, pid)

    def _relieve_group(self, group: int, pid: int) -> None:
        """try_charge_memcg: reclaim within the group, what is asked before a kill, a kill."""
        while self._excess(group) > 0:
            with self.stalls.stalled():
                self._shrink(group, max(self._excess(group), SWAP_CLUSTER_MAX), "direct")
            if self._excess(group) <= 0:
                return
            if self._ask(Cause.OOM, group, self._excess(group)) and self._excess(group) <= 0:
                return
            if not self._out_of_memory(group, pid):
                # nobody may be killed: the charge is forced, and tried again with the next ones
                self._s.grp[group, lo.C_STOP] = int(used_pages(self._s, group)) + SWAP_CLUSTER_MAX
                return

    def _ask(self, cause: Cause, group: int, pages: int) -> int:
        """Bytes that page-table reclaim has given."""
        ask = self._host.on_pressure
        if ask is None or pages <= 0:
            return 0
        return ask(cause, self._names[group] or None, pages * lo.PAGE)

    # ---- reclaim ------------------------------------------------------------------------------

    def _shrink(self, group: int, wanted: int, who: str) -> int:
        """Reclaim up to `wanted` pages of the group's page cache and anonymous memory. Pages freed."""
        before = int(used_pages(self._s, group))

        def left() -> int:
            return wanted - before + int(used_pages(self._s, group))

        from_anon = self._anon_share(group, wanted)
        self._shrink_file(group, wanted - from_anon)
        self._shrink_anon(group, lo.T_LAZY, left)
        if group == HOST or self.knobs.swappiness:  # get_scan_count: SCAN_FILE
            self._shrink_anon(group, lo.T_SWAP_OUT, left)
            if left() > 0:
                self._swap_shmem(group, left)
        if left() > 0:
            self._shrink_file(group, left())
        freed = max(before - int(used_pages(self._s, group)), 0)  # others go on meanwhile
        self.vmstat[f"pgsteal_{who}"] += freed
        self.vmstat[f"pgscan_{who}"] += freed
        return freed

    def _anon_share(self, group: int, wanted: int) -> int:
        """get_scan_count: how much of it is to come from anonymous memory."""
        file = int(self._s.grp[group, lo.C_FILE])
        if self._swap_free() <= 0 or (group != HOST and self.knobs.swappiness == 0):
            return 0
        if file == 0:
            return wanted  # file_is_tiny
        if file >> 12:
            return 0  # cache_trim_mode, at DEF_PRIORITY
        return wanted * self.knobs.swappiness // 200

    def _objects(self, group: int, kind: int) -> list[int]:
        """Objects with pages in memory: those that nobody maps first, then by when they were touched last."""
        obj = self._s.obj
        top = int(self._s.g[lo.G_POOLS + lo.POOL_OBJ * lo.POOL_COLUMNS])
        rows = obj[:top]
        found = np.flatnonzero((rows[:, lo.O_NCHARGED] > 0) & (rows[:, lo.O_REFS] > 0))
        return sorted(
            (
                int(o)
                for o in found
                if (int(rows[o, lo.O_KIND]) == lo.OBJ_SHMEM) == (kind == lo.OBJ_SHMEM)
                and (group == HOST or int(rows[o, lo.O_GROUP]) == group)
            ),
            key=lambda o: (int(rows[o, lo.O_REFS]) > 1, int(rows[o, lo.O_TOUCHED]), o),
        )

    def _shrink_file(self, group: int, wanted: int) -> None:
        """Clean page cache goes first; all of it is taken to be clean, as nobody writes through read(2) here."""
        self._evict(group, lo.OBJ_FILE, lambda taken: wanted - taken)

    def _swap_shmem(self, group: int, left: Callable[[], int]) -> None:
        taken = self._evict(group, lo.OBJ_SHMEM, lambda _: min(left(), self._swap_free()))
        self.vmstat["pswpout"] += taken

    def _evict(self, group: int, kind: int, left: Callable[[int], int]) -> int:
        """Take pages of objects until `left` (of those taken so far) is nothing. Pages taken."""
        taken = 0
        if left(taken) <= 0:
            return 0
        for o in self._objects(group, kind):
            with self._host.changing():
                if is_locked(self._s, o):
                    continue
            while left(taken) > 0:
                with self._host.changing():
                    n = int(evict_object(self._s, o, min(left(taken), SLICE)))
                taken += n
                if n == 0:
                    break
            if left(taken) <= 0:
                break
        return taken

    def _mms(self, group: int) -> Iterator[int]:
        """Records of the group's mms, the one that has not faulted for longest first."""
        s = self._s
        found = [(int(s.mm[p.mm, lo.M_LAST_FAULT]), p.pid, p.mm) for p in self._host.living()]
        for _, _, m in sorted(found):
            if group == HOST or int(s.mm[m, lo.M_GROUP]) == group:
                yield m

    def _shrink_anon(self, group: int, transition: int, left: Callable[[], int]) -> None:
        """Anonymous pages: clean MADV_FREE ones are dropped, others swapped out while there are slots."""
        if left() <= 0:
            return
        for m in self._mms(group):
            while left() > 0:
                room = self._swap_free() if transition == lo.T_SWAP_OUT else SLICE
                if room <= 0:
                    return
                with self._host.changing():
                    before = int(swap_pages(self._s, HOST))
                    n = int(take_pages(self._s, m, transition, min(left(), room, SLICE)))
                    self.vmstat["pswpout"] += int(swap_pages(self._s, HOST)) - before
                if n == 0:
                    break
            if left() <= 0:
                return

    def drop_caches(self) -> int:
        """`echo 1 > drop_caches`: pages of files that nobody maps leave the cache. Pages dropped."""
        dropped = 0
        for o in self._objects(HOST, lo.OBJ_FILE):
            with self._host.changing():
                last = int(self._s.obj[o, lo.O_CHARGED + 1])
                if last:
                    end = int(self._s.val[int(self._s.obj[o, lo.O_CHARGED]) + last - 1])
                    pages = np.zeros(end, dtype=np.uint8)
                    mark_mapped(self._s, o, pages)
                    dropped += int(drop_unmapped(self._s, o, pages))
        self.vmstat["drop_pagecache"] += 1
        self.arm()
        return dropped

    # ---- the OOM killer -----------------------------------------------------------------------

    def totalpages(self, group: int) -> int:
        """What badness is a share of: memory and swap of the host, or mem_cgroup_get_max of the group."""
        limit = int(self._s.grp[group, lo.C_LIMIT]) if group else 0
        return (limit or self.memory.managed_pages) + self.memory.swap_pages

    def badness(self, m: int, oom_score_adj: int, totalpages: int) -> int | None:
        """oom_badness of mm m, as it stands."""
        row: Any = self._s.mm[m].tolist()
        states = (lo.E_ANON, lo.E_HUGE, lo.E_FILE, lo.E_SHMEM)
        rss = sum(row[lo.M_E + state] for state in states)
        tables = row[lo.M_NPTE] + row[lo.M_NPMD] + row[lo.M_NPUD] + row[lo.M_UNLOCATED]
        return oom_badness(rss, row[lo.M_E + lo.E_SWAP], tables, oom_score_adj, totalpages)

    def _out_of_memory(self, group: int, pid: int) -> bool:
        """out_of_memory. False where nobody may be killed; of the host that is a panic."""
        panic = self.knobs.panic_on_oom
        if panic == 2 or (panic == 1 and group == HOST):
            self.panicked = "Out of memory: panic_on_oom is set"
            return False
        victim = self._select(group, pid)
        if victim is None:
            if group == HOST:
                self.panicked = "System is deadlocked on memory"
            return False
        self._kill(group, *victim)
        return True

    def _select(self, group: int, pid: int) -> tuple[int, int] | None:
        """(pid, badness) of whom to kill: select_bad_process, or who allocates. A tie takes the later task."""
        total = self.totalpages(group)
        living = {p.pid: p for p in self._host.living()}
        if group == HOST and self.knobs.oom_kill_allocating_task and pid in living:
            points = self.badness(living[pid].mm, living[pid].oom_score_adj, total)
            if points is not None:
                return pid, points
        chosen: tuple[int, int] | None = None
        for number in sorted(living):
            process = living[number]
            if group != HOST and int(self._s.mm[process.mm, lo.M_GROUP]) != group:
                continue
            points = self.badness(process.mm, process.oom_score_adj, total)
            if points is not None and (chosen is None or points >= chosen[1]):
                chosen = number, points
        return chosen

    def _kill(self, group: int, pid: int, badness: int) -> None:
        with self._host.changing():
            process = self._host.find(pid)
            if process is None:
                return  # it has ended by itself meanwhile
            counters = self._host.counters_now(process.mm)
            before = self._free()
            self._host.take_away(pid)
            settle_all(self._s)
            freed = self._free() - before
        self.vmstat["oom_kill"] += 1
        kill = Kill(
            time_ns=self._host.time_ns,
            pid=pid,
            comm=process.comm,
            group=self._names[group],
            badness=badness,
            oom_score_adj=process.oom_score_adj,
            rss_bytes=counters.rss_bytes,
            swap_bytes=counters.swap_bytes,
            pgtables_bytes=counters.pgtables_bytes,
            freed_bytes=freed * lo.PAGE,
        )
        self.kills.append(kill)
        if self._host.on_kill is not None:
            self._host.on_kill(kill)
