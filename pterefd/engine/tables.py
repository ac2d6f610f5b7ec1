"""Upper tables of an mm: find and make PTE pages, go through them in order, free them.

Which tables exist is kept exactly: a bit for every PGD slot with a PUD page, a sorted array of GiB
slots with their PMD pages. The kernel's counters follow: pgtables_bytes = 4096 * (PTE + PMD + PUD).
"""

from __future__ import annotations

from pterefd.engine import blocks
from pterefd.engine.entries import new_page, zap_page
from pterefd.engine.jit import inline, kernel
from pterefd.engine.layout import (
    E_ANON,
    E_FILE,
    E_HUGE,
    E_NONE,
    E_SHMEM,
    G_NOW,
    M_E,
    M_NPMD,
    M_NPUD,
    M_PUDS,
    M_SLOT_HINT,
    M_SLOTS,
    N_KEY,
    N_PMD,
    NEAR,
    NEAR_SHIFT,
    PGD_SHIFT,
    PMD_FREED,
    PMD_NFREED,
    PMD_PAGES,
    SLOT,
    SLOT_SHIFT,
    SPAN,
    SPAN_SHIFT,
)
from pterefd.engine.pools import away_of, give_pmd, take_pmd


@inline
def span_index(addr):
    """Index of addr's span in its PMD page."""
    return (addr >> SPAN_SHIFT) & 511


@inline
def entry_index(addr):
    """Index of addr's entry in its PTE page."""
    return (addr >> 12) & 511


@kernel
def slot_at(s, m, slot):
    """Index in the mm's block of the last GiB slot <= slot, -1 where none."""
    base = s.mm[m, M_SLOTS]
    n = s.mm[m, M_SLOTS + 1]
    h = s.mm[m, M_SLOT_HINT]
    if h < n and s.key[base + h] == slot:
        return h
    h = blocks.find(s, s.mm, m, M_SLOTS, slot)
    s.mm[m, M_SLOT_HINT] = max(h, 0)
    return h


@inline
def near(key):
    """Where S.near has the PMD page of a key: neighbours apart, mms of one layout, too."""
    return (key ^ (key >> NEAR_SHIFT) * 61) & (NEAR - 1)


@kernel
def pmd_of(s, m, addr):
    """The PMD page of addr's GiB slot, 0 where none."""
    slot = addr >> SLOT_SHIFT
    key = (m << NEAR_SHIFT) | slot
    n = near(key)
    if s.near[n, N_KEY] == key:
        return s.near[n, N_PMD]
    h = slot_at(s, m, slot)
    base = s.mm[m, M_SLOTS]
    if h >= 0 and s.key[base + h] == slot:
        s.near[n, N_KEY] = key
        s.near[n, N_PMD] = s.val[base + h]
        return s.val[base + h]
    return 0


@kernel
def _forget_near(s, m, slot):
    """The PMD page of the slot goes from where it is."""
    key = (m << NEAR_SHIFT) | slot
    n = near(key)
    if s.near[n, N_KEY] == key:
        s.near[n, N_KEY] = 0


@kernel
def page_of(s, m, addr):
    """The PTE page of addr's span, 0 where none."""
    t = pmd_of(s, m, addr)
    return s.pmd[t, span_index(addr)] if t else 0


@kernel
def has_pud(s, m, addr):
    """True where addr's PGD slot has a PUD page."""
    p = addr >> PGD_SHIFT
    return (s.mm[m, M_PUDS + (p >> 6)] >> (p & 63)) & 1 == 1


@kernel
def make_pud(s, m, addr):
    """pud_alloc's upper half: the PUD page of addr's PGD slot, made where missing."""
    if not has_pud(s, m, addr):
        p = addr >> PGD_SHIFT
        s.mm[m, M_PUDS + (p >> 6)] |= 1 << (p & 63)
        s.mm[m, M_NPUD] += 1


@kernel
def link_pmd(s, m, addr, t):
    """Put PMD page t at addr's GiB slot, which has none."""
    slot = addr >> SLOT_SHIFT
    make_pud(s, m, addr)
    h = blocks.find(s, s.mm, m, M_SLOTS, slot)
    blocks.insert(s, s.mm, m, M_SLOTS, h + 1, slot, t)
    s.mm[m, M_NPMD] += 1


@kernel
def unlink_pmd(s, m, addr):
    """Take the PMD page of addr's GiB slot out, without freeing it. Returns it, 0 where none."""
    slot = addr >> SLOT_SHIFT
    h = slot_at(s, m, slot)
    base = s.mm[m, M_SLOTS]
    if h < 0 or s.key[base + h] != slot:
        return 0
    t = s.val[base + h]
    _forget_near(s, m, slot)
    blocks.erase(s, s.mm, m, M_SLOTS, h, h + 1)
    s.mm[m, M_NPMD] -= 1
    return t


@kernel
def make_pmd(s, m, addr):
    """pmd_alloc: the PMD page of addr's GiB slot, made with what is missing above."""
    t = pmd_of(s, m, addr)
    if t == 0:
        t = take_pmd(s)
        link_pmd(s, m, addr, t)
    return t


@kernel
def make_page(s, m, addr):
    """pte_alloc: the PMD page of addr; its span has a PTE page then (empty where it was missing)."""
    t = make_pmd(s, m, addr)
    if s.pmd[t, span_index(addr)] == 0:
        new_page(s, m, t, span_index(addr), E_NONE)
    return t


@kernel
def next_page(s, m, addr, end):
    """Start of the first span from addr's on that has a PTE page and begins below end; end where none."""
    base = s.mm[m, M_SLOTS]
    n = s.mm[m, M_SLOTS + 1]
    slot = addr >> SLOT_SHIFT
    h = slot_at(s, m, slot)
    i = span_index(addr)
    if h < 0 or s.key[base + h] != slot:
        h += 1
        i = 0
    while h < n:
        start = s.key[base + h] << SLOT_SHIFT
        if start + (i << SPAN_SHIFT) >= end:
            return end
        t = s.val[base + h]
        if s.pmd[t, PMD_PAGES]:
            while i < 512 and s.pmd[t, i] == 0:
                i += 1
            if i < 512:
                found = start + (i << SPAN_SHIFT)
                return found if found < end else end
        h += 1
        i = 0
    return end


@kernel
def free_pmd_page(s, m, addr):
    """Free the PMD page of addr's GiB slot and the PTE pages that it still has."""
    t = unlink_pmd(s, m, addr)
    if t == 0:
        return
    if s.pmd[t, PMD_PAGES]:
        for i in range(512):
            if s.pmd[t, i]:
                zap_page(s, m, t, i)
    give_pmd(s, t)


@inline
def has_bit(s, t, column, i):
    """Bit of span i among the bits of PMD page t that begin at a column."""
    return (s.pmd[t, column + (i >> 5)] >> (i & 31)) & 1 == 1


@kernel
def put_bit(s, t, column, i, on):
    """Set or clear that bit."""
    word = column + (i >> 5)
    bit = 1 << (i & 31)
    s.pmd[t, word] = s.pmd[t, word] | bit if on else s.pmd[t, word] & ~bit


@kernel
def note_freed(s, t, i):
    """The PTE page at t, i was freed, not by munmap: remembered, should the span need one again."""
    if not has_bit(s, t, PMD_FREED, i):
        put_bit(s, t, PMD_FREED, i, True)
        s.pmd[t, PMD_NFREED] += 1
    s.away[away_of(s, t), i] = s.g[G_NOW] // 1000000


@kernel
def _forget_freed(s, t, low, begin, end):
    """munmap would have freed the PTE pages of [begin, end) anyway. low: where PMD page t begins."""
    for i in range(max(begin - low, 0) >> SPAN_SHIFT, min(end - low, SLOT) >> SPAN_SHIFT):
        if has_bit(s, t, PMD_FREED, i):
            put_bit(s, t, PMD_FREED, i, False)
            s.pmd[t, PMD_NFREED] -= 1


@kernel
def free_pgtables(s, m, start, end, floor, ceiling):
    """Tables of the unmapped range [start, end): mm/memory.c free_pgd_range.

    A table goes where all that it maps lies in [floor, ceiling): from the end of the mapping below
    to the start of the one above. kernel-rules.md, section 2.4.
    """
    addr = next_page(s, m, start, end)
    while addr < end:
        span = addr & ~(SPAN - 1)
        if span >= floor and span + SPAN <= ceiling:
            zap_page(s, m, pmd_of(s, m, span), span_index(span))
        addr = next_page(s, m, span + SPAN, end)
    h = max(slot_at(s, m, start >> SLOT_SHIFT), 0)
    base = s.mm[m, M_SLOTS]
    while h < s.mm[m, M_SLOTS + 1]:
        low = s.key[base + h] << SLOT_SHIFT
        if low >= end:
            break
        if low + SLOT > start and low >= floor and low + SLOT <= ceiling:
            free_pmd_page(s, m, low)
        else:
            if s.pmd[s.val[base + h], PMD_NFREED]:
                first = max(start & ~(SPAN - 1), (floor + SPAN - 1) & ~(SPAN - 1))
                last = min((end + SPAN - 1) & ~(SPAN - 1), ceiling)
                _forget_freed(s, s.val[base + h], low, first, last)
            h += 1
    for p in range(start >> PGD_SHIFT, ((end - 1) >> PGD_SHIFT) + 1):
        low = p << PGD_SHIFT
        if low >= floor and low + (1 << PGD_SHIFT) <= ceiling and has_pud(s, m, low):
            s.mm[m, M_PUDS + (p >> 6)] &= ~(1 << (p & 63))
            s.mm[m, M_NPUD] -= 1


@kernel
def free_all(s, m):
    """Every table of an mm that ends (mm/mmap.c exit_mmap)."""
    base = s.mm[m, M_SLOTS]
    for h in range(s.mm[m, M_SLOTS + 1]):
        t = s.val[base + h]
        if s.pmd[t, PMD_PAGES]:
            for i in range(512):
                if s.pmd[t, i]:
                    zap_page(s, m, t, i)
        _forget_near(s, m, s.key[base + h])
        give_pmd(s, t)
    blocks.clear(s, s.mm, m, M_SLOTS)
    s.mm[m, M_NPMD] = 0
    s.mm[m, M_NPUD] = 0
    for k in range(4):
        s.mm[m, M_PUDS + k] = 0


@kernel
def resident(s, m):
    """Pages in RSS: anon, file and shmem (mm_counter)."""
    return s.mm[m, M_E + E_ANON] + s.mm[m, M_E + E_HUGE] + s.mm[m, M_E + E_FILE] + s.mm[m, M_E + E_SHMEM]
