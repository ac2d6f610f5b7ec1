"""One batch of events, op by op. Runs without the interpreter until an event needs a decision."""

from __future__ import annotations

from pterefd.engine.charge import settle, slack
from pterefd.engine.entries import apply_one, entry_at, free_page, is_huge
from pterefd.engine.folios import note_written
from pterefd.engine.huge import huge_state, make_huge, make_huge_zero, split_pmd
from pterefd.engine.jit import kernel
from pterefd.engine.layout import (
    E_ANON,
    E_GUARD,
    E_HUGE,
    E_HUGE_ZERO,
    E_STATE,
    E_SWAP,
    G_ACCOUNT,
    G_DONE,
    G_FULL,
    G_LOST,
    G_NOW,
    G_OUTSIDE,
    G_SKIPPED,
    KILLED,
    M_BEGUN,
    M_FAULTS,
    M_LAST_FAULT,
    O_KIND,
    OBJ_DEV_ZERO,
    P_ENT,
    PAGE,
    PAGE_SHIFT,
    SPAN,
    SPAN_SHIFT,
    T_DROP,
    T_READ,
    T_SET,
    T_SWAP_OUT,
    T_WRITE,
    V_ANON,
    V_END,
    V_FLAGS,
    V_OBJ,
    V_PGOFF,
    V_START,
    VM_MAYBE_GUARD,
)
from pterefd.engine.objects import drop_cached
from pterefd.engine.publish import mark_dirty
from pterefd.engine.tables import entry_index, make_page, make_pmd, pmd_of, span_index
from pterefd.mm.advise import madvise
from pterefd.mm.auto_free import put_page
from pterefd.mm.events import (
    OP_BRK,
    OP_CACHE,
    OP_FAULT,
    OP_MADVISE,
    OP_MLOCK,
    OP_MMAP,
    OP_MPROTECT,
    OP_MREMAP,
    OP_MUNLOCK,
    OP_MUNMAP,
    OP_STATE,
    OP_SWAP_OUT,
    OP_TRUNCATE,
    STATE_HUGE,
    STATE_TABLES,
)
from pterefd.mm.fault import fault_page, fault_range, mapping_for, next_mapped
from pterefd.mm.files import note_cache, truncate
from pterefd.mm.huge import ACCESS_READ, ACCESS_WRITE
from pterefd.mm.overcommit import may_grow_heap, may_map, may_resize, refuse, strict_flags
from pterefd.mm.populate import ENOMEM, mlock, mprotect, munlock
from pterefd.mm.quick import plain_mapping, run_accesses
from pterefd.mm.remap import brk, mmap, mremap, mremap_failed, vm_flags
from pterefd.mm.unmap import change_range, munmap, note_rss
from pterefd.mm.vma import prepare_anon, vma_at, vma_count, vma_first, vma_record

STOP_DONE = 0
STOP_ASK = 1  # the event at the index is the caller's
STOP_FULL = 2  # a pool ran out during the event before the index
STOP_CORRECTED = 3  # the event at the index - 1, a `state` in the middle of a life, changed something
STOP_OUTSIDE = 4  # the event at the index - 1 was an access outside every mapping
STOP_PRESSURE = 5  # a mark is passed; S.g[G_DONE]: bytes of the event at the index that have been run

MOST_PAGES = 520  # that one access of a page can take: a huge page, or fault-around, and the tables
FIRST_PIECE = 512  # pages of a range that are run before the marks are looked at again, near to them


@kernel
def set_state(s, m, start, end, state, tables):
    """`state`: the entries of [start, end) are what a snapshot says. True where something changed."""
    changed = False
    addr = start
    while addr < end:
        k = vma_at(s, m, addr)
        if k < 0:
            k = mapping_for(s, m, addr, end, False, True)
        if k < 0:
            addr = next_mapped(s, m, addr, end)
            continue
        v = vma_record(s, m, k)
        piece = min(end, s.vma[v, V_END])
        if state == E_GUARD:
            s.vma[v, V_FLAGS] |= VM_MAYBE_GUARD
        if state == E_ANON or state == E_SWAP or state >= E_HUGE_ZERO:
            prepare_anon(s, m, k)
        while addr < piece:
            high = min((addr & ~(SPAN - 1)) + SPAN, piece)
            if state >= E_HUGE_ZERO and high - addr == SPAN:
                changed |= _set_huge(s, m, addr, state)
            elif state != 0 or tables or pmd_of(s, m, addr):
                changed |= _set_span(s, m, addr, high, state, tables)
            addr = high
    return changed


@kernel
def _set_huge(s, m, span, state):
    """A PMD entry maps the span: a folio, all of it written to as nobody knows better, or the huge zero page."""
    t = make_pmd(s, m, span)
    i = span_index(span)
    p = s.pmd[t, i]
    if p and is_huge(s, p) and huge_state(s, p) == state:
        return False
    if p:
        free_page(s, m, t, i)
    if state == E_HUGE:
        note_written(s, make_huge(s, m, t, i, span >> SPAN_SHIFT), 0, 512)
    else:
        make_huge_zero(s, m, t, i)
    return True


@kernel
def _set_span(s, m, addr, end, state, tables):
    """Entries of one span; makes the tables that they need. True where something changed."""
    t = pmd_of(s, m, addr)
    i = span_index(addr)
    changed = False
    if t == 0 or s.pmd[t, i] == 0:
        if state == 0 and not tables:
            return False
        changed = True
        t = make_page(s, m, addr)
    p = s.pmd[t, i]
    if is_huge(s, p):
        changed = True
        if state == 0 and not tables and end - addr == SPAN:
            free_page(s, m, t, i)
            return True
        split_pmd(s, m, t, i)
    for j in range(entry_index(addr), ((end - 1) >> 12 & 511) + 1):
        if entry_at(s, p, j) & E_STATE != state:
            apply_one(s, m, t, i, p, j, T_SET + state)
            changed = True
    put_page(s, m, t, i)
    return changed


@kernel
def run_events(s, t, pid, op, addr, length, arg, err, ext, objects, begin, end, imply, done):
    """Run events [begin, end) of a batch's columns. Returns (index of the first not run, STOP_*).

    objects: int64, S.obj record of each path of the trace.  imply: an access outside every mapping is
    taken as one to anonymous memory that the recording missed.  done: bytes of the event at begin that
    were run before it stopped at a mark.
    """
    e = begin
    m = 0
    outside = s.g[G_OUTSIDE]
    last_pid = -1
    v = 0
    low = high = 0  # of mapping v, in which accesses go the short way
    skip = G_SKIPPED
    armed = s.g[G_ACCOUNT]
    left = 0  # accesses of a page that pass no mark for sure
    s.g[G_DONE] = 0
    while e < end:
        o = op[e]
        s.g[G_NOW] = max(s.g[G_NOW], t[e])
        if pid[e] != last_pid:
            if armed and m:
                settle(s, m)
            last_pid = pid[e]
            low = high = 0
            m = s.pids[last_pid]
            skip = G_LOST if m == KILLED else G_SKIPPED
            m = max(m, 0)
            if m:
                mark_dirty(s, m)
            left = slack(s, m) // MOST_PAGES if armed else 0
        quick = e
        if o == OP_FAULT and low <= addr[e] < high:
            stop = min(end, e + max(left, 1)) if armed else end
            quick = run_accesses(s, m, t, pid, op, addr, length, arg, e, stop, v, armed != 0)
        if quick > e:
            left -= quick - e
            e = quick
        elif o == OP_FAULT:
            a = addr[e]
            left -= 1
            if not m:
                s.g[skip] += 1
            elif armed and length[e] > PAGE:
                low = high = 0
                a += done if e == begin else 0
                a = _fault_pieces(s, m, a, addr[e] + length[e], arg[e], err[e] != 0, imply)
                s.mm[m, M_LAST_FAULT] = s.g[G_NOW]
                if a < addr[e] + length[e]:
                    s.g[G_DONE] = a - addr[e]
                    return e, STOP_PRESSURE
                left = 0
            elif not (low <= a < high and length[e] == PAGE and _fault_again(s, m, v, a, arg[e])):
                access = ACCESS_WRITE if arg[e] != 0 else ACCESS_READ
                _fault_event(s, m, a, length[e], access, err[e] != 0, imply)
                v = plain_mapping(s, m, a)
                low = s.vma[v, V_START]
                high = s.vma[v, V_END]
            s.mm[m, M_LAST_FAULT] = s.g[G_NOW]
            e += 1
        elif o > OP_TRUNCATE:
            return e, STOP_ASK
        else:
            low = high = 0
            left = 0
            # numbers alone: each array that is handed on costs a reference taken and given back
            x0 = x1 = x2 = x3 = x4 = obj = 0
            if o == OP_MMAP or o == OP_MREMAP:
                x = arg[e]
                x0, x1, x2, x3, x4 = ext[x, 0], ext[x, 1], ext[x, 2], ext[x, 3], ext[x, 4]
                obj = objects[x2] if o == OP_MMAP and x2 >= 0 else 0
            elif o == OP_CACHE or o == OP_TRUNCATE:
                obj = objects[arg[e]]
            changed = _other(s, m, o, addr[e], length[e], arg[e], err[e], obj, x0, x1, x2, x3, x4, skip)
            if changed:
                return e + 1, STOP_CORRECTED
            e += 1
        if s.g[G_FULL]:
            return e, STOP_FULL
        if armed and left <= 0:
            if m:
                settle(s, m)
            left = slack(s, m)
            if left < 0:
                return e, STOP_PRESSURE
            left //= MOST_PAGES
        if not imply and s.g[G_OUTSIDE] != outside:
            return e, STOP_OUTSIDE
    return e, STOP_DONE


@kernel
def _fault_again(s, m, v, addr, write):
    """An access in plain mapping v whose PTE page is there already. False: it needs the long way."""
    if write and not s.vma[v, V_ANON]:
        return False
    t = pmd_of(s, m, addr)
    if t == 0:
        return False
    i = span_index(addr)
    p = s.pmd[t, i]
    if p == 0 or is_huge(s, p):
        return False
    x = s.pte[p, P_ENT]
    if x > 0 and (s.entfol[x] or s.entref[x] > 1):
        return False
    j = entry_index(addr)
    if entry_at(s, p, j) & E_STATE == E_GUARD:
        return False
    if apply_one(s, m, t, i, p, j, T_WRITE if write else T_READ):
        s.mm[m, M_FAULTS] += 1
    return True


@kernel
def _fault_pieces(s, m, addr, end, write, failed, imply):
    """The pages of [addr, end) are accessed, as far as the marks let them. Returns where they stop.

    A piece is at least FIRST_PIECE pages, and never more than the memory that is left.
    """
    access = ACCESS_WRITE if write else ACCESS_READ
    while addr < end:
        left = slack(s, m)
        pages = max(left - left // 8 - 2 * MOST_PAGES, FIRST_PIECE)
        piece = min(end, ((addr >> PAGE_SHIFT) + pages) << PAGE_SHIFT)
        _fault_event(s, m, addr, piece - addr, access, failed, imply)
        addr = piece
        settle(s, m)
        if s.g[G_FULL] or slack(s, m) < 0:
            break
    return addr


@kernel
def _other(s, m, o, addr, length, arg, err, obj, x0, x1, x2, x3, x4, skip):
    """An event that is no access. True where a `state` corrected something.

    obj: S.obj record of its path, 0 without.  x0 ..: its row of ext.
    """
    if o == OP_CACHE or o == OP_TRUNCATE:
        if err == 0 and o == OP_CACHE:
            note_cache(s, obj, addr, length)
        elif err == 0:
            truncate(s, obj, length)
    elif not m:
        s.g[skip] += 1
    elif o == OP_MMAP:
        if err == 0:
            _map(s, m, addr, length, obj, x0, x1, x3, x4)
    elif o == OP_MREMAP:
        s.mm[m, M_BEGUN] = 1
        _move(s, m, addr, length, err, x0, x1, x2)
    else:
        return _call(s, m, o, addr, length, arg, err)
    return False


@kernel
def _map(s, m, addr, length, obj, prot, flags, offset, file_size):
    """`mmap` that succeeded, as far as the host grants it."""
    anonymous = obj == 0 or s.obj[obj, O_KIND] == OBJ_DEV_ZERO
    if may_map(s, m, addr, addr + length, strict_flags(s, vm_flags(prot, flags)), anonymous):
        mmap(s, m, addr, addr + length, prot, flags, obj, offset, file_size)
    else:
        refuse(s, m)


@kernel
def _move(s, m, addr, length, err, new_addr, new_len, dontunmap):
    """`mremap`."""
    if err != 0:
        mremap_failed(s, m, addr, length, new_addr, new_len, err)
    elif may_resize(s, m, addr, (new_len - length) >> 12):
        mremap(s, m, addr, length, new_addr, new_len, dontunmap != 0)
    else:
        refuse(s, m)


@kernel
def _fault_event(s, m, addr, length, write, failed, imply):
    """`fault`: one page, or every page of a range."""
    s.mm[m, M_BEGUN] = 1
    if length == PAGE:
        k = mapping_for(s, m, addr, addr + PAGE, failed, imply)
        if k >= 0:
            fault_page(s, m, k, addr, write)
    else:
        fault_range(s, m, addr, addr + length, write, failed, imply)


@kernel
def _uncache(s, m, start, end):
    """Pages of objects in [start, end) were reclaimed: they are no longer in the page cache."""
    k = vma_first(s, m, start)
    while k < vma_count(s, m) and s.vma[vma_record(s, m, k), V_START] < end:
        v = vma_record(s, m, k)
        shift = s.vma[v, V_PGOFF] - (s.vma[v, V_START] >> 12)
        low = max(start, s.vma[v, V_START]) >> 12
        high = min(end, s.vma[v, V_END]) >> 12
        if s.vma[v, V_OBJ] > 0:
            drop_cached(s, s.vma[v, V_OBJ], low + shift, high + shift)
        k += 1


@kernel
def _call(s, m, o, addr, length, arg, err):
    """Any other system call, or what a snapshot says. True where a `state` corrected something."""
    end = addr + length
    if o == OP_MADVISE:
        madvise(s, m, addr, end, arg)
    elif o == OP_MUNMAP:
        if err == 0:
            munmap(s, m, addr, end)
    elif o == OP_MPROTECT:
        mprotect(s, m, addr, end, arg)
    elif o == OP_BRK:
        if err == 0 and not may_grow_heap(s, m, addr):
            refuse(s, m)
        elif err == 0:
            brk(s, m, addr, arg)
    elif o == OP_MLOCK:
        mlock(s, m, addr, end, arg != 0, err == ENOMEM)
    elif o == OP_MUNLOCK:
        munlock(s, m, addr, end)
    elif o == OP_SWAP_OUT:
        if s.g[G_ACCOUNT]:
            return False  # what this host's memory lets go is this host's to say
        note_rss(s, m)
        change_range(s, m, addr, end, T_DROP if arg else T_SWAP_OUT)
        if arg:
            _uncache(s, m, addr, end)
    elif o == OP_STATE:
        state = arg & (STATE_TABLES - 1)
        if state == E_SWAP and s.g[G_ACCOUNT]:
            state = E_ANON  # what is in swap is this host's to say
        if arg & STATE_HUGE:
            state = E_HUGE if state == E_ANON else E_HUGE_ZERO
        changed = set_state(s, m, addr, end, state, arg & STATE_TABLES != 0)
        return changed and s.mm[m, M_BEGUN] != 0
    if o != OP_BRK:
        s.mm[m, M_BEGUN] = 1
    return False
