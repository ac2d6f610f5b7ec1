"""Pages of files and shared memory: which are in the page cache, which the host is charged for, which reclaim took."""

from __future__ import annotations

from pterefd.engine import blocks
from pterefd.engine.jit import kernel
from pterefd.engine.layout import (
    C_FILE,
    C_SHMEM,
    C_SHMEM_SWAP,
    G_ACCOUNT,
    G_COMMITTED,
    G_NOW,
    M_GROUP,
    M_MAJOR,
    M_SWAP_INS,
    O_CACHED,
    O_CHARGED,
    O_COMMITTED,
    O_EVICTED,
    O_GROUP,
    O_KIND,
    O_KNOWN,
    O_NCHARGED,
    O_NEVICTED,
    O_SIZE,
    O_TOUCHED,
    OBJ_FILE,
    OBJ_SHMEM,
)
from pterefd.engine.pools import give_obj


@kernel
def pages_in(s, o):
    """Pages of the object: beyond them an access is SIGBUS."""
    size = s.obj[o, O_SIZE]
    if size < 0:
        return 1 << 51
    return (size + 4095) >> 12


@kernel
def cached_run(s, o, page):
    """(start, end) of the run of cached pages at or after page; start >= end where there is none."""
    if not s.obj[o, O_KNOWN]:
        return page, pages_in(s, o)
    k = blocks.find(s, s.obj, o, O_CACHED, page)
    base = s.obj[o, O_CACHED]
    if k >= 0 and s.val[base + k] > page:
        return page, s.val[base + k]
    if k + 1 < s.obj[o, O_CACHED + 1]:
        return s.key[base + k + 1], s.val[base + k + 1]
    return 0, 0


@kernel
def add_run(s, o, column, begin, end):
    """Pages [begin, end) of object o join the runs of a block (O_CACHED, O_CHARGED, O_EVICTED). How many are new."""
    k = blocks.find(s, s.obj, o, column, begin)
    base = s.obj[o, column]
    if k >= 0 and s.val[base + k] >= end:
        return 0
    new = end - begin
    if k >= 0 and s.val[base + k] >= begin:
        new -= s.val[base + k] - begin
        begin = s.key[base + k]
    else:
        k += 1
    last = k
    n = s.obj[o, column + 1]
    while last < n and s.key[base + last] <= end:
        if last > k or s.key[base + last] != begin:
            new -= max(min(end, s.val[base + last]) - s.key[base + last], 0)
        end = max(end, s.val[base + last])
        last += 1
    blocks.erase(s, s.obj, o, column, k, last)
    blocks.insert(s, s.obj, o, column, k, begin, end)
    return new


@kernel
def drop_run(s, o, column, begin, end):
    """Pages [begin, end) of object o leave the runs of a block. How many were in them."""
    k = max(blocks.find(s, s.obj, o, column, begin), 0)
    gone = 0
    while k < s.obj[o, column + 1]:
        base = s.obj[o, column]
        first = s.key[base + k]
        last = s.val[base + k]
        if first >= end:
            break
        if last <= begin:
            k += 1
            continue
        gone += min(last, end) - max(first, begin)
        blocks.erase(s, s.obj, o, column, k, k + 1)
        if first < begin:
            blocks.insert(s, s.obj, o, column, k, first, begin)
            k += 1
        if last > end:
            blocks.insert(s, s.obj, o, column, k, end, last)
            k += 1
    return gone


@kernel
def add_cached(s, o, begin, end):
    """Pages [begin, end) of the object are in the page cache."""
    if s.obj[o, O_KNOWN] and begin < end:
        add_run(s, o, O_CACHED, begin, end)


@kernel
def drop_cached(s, o, begin, end):
    """Pages [begin, end) of the object leave the page cache for good: truncated, punched out."""
    if s.obj[o, O_KNOWN]:
        drop_run(s, o, O_CACHED, begin, end)
    if s.g[G_ACCOUNT]:
        uncharge(s, o, drop_run(s, o, O_CHARGED, begin, end), drop_run(s, o, O_EVICTED, begin, end))


# ---- the host's memory ----------------------------------------------------------------------------


@kernel
def charge_object(s, o, column, n):
    """n pages more of a column (C_*) for the object's group and the host."""
    s.grp[0, column] += n
    if s.obj[o, O_GROUP]:
        s.grp[s.obj[o, O_GROUP], column] += n


@kernel
def uncharge(s, o, charged, evicted):
    """So many pages of the object are no longer in memory, and so many no longer where reclaim had put them."""
    s.obj[o, O_NCHARGED] -= charged
    s.obj[o, O_NEVICTED] -= evicted
    if s.obj[o, O_KIND] == OBJ_SHMEM:
        charge_object(s, o, C_SHMEM, -charged)
        charge_object(s, o, C_SHMEM_SWAP, -evicted)
    else:
        charge_object(s, o, C_FILE, -charged)


@kernel
def charge_pages(s, m, o, begin, end):
    """Pages [begin, end) of object o are in memory from now on, for mm m. Those that reclaim took are read back."""
    kind = s.obj[o, O_KIND]
    if not s.g[G_ACCOUNT] or (kind != OBJ_FILE and kind != OBJ_SHMEM):
        return
    new = add_run(s, o, O_CHARGED, begin, end)
    if new == 0:
        return
    if s.obj[o, O_NCHARGED] + s.obj[o, O_NEVICTED] == 0:
        s.obj[o, O_GROUP] = s.mm[m, M_GROUP]
    s.obj[o, O_TOUCHED] = s.g[G_NOW]
    back = drop_run(s, o, O_EVICTED, begin, end) if s.obj[o, O_NEVICTED] else 0
    uncharge(s, o, -new, back)
    if kind == OBJ_SHMEM:
        s.mm[m, M_SWAP_INS] += back
    elif back:
        s.mm[m, M_MAJOR] += 1


@kernel
def forget_object(s, o):
    """Shared memory without a name that nobody maps any more: its pages and swap slots are free."""
    uncharge(s, o, s.obj[o, O_NCHARGED], s.obj[o, O_NEVICTED])
    s.g[G_COMMITTED] -= s.obj[o, O_COMMITTED]
    blocks.clear(s, s.obj, o, O_CACHED)
    blocks.clear(s, s.obj, o, O_CHARGED)
    blocks.clear(s, s.obj, o, O_EVICTED)
    give_obj(s, o)
