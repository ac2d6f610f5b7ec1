"""Taking entries and tables away: zap, munmap, the tables of MADV_DONTNEED. kernel-rules.md, 2.2 and 2.4."""

from __future__ import annotations

from pterefd.engine import blocks
from pterefd.engine.entries import holds, is_huge, note_zap, zap_page
from pterefd.engine.huge import split_pmd
from pterefd.engine.jit import kernel
from pterefd.engine.layout import (
    ADDRESS_END,
    E_GUARD,
    M_HIWATER_RSS,
    M_PROFILE,
    M_VMAS,
    SPAN,
    T_UNGUARD,
    T_UNMAP_ALL,
    T_ZAP,
    V_END,
    V_FLAGS,
    V_START,
)
from pterefd.engine.tables import entry_index, free_pgtables, next_page, pmd_of, resident, span_index
from pterefd.mm.auto_free import change, free_by_itself
from pterefd.mm.profile import PF_RECLAIM
from pterefd.mm.vma import account, drop_vma, pages_of, split_vma, vma_count, vma_first, vma_record


@kernel
def note_rss(s, m):
    """update_hiwater_rss, before RSS may fall."""
    s.mm[m, M_HIWATER_RSS] = max(s.mm[m, M_HIWATER_RSS], resident(s, m))


@kernel
def change_range(s, m, start, end, transition):
    """A transition on every entry of [start, end) that has a PTE page; no table is made.

    A PMD entry is split, unless the transition looks for guard markers, of which there are none.
    """
    addr = next_page(s, m, start, end)
    while addr < end:
        span = addr & ~(SPAN - 1)
        low = max(addr, start)
        high = min(span + SPAN, end)
        t = pmd_of(s, m, span)
        i = span_index(span)
        huge = is_huge(s, s.pmd[t, i])
        if huge and transition != T_UNGUARD:
            split_pmd(s, m, t, i)
            huge = False
        if not huge:
            change(s, m, t, i, entry_index(low), ((high - 1) >> 12 & 511) + 1, transition)
        addr = next_page(s, m, span + SPAN, end)


@kernel
def zap_dontneed(s, m, start, end):
    """zap_page_range_single of one mapping's piece, reclaim_pt set: mm/pt_reclaim.c.

    A PTE page goes where the piece covers its whole span and no entry stays (guard markers do); a huge page goes whole
    with its deposit (zap_huge_pmd), or its PMD entry is split.
    """
    note_rss(s, m)
    reclaim = s.mm[m, M_PROFILE] & PF_RECLAIM
    addr = next_page(s, m, start, end)
    while addr < end:
        span = addr & ~(SPAN - 1)
        low = max(addr, start)
        high = min(span + SPAN, end)
        t = pmd_of(s, m, span)
        i = span_index(span)
        p = s.pmd[t, i]
        huge = is_huge(s, p)
        if huge and high - low == SPAN:
            zap_page(s, m, t, i)
        elif reclaim and high - low == SPAN and not holds(s, p, E_GUARD):
            note_zap(s, m, s.pmd[t, i])
            free_by_itself(s, m, t, i)
        else:
            if huge:
                split_pmd(s, m, t, i)
            change(s, m, t, i, entry_index(low), ((high - 1) >> 12 & 511) + 1, T_ZAP)
        addr = next_page(s, m, span + SPAN, end)


@kernel
def munmap(s, m, start, end):
    """do_vmi_munmap of [start, end): mappings split at the ends, zapped, their tables freed."""
    k = vma_first(s, m, start)
    if k >= vma_count(s, m) or s.vma[vma_record(s, m, k), V_START] >= end:
        return
    note_rss(s, m)
    if s.vma[vma_record(s, m, k), V_START] < start:
        split_vma(s, m, k, start)
        k += 1
    last = k
    n = vma_count(s, m)
    while last < n and s.vma[vma_record(s, m, last), V_START] < end:
        v = vma_record(s, m, last)
        if s.vma[v, V_END] > end:
            split_vma(s, m, last, end)
            n += 1
        account(s, m, s.vma[v, V_FLAGS], -pages_of(s, v))
        last += 1
    low = s.vma[vma_record(s, m, k), V_START]
    high = s.vma[vma_record(s, m, last - 1), V_END]
    for j in range(k, last):
        drop_vma(s, vma_record(s, m, j))
    blocks.erase(s, s.mm, m, M_VMAS, k, last)
    floor = s.vma[vma_record(s, m, k - 1), V_END] if k > 0 else 0
    ceiling = s.vma[vma_record(s, m, k), V_START] if k < vma_count(s, m) else ADDRESS_END
    # tables first: what goes with them needs no zap of its own
    free_pgtables(s, m, low, high, floor, ceiling)
    change_range(s, m, low, high, T_UNMAP_ALL)
