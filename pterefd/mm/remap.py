"""mmap, brk and mremap: mm/mmap.c, mm/vma.c, mm/mremap.c. kernel-rules.md, sections 2.4, 2.5 and 9."""

from __future__ import annotations

from pterefd.engine.entries import entry_at, is_huge, kind_of, note_kind, own_row, set_entry
from pterefd.engine.folios import clear_member, member, set_member
from pterefd.engine.huge import split_pmd
from pterefd.engine.jit import kernel
from pterefd.engine.layout import (
    E_NONE,
    G_ACCOUNT,
    G_COMMITTED,
    K_NO_PAGE,
    M_BRK,
    M_DEF_FLAGS,
    M_LOCKED_VM,
    M_MOVED,
    M_PROFILE,
    M_REF_UPDATES,
    M_START_BRK,
    M_WALKS,
    O_COMMITTED,
    O_KIND,
    O_KNOWN,
    O_SIZE,
    OBJ_DEV_ZERO,
    OBJ_SHMEM,
    OBJ_VDSO,
    OBJ_VVAR,
    P_ENT,
    P_REF,
    PAGE,
    PMD_ATOMIC,
    PMD_PAGES,
    SLOT,
    SPAN,
    V_ANON,
    V_CHAIN,
    V_END,
    V_FLAGS,
    V_OBJ,
    V_PGOFF,
    V_START,
    VM_ACCOUNT,
    VM_GROWSDOWN,
    VM_HUGETLB,
    VM_LOCKED,
    VM_LOCKED_MASK,
    VM_NOHUGEPAGE,
    VM_NORESERVE,
    VM_PFNMAP,
    VM_READ,
    VM_SHARED,
    VM_SPECIAL,
    VM_STACK,
    VM_UFFD,
    VM_WRITE,
)
from pterefd.engine.pools import take_obj
from pterefd.engine.tables import (
    entry_index,
    has_bit,
    link_pmd,
    make_page,
    make_pmd,
    make_pud,
    pmd_of,
    put_bit,
    span_index,
    unlink_pmd,
)
from pterefd.mm.auto_free import put_page
from pterefd.mm.events import (
    MAP_GROWSDOWN,
    MAP_HUGETLB,
    MAP_LOCKED,
    MAP_NORESERVE,
    MAP_POPULATE,
    MAP_SHARED,
    MAP_STACK,
    MAP_UFFD,
)
from pterefd.mm.huge import forget_lock
from pterefd.mm.overcommit import strict_flags
from pterefd.mm.populate import EFAULT, ENOMEM, populate
from pterefd.mm.profile import PF_APART, PF_MMAP3, PF_MREMAP_MANY, PF_REALIGN, PF_STACK
from pterefd.mm.unmap import munmap, note_rss
from pterefd.mm.vma import account, add_range, new_vma, put_vma, split_vma, vma_at, vma_count, vma_first, vma_record

EAGAIN = 11

# ---- mmap -------------------------------------------------------------------------------------


@kernel
def vm_flags(prot, flags):
    """VM_* flags of a new mapping (calc_vm_prot_bits, calc_vm_flag_bits, accountable_mapping)."""
    vm = prot
    if flags & MAP_SHARED:
        vm |= VM_SHARED
    if flags & MAP_GROWSDOWN:
        vm |= VM_GROWSDOWN
    if flags & MAP_LOCKED:
        vm |= VM_LOCKED
    if flags & MAP_HUGETLB:
        vm |= VM_HUGETLB
    if flags & MAP_STACK and flags & MAP_GROWSDOWN:
        vm |= VM_STACK
    if flags & MAP_NORESERVE:
        vm |= VM_NORESERVE
    if flags & MAP_UFFD:
        vm |= VM_UFFD
    if vm & (VM_NORESERVE | VM_SHARED | VM_WRITE) == VM_WRITE:
        vm |= VM_ACCOUNT
    return vm


@kernel
def mmap(s, m, start, end, prot, flags, obj, offset, file_size):
    """mmap_region over whatever was there. obj: S.obj of the path, 0 without one; file_size: bytes, -1 unknown."""
    munmap(s, m, start, end)
    vm = strict_flags(s, vm_flags(prot, flags)) | s.mm[m, M_DEF_FLAGS]
    if flags & MAP_STACK and not vm & VM_STACK and s.mm[m, M_PROFILE] & PF_STACK:
        vm |= VM_NOHUGEPAGE  # calc_vm_flag_bits; the main stack, which no call has mapped, has none
    pgoff = offset >> 12
    if obj > 0:
        kind = s.obj[obj, O_KIND]
        if kind == OBJ_DEV_ZERO:
            obj = 0
        elif kind == OBJ_VDSO:
            vm |= VM_SPECIAL
        elif kind == OBJ_VVAR:
            vm |= VM_SPECIAL | VM_PFNMAP
        elif file_size >= 0:
            s.obj[obj, O_SIZE] = file_size
    if obj == 0 and vm & VM_SHARED:
        obj = take_obj(s)
        s.obj[obj, O_KIND] = OBJ_SHMEM
        s.obj[obj, O_KNOWN] = 1
        s.obj[obj, O_SIZE] = end - start
        if not vm & VM_NORESERVE:  # shmem_acct_size
            s.obj[obj, O_COMMITTED] = (end - start) >> 12
            s.g[G_COMMITTED] += (end - start) >> 12
        pgoff = 0
    elif obj == 0:
        obj = -1
        pgoff = start >> 12
    add_range(s, m, start, end, vm, pgoff, obj, 0, 0, False, True, True, True)
    if flags & MAP_POPULATE or vm & VM_LOCKED:
        populate(s, m, start, end, True)


# ---- brk --------------------------------------------------------------------------------------


@kernel
def brk(s, m, addr, start):
    """The heap ends at addr. start: where it begins, 0 where the event does not say. addr 0 only asks."""
    if addr == 0:
        return
    if start and s.mm[m, M_START_BRK] == 0:
        s.mm[m, M_START_BRK] = start
        s.mm[m, M_BRK] = start
        k = vma_at(s, m, start)
        if k >= 0 and s.vma[vma_record(s, m, k), V_OBJ] < 0:
            s.mm[m, M_BRK] = s.vma[vma_record(s, m, k), V_END]
    old = s.mm[m, M_BRK]
    if old == 0:
        # a heap that the trace did not introduce: it begins where it is first seen to end
        k = vma_first(s, m, addr - PAGE) if addr else 0
        s.mm[m, M_START_BRK] = addr
        s.mm[m, M_BRK] = addr
        return
    if addr < old:
        munmap(s, m, addr, old)
    elif addr > old:
        munmap(s, m, old, addr)  # nothing but what an access before this event has implied can be there
        flags = VM_READ | VM_WRITE | VM_ACCOUNT | s.mm[m, M_DEF_FLAGS]
        if old > s.mm[m, M_START_BRK]:
            add_range(s, m, old, addr, flags, old >> 12, -1, 0, 0, False, True, False, False)
        else:
            # sys_brk looks for a mapping to extend no further down than start_brk: not the bss
            account(s, m, flags, (addr - old) >> 12)
            put_vma(s, m, new_vma(s, old, addr, flags, old >> 12, -1))
        if flags & VM_LOCKED:
            populate(s, m, old, addr, True)
    s.mm[m, M_BRK] = addr


# ---- mremap -----------------------------------------------------------------------------------


@kernel
def _extent(old, new, end, size):
    """get_extent: how far one step goes, to the next boundary of `size` in source or destination."""
    step = ((old + size) & ~(size - 1)) - old
    step = min(step, end - old)
    return min(step, ((new + size) & ~(size - 1)) - new)


@kernel
def _move_page(s, m, old, new):
    """move_normal_pmd: the PTE page itself goes to the new span, whatever it holds."""
    t = pmd_of(s, m, old)
    u = pmd_of(s, m, new)
    i = span_index(old)
    j = span_index(new)
    p = s.pmd[t, i]
    kind = kind_of(s.pte[p, P_REF])
    note_kind(s, m, t, i, kind, K_NO_PAGE)
    s.pmd[t, i] = 0
    s.pmd[t, PMD_PAGES] -= 1
    s.pmd[u, j] = p
    s.pmd[u, PMD_PAGES] += 1
    note_kind(s, m, u, j, K_NO_PAGE, kind)
    put_bit(s, u, PMD_ATOMIC, j, has_bit(s, t, PMD_ATOMIC, i))


@kernel
def take_member(s, p, j):
    """What folio's page entry j of the page maps (engine/folios.py member), and no longer does; its counts stay."""
    x = s.pte[p, P_ENT]
    if x <= 0:
        return 0
    if s.entref[x] > 1 and s.g[G_ACCOUNT]:
        x = own_row(s, p)
    v = member(s, x, j)
    if v:
        clear_member(s, x, j)
    return v


@kernel
def _move_entries(s, m, old, new, length):
    """move_ptes: entries one by one, after pte_alloc at the destination. The source page stays."""
    t = pmd_of(s, m, old)
    i = span_index(old)
    u = make_page(s, m, new)
    j = span_index(new)
    s.mm[m, M_WALKS] += 2
    p = s.pmd[t, i]
    q = s.pmd[u, j]
    if s.pte[p, P_REF] == 0:
        return
    a = entry_index(old)
    b = entry_index(new)
    for n in range(length >> 12):
        code = entry_at(s, p, a + n)
        if code != E_NONE:
            v = take_member(s, p, a + n)
            set_entry(s, m, t, i, p, a + n, E_NONE)
            set_entry(s, m, u, j, q, b + n, code)
            s.mm[m, M_REF_UPDATES] += 2
            if v:
                set_member(s, own_row(s, q), b + n, v)
    put_page(s, m, t, i)
    put_page(s, m, u, j)


@kernel
def _move_page_tables(s, m, old, new, length):
    """move_page_tables: whole PMD pages, whole PTE pages and huge pages, or entry by entry."""
    end = old + length
    s.mm[m, M_MOVED] = 1
    while old < end:
        step = _extent(old, new, end, SLOT)
        t = pmd_of(s, m, old)
        if t == 0:
            old += step
            new += step
            continue
        make_pud(s, m, new)
        if step == SLOT and pmd_of(s, m, new) == 0:
            link_pmd(s, m, new, unlink_pmd(s, m, old))
            old += step
            new += step
            continue
        step = _extent(old, new, end, SPAN)
        if s.pmd[t, span_index(old)]:
            u = make_pmd(s, m, new)
            if step == SPAN and s.pmd[u, span_index(new)] == 0:
                _move_page(s, m, old, new)
            else:
                if is_huge(s, s.pmd[t, span_index(old)]):
                    split_pmd(s, m, t, span_index(old))
                _move_entries(s, m, old, new, step)
        old += step
        new += step


@kernel
def _free_below(s, m, addr, start):
    """can_align_down's last test: nothing is mapped in [addr, start)."""
    k = vma_first(s, m, addr)
    return k >= vma_count(s, m) or s.vma[vma_record(s, m, k), V_START] >= start


@kernel
def _realigned(s, m, old, new, length, old_start, new_start):
    """try_realign_addr: bytes by which both ends are rounded down to their spans, 0 where it may not."""
    off = old & (SPAN - 1)
    if not s.mm[m, M_PROFILE] & PF_REALIGN or off == 0 or off != new & (SPAN - 1) or length < SPAN - off:
        return 0
    if old_start != old or new_start != new:
        return 0
    if _free_below(s, m, old - off, old) and _free_below(s, m, new - off, new):
        return off
    return 0


@kernel
def _split_off(s, m, k, start, end):
    """[start, end) of the k-th mapping becomes one of its own; returns its index."""
    if s.vma[vma_record(s, m, k), V_START] != start:
        split_vma(s, m, k, start)
        k += 1
    if s.vma[vma_record(s, m, k), V_END] != end:
        split_vma(s, m, k, end)
    return k


@kernel
def _move(s, m, k, old, old_len, new, new_len, dontunmap):
    """move_vma of [old, old + old_len) inside the k-th mapping; the destination is free."""
    apart = dontunmap and s.mm[m, M_PROFILE] & PF_APART != 0
    if apart and s.vma[vma_record(s, m, k), V_FLAGS] & VM_LOCKED:
        k = _split_off(s, m, k, old, old + old_len)
    v = vma_record(s, m, k)
    flags = s.vma[v, V_FLAGS] & ~VM_UFFD  # mremap_userfaultfd_prep, without UFFD_FEATURE_EVENT_REMAP
    obj = s.vma[v, V_OBJ]
    anon = s.vma[v, V_ANON]
    chain = s.vma[v, V_CHAIN]
    old_start = s.vma[v, V_START]
    old_end = s.vma[v, V_END]
    pgoff = s.vma[v, V_PGOFF] + ((old - old_start) >> 12)
    below = above = True
    if obj < 0 and anon == 0:
        pgoff = new >> 12
        if apart:
            below = old_end != new
            above = new + new_len != old_start
            if not s.mm[m, M_PROFILE] & PF_MMAP3:
                below = above = below and above
    target = add_range(s, m, new, new + new_len, flags, pgoff, obj, anon, chain, chain > 1, below, above, False)
    new_start = s.vma[vma_record(s, m, target), V_START]
    length = min(old_len, new_len)
    off = _realigned(s, m, old, new, length, old_start, new_start)
    _move_page_tables(s, m, old - off, new - off, length + off)
    if dontunmap:
        source = vma_at(s, m, old)
        w = vma_record(s, m, source)
        if flags & VM_LOCKED:
            s.mm[m, M_LOCKED_VM] -= (s.vma[w, V_END] - s.vma[w, V_START]) >> 12
            forget_lock(s, m, s.vma[w, V_START], s.vma[w, V_END])
            s.vma[w, V_FLAGS] &= ~VM_LOCKED_MASK
        if old_start == old and old_end == old + old_len and w != vma_record(s, m, vma_at(s, m, new)):
            s.vma[w, V_ANON] = 0
            s.vma[w, V_CHAIN] = 0
            if apart and obj < 0:
                s.vma[w, V_PGOFF] = old >> 12
    else:
        munmap(s, m, old, old + old_len)
    if flags & VM_LOCKED and new_len > old_len:
        populate(s, m, new + old_len, new + new_len, True)


@kernel
def _grow(s, m, k, old, old_len, new_len):
    """Growing in place: the new part merges with what follows (vma_merge_extend)."""
    v = vma_record(s, m, k)
    end = old + old_len
    flags = s.vma[v, V_FLAGS]
    pgoff = s.vma[v, V_PGOFF] + ((end - s.vma[v, V_START]) >> 12)
    munmap(s, m, end, old + new_len)  # what an access before this event has implied
    obj, anon, chain = s.vma[v, V_OBJ], s.vma[v, V_ANON], s.vma[v, V_CHAIN]
    add_range(s, m, end, old + new_len, flags, pgoff, obj, anon, chain, False, True, True, False)
    if flags & VM_LOCKED:
        populate(s, m, end, old + new_len, True)


@kernel
def mremap(s, m, old, old_len, new, new_len, dontunmap):
    """mremap that succeeded: shrunk, grown or moved, as the addresses say; several mappings one by one."""
    if new == old and not dontunmap:
        if new_len < old_len:
            munmap(s, m, old + new_len, old + old_len)
        elif new_len > old_len:
            k = vma_at(s, m, old)
            if k >= 0:
                _grow(s, m, k, old, old_len, new_len)
        return
    if new + new_len > old and old + old_len > new:
        return  # mremap_to: EINVAL
    note_rss(s, m)
    if new_len < old_len and not dontunmap:
        munmap(s, m, new, new + new_len)
        munmap(s, m, old + new_len, old + old_len)
        old_len = new_len
    end = old + old_len
    addr = old
    while addr < end:
        k = vma_first(s, m, addr)
        if k >= vma_count(s, m):
            return
        v = vma_record(s, m, k)
        low = max(addr, s.vma[v, V_START])
        if low >= end:
            return
        piece = min(end, s.vma[v, V_END])
        length = piece - low
        grown = new_len if low == old and piece == end else length
        # each piece makes its own room: what lies between the pieces at the destination stays (remap_move)
        munmap(s, m, new + (low - old), new + (low - old) + grown)
        k = vma_first(s, m, low)
        _move(s, m, k, low, length, new + (low - old), grown, dontunmap)
        addr = piece


@kernel
def mremap_failed(s, m, old, old_len, new, new_len, error):
    """mremap_to that failed. new: where MREMAP_FIXED wanted it, else old.

    Before 6.17 it makes room first, and only then sees that the source is more than one mapping, or too large.
    """
    if s.mm[m, M_PROFILE] & PF_MREMAP_MANY or new == old or vma_at(s, m, old) < 0:
        return
    if error == EFAULT or error == ENOMEM or error == EAGAIN:
        munmap(s, m, new, new + new_len)
        if new_len < old_len:
            munmap(s, m, old + new_len, old + old_len)
