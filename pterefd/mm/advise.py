"""madvise: mm/madvise.c. kernel-rules.md, sections 2.2, 2.3, 3 and 9.

The walk goes on over holes (ENOMEM at the end) and ends at a mapping that refuses (EINVAL).
"""

from __future__ import annotations

from pterefd.engine.entries import apply, is_huge
from pterefd.engine.huge import split_pmd
from pterefd.engine.jit import kernel
from pterefd.engine.layout import (
    M_PROFILE,
    M_WALKS,
    SPAN,
    T_GUARD,
    T_UNGUARD,
    V_END,
    V_FLAGS,
    V_OBJ,
    V_PGOFF,
    V_START,
    VM_DONTCOPY,
    VM_DONTDUMP,
    VM_HUGEPAGE,
    VM_HUGETLB,
    VM_LOCKED,
    VM_MAYBE_GUARD,
    VM_MERGEABLE,
    VM_NOHUGEPAGE,
    VM_PFNMAP,
    VM_RAND_READ,
    VM_SEQ_READ,
    VM_SHARED,
    VM_SPECIAL,
    VM_WIPEONFORK,
)
from pterefd.engine.tables import entry_index, make_page, span_index
from pterefd.mm.events import ADVICE_CODE
from pterefd.mm.files import punch
from pterefd.mm.huge import AGE_COLD, AGE_FREE, AGE_PAGEOUT, age, collapse
from pterefd.mm.populate import EINVAL, ENOMEM, fault_in
from pterefd.mm.profile import PF_GUARD, PF_POPULATE
from pterefd.mm.unmap import change_range, note_rss, zap_dontneed
from pterefd.mm.vma import modify_range, prepare_anon, vma_at, vma_count, vma_first, vma_record

A_NORMAL = ADVICE_CODE["normal"]
A_RANDOM = ADVICE_CODE["random"]
A_SEQUENTIAL = ADVICE_CODE["sequential"]
A_DONTNEED = ADVICE_CODE["dontneed"]
A_DONTNEED_LOCKED = ADVICE_CODE["dontneed_locked"]
A_FREE = ADVICE_CODE["free"]
A_COLD = ADVICE_CODE["cold"]
A_PAGEOUT = ADVICE_CODE["pageout"]
A_POPULATE_READ = ADVICE_CODE["populate_read"]
A_POPULATE_WRITE = ADVICE_CODE["populate_write"]
A_HUGEPAGE = ADVICE_CODE["hugepage"]
A_NOHUGEPAGE = ADVICE_CODE["nohugepage"]
A_COLLAPSE = ADVICE_CODE["collapse"]
A_DONTFORK = ADVICE_CODE["dontfork"]
A_DOFORK = ADVICE_CODE["dofork"]
A_WIPEONFORK = ADVICE_CODE["wipeonfork"]
A_KEEPONFORK = ADVICE_CODE["keeponfork"]
A_GUARD_INSTALL = ADVICE_CODE["guard_install"]
A_GUARD_REMOVE = ADVICE_CODE["guard_remove"]
A_REMOVE = ADVICE_CODE["remove"]
A_MERGEABLE = ADVICE_CODE["mergeable"]
A_UNMERGEABLE = ADVICE_CODE["unmergeable"]
A_DONTDUMP = ADVICE_CODE["dontdump"]
A_DODUMP = ADVICE_CODE["dodump"]


@kernel
def _new_flags(flags, advice):
    """madvise_vma_behavior: flags after an advice that only sets flags; -1 where it is none of these."""
    if advice == A_NORMAL:
        return flags & ~(VM_RAND_READ | VM_SEQ_READ)
    if advice == A_RANDOM:
        return (flags & ~VM_SEQ_READ) | VM_RAND_READ
    if advice == A_SEQUENTIAL:
        return (flags & ~VM_RAND_READ) | VM_SEQ_READ
    if advice == A_DONTFORK:
        return flags | VM_DONTCOPY
    if advice == A_DOFORK:
        return flags & ~VM_DONTCOPY
    if advice == A_WIPEONFORK:
        return flags | VM_WIPEONFORK
    if advice == A_KEEPONFORK:
        return flags & ~VM_WIPEONFORK
    if advice == A_DONTDUMP:
        return flags | VM_DONTDUMP
    if advice == A_DODUMP:
        return flags & ~VM_DONTDUMP
    if advice == A_HUGEPAGE:
        return (flags & ~VM_NOHUGEPAGE) | VM_HUGEPAGE
    if advice == A_NOHUGEPAGE:
        return (flags & ~VM_HUGEPAGE) | VM_NOHUGEPAGE
    if advice == A_MERGEABLE:
        # vma_ksm_compatible: others are passed over without an error
        fits = not flags & (VM_SHARED | VM_PFNMAP | VM_HUGETLB | VM_SPECIAL)
        return flags | VM_MERGEABLE if fits else -1
    if advice == A_UNMERGEABLE:
        return flags & ~VM_MERGEABLE
    return -1


@kernel
def _refuses(flags, obj, advice):
    """True where a mapping answers EINVAL to the advice."""
    if advice == A_DONTNEED or advice == A_COLD or advice == A_PAGEOUT:
        return flags & (VM_LOCKED | VM_PFNMAP | VM_HUGETLB) != 0
    if advice == A_DONTNEED_LOCKED:
        return flags & (VM_PFNMAP | VM_HUGETLB) != 0
    if advice == A_FREE:
        return obj >= 0 or flags & (VM_LOCKED | VM_PFNMAP) != 0
    if advice == A_GUARD_INSTALL:
        return flags & (VM_LOCKED | VM_SPECIAL | VM_PFNMAP | VM_HUGETLB) != 0
    if advice == A_GUARD_REMOVE:
        return flags & (VM_SPECIAL | VM_PFNMAP | VM_HUGETLB) != 0
    if advice == A_WIPEONFORK:
        return obj >= 0 or flags & VM_SHARED != 0
    if advice == A_REMOVE:
        return flags & VM_LOCKED != 0 or obj < 0 or not flags & VM_SHARED
    return False


@kernel
def _install_guards(s, m, k, start, end):
    """madvise_guard_install: a marker in every entry of the piece; its tables are made."""
    v = vma_record(s, m, k)
    s.vma[v, V_FLAGS] |= VM_MAYBE_GUARD
    if s.vma[v, V_OBJ] < 0:
        prepare_anon(s, m, k)
    note_rss(s, m)
    addr = start
    while addr < end:
        high = min((addr & ~(SPAN - 1)) + SPAN, end)
        t = make_page(s, m, addr)
        i = span_index(addr)
        if is_huge(s, s.pmd[t, i]):  # zapped first: the new PTE page takes the deposit's place
            split_pmd(s, m, t, i)
        apply(s, m, t, i, s.pmd[t, i], entry_index(addr), ((high - 1) >> 12 & 511) + 1, T_GUARD)
        s.mm[m, M_WALKS] += 1
        addr = high


@kernel
def _act(s, m, k, start, end, advice):
    """The advice on one mapping's piece [start, end). False: it failed there, and the call ends (EINVAL)."""
    v = vma_record(s, m, k)
    if advice == A_DONTNEED or advice == A_DONTNEED_LOCKED:
        zap_dontneed(s, m, start, end)
    elif advice == A_FREE:
        age(s, m, start, end, AGE_FREE)
    elif advice == A_COLD:
        age(s, m, start, end, AGE_COLD)
    elif advice == A_PAGEOUT:
        age(s, m, start, end, AGE_PAGEOUT)
    elif advice == A_COLLAPSE:
        return collapse(s, m, k, start, end)
    elif advice == A_GUARD_INSTALL:
        _install_guards(s, m, k, start, end)
    elif advice == A_GUARD_REMOVE:
        change_range(s, m, start, end, T_UNGUARD)
    elif advice == A_REMOVE:
        shift = s.vma[v, V_PGOFF] - (s.vma[v, V_START] >> 12)
        punch(s, s.vma[v, V_OBJ], (start >> 12) + shift, (end >> 12) + shift)
    else:
        flags = s.vma[v, V_FLAGS]
        wanted = _new_flags(flags, advice)
        if wanted >= 0 and wanted != flags:
            modify_range(s, m, k, start, end, wanted)
    return True


@kernel
def _populate(s, m, start, end, write):
    """madvise_populate: stops at what cannot be had, a hole too."""
    addr = start
    while addr < end:
        k = vma_at(s, m, addr)
        if k < 0:
            return ENOMEM
        v = vma_record(s, m, k)
        piece = min(end, s.vma[v, V_END])
        if s.vma[v, V_FLAGS] & VM_PFNMAP or not fault_in(s, m, k, addr, piece, write, False):
            return EINVAL
        addr = piece
    return 0


@kernel
def madvise(s, m, start, end, advice):
    """do_madvise: mapping by mapping. Returns 0, EINVAL (stopped) or ENOMEM (a hole was passed)."""
    populates = advice == A_POPULATE_READ or advice == A_POPULATE_WRITE
    if populates and s.mm[m, M_PROFILE] & PF_POPULATE:
        return _populate(s, m, start, end, advice == A_POPULATE_WRITE)
    if (advice == A_GUARD_INSTALL or advice == A_GUARD_REMOVE) and not s.mm[m, M_PROFILE] & PF_GUARD:
        return EINVAL
    error = 0
    addr = start
    while addr < end:
        k = vma_first(s, m, addr)
        if k >= vma_count(s, m):
            return ENOMEM
        v = vma_record(s, m, k)
        if s.vma[v, V_START] > addr:
            error = ENOMEM
            addr = s.vma[v, V_START]
            if addr >= end:
                break
        piece = min(end, s.vma[v, V_END])
        if populates:
            if _populate(s, m, addr, piece, advice == A_POPULATE_WRITE):
                return EINVAL
            addr = piece
            continue
        if _refuses(s.vma[v, V_FLAGS], s.vma[v, V_OBJ], advice):
            return EINVAL
        if not _act(s, m, k, addr, piece, advice):
            return EINVAL
        addr = piece
    return error
