"""Records of the pools: take one, give one back.

A pool that runs out answers record 0 and sets S.g[G_FULL]; record 0 is nobody's, so what is written
there harms nothing, and whoever runs events stops after the present one.
"""

from __future__ import annotations

from pterefd.engine.jit import kernel
from pterefd.engine.layout import (
    AWAY_COLUMNS,
    AWAY_NEXT,
    F_NEXT,
    FOLIO_COLUMNS,
    FROW_COLUMNS,
    G_FULL,
    G_POOLS,
    M_NEXT,
    MM_COLUMNS,
    O_NEXT,
    OBJ_COLUMNS,
    P_NEXT,
    PMD_AWAY,
    PMD_COLUMNS,
    PMD_NEXT,
    POOL_AWAY,
    POOL_COLUMNS,
    POOL_ENT,
    POOL_FOLIO,
    POOL_FROW,
    POOL_MM,
    POOL_OBJ,
    POOL_PMD,
    POOL_PTE,
    POOL_SHARED,
    POOL_VMA,
    SH_COLUMNS,
    SH_NEXT,
    V_NEXT,
)


@kernel
def _fresh(s, pool):
    """A never used record of the pool, 0 where there is none."""
    base = G_POOLS + pool * POOL_COLUMNS
    top = s.g[base]
    if top >= s.g[base + 3]:
        s.g[G_FULL] = pool + 1
        return 0
    s.g[base] = top + 1
    s.g[base + 2] += 1
    return top


@kernel
def _take(s, pool, records, column):
    """A record of the pool, from its free list or fresh."""
    base = G_POOLS + pool * POOL_COLUMNS
    head = s.g[base + 1]
    if head == 0:
        return _fresh(s, pool)
    s.g[base + 1] = records[head, column]
    s.g[base + 2] += 1
    return head


@kernel
def _give(s, pool, records, column, record):
    """Put a record on the pool's free list."""
    if record == 0:
        return
    base = G_POOLS + pool * POOL_COLUMNS
    records[record, column] = s.g[base + 1]
    s.g[base + 1] = record
    s.g[base + 2] -= 1


@kernel
def take_mm(s):
    """An mm's record, all zero."""
    m = _take(s, POOL_MM, s.mm, M_NEXT)
    for c in range(MM_COLUMNS):
        s.mm[m, c] = 0
    return m


@kernel
def give_mm(s, m):
    _give(s, POOL_MM, s.mm, M_NEXT, m)


@kernel
def take_vma(s):
    """A mapping's record; the caller fills every column."""
    return _take(s, POOL_VMA, s.vma, V_NEXT)


@kernel
def give_vma(s, v):
    _give(s, POOL_VMA, s.vma, V_NEXT, v)


@kernel
def take_obj(s):
    """A file's record, all zero."""
    o = _take(s, POOL_OBJ, s.obj, O_NEXT)
    for c in range(OBJ_COLUMNS):
        s.obj[o, c] = 0
    return o


@kernel
def give_obj(s, o):
    _give(s, POOL_OBJ, s.obj, O_NEXT, o)


@kernel
def take_pmd(s):
    """A PMD page, all zero."""
    t = _take(s, POOL_PMD, s.pmd, PMD_NEXT)
    for c in range(PMD_COLUMNS):
        s.pmd[t, c] = 0
    return t


@kernel
def give_pmd(s, t):
    _give(s, POOL_AWAY, s.away, AWAY_NEXT, s.pmd[t, PMD_AWAY])
    _give(s, POOL_PMD, s.pmd, PMD_NEXT, t)


@kernel
def away_of(s, t):
    """The record of S.away of PMD page t, made where missing."""
    w = s.pmd[t, PMD_AWAY]
    if w == 0:
        w = _take(s, POOL_AWAY, s.away, AWAY_NEXT)
        for c in range(AWAY_COLUMNS):
            s.away[w, c] = 0
        s.pmd[t, PMD_AWAY] = w
    return w


@kernel
def take_pte(s):
    """A PTE page's record; the caller sets refcount and entries."""
    return _take(s, POOL_PTE, s.pte, P_NEXT)


@kernel
def give_pte(s, p):
    _give(s, POOL_PTE, s.pte, P_NEXT, p)


@kernel
def take_ent(s):
    """A row of 512 entries with one user; the caller fills it."""
    base = G_POOLS + POOL_ENT * POOL_COLUMNS
    head = s.g[base + 1]
    if head == 0:
        head = _fresh(s, POOL_ENT)
    else:
        s.g[base + 1] = s.entref[head]
        s.g[base + 2] += 1
    s.entref[head] = 1
    s.entfol[head] = 0
    return head


@kernel
def drop_ent(s, x):
    """One user less of a row of entries; free with the last."""
    if x == 0:
        return
    s.entref[x] -= 1
    if s.entref[x] == 0:
        base = G_POOLS + POOL_ENT * POOL_COLUMNS
        s.entref[x] = s.g[base + 1]
        s.g[base + 1] = x
        s.g[base + 2] -= 1


@kernel
def take_folio(s):
    """A large folio's record, all zero."""
    f = _take(s, POOL_FOLIO, s.fol, F_NEXT)
    for c in range(FOLIO_COLUMNS):
        s.fol[f, c] = 0
    return f


@kernel
def give_folio(s, f):
    _give(s, POOL_FOLIO, s.fol, F_NEXT, f)


@kernel
def take_frow(s):
    """A row that says which folios a PTE page's entries map: none yet."""
    r = _take(s, POOL_FROW, s.frow, 0)
    for c in range(FROW_COLUMNS):
        s.frow[r, c] = 0
    return r


@kernel
def give_frow(s, r):
    _give(s, POOL_FROW, s.frow, 0, r)


@kernel
def take_shared(s):
    """A record of a small page that several may map: nobody does yet."""
    h = _take(s, POOL_SHARED, s.shp, SH_NEXT)
    for c in range(SH_COLUMNS):
        s.shp[h, c] = 0
    return h


@kernel
def give_shared(s, h):
    _give(s, POOL_SHARED, s.shp, SH_NEXT, h)
