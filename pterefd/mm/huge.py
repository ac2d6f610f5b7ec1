"""Transparent huge pages of anonymous memory: when a PMD entry maps a span, and when it is split.

mm/huge_memory.c, mm/khugepaged.c; what was measured on 6.18 is in the cases of tests/kernel. A page's contents
decide what a split folio leaves (zero-filled pages become the zero page): a page counts as written once an access
wrote to it.
"""

from __future__ import annotations

from pterefd.engine.entries import holds, is_huge, set_entry
from pterefd.engine.folios import clear_member, maybe_shared, member, unmap_folio
from pterefd.engine.huge import (
    collapse_page,
    cow_entries,
    folio_of,
    huge_state,
    keep_mlocked,
    make_block,
    make_huge,
    make_huge_zero,
    make_lazy,
    note_written,
    split_pmd,
    write_huge,
)
from pterefd.engine.jit import inline, kernel
from pterefd.engine.layout import (
    E_BLANK,
    E_GUARD,
    E_HUGE_ZERO,
    E_LAZY,
    E_NONE,
    E_ZERO,
    F_LAZY,
    F_MAPS,
    F_MLOCKED,
    F_ORDER,
    F_SPAN,
    FROW_PAGE,
    FROW_SHIFT,
    M_FAULTS,
    M_MOVED,
    M_PROFILE,
    M_THP,
    M_WALKS,
    P_ENT,
    PAGE,
    PAGE_SHIFT,
    PMD_ORDER,
    SPAN,
    SPAN_SHIFT,
    T_FREE,
    THP_ADVISED,
    THP_DISABLED,
    THP_ORDERS,
    THP_ZERO_PAGE,
    V_ANON,
    V_END,
    V_FLAGS,
    V_OBJ,
    V_START,
    VM_HUGEPAGE,
    VM_HUGETLB,
    VM_NOHUGEPAGE,
    VM_PFNMAP,
    VM_SPECIAL,
)
from pterefd.engine.tables import entry_index, make_pmd, next_page, page_of, pmd_of, span_index
from pterefd.mm.auto_free import change
from pterefd.mm.profile import PF_COLLAPSE, PF_SPLIT_ZERO
from pterefd.mm.vma import is_locked_at, prepare_anon, vma_record

# How an access goes: the `write` of faults.
ACCESS_READ = 0
ACCESS_WRITE = 1
ACCESS_POPULATE = 2  # a write by the kernel, which brings no data

# What ages pages: MADV_FREE, MADV_COLD, MADV_PAGEOUT.
AGE_FREE, AGE_COLD, AGE_PAGEOUT = range(3)

_NO_HUGE = VM_NOHUGEPAGE | VM_PFNMAP | VM_SPECIAL | VM_HUGETLB
_SMALLEST_ORDER = 2  # THP_ORDERS_ALL_ANON


@kernel
def allowed_orders(s, m, v):
    """thp_vma_allowable_orders at a fault: a bit for each order that mapping v may get."""
    thp = s.mm[m, M_THP]
    flags = s.vma[v, V_FLAGS]
    if thp & THP_DISABLED or s.vma[v, V_OBJ] >= 0 or flags & _NO_HUGE:
        return 0
    orders = thp & THP_ORDERS
    if flags & VM_HUGEPAGE:
        orders |= (thp >> THP_ADVISED) & THP_ORDERS
    return orders


@inline
def span_inside(s, v, addr):
    """thp_vma_suitable_order: addr's whole span lies in mapping v."""
    span = addr & ~(SPAN - 1)
    return s.vma[v, V_START] <= span and span + SPAN <= s.vma[v, V_END]


# ---- faults ---------------------------------------------------------------------------------------


@kernel
def huge_access(s, m, k, addr, end, write):
    """An access of [addr, end), in one span of the k-th mapping, that a PMD entry serves. False: small pages do.

    create_huge_pmd, wp_huge_pmd.
    """
    v = vma_record(s, m, k)
    p = page_of(s, m, addr)
    if p == 0:
        if not allowed_orders(s, m, v) >> PMD_ORDER or not span_inside(s, v, addr):
            return False
        t = make_pmd(s, m, addr)
    elif is_huge(s, p):
        t = pmd_of(s, m, addr)
    else:
        return False
    prepare_anon(s, m, k)  # of the huge zero page too: vmf_anon_prepare comes before it
    i = span_index(addr)
    begin = entry_index(addr)
    last = entry_index(end - 1) + 1
    if p and huge_state(s, p) != E_HUGE_ZERO:
        return not write or write_huge(s, m, t, i, begin, last, write == ACCESS_WRITE)
    if p == 0 or write:
        s.mm[m, M_FAULTS] += 1
    if write or (p == 0 and not s.mm[m, M_THP] & THP_ZERO_PAGE):
        f = make_huge(s, m, t, i, addr >> SPAN_SHIFT)
        if write == ACCESS_WRITE:
            note_written(s, f, begin, last)
    elif p == 0:
        make_huge_zero(s, m, t, i)
    return True


@kernel
def _block_of(s, m, v, p, addr, orders):
    """alloc_anon_folio: pages of the largest block about addr whose entries are all none; 1 where none is."""
    order = PMD_ORDER - 1
    j = entry_index(addr)
    while order >= _SMALLEST_ORDER:
        if (orders >> order) & 1:
            size = 1 << order
            begin = j & ~(size - 1)
            start = addr - ((j - begin) << PAGE_SHIFT)
            if s.vma[v, V_START] <= start and start + (size << PAGE_SHIFT) <= s.vma[v, V_END]:
                e = s.pte[p, P_ENT]
                at = begin
                while e > 0 and at < begin + size and s.ent[e, at] == E_NONE:
                    at += 1
                if e == E_NONE or at == begin + size:
                    return size
        order -= 1
    return 1


@kernel
def write_entries(s, m, v, t, i, addr, end):
    """What a write to [addr, end), PTE-mapped, does to large folios: those there are kept or left, new ones made."""
    p = s.pmd[t, i]
    cow_entries(s, m, p, entry_index(addr), entry_index(end - 1) + 1)
    orders = allowed_orders(s, m, v) & ((1 << PMD_ORDER) - 1)
    if orders == 0:
        return
    while addr < end:
        size = _block_of(s, m, v, p, addr, orders)
        if size > 1:
            begin = entry_index(addr) & ~(size - 1)
            make_block(s, m, t, i, begin, begin + size, addr >> SPAN_SHIFT)
        addr += 1 << PAGE_SHIFT


# ---- splitting ------------------------------------------------------------------------------------


@kernel
def _split_in_span(s, m, span, f, keep):
    """Pages of folio f that the mm maps in this span become pages by themselves, zero-filled ones the zero page.

    keep: not these, as the folio is mlocked or the kernel too old.
    """
    t = pmd_of(s, m, span)
    i = span_index(span)
    if t == 0 or s.pmd[t, i] == 0:
        return
    p = s.pmd[t, i]
    if is_huge(s, p):
        if folio_of(s, p) != f:
            return
        split_pmd(s, m, t, i)
    for j in range(512):
        x = s.pte[p, P_ENT]
        if x <= 0 or s.entfol[x] == 0:
            return
        if member(s, x, j) >> FROW_SHIFT != f:
            continue
        clear_member(s, x, j)
        unmap_folio(s, f, m, 1, 1)
        if s.ent[x, j] & E_BLANK and not keep and not is_locked_at(s, m, span + (j << PAGE_SHIFT)):
            set_entry(s, m, t, i, p, j, E_ZERO)


@kernel
def _locks_in_span(s, m, span, f):
    """Does a mapping with VM_LOCKED show a page of folio f in this span?"""
    p = page_of(s, m, span)
    if p == 0:
        return False
    if is_huge(s, p):
        return folio_of(s, p) == f and is_locked_at(s, m, span)
    x = s.pte[p, P_ENT]
    if x <= 0 or s.entfol[x] == 0:
        return False
    for j in range(512):
        v = member(s, x, j)
        if v > 0 and v >> FROW_SHIFT == f and is_locked_at(s, m, span + (j << PAGE_SHIFT)):
            return True
    return False


@kernel
def _stays_mlocked(s, m, f):
    """Is folio f mlocked still when all its pages are unmapped for a split?

    unmap_folio takes each page from its mapping, and one with VM_LOCKED munlocks the whole folio (munlock_vma_folio).
    """
    if not s.fol[f, F_MLOCKED]:  # DONTUNMAP has done that, so pages may have moved
        return False
    addr = next_page(s, m, 0, 1 << 47)
    while addr < 1 << 47:
        span = addr & ~(SPAN - 1)
        if _locks_in_span(s, m, span, f):
            return False
        addr = next_page(s, m, span + SPAN, 1 << 47)
    return True


@kernel
def split_folio(s, m, f):
    """split_huge_page of a folio that mm m alone maps; remap_page looks at what the pages hold."""
    keep = not s.mm[m, M_PROFILE] & PF_SPLIT_ZERO or _stays_mlocked(s, m, f)
    home = s.fol[f, F_SPAN] << SPAN_SHIFT
    if not s.mm[m, M_MOVED]:
        _split_in_span(s, m, home, f, keep)
        return
    addr = next_page(s, m, 0, 1 << 47)
    while addr < 1 << 47:
        _split_in_span(s, m, addr & ~(SPAN - 1), f, keep)
        addr = next_page(s, m, (addr & ~(SPAN - 1)) + SPAN, 1 << 47)


@kernel
def forget_lock(s, m, start, end):
    """dontunmap_complete takes VM_LOCKED off a mapping, and munlocks no folio."""
    addr = next_page(s, m, start, end)
    while addr < end:
        p = page_of(s, m, addr)
        if is_huge(s, p):
            keep_mlocked(s, p)
        else:
            _keep_blocks_mlocked(s, p, max(addr, start), min((addr & ~(SPAN - 1)) + SPAN, end))
        addr = next_page(s, m, (addr & ~(SPAN - 1)) + SPAN, end)


@kernel
def _keep_blocks_mlocked(s, p, start, end):
    """The same for folios that entries of one PTE page map: those all of whose pages [start, end) maps are mlocked.

    mlock_new_folio, mlock_pte_range. One of which the call has moved a part away is so no more, as measured.
    """
    x = s.pte[p, P_ENT]
    if x <= 0 or s.entfol[x] == 0:
        return
    for addr in range(start, end, PAGE):
        v = member(s, x, entry_index(addr))
        if v > 0:
            f = v >> FROW_SHIFT
            first = addr - ((v & FROW_PAGE) << PAGE_SHIFT)
            pages = 1 << s.fol[f, F_ORDER]
            n = 0
            if start <= first and first + pages * PAGE <= end:
                while n < pages and member(s, x, entry_index(first) + n) >> FROW_SHIFT == f:
                    n += 1
            if n == pages:
                s.fol[f, F_MLOCKED] = 1


# ---- MADV_FREE, MADV_COLD, MADV_PAGEOUT ---------------------------------------------------------------


@kernel
def _age_huge(s, m, t, i, begin, end, how):
    """madvise_free_huge_pmd, and the PMD part of madvise_cold_or_pageout_pte_range. True: its entries are next."""
    p = s.pmd[t, i]
    if huge_state(s, p) == E_HUGE_ZERO:
        return False
    f = folio_of(s, p)
    if maybe_shared(s, f):
        return False
    if end - begin < 512:
        split_folio(s, m, f)
        return True
    if how == AGE_FREE:
        make_lazy(s, p)
    elif how == AGE_PAGEOUT:
        clean = -s.pte[p, P_ENT] & E_LAZY != 0
        if s.fol[f, F_LAZY] and not clean:  # TTU_SPLIT_HUGE_PMD comes before the first page is found dirty
            split_pmd(s, m, t, i)
        _page_out(s, m, f, clean)
    return False


@kernel
def _age_entries(s, m, t, i, begin, end, how):
    """Runs of pages of one folio: a whole folio is left alone, of another that is not shared the folio is split."""
    p = s.pmd[t, i]
    j = begin
    while j < end:
        x = s.pte[p, P_ENT]
        if x <= 0 or s.entfol[x] == 0:
            return
        v = member(s, x, j)
        if v <= 0:
            j += 1
            continue
        f = v >> FROW_SHIFT
        n = 1
        while j + n < end and member(s, x, j + n) >> FROW_SHIFT == f and _follows(s, x, j, n):
            n += 1
        if n == 1 << s.fol[f, F_ORDER]:
            if how == AGE_FREE:
                s.fol[f, F_LAZY] = 1
            elif how == AGE_PAGEOUT and s.fol[f, F_MAPS] == n:  # a whole run is judged exactly
                _page_out(s, m, f, _all_lazy(s, x, j, j + n))
            j += n
        elif maybe_shared(s, f):
            j += n
        else:
            split_folio(s, m, f)


@kernel
def _page_out(s, m, f, clean):
    """MADV_PAGEOUT of a whole folio, which is split, as no swap space takes it whole.

    One that is lazyfree loses the pages that are clean, as the trace says; where one is not, it is kept and lazyfree
    no more (mm/rmap.c try_to_unmap_one).
    """
    if not s.fol[f, F_LAZY]:
        split_folio(s, m, f)
    elif not clean:
        s.fol[f, F_LAZY] = 0


@kernel
def _all_lazy(s, x, begin, end):
    """True where entries [begin, end) of the row were not written to since MADV_FREE."""
    for j in range(begin, end):
        if not s.ent[x, j] & E_LAZY:
            return False
    return True


@inline
def _follows(s, x, j, n):
    """Entry j + n maps the page of the folio that lies n after entry j's."""
    return member(s, x, j + n) & FROW_PAGE == (member(s, x, j) & FROW_PAGE) + n


@kernel
def age(s, m, start, end, how):
    """MADV_FREE, MADV_COLD or MADV_PAGEOUT (AGE_*) of one mapping's piece."""
    addr = next_page(s, m, start, end)
    while addr < end:
        span = addr & ~(SPAN - 1)
        low = max(addr, start)
        high = min(span + SPAN, end)
        t = pmd_of(s, m, span)
        i = span_index(span)
        begin = entry_index(low)
        last = entry_index(high - 1) + 1
        if not is_huge(s, s.pmd[t, i]) or _age_huge(s, m, t, i, begin, last, how):
            _age_entries(s, m, t, i, begin, last, how)
            if how == AGE_FREE:
                change(s, m, t, i, begin, last, T_FREE)
            else:
                s.mm[m, M_WALKS] += 1
        addr = next_page(s, m, span + SPAN, end)


# ---- MADV_COLLAPSE --------------------------------------------------------------------------------


@kernel
def collapse(s, m, k, start, end):
    """madvise_collapse of a piece of the k-th mapping. False: it failed (EINVAL), and ends the call."""
    v = vma_record(s, m, k)
    last = (s.vma[v, V_END] & ~(SPAN - 1)) - SPAN
    if s.mm[m, M_THP] & THP_DISABLED or s.vma[v, V_OBJ] >= 0 or s.vma[v, V_FLAGS] & _NO_HUGE:
        return False
    if not s.mm[m, M_PROFILE] & PF_COLLAPSE or s.vma[v, V_ANON] == 0 or last < s.vma[v, V_START]:
        return False
    addr = (start + SPAN - 1) & ~(SPAN - 1)
    stop = end & ~(SPAN - 1)
    good = addr <= stop
    while addr < stop:
        t = pmd_of(s, m, addr)
        i = span_index(addr)
        if t == 0:
            good = False  # SCAN_PMD_NULL: the next one is tried
        else:
            p = s.pmd[t, i]
            if p == 0 or holds(s, p, E_GUARD):
                return False  # SCAN_PMD_NONE, SCAN_FAIL
            if not is_huge(s, p):
                collapse_page(s, m, t, i, addr >> SPAN_SHIFT)
        addr += SPAN
    return good
