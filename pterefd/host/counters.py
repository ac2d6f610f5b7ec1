"""The numbers of one mm, by name."""

from __future__ import annotations

from typing import Any, NamedTuple

from pterefd.engine import layout as lo
from pterefd.mm.profile import PF_KEEPS


class MmCounters(NamedTuple):
    """Sizes in bytes, entries, mappings and PTE pages as counts, last_fault_ns in the trace's time.

    present_entries counts as pagemap does: the zero page too, but nothing of a VM_PFNMAP mapping such as [vvar]
    (fs/proc/task_mmu.c pagemap_scan_test_walk). zero_entries and it count the huge zero page as 512, as PAGEMAP_SCAN's
    PAGE_IS_PFNZERO does.
    anon_huge_bytes (AnonHugePages) is part of anon_bytes.
    freed_by_itself .. mmap_write_holds are what the profile's way of freeing costs: docs/costs.md.
    major_faults: faults that had to read a page, swap_ins those from swap, where the host accounts memory.
    away_ns: how long, summed up, the PTE pages of allocated_again had been away.
    thp_disabled: prctl(PR_SET_THP_DISABLE).
    reclaimable_since_ns: the trace's time from which on it has had empty or zero PTE pages without a break, else 0.
    """

    pgtables_bytes: int
    pte_bytes: int
    pmd_bytes: int
    pud_bytes: int
    empty_bytes: int
    zero_bytes: int
    kept_empty_bytes: int
    kept_zero_bytes: int
    mixed_bytes: int
    unlocated_bytes: int
    anon_bytes: int
    anon_huge_bytes: int
    file_bytes: int
    shmem_bytes: int
    swap_bytes: int
    total_vm_bytes: int
    hiwater_vm_bytes: int
    hiwater_rss_bytes: int
    locked_vm_bytes: int
    data_vm_bytes: int
    stack_vm_bytes: int
    exec_vm_bytes: int
    zero_entries: int
    present_entries: int
    swap_entries: int
    guard_entries: int
    vmas: int
    faults: int
    last_fault_ns: int
    peak_pgtables_bytes: int
    peak_reclaimable_bytes: int
    freed_by_itself: int
    freed_on_request: int
    allocated_again: int
    refcount_updates: int
    walker_pairs: int
    rmap_locks: int
    mmap_write_holds: int
    major_faults: int
    swap_ins: int
    away_ns: int
    reclaimable_since_ns: int
    thp_disabled: bool

    @property
    def reclaimable_pt_bytes(self) -> int:
        """What free_ptes would free now."""
        return self.empty_bytes + self.zero_bytes - self.kept_bytes

    @property
    def kept_bytes(self) -> int:
        """Empty and zero PTE pages that free_ptes passes over."""
        return self.kept_empty_bytes + self.kept_zero_bytes

    @property
    def rss_bytes(self) -> int:
        """VmRSS."""
        return self.anon_bytes + self.file_bytes + self.shmem_bytes


def from_row(row: Any) -> MmCounters:
    """The counters in an mm's row (int64[MM_COLUMNS]). By place, not by name: every read of a file of PID asks."""
    r = row.tolist()
    page = lo.PAGE
    entries = r[lo.M_E : lo.M_E + lo.N_STATES]
    huge = entries[lo.E_HUGE]
    anon, file, shmem = entries[lo.E_ANON] + huge, entries[lo.E_FILE], entries[lo.E_SHMEM]
    zero = entries[lo.E_ZERO] + entries[lo.E_HUGE_ZERO]
    unlocated = r[lo.M_UNLOCATED]
    ptes = r[lo.M_NPTE] + unlocated
    tables = ptes + r[lo.M_NPMD] + r[lo.M_NPUD]
    peak = lo.M_PEAK_FREEABLE if r[lo.M_PROFILE] & PF_KEEPS else lo.M_PEAK_RECLAIMABLE
    return MmCounters(
        tables * page,  # pgtables_bytes
        ptes * page,
        r[lo.M_NPMD] * page,
        r[lo.M_NPUD] * page,
        r[lo.M_EMPTY] * page,
        r[lo.M_ZERO] * page,
        r[lo.M_KEPT_EMPTY] * page,
        r[lo.M_KEPT_ZERO] * page,
        r[lo.M_MIXED] * page,
        unlocated * page,
        anon * page,  # anon_bytes
        huge * page,
        file * page,
        shmem * page,
        entries[lo.E_SWAP] * page,
        r[lo.M_TOTAL_VM] * page,
        max(r[lo.M_HIWATER_VM], r[lo.M_TOTAL_VM]) * page,
        max(r[lo.M_HIWATER_RSS], anon + file + shmem) * page,
        r[lo.M_LOCKED_VM] * page,
        r[lo.M_DATA_VM] * page,
        r[lo.M_STACK_VM] * page,
        r[lo.M_EXEC_VM] * page,
        zero,  # zero_entries
        zero + anon + file + shmem,
        entries[lo.E_SWAP],
        entries[lo.E_GUARD],
        r[lo.M_VMAS + 1],
        r[lo.M_FAULTS],
        r[lo.M_LAST_FAULT],
        max(r[lo.M_PEAK_TABLES] + unlocated, tables) * page,  # peak_pgtables_bytes
        r[peak] * page,
        r[lo.M_FREED_AUTO],
        r[lo.M_FREED_REQUEST],
        r[lo.M_AGAIN],
        r[lo.M_REF_UPDATES],
        r[lo.M_WALKS] + r[lo.M_FAULTS],
        r[lo.M_RMAP_LOCKS],
        r[lo.M_WRITE_HOLDS],
        r[lo.M_MAJOR] + r[lo.M_SWAP_INS],  # major_faults
        r[lo.M_SWAP_INS],
        r[lo.M_AWAY],
        r[lo.M_SINCE],
        r[lo.M_THP] & lo.THP_DISABLED != 0,
    )
