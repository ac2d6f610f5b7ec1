"""fork and exit: kernel/fork.c dup_mmap, mm/memory.c copy_page_range. kernel-rules.md, sections 2.6 and 9."""

from __future__ import annotations

from pterefd.engine import blocks
from pterefd.engine.charge import charge, settle
from pterefd.engine.entries import entry_at, is_huge, kind_of, new_page, note_kind, own_row, set_entry
from pterefd.engine.folios import map_folio, member, set_member, share_entry
from pterefd.engine.huge import share_huge
from pterefd.engine.jit import inline, kernel
from pterefd.engine.layout import (
    C_DUP_ANON,
    C_DUP_SWAP,
    E_ANON,
    E_CODE,
    E_NONE,
    E_STATE,
    E_SWAP,
    E_WP,
    FROW_OWNED,
    FROW_SHIFT,
    G_ACCOUNT,
    G_COMMITTED,
    G_NEXT_ANON,
    G_NOW,
    K_EMPTY,
    M_ALIVE,
    M_BEGUN,
    M_BRK,
    M_COMMITTED,
    M_E,
    M_GROUP,
    M_HIWATER_RSS,
    M_LAST_FAULT,
    M_MOVED,
    M_PFN_HIGH,
    M_PFN_LOW,
    M_PID,
    M_PROFILE,
    M_REF_UPDATES,
    M_SLOTS,
    M_START_BRK,
    M_THP,
    M_UNLOCATED,
    M_VMAS,
    M_WALKS,
    P_ENT,
    P_REF,
    PGD_SHIFT,
    REF_MAPPED,
    SLOT_SHIFT,
    SPAN,
    V_ANON,
    V_CHAIN,
    V_END,
    V_FLAGS,
    V_START,
    VM_DONTCOPY,
    VM_LOCKED_MASK,
    VM_MAYBE_GUARD,
    VM_PFNMAP,
    VM_UFFD,
    VM_WIPEONFORK,
)
from pterefd.engine.pools import give_mm, take_mm
from pterefd.engine.tables import (
    entry_index,
    free_all,
    has_pud,
    make_page,
    make_pmd,
    make_pud,
    next_page,
    pmd_of,
    resident,
    slot_at,
    span_index,
)
from pterefd.mm.auto_free import put_page
from pterefd.mm.vma import account, copy_vma, drop_vma, pages_of, put_vma, vma_count, vma_record


@kernel
def new_mm(s, pid, profile, thp, group):
    """A fresh, empty mm of pid in a group; profile: PF_* bits, thp: THP_* bits. Its record, 0 where there is none."""
    m = take_mm(s)
    s.mm[m, M_GROUP] = group
    s.mm[m, M_PID] = pid
    s.mm[m, M_ALIVE] = 1
    s.mm[m, M_PROFILE] = profile
    s.mm[m, M_THP] = thp
    s.mm[m, M_LAST_FAULT] = s.g[G_NOW]
    s.pids[pid] = m
    return m


@kernel
def exit_mm(s, m):
    """exit_mmap: every mapping and table goes; the record is free again."""
    free_all(s, m)
    for k in range(vma_count(s, m)):
        drop_vma(s, vma_record(s, m, k))
    blocks.clear(s, s.mm, m, M_VMAS)
    s.mm[m, M_UNLOCATED] = 0
    settle(s, m)
    s.g[G_COMMITTED] -= s.mm[m, M_COMMITTED]
    s.pids[s.mm[m, M_PID]] = 0
    s.mm[m, M_ALIVE] = 0
    give_mm(s, m)


@inline
def _is_counted(code):
    """An entry that maps a small anonymous page, or holds a swap slot."""
    return code & E_STATE == E_ANON or code & E_STATE == E_SWAP


@kernel
def _share_page(s, m, c, span):
    """A PTE page that lies in one copied mapping alone: same entries in the child, its row shared."""
    t = pmd_of(s, m, span)
    i = span_index(span)
    p = s.pmd[t, i]
    u = make_pmd(s, c, span)
    if is_huge(s, p):
        share_huge(s, m, p, c, u, i)
        return
    e = s.pte[p, P_ENT]
    if e < 0 and s.g[G_ACCOUNT] and _is_counted(-e & E_CODE):
        e = own_row(s, p)
    if e > 0 and s.entfol[e]:
        _copy_entries(s, m, c, span, span + SPAN)
        return
    q = new_page(s, c, u, i, E_NONE)
    ref = s.pte[p, P_REF]
    s.pte[q, P_ENT] = e
    s.pte[q, P_REF] = ref
    if e > 0:
        s.entref[e] += 1
        anon = s.mm[c, M_E + E_ANON]
        swap = s.mm[c, M_E + E_SWAP]
        for j in range(512):
            s.mm[c, M_E + (s.ent[e, j] & E_STATE)] += 1
        if s.g[G_ACCOUNT]:
            charge(s, c, C_DUP_ANON, s.mm[c, M_E + E_ANON] - anon)
            charge(s, c, C_DUP_SWAP, s.mm[c, M_E + E_SWAP] - swap)
    elif e < 0:
        s.mm[c, M_E + (-e & E_STATE)] += 512
    note_kind(s, c, u, i, K_EMPTY, kind_of(ref))
    s.mm[c, M_REF_UPDATES] += ref & REF_MAPPED
    s.mm[c, M_WALKS] += 2  # copy_pte_range: source and destination


@kernel
def _copy_entries(s, m, c, low, high):
    """Entries [low, high) of one span, into the child's page."""
    p = s.pmd[pmd_of(s, m, low), span_index(low)]
    u = make_page(s, c, low)
    i = span_index(low)
    q = s.pmd[u, i]
    s.mm[c, M_WALKS] += 2
    if s.pte[p, P_REF] == 0:
        return
    for j in range(entry_index(low), ((high - 1) >> 12 & 511) + 1):
        code = entry_at(s, p, j)
        if code != E_NONE and code != E_WP:
            set_entry(s, c, u, i, q, j, code)
            s.mm[c, M_REF_UPDATES] += 1
            x = s.pte[p, P_ENT]
            v = member(s, x, j) if x > 0 else 0
            if v > 0:  # mapped by both from now on, and exclusive to neither
                v &= ~FROW_OWNED
                set_member(s, x, j, v)
                set_member(s, own_row(s, q), j, v)
                map_folio(s, v >> FROW_SHIFT, c, 1, 1)
            elif s.g[G_ACCOUNT] and _is_counted(code):
                share_entry(s, c, own_row(s, p), j, own_row(s, q))
    put_page(s, c, u, i)


@kernel
def _copy_upper(s, m, c, start, end):
    """PUD and PMD pages that the parent has within the mapping, also those with nothing below."""
    for p in range(start >> PGD_SHIFT, ((end - 1) >> PGD_SHIFT) + 1):
        if has_pud(s, m, p << PGD_SHIFT):
            make_pud(s, c, p << PGD_SHIFT)
    base = s.mm[m, M_SLOTS]
    h = slot_at(s, m, start >> SLOT_SHIFT)
    if h < 0 or s.key[base + h] < start >> SLOT_SHIFT:
        h += 1
    while h < s.mm[m, M_SLOTS + 1] and s.key[base + h] << SLOT_SHIFT < end:
        make_pmd(s, c, s.key[base + h] << SLOT_SHIFT)
        h += 1


@kernel
def _copy_tables(s, m, c, start, end):
    """copy_page_range of one mapping."""
    _copy_upper(s, m, c, start, end)
    addr = next_page(s, m, start, end)
    while addr < end:
        span = addr & ~(SPAN - 1)
        low = max(span, start)
        high = min(span + SPAN, end)
        if high - low == SPAN:
            _share_page(s, m, c, span)
        else:
            _copy_entries(s, m, c, low, high)
        addr = next_page(s, m, span + SPAN, end)


@kernel
def fork(s, m, pid):
    """dup_mmap: the child's mm, pid its pid. Returns its record, 0 where the pool is full.

    A mapping is copied with its tables where it has an anon_vma, a guard marker or raw frames
    (vma_needs_copy); others stay without until they are touched.
    """
    c = new_mm(s, pid, s.mm[m, M_PROFILE], s.mm[m, M_THP], s.mm[m, M_GROUP])
    if c == 0:
        return 0
    s.mm[c, M_START_BRK] = s.mm[m, M_START_BRK]
    s.mm[c, M_BRK] = s.mm[m, M_BRK]
    s.mm[c, M_PFN_LOW] = s.mm[m, M_PFN_LOW]
    s.mm[c, M_PFN_HIGH] = s.mm[m, M_PFN_HIGH]
    s.mm[c, M_BEGUN] = 1
    s.mm[c, M_MOVED] = s.mm[m, M_MOVED]
    for k in range(vma_count(s, m)):
        v = vma_record(s, m, k)
        flags = s.vma[v, V_FLAGS]
        if flags & VM_DONTCOPY:
            continue
        w = copy_vma(s, v)
        s.vma[w, V_FLAGS] = flags & ~(VM_LOCKED_MASK | VM_UFFD)  # dup_userfaultfd, without UFFD_FEATURE_EVENT_FORK
        put_vma(s, c, w)
        account(s, c, s.vma[w, V_FLAGS], pages_of(s, w))
        if flags & VM_WIPEONFORK:
            s.vma[w, V_ANON] = 0
            s.vma[w, V_CHAIN] = 0
            continue
        if s.vma[v, V_ANON]:
            # anon_vma_fork: the parent's chain and an anon_vma of the child's own
            s.vma[w, V_ANON] = s.g[G_NEXT_ANON]
            s.g[G_NEXT_ANON] += 1
            s.vma[w, V_CHAIN] = s.vma[v, V_CHAIN] + 1
        if s.vma[v, V_ANON] or flags & (VM_PFNMAP | VM_MAYBE_GUARD):
            _copy_tables(s, m, c, s.vma[v, V_START], s.vma[v, V_END])
    s.mm[c, M_HIWATER_RSS] = resident(s, c)
    return c
