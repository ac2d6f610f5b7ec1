"""What frees PTE pages by itself, short of munmap: PT_RECLAIM, and the mails of 2021 and April 2022.

kernel-rules.md, sections 2.2 and 4.2. The two series take only empty PTE pages; the tables above stay.
"""

from __future__ import annotations

from pterefd.engine.entries import apply, free_page
from pterefd.engine.folios import folded
from pterefd.engine.jit import inline, kernel
from pterefd.engine.layout import (
    E_ANON,
    E_LAZY,
    M_E,
    M_FREED_AUTO,
    M_PROFILE,
    M_REF_UPDATES,
    M_WALKS,
    P_ENT,
    P_REF,
    PMD_ATOMIC,
    REF_MAPPED,
    T_DROP,
    T_FREE,
    T_LAZY,
    T_SWAP_OUT,
    T_UNMAP_FILE,
    T_ZAP,
)
from pterefd.engine.tables import has_bit, note_freed, put_bit
from pterefd.mm.profile import PF_AUTO_FREE, PF_CONT_PTE, PF_LAST_REF, PF_PERCPU_REF


@kernel
def free_by_itself(s, m, t, i):
    """Free the PTE page at t, i because the profile does."""
    free_page(s, m, t, i)
    s.mm[m, M_FREED_AUTO] += 1
    note_freed(s, t, i)


@inline
def _is_empty(s, t, i):
    """True where the PTE page at t, i has no entry set."""
    return s.pte[s.pmd[t, i], P_REF] & REF_MAPPED == 0


@kernel
def put_page(s, m, t, i):
    """atomic-2021: a walker drops its reference to the PTE page at t, i; the last one frees it (pte_put)."""
    if s.mm[m, M_PROFILE] & PF_LAST_REF and _is_empty(s, t, i):
        free_by_itself(s, m, t, i)


@kernel
def _try_to_free(s, m, t, i, switch_back):
    """percpu-2022, mm/pte_ref.c try_to_free_user_pte: the percpu_ref goes to atomic mode; at zero the page is freed.

    switch_back: back to percpu mode where it was not zero.
    """
    if _is_empty(s, t, i):
        free_by_itself(s, m, t, i)
    else:
        put_bit(s, t, PMD_ATOMIC, i, not switch_back)


@kernel
def _has_lazy(s, p, begin, end):
    """True where MADV_FREE has marked a page of the entries [begin, end)."""
    e = s.pte[p, P_ENT]
    if e <= 0:
        return -e & E_LAZY != 0
    for j in range(begin, end):
        if s.ent[e, j] & E_LAZY:
            return True
    return False


@kernel
def _try_after(s, m, t, i, begin, end, transition, fewer_anon):
    """percpu-2022, after a walker has changed the entries [begin, end).

    zap_page_range, zap_page_range_single (MADV_DONTNEED, truncation, hole punch) and madvise_free_pte_range try to
    free; page_vma_mapped_walk does after it unmapped a clean MADV_FREE page, where the ref is in atomic mode.
    """
    if transition == T_ZAP or transition == T_UNMAP_FILE:
        _try_to_free(s, m, t, i, True)
    elif transition == T_FREE:
        _try_to_free(s, m, t, i, not _has_lazy(s, s.pmd[t, i], begin, end))
    elif (
        (transition == T_DROP or transition == T_LAZY)
        and fewer_anon
        and has_bit(s, t, PMD_ATOMIC, i)
        and _is_empty(s, t, i)
    ):
        free_by_itself(s, m, t, i)


@kernel
def change(s, m, t, i, begin, end, transition):
    """A walker applies a transition to the entries [begin, end) of the PTE page at t, i, which may free the page."""
    anon = s.mm[m, M_E + E_ANON]
    x = s.pte[s.pmd[t, i], P_ENT]
    if s.mm[m, M_PROFILE] & PF_CONT_PTE and x > 0 and s.entfol[x]:
        s.mm[m, M_REF_UPDATES] += 32 * folded(s, x, begin, end)
    changed = apply(s, m, t, i, s.pmd[t, i], begin, end, transition)
    # reclaim comes to each page by itself, through the rmap (page_vma_mapped_walk)
    by_page = transition == T_SWAP_OUT or transition == T_DROP or transition == T_LAZY
    s.mm[m, M_WALKS] += changed if by_page else 1
    flags = s.mm[m, M_PROFILE]
    if flags & PF_AUTO_FREE == 0:
        return
    if flags & PF_PERCPU_REF:
        _try_after(s, m, t, i, begin, end, transition, s.mm[m, M_E + E_ANON] < anon)
    else:
        put_page(s, m, t, i)
