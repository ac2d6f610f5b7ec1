"""The entries of one PTE page: transitions, and the counters that follow from them.

A PTE page is named by its PMD page t, its index i there and its record p. A page whose 512 entries
are alike stores none: S.pte[p, P_ENT] is minus their code. Other pages have a row of S.ent, which
fork shares until one side writes; a row with entries that map large folios is never shared. Where memory is accounted
a uniform page of anonymous memory gets a row when fork shares it.
"""

from __future__ import annotations

from pterefd.engine.charge import charge
from pterefd.engine.folios import leave, share_row, shed, unmap_folio
from pterefd.engine.jit import inline, kernel
from pterefd.engine.layout import (
    AWAY_CLASSES,
    C_DUP_ANON,
    C_DUP_SWAP,
    E_ANON,
    E_CODE,
    E_GUARD,
    E_HUGE,
    E_HUGE_ZERO,
    E_NONE,
    E_PFN,
    E_STATE,
    E_SWAP,
    E_ZERO,
    FOLIO_SHIFT,
    FROW_COUNT,
    G_ACCOUNT,
    G_AWAY,
    G_NOW,
    K_DATA,
    K_EMPTY,
    K_MIXED,
    K_NO_PAGE,
    K_ZERO,
    M_AGAIN,
    M_AWAY,
    M_E,
    M_EMPTY,
    M_MIXED,
    M_NPMD,
    M_NPTE,
    M_NPUD,
    M_PEAK_RECLAIMABLE,
    M_PEAK_TABLES,
    M_REF_UPDATES,
    M_SINCE,
    M_SWAP_INS,
    M_WALKS,
    M_ZERO,
    N_STATES,
    P_ENT,
    P_REF,
    PMD_ATOMIC,
    PMD_AWAY,
    PMD_BITS,
    PMD_FREED,
    PMD_NFREED,
    PMD_PAGES,
    PMD_RECLAIMABLE,
    REF_ALL_ZERO,
    REF_MAPPED,
    REF_UPDATES,
    REF_ZERO_SHIFT,
    TRANSITIONS,
)
from pterefd.engine.pools import drop_ent, give_pte, take_ent, take_pte


@inline
def kind_of(ref):
    """K_EMPTY, K_ZERO (the mail's definition), K_MIXED or K_DATA of a pte_refcount."""
    mapped = ref & REF_MAPPED
    if mapped == 0:
        return K_EMPTY
    if mapped != ref >> REF_ZERO_SHIFT:
        return K_DATA
    return K_ZERO if mapped == 512 else K_MIXED


@kernel
def note_kind(s, m, t, i, old, new):
    """A PTE page's kind went from old to new (K_NO_PAGE: made or freed): bit, counts of table and mm."""
    if old == new:
        return
    if old == K_EMPTY:
        s.mm[m, M_EMPTY] -= 1
    elif old == K_ZERO:
        s.mm[m, M_ZERO] -= 1
    elif old == K_MIXED:
        s.mm[m, M_MIXED] -= 1
    if new == K_EMPTY:
        s.mm[m, M_EMPTY] += 1
    elif new == K_ZERO:
        s.mm[m, M_ZERO] += 1
    elif new == K_MIXED:
        s.mm[m, M_MIXED] += 1
    was = old == K_EMPTY or old == K_ZERO
    now = new == K_EMPTY or new == K_ZERO
    if was != now:
        word = PMD_BITS + (i >> 5)
        s.pmd[t, word] ^= 1 << (i & 31)
        s.pmd[t, PMD_RECLAIMABLE] += 1 if now else -1
        left = s.mm[m, M_EMPTY] + s.mm[m, M_ZERO]
        if left == 0:
            s.mm[m, M_SINCE] = 0
        elif now and left == 1:
            s.mm[m, M_SINCE] = max(s.g[G_NOW], 1)
    if now and old != K_NO_PAGE:
        # a page that is just made is empty for a moment only
        s.mm[m, M_PEAK_RECLAIMABLE] = max(s.mm[m, M_PEAK_RECLAIMABLE], s.mm[m, M_EMPTY] + s.mm[m, M_ZERO])


@kernel
def _note_made(s, m, t, i):
    """The span has a PTE page: again, where one was freed; a percpu_ref begins in percpu mode."""
    word = i >> 5
    bit = 1 << (i & 31)
    s.pmd[t, PMD_ATOMIC + word] &= ~bit
    if s.pmd[t, PMD_NFREED] and s.pmd[t, PMD_FREED + word] & bit:
        s.pmd[t, PMD_FREED + word] &= ~bit
        s.pmd[t, PMD_NFREED] -= 1
        s.mm[m, M_AGAIN] += 1
        away = max(s.g[G_NOW] // 1000000 - s.away[s.pmd[t, PMD_AWAY], i], 0)
        s.mm[m, M_AWAY] += 1000000 * away
        c = 0
        while away >> c and c < AWAY_CLASSES - 1:
            c += 1
        s.g[G_AWAY + c] += 1
        s.away[s.pmd[t, PMD_AWAY], i] = -1


@kernel
def new_page(s, m, t, i, state):
    """A PTE page of 512 entries alike, linked at t, i, which must be none there. Returns its record.

    With E_HUGE_ZERO, E_HUGE the page is a deposit; the caller adds the folio to the code.
    """
    p = take_pte(s)
    ref = 0
    if state != E_NONE:
        ref = 512
        if state == E_ZERO:
            ref = REF_ALL_ZERO
        s.mm[m, M_E + (state & E_STATE)] += 512
    s.pte[p, P_REF] = ref
    s.pte[p, P_ENT] = -state
    s.pmd[t, i] = p
    s.pmd[t, PMD_PAGES] += 1
    s.mm[m, M_NPTE] += 1
    tables = s.mm[m, M_NPTE] + s.mm[m, M_NPMD] + s.mm[m, M_NPUD]
    s.mm[m, M_PEAK_TABLES] = max(s.mm[m, M_PEAK_TABLES], tables)
    note_kind(s, m, t, i, K_NO_PAGE, kind_of(ref))
    _note_made(s, m, t, i)
    return p


@kernel
def free_page(s, m, t, i):
    """Unlink and free the PTE page at t, i; its entries, if any are left, go from the counters."""
    p = s.pmd[t, i]
    ref = s.pte[p, P_REF]
    e = s.pte[p, P_ENT]
    if e > 0:
        anon = s.mm[m, M_E + E_ANON]
        swap = s.mm[m, M_E + E_SWAP]
        for j in range(512):
            s.mm[m, M_E + (s.ent[e, j] & E_STATE)] -= 1
        if s.entref[e] == 1:
            leave_all(s, m, e)
        elif s.g[G_ACCOUNT]:
            charge(s, m, C_DUP_ANON, s.mm[m, M_E + E_ANON] - anon)
            charge(s, m, C_DUP_SWAP, s.mm[m, M_E + E_SWAP] - swap)
        drop_ent(s, e)
    elif e < 0:
        s.mm[m, M_E + (-e & E_STATE)] -= 512
        if -e & E_STATE == E_HUGE:
            unmap_folio(s, -e >> FOLIO_SHIFT, m, 1, 512)
    note_kind(s, m, t, i, kind_of(ref), K_NO_PAGE)
    s.pmd[t, i] = 0
    s.pmd[t, PMD_PAGES] -= 1
    s.mm[m, M_NPTE] -= 1
    give_pte(s, p)


@kernel
def zap_page(s, m, t, i):
    """A PTE page goes with its entries, zapped before, or a huge page with its deposit."""
    p = s.pmd[t, i]
    if not is_huge(s, p):
        note_zap(s, m, p)
    free_page(s, m, t, i)


@kernel
def note_zap(s, m, p):
    """zap_pte_range has cleared all entries of the PTE page."""
    s.mm[m, M_REF_UPDATES] += s.pte[p, P_REF] & REF_MAPPED
    s.mm[m, M_WALKS] += 1


@kernel
def leave_all(s, m, x):
    """Every entry of row x lets go of its folio."""
    j = 0
    while s.entfol[x] and s.frow[s.entfol[x], FROW_COUNT]:
        leave(s, m, x, j)
        j += 1


@inline
def entry_at(s, p, j):
    """Code of entry j (state and flags)."""
    e = s.pte[p, P_ENT]
    return s.ent[e, j] if e > 0 else -e & E_CODE


@inline
def is_huge(s, p):
    """True where the record is a deposit: a PMD entry maps the span, to a 2 MiB folio or the huge zero page."""
    e = s.pte[p, P_ENT]
    return e < 0 and -e & E_STATE >= E_HUGE_ZERO


@kernel
def own_row(s, p):
    """The page's row of entries, made from the uniform state or copied from a shared row."""
    e = s.pte[p, P_ENT]
    if e > 0 and s.entref[e] == 1:
        return e
    x = take_ent(s)
    if e > 0:
        for j in range(512):
            s.ent[x, j] = s.ent[e, j]
        if s.g[G_ACCOUNT]:
            share_row(s, e, x)
        drop_ent(s, e)
    else:
        for j in range(512):
            s.ent[x, j] = -e
    s.pte[p, P_ENT] = x
    return x


@kernel
def settle(s, m, t, i, p, old_ref, mapped, zero, tidy):
    """After a change: store the refcount, drop the row where all entries are alike, note the kind.

    tidy: look whether a fully mapped page has become uniform (512 comparisons).
    """
    ref = mapped | (zero << REF_ZERO_SHIFT)
    s.pte[p, P_REF] = ref
    e = s.pte[p, P_ENT]
    if e > 0:
        if mapped == 0:
            drop_ent(s, e)
            s.pte[p, P_ENT] = -E_NONE
        elif tidy and mapped == 512 and s.entfol[e] == 0:
            first = s.ent[e, 0]
            j = 1
            while j < 512 and s.ent[e, j] == first:
                j += 1
            if j == 512:
                drop_ent(s, e)
                s.pte[p, P_ENT] = -first
    note_kind(s, m, t, i, kind_of(old_ref), kind_of(ref))


@kernel
def apply_one(s, m, t, i, p, j, transition):
    """One entry by a transition. Returns True where it is in another state then."""
    old = entry_at(s, p, j)
    new = TRANSITIONS[transition, old]
    if new == old:
        return False
    s.mm[m, M_REF_UPDATES] += REF_UPDATES[transition, old]
    if old & E_STATE == E_SWAP and new & E_STATE == E_ANON:
        s.mm[m, M_SWAP_INS] += 1
    set_entry(s, m, t, i, p, j, new)
    return (old ^ new) & E_STATE != 0


@kernel
def set_entry(s, m, t, i, p, j, new):
    """One entry becomes this code."""
    old = entry_at(s, p, j)
    x = own_row(s, p)
    s.ent[x, j] = new
    if s.entfol[x]:
        shed(s, m, x, j, j + 1)
    old &= E_STATE
    new &= E_STATE
    s.mm[m, M_E + old] -= 1
    s.mm[m, M_E + new] += 1
    ref = s.pte[p, P_REF]
    mapped = (ref & REF_MAPPED) + (old == E_NONE) - (new == E_NONE)
    zero = (ref >> REF_ZERO_SHIFT) + (new == E_ZERO) - (old == E_ZERO)
    # a full page is compared once when it fills, and when its last entry of another state goes
    tidy = mapped == 512 and (old == E_NONE or j == 511 or zero == 512)
    settle(s, m, t, i, p, ref, mapped, zero, tidy)


@kernel
def _apply_uniform(s, m, t, i, p, transition, state):
    """All 512 entries of a uniform page."""
    new = TRANSITIONS[transition, state]
    s.mm[m, M_REF_UPDATES] += 512 * REF_UPDATES[transition, state]
    if state & E_STATE == E_SWAP and new & E_STATE == E_ANON:
        s.mm[m, M_SWAP_INS] += 512
    s.mm[m, M_E + (state & E_STATE)] -= 512
    s.mm[m, M_E + (new & E_STATE)] += 512
    old_ref = s.pte[p, P_REF]
    ref = 0
    if new == E_ZERO:
        ref = REF_ALL_ZERO
    elif new != E_NONE:
        ref = 512
    s.pte[p, P_REF] = ref
    s.pte[p, P_ENT] = -new
    note_kind(s, m, t, i, kind_of(old_ref), kind_of(ref))


@kernel
def apply(s, m, t, i, p, begin, end, transition):
    """Entries [begin, end) of the page, which is no deposit, by a transition (a row of layout.TRANSITIONS).

    Returns how many are in another state then.
    """
    if end - begin == 1:
        return int(apply_one(s, m, t, i, p, begin, transition))
    e = s.pte[p, P_ENT]
    if e <= 0:
        if TRANSITIONS[transition, -e] == -e:
            return 0
        if begin == 0 and end == 512:
            _apply_uniform(s, m, t, i, p, transition, -e)
            return 512 if (TRANSITIONS[transition, -e] ^ -e) & E_STATE else 0
    x = own_row(s, p)
    for state in range(N_STATES):
        s.tmp[state] = 0
    touched = False
    changed = 0
    updates = 0
    swap_ins = 0
    for j in range(begin, end):
        old = s.ent[x, j]
        new = TRANSITIONS[transition, old]
        if new != old:
            touched = True
            changed += (old ^ new) & E_STATE != 0
            updates += REF_UPDATES[transition, old]
            swap_ins += old & E_STATE == E_SWAP and new & E_STATE == E_ANON
            s.ent[x, j] = new
            s.tmp[old & E_STATE] -= 1
            s.tmp[new & E_STATE] += 1
    if not touched:
        return 0
    s.mm[m, M_REF_UPDATES] += updates
    s.mm[m, M_SWAP_INS] += swap_ins
    if s.entfol[x]:
        shed(s, m, x, begin, end)
    for state in range(1, N_STATES):
        s.mm[m, M_E + state] += s.tmp[state]
    ref = s.pte[p, P_REF]
    mapped = (ref & REF_MAPPED) - s.tmp[E_NONE]
    zero = (ref >> REF_ZERO_SHIFT) + s.tmp[E_ZERO]
    settle(s, m, t, i, p, ref, mapped, zero, True)
    return changed


@kernel
def holds(s, p, state):
    """True where some entry of the page is in that state."""
    e = s.pte[p, P_ENT]
    if e <= 0:
        return -e & E_STATE == state
    for j in range(512):
        if s.ent[e, j] & E_STATE == state:
            return True
    return False


@kernel
def present_between(s, p, begin, end):
    """How many of the entries [begin, end) of the page, which is no deposit, are present."""
    n = 0
    for j in range(begin, end):
        state = entry_at(s, p, j) & E_STATE
        if (state != E_NONE and state != E_SWAP and state < E_GUARD) or state == E_PFN:
            n += 1
    return n
