"""Runs of accesses to pages of one mapping whose PTE pages are there: what most events of a recording are.

What a run changes is summed up in registers and told to the mm at its end. Whatever takes more than an entry and a
pte_refcount (a new table, a page that becomes empty, zero, full or uniform, a shared row, swap, guard markers) ends it:
the long way of step.py does that event.
"""

from __future__ import annotations

from pterefd.engine.jit import inline, kernel
from pterefd.engine.layout import (
    E_ANON,
    E_NONE,
    E_ZERO,
    G_NOW,
    M_E,
    M_FAULTS,
    M_LAST_FAULT,
    M_REF_UPDATES,
    P_ENT,
    P_REF,
    PAGE,
    PMD_ORDER,
    REF_MAPPED,
    REF_UPDATES,
    REF_ZERO_SHIFT,
    SLOT_SHIFT,
    SPAN_SHIFT,
    T_READ,
    T_WRITE,
    V_ANON,
    V_END,
    V_FLAGS,
    V_OBJ,
    V_START,
    VM_HUGETLB,
    VM_READ,
    VM_WRITE,
)
from pterefd.engine.state import prefetch
from pterefd.engine.tables import entry_index, pmd_of, span_index
from pterefd.mm.events import OP_FAULT
from pterefd.mm.huge import allowed_orders
from pterefd.mm.vma import vma_at, vma_record

AHEAD = 16  # events: what they wait for most is their entry, where accesses are far from each other

_NEW_ZERO = int(REF_UPDATES[T_READ, E_NONE])
_NEW_ANON = int(REF_UPDATES[T_WRITE, E_NONE])
_ZERO_ANON = int(REF_UPDATES[T_WRITE, E_ZERO])


@kernel
def plain_mapping(s, m, addr):
    """The mapping of addr, if accesses within it are a matter of the entry alone; else 0, whose range is empty.

    Writes are, once it has an anon_vma (V_ANON).
    """
    k = vma_at(s, m, addr)
    if k < 0:
        return 0
    v = vma_record(s, m, k)
    flags = s.vma[v, V_FLAGS]
    plain = flags & (VM_READ | VM_WRITE) == VM_READ | VM_WRITE and not flags & VM_HUGETLB
    if not plain or s.vma[v, V_OBJ] >= 0:
        return 0
    return 0 if allowed_orders(s, m, v) & ((1 << PMD_ORDER) - 1) else v  # blocks: neighbours have a say


@kernel
def _fetch(s, m, addr):
    """Begin to bring addr's entry into the cache."""
    table = pmd_of(s, m, addr)
    if table:
        x = s.pte[s.pmd[table, span_index(addr)], P_ENT]
        if x > 0:
            prefetch(s.ent, x, entry_index(addr))


@inline
def run_accesses(s, m, t, pid, op, addr, length, arg, begin, end, v, single):
    """Run events of a batch from begin on, as long as they are accesses of mm m in its plain mapping v.

    single: of one page each.  Returns the first event not run: begin where it takes the long way, for all of its pages,
    as an access that has been is none the second time.
    """
    e = begin
    who = pid[begin]
    low = s.vma[v, V_START]
    high = s.vma[v, V_END]
    writable = s.vma[v, V_ANON] != 0
    now = s.g[G_NOW]
    slot = -1
    span = -1
    table = 0
    p = 0
    x = 0
    new_zero = 0
    new_anon = 0
    zero_anon = 0
    while e < end and op[e] == OP_FAULT and pid[e] == who:
        a = addr[e]
        stop = a + length[e]
        if a < low or stop > high or (single and stop - a > PAGE):
            break
        write = arg[e] != 0
        if write and not writable:
            break
        if e + AHEAD < end and addr[e + AHEAD] >> SPAN_SHIFT != a >> SPAN_SHIFT:
            _fetch(s, m, addr[e + AHEAD])
        while a < stop:
            if a >> SPAN_SHIFT != span:
                span = a >> SPAN_SHIFT
                if a >> SLOT_SHIFT != slot:
                    slot = a >> SLOT_SHIFT
                    table = pmd_of(s, m, a)
                p = s.pmd[table, span_index(a)] if table else 0
                x = s.pte[p, P_ENT]
                if p == 0 or x <= 0 or s.entref[x] != 1 or s.entfol[x]:
                    span = -1
                    break
            j = entry_index(a)
            old = s.ent[x, j]
            if old == E_NONE or (write and old == E_ZERO):
                ref = s.pte[p, P_REF]
                mapped = ref & REF_MAPPED
                zero = ref >> REF_ZERO_SHIFT
                if old == E_NONE:
                    # data stays data, and zero entries with none beside stay so
                    if mapped == 511 or (mapped == zero and (write or mapped == 0)):
                        break
                    s.pte[p, P_REF] = ref + (1 if write else 1 + (1 << REF_ZERO_SHIFT))
                    new_anon += write
                    new_zero += not write
                else:
                    if mapped == zero or (mapped == 512 and j == 511):
                        break
                    s.pte[p, P_REF] = ref - (1 << REF_ZERO_SHIFT)
                    zero_anon += 1
                s.ent[x, j] = E_ANON if write else E_ZERO
            elif old != E_ANON and (write or old != E_ZERO):
                break
            a += PAGE
        if a < stop:
            break
        now = max(now, t[e])
        e += 1
    if new_zero + new_anon + zero_anon or e > begin:
        s.g[G_NOW] = now
        s.mm[m, M_LAST_FAULT] = now
        s.mm[m, M_E + E_NONE] -= new_zero + new_anon
        s.mm[m, M_E + E_ZERO] += new_zero - zero_anon
        s.mm[m, M_E + E_ANON] += new_anon + zero_anon
        s.mm[m, M_FAULTS] += new_zero + new_anon + zero_anon
        s.mm[m, M_REF_UPDATES] += new_zero * _NEW_ZERO + new_anon * _NEW_ANON + zero_anon * _ZERO_ANON
    return e
