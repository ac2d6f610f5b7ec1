"""All mms of a host as arrays: what was last published, for plugins, files and metrics."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pterefd.engine import layout as lo
from pterefd.hookspecs import Kinds

if TYPE_CHECKING:
    from pterefd.host.host import Host

I64 = npt.NDArray[np.int64]
RECLAIMABLE = (lo.M_EMPTY, lo.M_ZERO)
KEPT = (lo.M_KEPT_EMPTY, lo.M_KEPT_ZERO)


def _bytes(*columns: int, less: tuple[int, ...] = ()) -> property:
    """Sum of columns that count pages, less the sum of others, as bytes: int64[n]."""

    def get(self: HostView) -> I64:
        pages = self.rows[:, list(columns)].sum(axis=1) - self.rows[:, list(less)].sum(axis=1)
        array = np.asarray(pages * lo.PAGE)
        array.flags.writeable = False
        return array

    return property(get)


class HostView:
    """hookspecs.View over a simulated host. Arrays are taken at their first use, all from one publication."""

    def __init__(self, host: Host, time_ns: int, rng: random.Random) -> None:
        self._host = host
        self._rows: Any = None
        self.time_ns = time_ns
        self.rng = rng

    @property
    def rows(self) -> Any:
        """int64[n, MM_COLUMNS]: the published rows of all mms, ascending by pid."""
        if self._rows is None:
            self._rows = self._host.published_rows()
        return self._rows

    @property
    def pid(self) -> npt.NDArray[np.int32]:
        """int32[n], ascending."""
        return np.asarray(self.rows[:, lo.M_PID].astype(np.int32))

    @property
    def last_fault_ns(self) -> I64:
        """int64[n], the trace's time."""
        return np.asarray(self.rows[:, lo.M_LAST_FAULT])

    empty_bytes = _bytes(lo.M_EMPTY)
    zero_bytes = _bytes(lo.M_ZERO)
    reclaimable_empty_bytes = _bytes(lo.M_EMPTY, less=(lo.M_KEPT_EMPTY,))
    reclaimable_zero_bytes = _bytes(lo.M_ZERO, less=(lo.M_KEPT_ZERO,))
    reclaimable_bytes = _bytes(*RECLAIMABLE, less=KEPT)
    mixed_bytes = _bytes(lo.M_MIXED)
    unlocated_bytes = _bytes(lo.M_UNLOCATED)
    pgtables_bytes = _bytes(lo.M_NPTE, lo.M_NPMD, lo.M_NPUD, lo.M_UNLOCATED)
    anon_bytes = _bytes(lo.M_E + lo.E_ANON, lo.M_E + lo.E_HUGE)
    file_bytes = _bytes(lo.M_E + lo.E_FILE)
    shmem_bytes = _bytes(lo.M_E + lo.E_SHMEM)
    swap_bytes = _bytes(lo.M_E + lo.E_SWAP)
    total_vm_bytes = _bytes(lo.M_TOTAL_VM)

    def comm(self, pid: int) -> str:
        """The name of the mm's process."""
        return self._host.process(pid).comm

    def ranking(self, kinds: Kinds) -> Iterator[int]:
        """Pids by falling reclaimable bytes of these kinds; both kinds: the kept order, O(1) an item."""
        if kinds == Kinds.BOTH:
            yield from self._host.ranking
            return
        sizes = self.reclaimable_empty_bytes if kinds == Kinds.EMPTY else self.reclaimable_zero_bytes
        order = np.argsort(-sizes, kind="stable")
        yield from self.pid[order[: np.count_nonzero(sizes)]].tolist()
