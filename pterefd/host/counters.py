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
    """The counters in an mm's row (int64[MM_COLUMNS])."""
    r = row.tolist()
    tables = r[lo.M_NPTE] + r[lo.M_NPMD] + r[lo.M_NPUD] + r[lo.M_UNLOCATED]
    huge = r[lo.M_E + lo.E_HUGE]
    anon, file, shmem = r[lo.M_E + lo.E_ANON] + huge, r[lo.M_E + lo.E_FILE], r[lo.M_E + lo.E_SHMEM]
    zero = r[lo.M_E + lo.E_ZERO] + r[lo.M_E + lo.E_HUGE_ZERO]
    pages = {
        "pgtables_bytes": tables,
        "pte_bytes": r[lo.M_NPTE] + r[lo.M_UNLOCATED],
        "pmd_bytes": r[lo.M_NPMD],
        "pud_bytes": r[lo.M_NPUD],
        "empty_bytes": r[lo.M_EMPTY],
        "zero_bytes": r[lo.M_ZERO],
        "kept_empty_bytes": r[lo.M_KEPT_EMPTY],
        "kept_zero_bytes": r[lo.M_KEPT_ZERO],
        "mixed_bytes": r[lo.M_MIXED],
        "unlocated_bytes": r[lo.M_UNLOCATED],
        "anon_bytes": anon,
        "anon_huge_bytes": huge,
        "file_bytes": file,
        "shmem_bytes": shmem,
        "swap_bytes": r[lo.M_E + lo.E_SWAP],
        "total_vm_bytes": r[lo.M_TOTAL_VM],
        "hiwater_vm_bytes": max(r[lo.M_HIWATER_VM], r[lo.M_TOTAL_VM]),
        "hiwater_rss_bytes": max(r[lo.M_HIWATER_RSS], anon + file + shmem),
        "locked_vm_bytes": r[lo.M_LOCKED_VM],
        "data_vm_bytes": r[lo.M_DATA_VM],
        "stack_vm_bytes": r[lo.M_STACK_VM],
        "exec_vm_bytes": r[lo.M_EXEC_VM],
        "peak_pgtables_bytes": max(r[lo.M_PEAK_TABLES] + r[lo.M_UNLOCATED], tables),
        "peak_reclaimable_bytes": r[lo.M_PEAK_FREEABLE if r[lo.M_PROFILE] & PF_KEEPS else lo.M_PEAK_RECLAIMABLE],
    }
    return MmCounters(
        **{name: count * lo.PAGE for name, count in pages.items()},
        zero_entries=zero,
        present_entries=zero + anon + file + shmem,
        swap_entries=r[lo.M_E + lo.E_SWAP],
        guard_entries=r[lo.M_E + lo.E_GUARD],
        vmas=r[lo.M_VMAS + 1],
        faults=r[lo.M_FAULTS],
        last_fault_ns=r[lo.M_LAST_FAULT],
        freed_by_itself=r[lo.M_FREED_AUTO],
        freed_on_request=r[lo.M_FREED_REQUEST],
        allocated_again=r[lo.M_AGAIN],
        refcount_updates=r[lo.M_REF_UPDATES],
        walker_pairs=r[lo.M_WALKS] + r[lo.M_FAULTS],
        rmap_locks=r[lo.M_RMAP_LOCKS],
        mmap_write_holds=r[lo.M_WRITE_HOLDS],
        major_faults=r[lo.M_MAJOR] + r[lo.M_SWAP_INS],
        swap_ins=r[lo.M_SWAP_INS],
        away_ns=r[lo.M_AWAY],
        reclaimable_since_ns=r[lo.M_SINCE],
    )
