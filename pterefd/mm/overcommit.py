"""Which mappings a host refuses: max_map_count and overcommit_memory. mm/util.c __vm_enough_memory, mm/mmap.c do_mmap.

Only where memory is accounted; a trace's own host has granted what it holds.
"""

from __future__ import annotations

from pterefd.engine.jit import kernel
from pterefd.engine.layout import (
    G_ACCOUNT,
    G_COMMIT_LIMIT,
    G_COMMITTED,
    G_LOST,
    G_MAX_MAP_COUNT,
    G_OVERCOMMIT,
    G_REFUSED_MAPS,
    G_TOTAL,
    G_USER_RESERVE,
    M_BRK,
    M_REFUSED,
    M_TOTAL_VM,
    PAGE_SHIFT,
    V_END,
    V_FLAGS,
    V_START,
    VM_ACCOUNT,
    VM_DONTCOPY,
    VM_NORESERVE,
    VM_SHARED,
    VM_WRITE,
)
from pterefd.mm.vma import pages_of, vma_at, vma_count, vma_first, vma_record

OVERCOMMIT_GUESS = 0
OVERCOMMIT_ALWAYS = 1
OVERCOMMIT_NEVER = 2


@kernel
def strict_flags(s, vm):
    """Under overcommit_memory 2 MAP_NORESERVE counts for nothing (do_mmap)."""
    if s.g[G_ACCOUNT] and s.g[G_OVERCOMMIT] == OVERCOMMIT_NEVER and vm & VM_NORESERVE:
        vm &= ~VM_NORESERVE
        if vm & (VM_SHARED | VM_WRITE) == VM_WRITE:
            vm |= VM_ACCOUNT
    return vm


@kernel
def enough_memory(s, m, pages):
    """__vm_enough_memory for pages more of mm m."""
    mode = s.g[G_OVERCOMMIT]
    if mode == OVERCOMMIT_ALWAYS:
        return True
    if mode == OVERCOMMIT_GUESS:
        return pages <= s.g[G_TOTAL]
    allowed = s.g[G_COMMIT_LIMIT] - min(s.mm[m, M_TOTAL_VM] // 32, s.g[G_USER_RESERVE])
    return s.g[G_COMMITTED] + pages < allowed


@kernel
def refuse(s, m):
    """The mm is refused a mapping: later accesses to where it would be are lost."""
    s.mm[m, M_REFUSED] += 1
    s.g[G_REFUSED_MAPS] += 1
    s.g[G_LOST] += 1


@kernel
def may_map(s, m, start, end, vm, anonymous):
    """Does the host grant mm m a new mapping of [start, end) with these VM_* flags? anonymous: no file shows there.

    What it takes the place of is given back first (vms->nr_accounted).
    """
    if not s.g[G_ACCOUNT]:
        return True
    if vma_count(s, m) > s.g[G_MAX_MAP_COUNT]:
        return False
    shmem = anonymous and vm & (VM_SHARED | VM_NORESERVE) == VM_SHARED  # shmem_acct_size
    if not (vm & VM_ACCOUNT or shmem):
        return True
    return enough_memory(s, m, ((end - start) >> PAGE_SHIFT) - _accounted(s, m, start, end))


@kernel
def _accounted(s, m, start, end):
    """Pages of [start, end) that count as committed by the mm."""
    pages = 0
    k = vma_first(s, m, start)
    while k < vma_count(s, m) and s.vma[vma_record(s, m, k), V_START] < end:
        v = vma_record(s, m, k)
        if s.vma[v, V_FLAGS] & VM_ACCOUNT:
            pages += (min(end, s.vma[v, V_END]) - max(start, s.vma[v, V_START])) >> PAGE_SHIFT
        k += 1
    return pages


@kernel
def may_fork(s, m):
    """dup_mmap: is there memory for a copy of each mapping that counts as committed?"""
    total = 0
    for k in range(vma_count(s, m)):
        v = vma_record(s, m, k)
        if s.vma[v, V_FLAGS] & (VM_ACCOUNT | VM_DONTCOPY) == VM_ACCOUNT:
            total += (s.vma[v, V_END] - s.vma[v, V_START]) >> PAGE_SHIFT
            # the child's are counted one after another, the heuristic looks at each alone
            if not enough_memory(s, m, total if s.g[G_OVERCOMMIT] == OVERCOMMIT_NEVER else pages_of(s, v)):
                return False
    return True


@kernel
def may_grow_heap(s, m, addr):
    """Does the host grant the heap an end at addr?"""
    if not s.g[G_ACCOUNT] or s.mm[m, M_BRK] == 0 or addr <= s.mm[m, M_BRK]:
        return True
    return may_map(s, m, s.mm[m, M_BRK], addr, VM_WRITE | VM_ACCOUNT, True)


@kernel
def may_resize(s, m, addr, pages):
    """Does the host grant the mapping at addr so many pages more (mremap)?"""
    if not s.g[G_ACCOUNT] or pages <= 0:
        return True
    k = vma_at(s, m, addr)
    if k >= 0 and vma_count(s, m) > s.g[G_MAX_MAP_COUNT]:
        return False
    return k < 0 or not s.vma[vma_record(s, m, k), V_FLAGS] & VM_ACCOUNT or enough_memory(s, m, pages)
