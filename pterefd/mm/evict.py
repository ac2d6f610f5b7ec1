"""What reclaim takes from an mm or an object: mm/vmscan.c shrink_folio_list, mm/rmap.c try_to_unmap_one.

Which pages are hot nobody knows here (a recording has no accesses to present pages), so an mm's pages go in order of
address, from where reclaim last stopped (M_HAND).
"""

from __future__ import annotations

from pterefd.engine.charge import settle
from pterefd.engine.entries import entry_at, is_huge
from pterefd.engine.folios import member
from pterefd.engine.huge import split_pmd
from pterefd.engine.jit import kernel
from pterefd.engine.layout import (
    ADDRESS_END,
    E_ANON,
    E_FILE,
    E_HUGE,
    E_LAZY,
    E_SHMEM,
    E_STATE,
    G_ACCOUNT,
    G_POOLS,
    M_ALIVE,
    M_E,
    M_HAND,
    O_CACHED,
    O_CHARGED,
    O_EVICTED,
    O_KIND,
    O_KNOWN,
    O_REFS,
    OBJ_FILE,
    P_ENT,
    PAGE_SHIFT,
    POOL_COLUMNS,
    POOL_MM,
    SPAN,
    T_LAZY,
    T_SWAP_OUT,
    T_UNMAP_FILE,
    V_END,
    V_FLAGS,
    V_PGOFF,
    V_START,
    VM_LOCKED,
)
from pterefd.engine.objects import add_run, drop_run, uncharge
from pterefd.engine.publish import mark_dirty
from pterefd.engine.tables import entry_index, next_page, page_of, pmd_of, span_index
from pterefd.mm.auto_free import change
from pterefd.mm.files import unmap_object
from pterefd.mm.unmap import note_rss
from pterefd.mm.vma import EVERY, is_locked_at, next_mapping, vma_at, vma_count, vma_first, vma_record


@kernel
def _is_taken(code, transition):
    """Would the transition take an entry with this code?"""
    if code & E_STATE != E_ANON:
        return False
    return transition == T_SWAP_OUT or code & E_LAZY != 0


@kernel
def _reach(s, p, begin, end, transition, want):
    """(first entry of [begin, end) that would be taken, the entry behind the last), at most `want` in between."""
    first = end
    last = begin
    n = 0
    for j in range(begin, end):
        if n < want and _is_taken(entry_at(s, p, j), transition):
            first = min(first, j)
            last = j + 1
            n += 1
    return first, last, n


@kernel
def take_pages(s, m, transition, want):
    """Up to `want` anonymous pages of mm m, none of locked memory: to swap (T_SWAP_OUT) or dropped (T_LAZY).

    Returns how many of its entries were taken. Others that map such a page lose it too (try_to_unmap), where it lies at
    the same address; where mremap has moved it, it stays in memory until it is taken from them.
    """
    if not s.mm[m, M_ALIVE] or s.mm[m, M_E + E_ANON] + s.mm[m, M_E + E_HUGE] == 0:
        return 0
    mark_dirty(s, m)
    note_rss(s, m)
    taken = 0
    start = s.mm[m, M_HAND]
    addr = next_page(s, m, start, ADDRESS_END)
    wrapped = False
    while taken < want:
        if addr >= ADDRESS_END or (wrapped and addr >= start):
            if wrapped:
                break
            wrapped = True
            addr = next_page(s, m, 0, ADDRESS_END)
            continue
        span = addr & ~(SPAN - 1)
        k = vma_at(s, m, addr)
        v = vma_record(s, m, k) if k >= 0 else 0
        # a mapping may begin within the span, behind a hole or another mapping
        high = span + SPAN
        if k >= 0:
            high = min(high, s.vma[v, V_END])
        elif _next_start(s, m, addr) < high:
            addr = _next_start(s, m, addr)
            continue
        if k >= 0 and not s.vma[v, V_FLAGS] & VM_LOCKED:
            taken += _take_span(s, m, addr, high, transition, want - taken)
        addr = high if high < span + SPAN else next_page(s, m, span + SPAN, ADDRESS_END)
    s.mm[m, M_HAND] = addr if addr < ADDRESS_END else 0
    settle(s, m)
    return taken


@kernel
def _next_start(s, m, addr):
    """Start of the first mapping above addr, which lies in none."""
    k = vma_first(s, m, addr)
    return s.vma[vma_record(s, m, k), V_START] if k < vma_count(s, m) else ADDRESS_END


@kernel
def _take_span(s, m, addr, end, transition, want):
    """Pages of [addr, end), in one span of one mapping; a huge page is split first (folio_split)."""
    t = pmd_of(s, m, addr)
    i = span_index(addr)
    p = s.pmd[t, i]
    if is_huge(s, p):
        if transition == T_LAZY and not entry_at(s, p, 0) & E_LAZY:
            return 0
        split_pmd(s, m, t, i)
    begin = entry_index(addr)
    last = entry_index(end - 1) + 1
    n = 0
    while n < want and begin < last:
        first, behind, found = _reach(s, p, begin, last, transition, want - n)
        if found == 0:
            break
        change(s, m, t, i, first, behind, transition)
        if transition == T_SWAP_OUT and s.g[G_ACCOUNT]:
            _take_from_others(s, m, addr & ~(SPAN - 1), p, first, behind)
        n += found
        begin = behind
    return n


@kernel
def _take_from_others(s, m, span, p, begin, end):
    """Small pages that entries [begin, end) of PTE page p have just given to swap leave the other mms' entries too."""
    x = s.pte[p, P_ENT]
    if x <= 0 or s.entfol[x] == 0:
        return
    top = s.g[G_POOLS + POOL_MM * POOL_COLUMNS]
    for other in range(1, top):
        if other == m or not s.mm[other, M_ALIVE] or s.mm[other, M_E + E_ANON] == 0:
            continue
        t = pmd_of(s, other, span)
        i = span_index(span)
        q = s.pmd[t, i] if t else 0
        if q == 0 or is_huge(s, q):
            continue
        for j in range(begin, end):
            v = member(s, x, j)
            y = s.pte[q, P_ENT]
            if y <= 0 or s.entfol[y] == 0:
                break
            if v < 0 and -v & 1 and member(s, y, j) == v + 1 and not is_locked_at(s, other, span + (j << PAGE_SHIFT)):
                mark_dirty(s, other)
                change(s, other, t, i, j, j + 1, T_SWAP_OUT)
        settle(s, other)


# ---- objects ----------------------------------------------------------------------------------------


@kernel
def is_locked(s, o):
    """True where a mapping with VM_LOCKED shows the object: its pages are unevictable."""
    if s.obj[o, O_REFS] <= 1:
        return False
    m, v, _, _ = next_mapping(s, o, 1, 0, EVERY)
    while v:
        if s.vma[v, V_FLAGS] & VM_LOCKED:
            return True
        m, v, _, _ = next_mapping(s, o, m, s.vma[v, V_END], EVERY)
    return False


@kernel
def evict_object(s, o, want):
    """Up to `want` pages of object o leave memory and every mapping; those of shared memory go to swap. How many.

    Copies of one's own in private mappings stay.
    """
    base = s.obj[o, O_CHARGED]
    if s.obj[o, O_REFS] <= 0 or s.obj[o, O_CHARGED + 1] == 0:
        return 0
    begin = s.key[base]
    end = begin
    n = 0
    for k in range(s.obj[o, O_CHARGED + 1]):
        size = min(s.val[base + k] - s.key[base + k], want - n)
        n += size
        end = s.key[base + k] + size
        if n >= want:
            break
    unmap_object(s, o, begin, end, T_UNMAP_FILE)
    _forget_range(s, o, begin, end, n)
    return n


@kernel
def _forget_range(s, o, begin, end, n):
    """The n charged pages of [begin, end), unmapped before, are evicted."""
    while True:
        base = s.obj[o, O_CHARGED]
        if s.obj[o, O_CHARGED + 1] == 0 or s.key[base] >= end:
            break
        first = s.key[base]
        last = min(s.val[base], end)
        drop_run(s, o, O_CHARGED, first, last)
        add_run(s, o, O_EVICTED, first, last)
        if s.obj[o, O_KIND] == OBJ_FILE and s.obj[o, O_KNOWN]:
            drop_run(s, o, O_CACHED, first, last)
    uncharge(s, o, n, -n)


@kernel
def mark_mapped(s, o, pages):
    """Set pages[i] (uint8[n]) for each page i of object o that some mm maps."""
    m, v, _, _ = next_mapping(s, o, 1, 0, EVERY)
    while v:
        shift = s.vma[v, V_PGOFF] - (s.vma[v, V_START] >> PAGE_SHIFT)
        addr = next_page(s, m, s.vma[v, V_START], s.vma[v, V_END])
        while addr < s.vma[v, V_END]:
            addr = max(addr, s.vma[v, V_START])
            high = min((addr & ~(SPAN - 1)) + SPAN, s.vma[v, V_END])
            p = page_of(s, m, addr)
            for page in range(addr >> PAGE_SHIFT, high >> PAGE_SHIFT):
                state = entry_at(s, p, page & 511) & E_STATE
                if (state == E_FILE or state == E_SHMEM) and page + shift < len(pages):
                    pages[page + shift] = 1
            addr = next_page(s, m, (addr & ~(SPAN - 1)) + SPAN, s.vma[v, V_END])
        m, v, _, _ = next_mapping(s, o, m, s.vma[v, V_END], EVERY)


@kernel
def drop_unmapped(s, o, pages):
    """drop_caches: the pages of file o leave the cache that are charged and not set in pages (uint8[n]). How many."""
    dropped = 0
    for page in range(len(pages)):
        if not pages[page] and drop_run(s, o, O_CHARGED, page, page + 1):
            add_run(s, o, O_EVICTED, page, page + 1)
            if s.obj[o, O_KNOWN]:
                drop_run(s, o, O_CACHED, page, page + 1)
            dropped += 1
    uncharge(s, o, dropped, -dropped)
    return dropped
