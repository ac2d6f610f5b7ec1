"""Spans that a PMD entry maps: a 2 MiB folio or the huge zero page, above a deposited PTE page.

The deposit is a PTE page's record like any other (it counts in VmPTE), whose 512 entries are E_HUGE or E_HUGE_ZERO.
A split makes it the span's PTE page.
"""

from __future__ import annotations

from pterefd.engine.entries import kind_of, leave_all, new_page, note_kind, own_row
from pterefd.engine.folios import (
    copy_on_write,
    is_written,
    map_folio,
    new_folio,
    note_written,
    set_member,
    unmap_folio,
)
from pterefd.engine.jit import inline, kernel
from pterefd.engine.layout import (
    E_ANON,
    E_BLANK,
    E_CODE,
    E_HUGE,
    E_HUGE_ZERO,
    E_LAZY,
    E_NONE,
    E_OWNED,
    E_STATE,
    E_SWAP,
    E_ZERO,
    F_LAZY,
    F_MAPS,
    F_MLOCKED,
    FOLIO_SHIFT,
    FROW_OWNED,
    FROW_SHIFT,
    G_ACCOUNT,
    K_DATA,
    K_ZERO,
    M_E,
    M_REF_UPDATES,
    M_WALKS,
    P_ENT,
    P_REF,
    PMD_ORDER,
    REF_ALL_ZERO,
    REF_MAPPED,
)
from pterefd.engine.pools import drop_ent, take_ent


@inline
def folio_of(s, p):
    """The folio of a huge page's record; 0 of the huge zero page's."""
    return -s.pte[p, P_ENT] >> FOLIO_SHIFT


@inline
def huge_state(s, p):
    """E_HUGE or E_HUGE_ZERO of a huge page's record."""
    return -s.pte[p, P_ENT] & E_STATE


@kernel
def has_huge(s, m):
    """True where PMD entries of the mm map spans."""
    return s.mm[m, M_E + E_HUGE] + s.mm[m, M_E + E_HUGE_ZERO] != 0


@kernel
def make_huge_zero(s, m, t, i):
    """set_huge_zero_folio at t, i, which is none."""
    new_page(s, m, t, i, E_HUGE_ZERO)


@kernel
def _take_new_folio(s, m, p, span):
    """The record maps a new folio, exclusively."""
    f = new_folio(s, m, PMD_ORDER, span)
    map_folio(s, f, m, 1, 512)
    s.pte[p, P_ENT] = -(E_HUGE | E_OWNED | f << FOLIO_SHIFT)
    return f


@kernel
def make_huge(s, m, t, i, span):
    """map_anon_folio_pmd: a new folio, all zero, at t, i, which is none or the huge zero page (span: its number).

    Returns the folio.
    """
    p = s.pmd[t, i]
    if p == 0:
        p = new_page(s, m, t, i, E_HUGE)
    else:  # do_huge_zero_wp_pmd
        s.mm[m, M_E + E_HUGE_ZERO] -= 512
        s.mm[m, M_E + E_HUGE] += 512
    return _take_new_folio(s, m, p, span)


@kernel
def split_pmd(s, m, t, i):
    """__split_huge_pmd: the deposit becomes the span's PTE page; the folio stays whole."""
    p = s.pmd[t, i]
    code = -s.pte[p, P_ENT] & E_CODE
    if code & E_STATE == E_HUGE_ZERO:
        s.mm[m, M_E + E_HUGE_ZERO] -= 512
        s.mm[m, M_E + E_ZERO] += 512
        s.pte[p, P_REF] = REF_ALL_ZERO
        s.pte[p, P_ENT] = -E_ZERO
        s.mm[m, M_REF_UPDATES] += 512
        note_kind(s, m, t, i, K_DATA, K_ZERO)
        return
    f = folio_of(s, p)
    x = take_ent(s)
    owned = FROW_OWNED if code & E_OWNED else 0
    for j in range(512):
        s.ent[x, j] = E_ANON | (code & E_LAZY) | (0 if is_written(s, f, j) else E_BLANK)
        set_member(s, x, j, f << FROW_SHIFT | owned | j)
    s.pte[p, P_ENT] = x
    s.mm[m, M_E + E_HUGE] -= 512
    s.mm[m, M_E + E_ANON] += 512
    s.mm[m, M_REF_UPDATES] += 512
    map_folio(s, f, m, 512, 512)
    unmap_folio(s, f, m, 1, 512)


@kernel
def write_huge(s, m, t, i, begin, end, data):
    """A write to entries [begin, end) of a 2 MiB folio: do_huge_pmd_wp_page. data: it brings some.

    False: the folio is shared, so that the PMD entry was split; the write goes on entry by entry.
    """
    p = s.pmd[t, i]
    f = folio_of(s, p)
    code = -s.pte[p, P_ENT] & E_CODE
    if not code & E_OWNED and s.fol[f, F_MAPS] != 1:
        split_pmd(s, m, t, i)
        return False
    s.pte[p, P_ENT] = -(E_HUGE | E_OWNED | f << FOLIO_SHIFT)
    if data:
        note_written(s, f, begin, end)
    return True


@kernel
def make_lazy(s, p):
    """MADV_FREE of a whole huge page: it stays, clean."""
    s.pte[p, P_ENT] = -(-s.pte[p, P_ENT] | E_LAZY)
    s.fol[folio_of(s, p), F_LAZY] = 1


@kernel
def keep_mlocked(s, p):
    """The huge page's mapping loses VM_LOCKED without its folio being munlocked."""
    if huge_state(s, p) == E_HUGE:
        s.fol[folio_of(s, p), F_MLOCKED] = 1


@kernel
def share_huge(s, m, p, c, u, i):
    """copy_huge_pmd: the child's u, i maps what the parent's record p maps, with a deposit of its own."""
    e = s.pte[p, P_ENT]
    q = new_page(s, c, u, i, -e & E_STATE)
    if -e & E_STATE == E_HUGE:
        shared = -(-e & ~E_OWNED)
        s.pte[p, P_ENT] = shared
        s.pte[q, P_ENT] = shared
        map_folio(s, folio_of(s, p), c, 1, 512)


@kernel
def collapse_page(s, m, t, i, span):
    """collapse_huge_page: what the PTE page maps is copied to a new folio, and the page becomes its deposit."""
    p = s.pmd[t, i]
    x = own_row(s, p)
    f = _take_new_folio(s, m, p, span)
    for j in range(512):
        code = s.ent[x, j]
        state = code & E_STATE
        s.mm[m, M_E + state] -= 1
        if (state == E_ANON or state == E_SWAP) and not code & E_BLANK:
            note_written(s, f, j, j + 1)
    s.mm[m, M_E + E_HUGE] += 512
    s.mm[m, M_REF_UPDATES] += s.pte[p, P_REF] & REF_MAPPED
    s.mm[m, M_WALKS] += 2  # hpage_collapse_scan_pmd, collapse_huge_page
    leave_all(s, m, x)
    drop_ent(s, x)
    old = kind_of(s.pte[p, P_REF])
    s.pte[p, P_REF] = 512
    note_kind(s, m, t, i, old, K_DATA)


@kernel
def cow_entries(s, m, p, begin, end):
    """A write to entries [begin, end) that map pages which others may map too: reused or copied."""
    x = s.pte[p, P_ENT]
    if x > 0 and s.entref[x] > 1 and s.g[G_ACCOUNT]:
        x = own_row(s, p)
    if x <= 0 or s.entfol[x] == 0:
        return
    for j in range(begin, end):
        if s.entfol[x] == 0:
            return
        copy_on_write(s, m, x, j)


@kernel
def make_block(s, m, t, i, begin, end, span):
    """alloc_anon_folio: entries [begin, end), all none, map a new folio of so many pages, all zero."""
    p = s.pmd[t, i]
    order = 0
    while 1 << order < end - begin:
        order += 1
    f = new_folio(s, m, order, span)
    map_folio(s, f, m, end - begin, end - begin)
    x = own_row(s, p)
    for j in range(begin, end):
        s.ent[x, j] = E_ANON | E_BLANK
        set_member(s, x, j, f << FROW_SHIFT | FROW_OWNED | (j - begin))
    old = s.pte[p, P_REF]
    s.pte[p, P_REF] = old + (end - begin)
    s.mm[m, M_E + E_NONE] -= end - begin
    s.mm[m, M_E + E_ANON] += end - begin
    s.mm[m, M_REF_UPDATES] += end - begin
    note_kind(s, m, t, i, kind_of(old), K_DATA)
