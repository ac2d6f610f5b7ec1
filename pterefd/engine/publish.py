"""Publication: the numbers of mms that changed, copied where readers find them (a seqlock).

seq[0] is odd while rows are being copied; a reader that saw the same even number before and after
its copy has a consistent one.
"""

from __future__ import annotations

from pterefd.engine.jit import kernel
from pterefd.engine.layout import (
    G_FAULTS,
    G_MAJOR,
    G_NDIRTY,
    G_SWAP_INS,
    M_DIRTY,
    M_FAULTS,
    M_MAJOR,
    M_SWAP_INS,
    M_TOLD_FAULTS,
    M_TOLD_MAJOR,
    M_TOLD_SWAP_INS,
    MM_COLUMNS,
)


@kernel
def mark_dirty(s, m):
    """The mm's numbers are to be published."""
    if s.mm[m, M_DIRTY] == 0:
        s.mm[m, M_DIRTY] = 1
        s.dirty[s.g[G_NDIRTY]] = m
        s.g[G_NDIRTY] += 1


@kernel
def publish(s, seq, rows):
    """Copy the rows of dirty mms from s.mm to rows (int64[mms, MM_COLUMNS]). The list stays for the caller."""
    seq[0] += 1
    for d in range(s.g[G_NDIRTY]):
        m = s.dirty[d]
        s.g[G_FAULTS] += s.mm[m, M_FAULTS] - s.mm[m, M_TOLD_FAULTS]
        s.g[G_MAJOR] += s.mm[m, M_MAJOR] - s.mm[m, M_TOLD_MAJOR]
        s.g[G_SWAP_INS] += s.mm[m, M_SWAP_INS] - s.mm[m, M_TOLD_SWAP_INS]
        s.mm[m, M_TOLD_FAULTS] = s.mm[m, M_FAULTS]
        s.mm[m, M_TOLD_MAJOR] = s.mm[m, M_MAJOR]
        s.mm[m, M_TOLD_SWAP_INS] = s.mm[m, M_SWAP_INS]
        for c in range(MM_COLUMNS):
            rows[m, c] = s.mm[m, c]
    seq[0] += 1


@kernel
def forget_dirty(s):
    """The list of changed mms has been read."""
    for d in range(s.g[G_NDIRTY]):
        s.mm[s.dirty[d], M_DIRTY] = 0
    s.g[G_NDIRTY] = 0
