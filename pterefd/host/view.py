"""All mms of a host as arrays: what was last published, for plugins, files and metrics."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pterefd.engine import layout as lo
from pterefd.hookspecs import Kinds, Usage
from pterefd.host.memory import OOM_SCORE_ADJ_MIN
from pterefd.views.arrays import ArrayView, UsageNumbers, column
from pterefd.views.rates import FaultRates

if TYPE_CHECKING:
    from pterefd.host.host import Host

I64 = npt.NDArray[np.int64]
RECLAIMABLE = (lo.M_EMPTY, lo.M_ZERO)
KEPT = (lo.M_KEPT_EMPTY, lo.M_KEPT_ZERO)
TABLES = (lo.M_NPTE, lo.M_NPMD, lo.M_NPUD, lo.M_UNLOCATED)
RSS = (lo.M_E + lo.E_ANON, lo.M_E + lo.E_HUGE, lo.M_E + lo.E_FILE, lo.M_E + lo.E_SHMEM)
_LATER = tuple(getattr(lo, name) for name in ("M_MAJOR", "M_SINCE") if hasattr(lo, name))
# Copying whole rows of a million mms takes a second; these are a quarter of them.
COLUMNS = (
    *(lo.M_PID, lo.M_MIXED, lo.M_TOTAL_VM, lo.M_FAULTS, lo.M_LAST_FAULT, lo.M_FREED_AUTO, lo.M_FREED_REQUEST),
    *(lo.M_AGAIN, lo.M_E + lo.E_SWAP, *RECLAIMABLE, *KEPT, *TABLES, *RSS, *_LATER),
)
_PLACE = {column: place for place, column in enumerate(COLUMNS)}


def _sum(name: str, *columns: int, less: tuple[int, ...] = (), unit: int = lo.PAGE) -> property:
    """Sum of columns of the rows, less the sum of others, times unit: int64[n]."""

    def make(self: HostView) -> I64:
        number = self.total(*columns)
        return np.asarray((number - self.total(*less) if less else number) * unit)

    make.__name__ = name
    return column(make)


class Numbers(UsageNumbers):
    """hookspecs.HostNumbers: memory of a host and its groups, as it is now."""

    __slots__ = ("_host",)

    def __init__(self, host: Host) -> None:
        self._host = host

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the groups."""
        return tuple(self._host.groups)

    def usage(self, group: str | None = None) -> Usage:
        """All numbers of the host, or of a group; zeros where the host keeps no accounts of memory."""
        if group is not None and group not in self.groups:
            raise KeyError(group)
        if self._host.memory is None:
            return Usage()
        return self._host.usage(group)


class HostView(ArrayView):
    """hookspecs.View over a simulated host. Arrays are taken at their first use, all from one publication.

    rng, rates, pids: as ArrayView's.
    """

    __slots__ = ("_given", "_host", "_rows")

    def __init__(
        self,
        host: Host,
        time_ns: int,
        rng: random.Random | Callable[[], random.Random],
        *,
        rates: FaultRates | None = None,
        pids: frozenset[int] | None = None,
    ) -> None:
        super().__init__(time_ns, rng, rates, pids)
        self._host = host
        self._rows: Any = None
        self._given: set[int] = set()

    @property
    def host(self) -> Numbers:
        """Memory of the machine and of its groups."""
        return Numbers(self._host)

    @property
    def rows(self) -> Any:
        """int64[n, len(COLUMNS)]: of the published rows of all mms, ascending by pid, what columns here are made of."""
        if self._rows is None:
            self._rows = self._host.published_rows(self._pids, COLUMNS)
        return self._rows

    def total(self, *columns: int) -> I64:
        """int64[n]: sum of some of COLUMNS."""
        total = self.rows[:, _PLACE[columns[0]]]
        for number in columns[1:]:
            total = total + self.rows[:, _PLACE[number]]
        return np.asarray(total)

    @column
    def pid(self) -> npt.NDArray[np.int32]:
        """int32[n], ascending."""
        return self.total(lo.M_PID).astype(np.int32)

    @column
    def group(self) -> npt.NDArray[np.int32]:
        """int32[n], index in host.groups, -1 for none."""
        names = {name: index for index, name in enumerate(self.host.groups)}
        if not names:
            return np.full(len(self.rows), -1, dtype=np.int32)
        groups = (names.get(self._host.group_of(pid), -1) for pid in self.pid.tolist())
        return np.fromiter(groups, dtype=np.int32, count=len(self.rows))

    @column
    def oom_score(self) -> I64:
        """int64[n], fs/proc/base.c proc_oom_score; in pages of the mm's RSS, swap entries and page tables."""
        points = self.total(*RSS, lo.M_E + lo.E_SWAP, *TABLES)
        usage = self.host.usage()
        total = (usage.total + usage.swap_total) // lo.PAGE or int(points.sum()) or 1
        adjust = self._host.oom_score_adjs(self.pid)
        badness = points + adjust * (total // 1000)
        # C divides towards zero
        score = 1000 + np.trunc(badness * 1000 / total).astype(np.int64)
        score = np.where(score > 0, score * 2 // 3, 0)
        return np.where(adjust == OOM_SCORE_ADJ_MIN, 0, score)

    empty_bytes = _sum("empty_bytes", lo.M_EMPTY)
    zero_bytes = _sum("zero_bytes", lo.M_ZERO)
    reclaimable_empty_bytes = _sum("reclaimable_empty_bytes", lo.M_EMPTY, less=(lo.M_KEPT_EMPTY,))
    reclaimable_zero_bytes = _sum("reclaimable_zero_bytes", lo.M_ZERO, less=(lo.M_KEPT_ZERO,))
    reclaimable_bytes = _sum("reclaimable_bytes", *RECLAIMABLE, less=KEPT)
    mixed_bytes = _sum("mixed_bytes", lo.M_MIXED)
    unlocated_bytes = _sum("unlocated_bytes", lo.M_UNLOCATED)
    pgtables_bytes = _sum("pgtables_bytes", *TABLES)
    anon_bytes = _sum("anon_bytes", lo.M_E + lo.E_ANON, lo.M_E + lo.E_HUGE)
    file_bytes = _sum("file_bytes", lo.M_E + lo.E_FILE)
    shmem_bytes = _sum("shmem_bytes", lo.M_E + lo.E_SHMEM)
    swap_bytes = _sum("swap_bytes", lo.M_E + lo.E_SWAP)
    total_vm_bytes = _sum("total_vm_bytes", lo.M_TOTAL_VM)
    freed_bytes = _sum("freed_bytes", lo.M_FREED_AUTO, lo.M_FREED_REQUEST)
    again_bytes = _sum("again_bytes", lo.M_AGAIN)
    faults = _sum("faults", lo.M_FAULTS, unit=1)
    last_fault_ns = _sum("last_fault_ns", lo.M_LAST_FAULT, unit=1)
    major_faults = _sum("major_faults", lo.M_MAJOR, lo.M_SWAP_INS, unit=1)
    oldest_reclaimable_ns = _sum("oldest_reclaimable_ns", lo.M_SINCE, unit=1)

    def comm(self, pid: int) -> str:
        """The name of the mm's process."""
        return self._host.process(pid).comm

    def ranking(self, kinds: Kinds) -> Iterator[int]:
        """Pids by falling reclaimable bytes of these kinds; both kinds: the kept order, O(1) an item."""
        if kinds == Kinds.BOTH and self._pids is None:
            for pid in self._host.ranking:
                self._given.add(pid)
                yield pid
            return
        yield from super().ranking(kinds)

    def shown(self, pid: int) -> bool:
        """Whether this view has told of an mm of that pid, which may have ended since."""
        return pid in self._given or (self._rows is not None and self._has_row(pid))
