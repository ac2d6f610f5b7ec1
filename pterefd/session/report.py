"""What became of each mm of a run: a row per (pid, number of the exec, comm)."""

from __future__ import annotations

from typing import Any, NamedTuple

from pterefd.host.counters import MmCounters
from pterefd.host.host import Host
from pterefd.host.process import Process


class MmRow(NamedTuple):
    """One mm just before its teardown, or at the trace's end. kB as procfs says it, bytes where the name says so.

    From refcount_updates on: what the profile's way of freeing has cost so far, in PTE pages from freed_by_itself on.
    """

    pid: int
    exec_number: int
    comm: str
    VmPTE: int
    RssAnon: int
    RssFile: int
    RssShmem: int
    VmSwap: int
    empty_bytes: int
    zero_bytes: int
    reclaimable_pt_bytes: int
    peak_VmPTE: int  # noqa: N815 - the field's own name
    peak_reclaimable_pt_bytes: int
    refcount_updates: int
    walker_pairs: int
    rmap_locks: int
    mmap_write_holds: int
    freed_by_itself: int
    freed_on_request: int
    allocated_again: int


def row_of(process: Process, c: MmCounters) -> MmRow:
    """The row of an mm as it stands."""
    return MmRow(
        pid=process.pid,
        exec_number=process.exec_number,
        comm=process.comm,
        VmPTE=c.pgtables_bytes >> 10,
        RssAnon=c.anon_bytes >> 10,
        RssFile=c.file_bytes >> 10,
        RssShmem=c.shmem_bytes >> 10,
        VmSwap=c.swap_bytes >> 10,
        empty_bytes=c.empty_bytes,
        zero_bytes=c.zero_bytes,
        reclaimable_pt_bytes=c.reclaimable_pt_bytes,
        peak_VmPTE=c.peak_pgtables_bytes >> 10,
        peak_reclaimable_pt_bytes=max(c.peak_reclaimable_bytes, c.reclaimable_pt_bytes),
        refcount_updates=c.refcount_updates,
        walker_pairs=c.walker_pairs,
        rmap_locks=c.rmap_locks,
        mmap_write_holds=c.mmap_write_holds,
        freed_by_itself=c.freed_by_itself,
        freed_on_request=c.freed_on_request,
        allocated_again=c.allocated_again,
    )


class Report:
    """Collects the rows of a host's mms, in the order of their end."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._rows: list[MmRow] = []
        host.on_teardown = self._ended

    def _ended(self, process: Process, counters: MmCounters) -> None:
        self._rows.append(row_of(process, counters))

    def rows(self) -> list[MmRow]:
        """Rows of the mms that ended, then of those that live."""
        host = self._host
        return self._rows + [row_of(host.process(pid), host.counters(pid)) for pid in host.pids()]

    def as_dicts(self) -> list[dict[str, Any]]:
        """The rows, for JSON."""
        return [row._asdict() for row in self.rows()]
