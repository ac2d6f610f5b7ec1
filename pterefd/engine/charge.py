"""What the mms of a group hold, kept as it changes: S.grp, in pages.

Most of it follows from the mm's own counters, told to the group by settle(); what several entries share (small pages
and swap slots after fork, large folios) is kept beside it, so that a page is charged once.
"""

from __future__ import annotations

from pterefd.engine.jit import inline, kernel
from pterefd.engine.layout import (
    C_ANON,
    C_DUP_ANON,
    C_DUP_SWAP,
    C_FILE,
    C_FOLIO_ENTRIES,
    C_FOLIO_PAGES,
    C_SHMEM,
    C_SHMEM_SWAP,
    C_STOP,
    C_SWAP,
    C_TABLES,
    E_ANON,
    E_HUGE,
    E_SWAP,
    G_NDIRTY,
    M_E,
    M_GROUP,
    M_NPMD,
    M_NPTE,
    M_NPUD,
    M_SEEN_ANON,
    M_SEEN_SWAP,
    M_SEEN_TABLES,
    M_UNLOCATED,
)

NEVER = 1 << 60  # C_STOP where nothing stops


@kernel
def charge(s, m, column, n):
    """n more of a column (C_*) for mm m's group and the host."""
    s.grp[0, column] += n
    g = s.mm[m, M_GROUP]
    if g:
        s.grp[g, column] += n


@kernel
def settle(s, m):
    """Tell mm m's group what it holds by now."""
    anon = s.mm[m, M_E + E_ANON] + s.mm[m, M_E + E_HUGE]
    swap = s.mm[m, M_E + E_SWAP]
    tables = s.mm[m, M_NPTE] + s.mm[m, M_NPMD] + s.mm[m, M_NPUD] + s.mm[m, M_UNLOCATED]
    charge(s, m, C_ANON, anon - s.mm[m, M_SEEN_ANON])
    charge(s, m, C_SWAP, swap - s.mm[m, M_SEEN_SWAP])
    charge(s, m, C_TABLES, tables - s.mm[m, M_SEEN_TABLES])
    s.mm[m, M_SEEN_ANON] = anon
    s.mm[m, M_SEEN_SWAP] = swap
    s.mm[m, M_SEEN_TABLES] = tables


@kernel
def settle_all(s):
    """settle() of every mm that changed since the last publication."""
    for d in range(s.g[G_NDIRTY]):
        settle(s, s.dirty[d])


@inline
def anon_pages(s, g):
    """Pages of anonymous memory that a group holds, each once."""
    return s.grp[g, C_ANON] - s.grp[g, C_DUP_ANON] - s.grp[g, C_FOLIO_ENTRIES] + s.grp[g, C_FOLIO_PAGES]


@kernel
def used_pages(s, g):
    """Pages of memory that a group holds."""
    return anon_pages(s, g) + s.grp[g, C_FILE] + s.grp[g, C_SHMEM] + s.grp[g, C_TABLES]


@kernel
def swap_pages(s, g):
    """Swap slots that a group holds."""
    return s.grp[g, C_SWAP] - s.grp[g, C_DUP_SWAP] + s.grp[g, C_SHMEM_SWAP]


@kernel
def slack(s, m):
    """Pages that may be used before the host, or mm m's group, comes to its mark; negative above it."""
    left = s.grp[0, C_STOP] - used_pages(s, 0)
    g = s.mm[m, M_GROUP]
    if g:
        left = min(left, s.grp[g, C_STOP] - used_pages(s, g))
    return left
