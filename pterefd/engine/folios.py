"""Anonymous folios that several entries map: who maps them, and which entries map which of their pages.

Whether a folio of more than one page is shared decides what MADV_FREE, MADV_COLD, MADV_PAGEOUT and a write after fork
do; the kernel keeps count of two mms only (CONFIG_MM_ID), so this does. Small pages are counted where memory is
accounted (G_ACCOUNT), so that a page which fork has shared is charged once: as long as PTE pages share a row of S.ent
that is all there is to know; when they part, each shared page gets a record of S.shp, which counts rows.
"""

from __future__ import annotations

from pterefd.engine.charge import charge
from pterefd.engine.jit import kernel
from pterefd.engine.layout import (
    C_DUP_ANON,
    C_DUP_SWAP,
    C_FOLIO_ENTRIES,
    C_FOLIO_PAGES,
    E_ANON,
    E_STATE,
    E_SWAP,
    F_MAPS,
    F_MAPS0,
    F_MAPS1,
    F_MM0,
    F_MM1,
    F_ORDER,
    F_SHARED,
    F_SPAN,
    F_WRITTEN,
    FROW_COUNT,
    FROW_OWNED,
    FROW_PAGE,
    FROW_SHIFT,
    SH_PAGES,
    SH_SLOTS,
)
from pterefd.engine.pools import give_folio, give_frow, give_shared, take_folio, take_frow, take_shared


@kernel
def new_folio(s, m, order, span):
    """A folio of 2**order pages in that span (span number), mapped by nobody yet."""
    f = take_folio(s)
    charge(s, m, C_FOLIO_PAGES, 1 << order)
    s.fol[f, F_ORDER] = order
    s.fol[f, F_SPAN] = span
    return f


@kernel
def map_folio(s, f, m, n, pages):
    """n more mappings by mm m, of so many pages in all: include/linux/rmap.h folio_add_return_large_mapcount."""
    charge(s, m, C_FOLIO_ENTRIES, pages)
    maps = s.fol[f, F_MAPS] + n
    s.fol[f, F_MAPS] = maps
    if s.fol[f, F_MM0] == m:
        s.fol[f, F_MAPS0] += n
    elif s.fol[f, F_MM1] == m:
        s.fol[f, F_MAPS1] += n
    elif s.fol[f, F_MM0] == 0:
        s.fol[f, F_MM0] = m
        s.fol[f, F_MAPS0] = n
        if maps != n:
            s.fol[f, F_SHARED] = 1
    elif s.fol[f, F_MM1] == 0:
        s.fol[f, F_MM1] = m
        s.fol[f, F_MAPS1] = n
        s.fol[f, F_SHARED] = 1


@kernel
def unmap_folio(s, f, m, n, pages):
    """n mappings less by mm m, of so many pages in all: folio_sub_return_large_mapcount. The last takes the folio."""
    charge(s, m, C_FOLIO_ENTRIES, -pages)
    maps = s.fol[f, F_MAPS] - n
    if maps == 0:
        charge(s, m, C_FOLIO_PAGES, -(1 << s.fol[f, F_ORDER]))
        give_folio(s, f)
        return
    s.fol[f, F_MAPS] = maps
    if s.fol[f, F_MM0] == m:
        s.fol[f, F_MAPS0] -= n
        if s.fol[f, F_MAPS0] > 0:
            return
        s.fol[f, F_MAPS0] = 0
        s.fol[f, F_MM0] = 0
    elif s.fol[f, F_MM1] == m:
        s.fol[f, F_MAPS1] -= n
        if s.fol[f, F_MAPS1] > 0:
            return
        s.fol[f, F_MAPS1] = 0
        s.fol[f, F_MM1] = 0
    if s.fol[f, F_MAPS0] == maps or s.fol[f, F_MAPS1] == maps:
        s.fol[f, F_SHARED] = 0


@kernel
def maybe_shared(s, f):
    """folio_maybe_mapped_shared."""
    return s.fol[f, F_MAPS] > 1 and s.fol[f, F_SHARED] != 0


@kernel
def is_written(s, f, page):
    """Was this page of a folio that a PMD entry maps written to?"""
    return (s.fol[f, F_WRITTEN + (page >> 5)] >> (page & 31)) & 1 == 1


@kernel
def note_written(s, f, begin, end):
    """Pages [begin, end) of a folio that a PMD entry maps are written to."""
    page = begin
    while page < end:
        if page & 31 == 0 and end - page >= 32:
            s.fol[f, F_WRITTEN + (page >> 5)] = 0xFFFFFFFF
            page += 32
        else:
            s.fol[f, F_WRITTEN + (page >> 5)] |= 1 << (page & 31)
            page += 1


# ---- the entries of one row of S.ent -------------------------------------------------------------


@kernel
def member(s, x, j):
    """Which folio's page entry j of row x maps (S.frow has the form); 0 where it alone maps a page by itself."""
    r = s.entfol[x]
    return s.frow[r, j] if r else 0


@kernel
def set_member(s, x, j, v):
    """Entry j of row x maps v; the folio's counts are the caller's."""
    r = s.entfol[x]
    if r == 0:
        r = take_frow(s)
        s.entfol[x] = r
    if s.frow[r, j] == 0:
        s.frow[r, FROW_COUNT] += 1
    s.frow[r, j] = v


@kernel
def clear_member(s, x, j):
    """Entry j of row x maps no folio's page any more; the folio's counts are the caller's."""
    r = s.entfol[x]
    s.frow[r, j] = 0
    s.frow[r, FROW_COUNT] -= 1
    if s.frow[r, FROW_COUNT] == 0:
        s.entfol[x] = 0
        give_frow(s, r)


@kernel
def leave(s, m, x, j):
    """Entry j of row x lets go of its folio, if it maps one's page or holds its swap slot."""
    v = member(s, x, j)
    if v:
        clear_member(s, x, j)
    if v > 0:
        unmap_folio(s, v >> FROW_SHIFT, m, 1, 1)
    elif v < 0:
        _count_shared(s, m, -v >> 1, -v & 1, -1)


@kernel
def shed(s, m, x, begin, end):
    """Entries [begin, end) of row x that are no longer anonymous pages let go of their folios.

    A small page stays shared in swap.
    """
    for j in range(begin, end):
        if s.entfol[x] == 0:
            return
        state = s.ent[x, j] & E_STATE
        v = member(s, x, j)
        if v < 0 and (state == E_ANON or state == E_SWAP):
            slot = 1 if state == E_SWAP else 0
            if -v & 1 != slot:
                h = -v >> 1
                s.frow[s.entfol[x], j] = -(2 * h + slot)
                _count_shared(s, m, h, slot, 1)
                _count_shared(s, m, h, 1 - slot, -1)
        elif v and state != E_ANON:
            leave(s, m, x, j)


# ---- small pages that fork has shared -----------------------------------------------------------------


@kernel
def _count_shared(s, m, h, slot, n):
    """One row more (n = 1) or less (-1) maps shared page h, or with slot holds its swap slot; it goes with the last."""
    column = SH_SLOTS if slot else SH_PAGES
    before = s.shp[h, column]
    s.shp[h, column] = before + n
    if max(before, before + n) > 1:
        charge(s, m, C_DUP_SWAP if slot else C_DUP_ANON, n)
    if s.shp[h, SH_PAGES] + s.shp[h, SH_SLOTS] == 0:
        give_shared(s, h)


@kernel
def _share(s, x, j, y):
    """Entry j of row y holds from now on what entry j of row x does, which is a small page or a swap slot."""
    v = member(s, x, j)
    if v == 0:
        slot = 1 if s.ent[x, j] & E_STATE == E_SWAP else 0
        h = take_shared(s)
        s.shp[h, SH_SLOTS if slot else SH_PAGES] = 1
        v = -(2 * h + slot)
        set_member(s, x, j, v)
    s.shp[-v >> 1, SH_SLOTS if -v & 1 else SH_PAGES] += 1
    set_member(s, y, j, v)


@kernel
def share_entry(s, m, x, j, y):
    """fork: entry j of row y, of mm m, is a copy of entry j of row x."""
    _share(s, x, j, y)
    charge(s, m, C_DUP_SWAP if -member(s, x, j) & 1 else C_DUP_ANON, 1)


@kernel
def share_row(s, x, y):
    """Row y is a copy of row x that a PTE page leaves for it: what they hold in common stays charged once."""
    for j in range(512):
        state = s.ent[x, j] & E_STATE
        if state == E_ANON or state == E_SWAP:
            _share(s, x, j, y)


@kernel
def folded(s, x, begin, end):
    """arm64's contiguous PTEs: blocks of 16 entries, pages of one folio in order, that [begin, end) has a part of only.

    arch/arm64/mm/contpte.c unfolds such a block: all of its entries are cleared and set again.
    """
    blocks = 0
    first = begin & ~15
    last = (end - 1) & ~15
    if (begin & 15 or end < first + 16) and _is_folded(s, x, first):
        blocks += 1
    if last != first and end & 15 and _is_folded(s, x, last):
        blocks += 1
    return blocks


@kernel
def _is_folded(s, x, begin):
    """True where entries [begin, begin + 16) of the row map 16 pages of a folio in order, from a multiple of 16 on."""
    v = member(s, x, begin)
    if v <= 0 or v & 15:
        return False
    for j in range(1, 16):
        w = member(s, x, begin + j)
        if w >> FROW_SHIFT != v >> FROW_SHIFT or w & FROW_PAGE != (v & FROW_PAGE) + j:
            return False
    return True


@kernel
def copy_on_write(s, m, x, j):
    """do_wp_page of a folio's page: reused where this mm alone maps the folio, else copied."""
    v = member(s, x, j)
    if v < 0:
        leave(s, m, x, j)
    if v <= 0 or v & FROW_OWNED:
        return
    f = v >> FROW_SHIFT
    # __wp_can_reuse_large_anon_folio; a folio with one mapping left is better freed
    if s.fol[f, F_MAPS] > 1 and s.fol[f, F_SHARED] == 0:
        s.frow[s.entfol[x], j] = v | FROW_OWNED
    else:
        leave(s, m, x, j)
