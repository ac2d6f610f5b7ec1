"""Mappings of an mm: find, split, merge, as mm/vma.c does. kernel-rules.md, sections 8 and 9.

A mapping is a record v of S.vma; its place is its index in the mm's sorted block. Merging decides
which pieces MADV_DONTNEED sees and what fork copies, so it follows the kernel to the letter: equal
flags, contiguous pgoff, compatible anon_vma.
"""

from __future__ import annotations

from pterefd.engine import blocks
from pterefd.engine.entries import is_huge
from pterefd.engine.huge import has_huge, split_pmd
from pterefd.engine.jit import inline, kernel
from pterefd.engine.layout import (
    G_COMMITTED,
    G_NEXT_ANON,
    G_POOLS,
    M_ALIVE,
    M_COMMITTED,
    M_DATA_VM,
    M_EXEC_VM,
    M_HIWATER_VM,
    M_LOCKED_VM,
    M_PFN_HIGH,
    M_PFN_LOW,
    M_PROFILE,
    M_STACK_VM,
    M_TOTAL_VM,
    M_VMAS,
    O_REFS,
    POOL_COLUMNS,
    POOL_MM,
    SPAN,
    V_ANON,
    V_CHAIN,
    V_END,
    V_FLAGS,
    V_OBJ,
    V_PGOFF,
    V_START,
    VM_ACCESS,
    VM_ACCOUNT,
    VM_EXEC,
    VM_GROWSDOWN,
    VM_HUGETLB,
    VM_LOCKED,
    VM_MAYBE_GUARD,
    VM_NO_MERGE,
    VM_PFNMAP,
    VM_SHARED,
    VM_WRITE,
)
from pterefd.engine.objects import forget_object
from pterefd.engine.pools import give_vma, take_vma
from pterefd.engine.tables import pmd_of, span_index
from pterefd.mm.profile import PF_MERGE, PF_MMAP3

EVERY = 1 << 62  # budget of who goes through all mappings of an object

# ---- finding ----------------------------------------------------------------------------------


@inline
def vma_count(s, m):
    """Number of mappings (mm->map_count)."""
    return s.mm[m, M_VMAS + 1]


@inline
def vma_record(s, m, k):
    """Record of the k-th mapping."""
    return s.val[s.mm[m, M_VMAS] + k]


@kernel
def vma_first(s, m, addr):
    """Index of the first mapping that ends above addr (find_vma); vma_count where none."""
    k = blocks.find(s, s.mm, m, M_VMAS, addr)
    if k >= 0 and s.vma[vma_record(s, m, k), V_END] > addr:
        return k
    return k + 1


@kernel
def vma_at(s, m, addr):
    """Index of the mapping that holds addr, -1 where none."""
    k = blocks.find(s, s.mm, m, M_VMAS, addr)
    if k >= 0 and s.vma[vma_record(s, m, k), V_END] > addr:
        return k
    return -1


@kernel
def next_mapping(s, o, m, addr, budget):
    """The first mapping of object o that ends above address addr of mm m, or in a later mm; from (1, 0) on all, i_mmap.

    Returns (mm, record of the mapping, address in it, budget left).  Record 0: there is none, and mm 0; or `budget` mms
    and mappings have been looked at, and (mm, address) is where to go on.
    """
    top = s.g[G_POOLS + POOL_MM * POOL_COLUMNS]
    while m < top and budget > 0:
        if s.mm[m, M_ALIVE]:
            for k in range(vma_first(s, m, addr), vma_count(s, m)):
                v = vma_record(s, m, k)
                addr = max(addr, s.vma[v, V_START])
                if s.vma[v, V_OBJ] == o:
                    return m, v, addr, budget
                if budget <= 0:
                    return m, 0, addr, budget
                budget -= 1
        m += 1
        addr = 0
        budget -= 1
    return m if m < top else 0, 0, 0, budget


@kernel
def is_locked_at(s, m, addr):
    """Does addr's mapping have VM_LOCKED?"""
    if s.mm[m, M_LOCKED_VM] == 0:
        return False
    k = vma_at(s, m, addr)
    return k >= 0 and s.vma[vma_record(s, m, k), V_FLAGS] & VM_LOCKED != 0


# ---- accounting -------------------------------------------------------------------------------


@kernel
def account(s, m, flags, pages):
    """vm_stat_account and locked_vm: pages (negative to take away) of a mapping with these flags."""
    s.mm[m, M_TOTAL_VM] += pages
    if flags & VM_EXEC and not flags & (VM_WRITE | VM_GROWSDOWN):
        s.mm[m, M_EXEC_VM] += pages
    elif flags & VM_GROWSDOWN:
        s.mm[m, M_STACK_VM] += pages
    elif flags & VM_WRITE and not flags & VM_SHARED:
        s.mm[m, M_DATA_VM] += pages
    if flags & VM_LOCKED:
        s.mm[m, M_LOCKED_VM] += pages
    if flags & VM_ACCOUNT:  # vm_acct_memory
        s.mm[m, M_COMMITTED] += pages
        s.g[G_COMMITTED] += pages
    s.mm[m, M_HIWATER_VM] = max(s.mm[m, M_HIWATER_VM], s.mm[m, M_TOTAL_VM])


@kernel
def pages_of(s, v):
    """Length of a mapping in pages."""
    return (s.vma[v, V_END] - s.vma[v, V_START]) >> 12


# ---- records ----------------------------------------------------------------------------------


@kernel
def new_vma(s, start, end, flags, pgoff, obj):
    """A record without anon_vma; not yet in any mm."""
    v = take_vma(s)
    s.vma[v, V_START] = start
    s.vma[v, V_END] = end
    s.vma[v, V_FLAGS] = flags
    s.vma[v, V_PGOFF] = pgoff
    s.vma[v, V_OBJ] = obj
    s.vma[v, V_ANON] = 0
    s.vma[v, V_CHAIN] = 0
    if obj > 0:
        s.obj[obj, O_REFS] += 1
    return v


@kernel
def copy_vma(s, v):
    """vm_area_dup: a record equal to v, not yet in any mm."""
    w = new_vma(s, s.vma[v, V_START], s.vma[v, V_END], s.vma[v, V_FLAGS], s.vma[v, V_PGOFF], s.vma[v, V_OBJ])
    s.vma[w, V_ANON] = s.vma[v, V_ANON]
    s.vma[w, V_CHAIN] = s.vma[v, V_CHAIN]
    return w


@kernel
def drop_vma(s, v):
    """Free a record that is in no mm any more."""
    obj = s.vma[v, V_OBJ]
    if obj > 0:
        s.obj[obj, O_REFS] -= 1
        if s.obj[obj, O_REFS] == 0:  # unnamed shared memory: nobody can map it again
            forget_object(s, obj)
    give_vma(s, v)


@kernel
def put_vma(s, m, v):
    """Insert a record by its start address; the range must be free. Returns its index."""
    k = blocks.find(s, s.mm, m, M_VMAS, s.vma[v, V_START]) + 1
    blocks.insert(s, s.mm, m, M_VMAS, k, s.vma[v, V_START], v)
    return k


@kernel
def set_start(s, m, k, start):
    """Move the start of the k-th mapping, pgoff with it (order must stay)."""
    v = vma_record(s, m, k)
    s.vma[v, V_PGOFF] += (start - s.vma[v, V_START]) >> 12
    s.vma[v, V_START] = start
    s.key[s.mm[m, M_VMAS] + k] = start


@kernel
def split_huge_at(s, m, addr):
    """vma_adjust_trans_huge: a mapping is to begin or end at addr, so no PMD entry may map across it."""
    if addr & (SPAN - 1) and has_huge(s, m):
        t = pmd_of(s, m, addr)
        i = span_index(addr)
        if t and s.pmd[t, i] and is_huge(s, s.pmd[t, i]):
            split_pmd(s, m, t, i)


@kernel
def split_vma(s, m, k, addr):
    """__split_vma: the k-th mapping ends at addr, a new one at k + 1 goes on. The anon_vma is cloned."""
    split_huge_at(s, m, addr)
    v = vma_record(s, m, k)
    w = copy_vma(s, v)
    s.vma[w, V_START] = addr
    s.vma[w, V_PGOFF] += (addr - s.vma[v, V_START]) >> 12
    s.vma[v, V_END] = addr
    blocks.insert(s, s.mm, m, M_VMAS, k + 1, addr, w)


# ---- merging ----------------------------------------------------------------------------------


@kernel
def _anon_fits(s, m, target, anon, from_child):
    """is_mergeable_anon_vma: may target take in a range with this anon_vma (0 none)?

    from_child: the range's own mapping has an anon_vma inherited by fork (vma_is_fork_child).
    """
    theirs = s.vma[target, V_ANON]
    if s.mm[m, M_PROFILE] & PF_MERGE:
        if theirs == 0 and anon != 0:
            return not from_child
        if theirs != 0 and anon == 0:
            return s.vma[target, V_CHAIN] == 1
        return theirs == anon
    if (theirs == 0 or anon == 0) and s.vma[target, V_CHAIN] == 1:
        return True
    return theirs == anon


@kernel
def _alike(s, v, flags, obj):
    """is_mergeable_vma: same object and flags, sticky ones apart; none that never merge."""
    return (s.vma[v, V_FLAGS] ^ flags) & ~VM_MAYBE_GUARD == 0 and s.vma[v, V_OBJ] == obj and not flags & VM_NO_MERGE


@kernel
def _joins_left(s, m, prev, start, flags, pgoff, obj, anon, from_child):
    """can_vma_merge_after: does the range [start, ...) continue prev?"""
    return (
        s.vma[prev, V_END] == start
        and _alike(s, prev, flags, obj)
        and s.vma[prev, V_PGOFF] + pages_of(s, prev) == pgoff
        and _anon_fits(s, m, prev, anon, from_child)
    )


@kernel
def _joins_right(s, m, nxt, end, flags, end_pgoff, obj, anon, from_child):
    """can_vma_merge_before: does nxt continue the range [..., end)?"""
    return (
        s.vma[nxt, V_START] == end
        and _alike(s, nxt, flags, obj)
        and s.vma[nxt, V_PGOFF] == end_pgoff
        and _anon_fits(s, m, nxt, anon, from_child)
    )


@kernel
def _neighbours_agree(s, prev, nxt):
    """are_anon_vmas_compatible, of the two neighbours that a range would join."""
    a = s.vma[prev, V_ANON]
    b = s.vma[nxt, V_ANON]
    return a == 0 or b == 0 or a == b


@kernel
def _take_anon(s, target, anon, chain):
    """dup_anon_vma: the target takes an anon_vma over where it has none."""
    if s.vma[target, V_ANON] == 0 and anon != 0:
        s.vma[target, V_ANON] = anon
        s.vma[target, V_CHAIN] = chain


@kernel
def _remove_at(s, m, k):
    """Take the k-th mapping out and free its record (its range lives on in a neighbour)."""
    v = vma_record(s, m, k)
    blocks.erase(s, s.mm, m, M_VMAS, k, k + 1)
    drop_vma(s, v)


@kernel
def _join_all(s, m, k, anon, chain, sticky):
    """The mapping at k takes in the range up to the one at k + 1, and that one."""
    prev = vma_record(s, m, k)
    nxt = vma_record(s, m, k + 1)
    if s.vma[nxt, V_ANON]:
        _take_anon(s, prev, s.vma[nxt, V_ANON], s.vma[nxt, V_CHAIN])
    else:
        _take_anon(s, prev, anon, chain)
    s.vma[prev, V_END] = s.vma[nxt, V_END]
    s.vma[prev, V_FLAGS] |= (s.vma[nxt, V_FLAGS] | sticky) & VM_MAYBE_GUARD
    _remove_at(s, m, k + 1)


@kernel
def _note_passed_over(s, m, start, end):
    """Walks of the page tables pass over [start, end) (walk_page_test): free_ptes has to look twice there."""
    none_yet = s.mm[m, M_PFN_HIGH] == 0
    s.mm[m, M_PFN_LOW] = start if none_yet else min(start, s.mm[m, M_PFN_LOW])
    s.mm[m, M_PFN_HIGH] = max(end, s.mm[m, M_PFN_HIGH])


@kernel
def add_range(s, m, start, end, flags, pgoff, obj, anon, chain, from_child, left_too, right_too, by_mmap):
    """A new range [start, end), free before: joined to its neighbours or a mapping of its own.

    vma_merge_new_range, then mmap_region's or copy_vma's own record. anon, chain: an anon_vma that
    the range brings along (mremap). left_too, right_too: it may join the mapping below, above.
    by_mmap: it is mmap's, which had rules of its own once (__mmap_region). Returns the index.
    """
    k = blocks.find(s, s.mm, m, M_VMAS, start)
    n = vma_count(s, m)
    end_pgoff = pgoff + ((end - start) >> 12)
    left = left_too and k >= 0
    left = left and _joins_left(s, m, vma_record(s, m, k), start, flags, pgoff, obj, anon, from_child)
    right = right_too and k + 1 < n
    right = right and _joins_right(s, m, vma_record(s, m, k + 1), end, flags, end_pgoff, obj, anon, from_child)
    account(s, m, flags, (end - start) >> 12)
    if flags & (VM_PFNMAP | VM_HUGETLB):
        _note_passed_over(s, m, start, end)
    sticky = flags & VM_MAYBE_GUARD
    old_rules = by_mmap and not s.mm[m, M_PROFILE] & PF_MMAP3
    if left and right and not _joins_both(s, old_rules, vma_record(s, m, k), vma_record(s, m, k + 1)):
        if old_rules:
            left = False
        else:
            right = False
    if left and right:
        _join_all(s, m, k, anon, chain, sticky)
        return k
    if left:
        v = vma_record(s, m, k)
        s.vma[v, V_END] = end
        s.vma[v, V_FLAGS] |= sticky
        _take_anon(s, v, anon, chain)
        return k
    if right:
        v = vma_record(s, m, k + 1)
        set_start(s, m, k + 1, start)
        s.vma[v, V_FLAGS] |= sticky
        _take_anon(s, v, anon, chain)
        return k + 1
    v = new_vma(s, start, end, flags, pgoff, obj)
    s.vma[v, V_ANON] = anon
    s.vma[v, V_CHAIN] = chain
    return put_vma(s, m, v)


@kernel
def _joins_both(s, old_rules, prev, nxt):
    """May a range that fits both neighbours make them one? Section 8, `mmap3`."""
    if not old_rules:
        return _neighbours_agree(s, prev, nxt)
    # old: prev is held against next's anon_vma
    a = s.vma[prev, V_ANON]
    b = s.vma[nxt, V_ANON]
    return a == b or (b == 0 and s.vma[prev, V_CHAIN] == 1) or (a != 0 and b == 0)


@kernel
def modify_range(s, m, k, start, end, flags):
    """[start, end) inside the k-th mapping gets these flags: vma_modify.

    Joined to what it now fits (vma_merge_existing_range), else split off. Returns the index of the
    mapping that holds the range.
    """
    v = vma_record(s, m, k)
    old = s.vma[v, V_FLAGS]
    pages = (end - start) >> 12
    account(s, m, old, -pages)
    account(s, m, flags, pages)
    at_start = start == s.vma[v, V_START]
    at_end = end == s.vma[v, V_END]
    obj = s.vma[v, V_OBJ]
    anon = s.vma[v, V_ANON]
    chain = s.vma[v, V_CHAIN]
    child = chain > 1
    pgoff = s.vma[v, V_PGOFF] + ((start - s.vma[v, V_START]) >> 12)
    left = at_start and k > 0
    left = left and _joins_left(s, m, vma_record(s, m, k - 1), start, flags, pgoff, obj, anon, child)
    right = at_end and k + 1 < vma_count(s, m)
    right = right and _joins_right(s, m, vma_record(s, m, k + 1), end, flags, pgoff + pages, obj, anon, child)
    if left and right and not _neighbours_agree(s, vma_record(s, m, k - 1), vma_record(s, m, k + 1)):
        right = False
    sticky = flags & VM_MAYBE_GUARD
    if left and right:
        _remove_at(s, m, k)
        _join_all(s, m, k - 1, anon, chain, sticky)
        return k - 1
    if left:
        prev = vma_record(s, m, k - 1)
        split_huge_at(s, m, end)
        _take_anon(s, prev, anon, chain)
        s.vma[prev, V_END] = end
        s.vma[prev, V_FLAGS] |= sticky
        if at_end:
            _remove_at(s, m, k)
        else:
            set_start(s, m, k, end)
        return k - 1
    if right:
        nxt = vma_record(s, m, k + 1)
        split_huge_at(s, m, start)
        _take_anon(s, nxt, anon, chain)
        s.vma[nxt, V_FLAGS] |= sticky
        if at_start:
            _remove_at(s, m, k)
            set_start(s, m, k, start)
            return k
        s.vma[v, V_END] = start
        set_start(s, m, k + 1, start)
        return k + 1
    if not at_start:
        split_vma(s, m, k, start)
        k += 1
    if not at_end:
        split_vma(s, m, k, end)
    s.vma[vma_record(s, m, k), V_FLAGS] = flags
    return k


# ---- anon_vma ---------------------------------------------------------------------------------


@kernel
def _reusable(s, old, a, b):
    """reusable_anon_vma: old's, where a (below) and b could have been one mapping, rwx apart."""
    if s.vma[old, V_ANON] == 0 or s.vma[old, V_CHAIN] != 1:
        return False
    return (
        s.vma[a, V_END] == s.vma[b, V_START]
        and s.vma[a, V_OBJ] == s.vma[b, V_OBJ]
        and (s.vma[a, V_FLAGS] ^ s.vma[b, V_FLAGS]) & ~(VM_ACCESS | VM_MAYBE_GUARD) == 0
        and s.vma[a, V_PGOFF] + pages_of(s, a) == s.vma[b, V_PGOFF]
    )


@kernel
def prepare_anon(s, m, k):
    """__anon_vma_prepare: the k-th mapping gets an anon_vma, a neighbour's where it may (next first)."""
    v = vma_record(s, m, k)
    if s.vma[v, V_ANON]:
        return
    if k + 1 < vma_count(s, m):
        nxt = vma_record(s, m, k + 1)
        if _reusable(s, nxt, v, nxt):
            s.vma[v, V_ANON] = s.vma[nxt, V_ANON]
            s.vma[v, V_CHAIN] = 1
            return
    if k > 0:
        prev = vma_record(s, m, k - 1)
        if _reusable(s, prev, prev, v):
            s.vma[v, V_ANON] = s.vma[prev, V_ANON]
            s.vma[v, V_CHAIN] = 1
            return
    s.vma[v, V_ANON] = s.g[G_NEXT_ANON]
    s.vma[v, V_CHAIN] = 1
    s.g[G_NEXT_ANON] += 1
