"""Accesses: what a read or a write of a page does (mm/memory.c handle_mm_fault). kernel-rules.md, 2.1 and 3.

Where the entry already allows an access nothing changes, so an access and a fault are one event.
"""

from __future__ import annotations

from pterefd.engine.entries import apply, apply_one, entry_at
from pterefd.engine.jit import inline, kernel
from pterefd.engine.layout import (
    E_GUARD,
    E_NONE,
    E_STATE,
    E_SWAP,
    G_HUGETLB,
    G_LOST,
    G_OUTSIDE,
    G_REFUSED,
    M_FAULTS,
    M_REFUSED,
    PAGE,
    SPAN,
    T_POPULATE,
    T_READ,
    T_WRITE,
    T_WRITE_FILE,
    V_END,
    V_FLAGS,
    V_OBJ,
    V_START,
    VM_ACCESS,
    VM_GROWSDOWN,
    VM_HUGETLB,
    VM_IMPLIED,
    VM_READ,
    VM_SHARED,
    VM_WRITE,
)
from pterefd.engine.tables import entry_index, make_page, make_pmd, page_of, span_index
from pterefd.mm.files import beyond_end, cache_page, map_page, read_fault
from pterefd.mm.huge import ACCESS_POPULATE, huge_access, write_entries
from pterefd.mm.vma import account, add_range, prepare_anon, set_start, vma_at, vma_count, vma_first, vma_record

STACK_GUARD_PAGES = 256  # stack_guard_gap
STACK_LIMIT = 8 << 20  # RLIMIT_STACK's usual value; recordings do not say it


@kernel
def allows(flags, write):
    """access_error: may a mapping with these flags be accessed so?"""
    if write:
        return flags & VM_WRITE != 0
    return flags & VM_ACCESS != 0


@kernel
def expand_stack(s, m, addr):
    """expand_downwards: the VM_GROWSDOWN mapping above addr comes down to it. Its index, -1 where refused."""
    k = vma_first(s, m, addr)
    if k >= vma_count(s, m):
        return -1
    v = vma_record(s, m, k)
    if not s.vma[v, V_FLAGS] & VM_GROWSDOWN:
        return -1
    if k > 0:
        below = vma_record(s, m, k - 1)
        flags = s.vma[below, V_FLAGS]
        near = addr - s.vma[below, V_END] < STACK_GUARD_PAGES * PAGE
        if near and flags & VM_ACCESS and not flags & VM_GROWSDOWN:
            return -1
    prepare_anon(s, m, k)  # stays where acct_stack_growth then refuses
    if s.vma[v, V_END] - addr > STACK_LIMIT:
        return -1
    account(s, m, s.vma[v, V_FLAGS], (s.vma[v, V_START] - addr) >> 12)
    set_start(s, m, k, addr)
    return k


@kernel
def mapping_for(s, m, addr, end, failed, imply):
    """Index of the mapping that an access of addr meets; -1 where none.

    failed: the access is known to have failed, so nothing grows for it.

    imply: where none is, count the access and take [addr, end of hole or of the access) as anonymous
    memory that the recording missed.
    """
    k = vma_at(s, m, addr)
    if k >= 0:
        return k
    k = expand_stack(s, m, addr)
    if k >= 0 or failed:
        return k
    if s.mm[m, M_REFUSED]:
        s.g[G_LOST] += 1  # most likely to what the host did not grant
        return -1
    if not imply:
        s.g[G_OUTSIDE] += 1
        return -1
    following = vma_first(s, m, addr)
    if following < vma_count(s, m):
        end = min(end, s.vma[vma_record(s, m, following), V_START])
    s.g[G_OUTSIDE] += (end - addr) >> 12
    return add_range(s, m, addr, end, VM_READ | VM_WRITE | VM_IMPLIED, addr >> 12, -1, 0, 0, False, True, True, True)


@kernel
def next_mapped(s, m, addr, end):
    """Start of the first mapping above addr, which lies in none; end where there is none below it."""
    k = vma_first(s, m, addr)
    return min(end, s.vma[vma_record(s, m, k), V_START]) if k < vma_count(s, m) else end


@inline
def write_of(write):
    """The transition of an anonymous page that is written to."""
    return T_POPULATE if write == ACCESS_POPULATE else T_WRITE


@kernel
def _fault_anon(s, m, k, addr, write):
    """do_anonymous_page, do_wp_page, do_swap_page of one page, or what a huge page has instead."""
    v = vma_record(s, m, k)
    if s.vma[v, V_OBJ] < 0 and huge_access(s, m, k, addr, addr + PAGE, write):
        return True
    t = make_page(s, m, addr)
    i = span_index(addr)
    p = s.pmd[t, i]
    j = entry_index(addr)
    if entry_at(s, p, j) & E_STATE == E_GUARD:
        s.g[G_REFUSED] += 1
        return False
    if write:
        prepare_anon(s, m, k)
        write_entries(s, m, v, t, i, addr, addr + PAGE)
        changed = apply_one(s, m, t, i, p, j, T_WRITE_FILE if s.vma[v, V_OBJ] > 0 else write_of(write))
    else:
        changed = apply_one(s, m, t, i, p, j, T_READ)
    if changed:
        s.mm[m, M_FAULTS] += 1
    return True


@kernel
def _state_at(s, m, addr):
    """State of addr's entry; E_NONE where there is no PTE page."""
    p = page_of(s, m, addr)
    return entry_at(s, p, entry_index(addr)) & E_STATE if p else E_NONE


@kernel
def _fault_file(s, m, k, addr, write):
    """do_read_fault, do_cow_fault, do_shared_fault and what follows on a mapped page."""
    v = vma_record(s, m, k)
    state = _state_at(s, m, addr)
    if state == E_GUARD:
        s.g[G_REFUSED] += 1
        return False
    private = not s.vma[v, V_FLAGS] & VM_SHARED
    if state != E_NONE:
        return _fault_anon(s, m, k, addr, write) if (private and write) or state == E_SWAP else True
    if not (private and write):  # a copy is counted where it is made
        s.mm[m, M_FAULTS] += 1
    if not write:
        return read_fault(s, m, v, addr)
    make_pmd(s, m, addr)
    if private:
        prepare_anon(s, m, k)
    if beyond_end(s, v, addr):
        return False
    if private:
        cache_page(s, m, v, addr)  # do_cow_fault copies a page that __do_fault brought into the page cache
        return _fault_anon(s, m, k, addr, write)
    map_page(s, m, v, addr)
    return True


@kernel
def fault_page(s, m, k, addr, write):
    """One page of the k-th mapping, access rights checked. False: the access failed (a signal).

    write: ACCESS_* of mm/huge.py.
    """
    v = vma_record(s, m, k)
    flags = s.vma[v, V_FLAGS]
    if flags & VM_HUGETLB:
        s.g[G_HUGETLB] += 1
        return True
    if not allows(flags, write):
        s.g[G_REFUSED] += 1
        return False
    if s.vma[v, V_OBJ] > 0:
        return _fault_file(s, m, k, addr, write)
    return _fault_anon(s, m, k, addr, write)


@kernel
def fill_span(s, m, k, addr, end, write):
    """Pages of one span, of anonymous memory that allows the access; guard markers are left alone."""
    if huge_access(s, m, k, addr, end, write):
        return
    t = make_page(s, m, addr)
    i = span_index(addr)
    if write:
        write_entries(s, m, vma_record(s, m, k), t, i, addr, end)
    transition = write_of(write) if write else T_READ
    changed = apply(s, m, t, i, s.pmd[t, i], entry_index(addr), ((end - 1) >> 12 & 511) + 1, transition)
    s.mm[m, M_FAULTS] += changed


@kernel
def fault_range(s, m, start, end, write, failed, imply):
    """Every page of [start, end) is accessed, in order; a page that fails is passed over."""
    addr = start
    while addr < end:
        k = mapping_for(s, m, addr, end, failed, imply)
        if k < 0:
            addr = next_mapped(s, m, addr, end) if s.mm[m, M_REFUSED] else addr + PAGE
            continue
        v = vma_record(s, m, k)
        piece = min(end, s.vma[v, V_END])
        flags = s.vma[v, V_FLAGS]
        if not allows(flags, write):
            s.g[G_REFUSED] += (piece - addr) >> 12
            addr = piece
        elif s.vma[v, V_OBJ] > 0 or flags & VM_HUGETLB:
            while addr < piece:
                fault_page(s, m, k, addr, write)
                addr += PAGE
        else:
            if write:
                prepare_anon(s, m, k)
            while addr < piece:
                high = min((addr & ~(SPAN - 1)) + SPAN, piece)
                fill_span(s, m, k, addr, high, write)
                addr = high
