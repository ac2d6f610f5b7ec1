"""This machine's processes as arrays: one publication, for plugins, files and metrics."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pterefd.hookspecs import Usage
from pterefd.views.arrays import ArrayView, UsageNumbers, column
from pterefd.views.rates import FaultRates

if TYPE_CHECKING:
    from pterefd.live.host import Published, Row

I64 = npt.NDArray[np.int64]


class LiveNumbers(UsageNumbers):
    """hookspecs.HostNumbers: the machine's memory as it was when all was published; groups are cgroups."""

    __slots__ = ("_published",)

    def __init__(self, published: Published) -> None:
        self._published = published

    @property
    def groups(self) -> tuple[str, ...]:
        """Paths of the cgroups that processes are in."""
        return self._published.groups

    def usage(self, group: str | None = None) -> Usage:
        """All numbers of the machine; of a cgroup what its processes hold, and its limit. KeyError."""
        return self._published.usage if group is None else self._published.usage_of(group)


def _of_facts(name: str) -> property:
    """int64[n] of the last look."""

    def make(self: LiveView) -> I64:
        return self.numbers(lambda row: getattr(row.process.facts, name))

    make.__name__ = name
    return column(make)


def _of_scan(name: str, field: str) -> property:
    """int64[n] of the last scan's TableUse, 0 where there was none, or where this kernel does not tell."""

    def make(self: LiveView) -> I64:
        return self.numbers(lambda row: getattr(row.process.use, field, 0) or 0)

    make.__name__ = name
    return column(make)


class LiveView(ArrayView):
    """hookspecs.View over one publication of a live host. rng, rates, pids: as ArrayView's."""

    __slots__ = ("_published", "_rows")

    def __init__(
        self,
        published: Published,
        time_ns: int,
        rng: random.Random | Callable[[], random.Random],
        *,
        rates: FaultRates | None = None,
        pids: frozenset[int] | None = None,
    ) -> None:
        super().__init__(time_ns, rng, rates, pids)
        self._published = published
        rows = published.rows
        self._rows: list[Row] = [row for pid, row in rows.items() if pids is None or pid in pids]

    def numbers(self, of: Callable[[Row], int]) -> I64:
        """int64[n] of every row."""
        return np.fromiter(map(of, self._rows), dtype=np.int64, count=len(self._rows))

    def _counted_ns(self) -> int:
        return self._published.time_ns

    @property
    def host(self) -> LiveNumbers:
        """Memory of the machine and of its cgroups."""
        return LiveNumbers(self._published)

    @column
    def pid(self) -> npt.NDArray[np.int32]:
        """int32[n], ascending."""
        return self.numbers(lambda row: row.process.pid).astype(np.int32)

    @column
    def group(self) -> npt.NDArray[np.int32]:
        """int32[n], index of the cgroup in host.groups, -1 for none."""
        names = {name: index for index, name in enumerate(self._published.groups)}
        return self.numbers(lambda row: names.get(row.process.cgroup, -1)).astype(np.int32)

    empty_bytes = _of_scan("empty_bytes", "empty")
    zero_bytes = _of_scan("zero_bytes", "zero")
    reclaimable_empty_bytes = _of_scan("reclaimable_empty_bytes", "empty")
    reclaimable_zero_bytes = _of_scan("reclaimable_zero_bytes", "zero")
    reclaimable_bytes = _of_scan("reclaimable_bytes", "reclaimable")
    mixed_bytes = _of_scan("mixed_bytes", "mixed")
    unlocated_bytes = _of_scan("unlocated_bytes", "unseen")
    pgtables_bytes = _of_facts("vm_pte")
    anon_bytes = _of_facts("anon")
    file_bytes = _of_facts("file")
    shmem_bytes = _of_facts("shmem")
    swap_bytes = _of_facts("swap")
    total_vm_bytes = _of_facts("total_vm")
    faults = _of_facts("faults")
    major_faults = _of_facts("major_faults")

    @column
    def oom_score(self) -> I64:
        """int64[n], of /proc/PID/oom_score; 0 for one that has ended."""
        return self.numbers(lambda row: _oom_score(row.process.pid))

    @column
    def last_fault_ns(self) -> I64:
        """int64[n], time of the look that first counted the last fault; 0 where there was none since the start."""
        return self.numbers(lambda row: row.last_fault_ns)

    @column
    def oldest_reclaimable_ns(self) -> I64:
        """int64[n], time of the scan since which there has been something in each, 0 where there is nothing."""
        return self.numbers(lambda row: row.reclaimable_since_ns)

    @column
    def freed_bytes(self) -> I64:
        """int64[n], freed on request since the start: what the kernel frees by itself is not told."""
        return self.numbers(lambda row: row.freed)

    @column
    def again_bytes(self) -> I64:
        """int64[n], 0: it is not told."""
        return np.zeros(len(self._rows), dtype=np.int64)

    @column
    def age_ns(self) -> I64:
        """int64[n], since the last scan, -1 where there was none."""
        since = self._time_ns - self._published.time_ns
        return self.numbers(lambda row: -1 if row.process.use is None else since + self._published.age_ns(row))

    @column
    def scanned(self) -> npt.NDArray[np.bool_]:
        """bool[n], whether there was a scan."""
        return np.fromiter((row.process.use is not None for row in self._rows), dtype=np.bool_, count=len(self._rows))

    @column
    def tells_zero(self) -> npt.NDArray[np.bool_]:
        """bool[n], whether it told zero pages."""
        told = (row.process.use is not None and row.process.use.zero is not None for row in self._rows)
        return np.fromiter(told, dtype=np.bool_, count=len(self._rows))

    def comm(self, pid: int) -> str:
        """The name of the mm's process."""
        return self._published.rows[pid].process.comm

    def shown(self, pid: int) -> bool:
        """Whether this view has a process of that pid, which may have ended since."""
        return self._has_row(pid)


def _oom_score(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/oom_score").read_bytes())
    except OSError:
        return 0
