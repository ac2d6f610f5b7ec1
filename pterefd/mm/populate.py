"""Populate, mlock, mprotect: mm/gup.c, mm/mlock.c, mm/mprotect.c. kernel-rules.md, sections 2.1, 2.6, 9.

A kernel that may fail returns the errno (positive), 0 where it succeeds; a part may be done then.
"""

from __future__ import annotations

from pterefd.engine.entries import is_huge, present_between
from pterefd.engine.jit import kernel
from pterefd.engine.layout import (
    M_DEF_FLAGS,
    M_PROFILE,
    M_REF_UPDATES,
    M_WALKS,
    PAGE,
    SPAN,
    V_ANON,
    V_END,
    V_FLAGS,
    V_OBJ,
    V_START,
    VM_ACCESS,
    VM_ACCOUNT,
    VM_HUGETLB,
    VM_LOCKED,
    VM_LOCKED_MASK,
    VM_LOCKONFAULT,
    VM_MAYBE_GUARD,
    VM_NORESERVE,
    VM_PFNMAP,
    VM_POLICY,
    VM_READ,
    VM_SHARED,
    VM_SPECIAL,
    VM_WRITE,
)
from pterefd.engine.tables import entry_index, next_page, page_of
from pterefd.mm.fault import allows, fault_page, fill_span
from pterefd.mm.huge import ACCESS_POPULATE, ACCESS_READ
from pterefd.mm.profile import PF_COUNTED, PF_UNACCOUNT
from pterefd.mm.vma import modify_range, prepare_anon, vma_at, vma_count, vma_first, vma_record

ENOMEM = 12
EFAULT = 14
EINVAL = 22
ADDRESS_END = 1 << 47


@kernel
def fault_in(s, m, k, start, end, write, force):
    """Pages [start, end) of the k-th mapping through get_user_pages; stops at the first that fails. True: all done.

    force: FOLL_FORCE, so that a mapping which can be accessed at all can be read.
    """
    v = vma_record(s, m, k)
    flags = s.vma[v, V_FLAGS]
    access = ACCESS_POPULATE if write else ACCESS_READ
    if not allows(flags, access) or not (write or force or flags & VM_READ):
        return False
    s.mm[m, M_WALKS] += (end - start) >> 12  # follow_page_mask looks at each page
    addr = start
    if s.vma[v, V_OBJ] < 0 and not flags & (VM_MAYBE_GUARD | VM_HUGETLB):
        if write and start < end:
            prepare_anon(s, m, k)
        while addr < end:
            high = min((addr & ~(SPAN - 1)) + SPAN, end)
            fill_span(s, m, k, addr, high, access)
            addr = high
        return True
    while addr < end:
        if not fault_page(s, m, k, addr, access):
            return False
        addr += PAGE
    return True


@kernel
def populate(s, m, start, end, keep_on):
    """__mm_populate: write access where private and writable. keep_on: errors are ignored (mmap)."""
    k = vma_first(s, m, start)
    while k < vma_count(s, m):
        v = vma_record(s, m, k)
        if s.vma[v, V_START] >= end:
            break
        flags = s.vma[v, V_FLAGS]
        low = max(start, s.vma[v, V_START])
        high = min(end, s.vma[v, V_END])
        if not flags & (VM_PFNMAP | VM_LOCKONFAULT):
            write = flags & (VM_WRITE | VM_SHARED) == VM_WRITE
            if not fault_in(s, m, k, low, high, write, True) and not keep_on:
                return ENOMEM
        k += 1
    return 0


@kernel
def _lock_flags(s, m, start, end, lock):
    """apply_vma_lock_flags: every mapping up to the first hole. ENOMEM where there is one."""
    k = vma_at(s, m, start)
    if k < 0:
        return ENOMEM
    addr = start
    while addr < end:
        if k >= vma_count(s, m) or s.vma[vma_record(s, m, k), V_START] > addr:
            return ENOMEM
        v = vma_record(s, m, k)
        piece = min(end, s.vma[v, V_END])
        flags = s.vma[v, V_FLAGS]
        wanted = (flags & ~VM_LOCKED_MASK) | lock
        if wanted != flags and not flags & (VM_SPECIAL | VM_PFNMAP | VM_HUGETLB):
            modify_range(s, m, k, addr, piece, wanted)
            k = vma_at(s, m, piece - PAGE)
        addr = piece
        if k >= 0 and s.vma[vma_record(s, m, k), V_END] <= addr:
            k += 1
    return 0


@kernel
def _may_fail(s, m, start, end, onfault):
    """Whether an mlock of [start, end) can fail behind the check of RLIMIT_MEMLOCK: at a hole, or when it populates."""
    addr = start
    while addr < end:
        k = vma_at(s, m, addr)
        if k < 0:
            return True
        v = vma_record(s, m, k)
        flags = s.vma[v, V_FLAGS]
        if not onfault and not flags & VM_PFNMAP:
            access = ACCESS_READ if flags & VM_SHARED or not flags & VM_WRITE else ACCESS_POPULATE
            if not allows(flags, access) or s.vma[v, V_OBJ] >= 0 or flags & VM_MAYBE_GUARD:
                return True
        addr = s.vma[v, V_END]
    return False


@kernel
def mlock(s, m, start, end, onfault, failed):
    """mlock, mlock2: flags up to the first hole, then populate. failed: with ENOMEM, as by RLIMIT_MEMLOCK, too."""
    if failed and not _may_fail(s, m, start, end, onfault):
        return ENOMEM
    error = _lock_flags(s, m, start, end, VM_LOCKED_MASK if onfault else VM_LOCKED)
    if error:
        return error
    return populate(s, m, start, end, False)


@kernel
def lock_all(s, m, current, future):
    """mlockall, munlockall (apply_mlockall_flags): what new mappings get, and what all get that are there.

    current, future: VM_LOCKED with or without VM_LOCKONFAULT, 0: not; current -1: mappings stay as they are.
    """
    s.mm[m, M_DEF_FLAGS] = (s.mm[m, M_DEF_FLAGS] & ~VM_LOCKED_MASK) | future
    if current < 0:
        return
    k = 0
    while k < vma_count(s, m):
        v = vma_record(s, m, k)
        start = s.vma[v, V_START]
        end = s.vma[v, V_END]
        _lock_flags(s, m, start, end, current)
        k = vma_at(s, m, end - PAGE) + 1
    if current:
        populate(s, m, 0, ADDRESS_END, True)


@kernel
def mbind(s, m, start, end, policy):
    """mm/mempolicy.c mbind_range: a policy of their own, or the process's again. policy: VM_POLICY or 0."""
    addr = start
    while addr < end:
        k = vma_first(s, m, addr)
        if k >= vma_count(s, m):
            return
        v = vma_record(s, m, k)
        low = max(addr, s.vma[v, V_START])
        if low >= end:
            return
        addr = min(end, s.vma[v, V_END])
        flags = (s.vma[v, V_FLAGS] & ~VM_POLICY) | policy
        if flags != s.vma[v, V_FLAGS]:
            modify_range(s, m, k, low, addr, flags)


@kernel
def munlock(s, m, start, end):
    """munlock: the flags go up to the first hole; no entry changes."""
    return _lock_flags(s, m, start, end, 0)


@kernel
def protected_flags(s, m, v, prot):
    """mprotect_fixup: a mapping's flags with new protection, VM_ACCOUNT as it is charged."""
    old = s.vma[v, V_FLAGS]
    flags = (old & ~VM_ACCESS) | prot
    if flags == old:
        return old
    if flags & VM_WRITE:
        if not old & (VM_ACCOUNT | VM_WRITE | VM_HUGETLB | VM_SHARED | VM_NORESERVE):
            flags |= VM_ACCOUNT
    elif s.mm[m, M_PROFILE] & PF_UNACCOUNT and old & VM_ACCOUNT and s.vma[v, V_OBJ] < 0 and s.vma[v, V_ANON] == 0:
        flags &= ~VM_ACCOUNT
    return flags


@kernel
def _note_protect(s, m, start, end):
    """change_pte_range walks the PTE pages of [start, end); a present entry is cleared and set again."""
    tracked = s.mm[m, M_PROFILE] & PF_COUNTED
    addr = next_page(s, m, start, end)
    while addr < end:
        span = addr & ~(SPAN - 1)
        p = page_of(s, m, span)
        if not is_huge(s, p):
            s.mm[m, M_WALKS] += 1
            if tracked:
                low = entry_index(max(span, start))
                high = entry_index(min(span + SPAN, end) - 1) + 1
                s.mm[m, M_REF_UPDATES] += 2 * present_between(s, p, low, high)
        addr = next_page(s, m, span + SPAN, end)


@kernel
def mprotect(s, m, start, end, prot):
    """do_mprotect_pkey: mapping by mapping up to the first hole; locked ones that become writable are populated."""
    k = vma_at(s, m, start)
    if k < 0:
        return ENOMEM
    addr = start
    while addr < end:
        k = vma_at(s, m, addr)
        if k < 0:
            return ENOMEM
        v = vma_record(s, m, k)
        piece = min(end, s.vma[v, V_END])
        old = s.vma[v, V_FLAGS]
        flags = protected_flags(s, m, v, prot)
        if flags != old:
            k = modify_range(s, m, k, addr, piece, flags)
            _note_protect(s, m, addr, piece)
            if old & (VM_WRITE | VM_SHARED | VM_LOCKED) == VM_LOCKED and prot & VM_WRITE and not old & VM_LOCKONFAULT:
                fault_in(s, m, k, addr, piece, True, True)
        addr = piece
    return 0
