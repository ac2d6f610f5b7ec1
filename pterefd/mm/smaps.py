"""What walks of a page table show: smaps and pte_pages. Nothing here changes anything. fs/proc/task_mmu.c.

Who else maps a page is not kept with the page. For anonymous memory rows of S.ent are counted (count_anon), with PMD
entries for large folios (count_pmds); for pages of files and shared memory the mappings of the object are gone through
(count_object). These go on from where they ended: in between, events may run and records may come, go and be others.
"""

from __future__ import annotations

from pterefd.engine.entries import entry_at, is_huge, kind_of
from pterefd.engine.folios import member
from pterefd.engine.huge import folio_of
from pterefd.engine.jit import kernel
from pterefd.engine.layout import (
    ADDRESS_END,
    E_ANON,
    E_FILE,
    E_HUGE,
    E_HUGE_ZERO,
    E_LAZY,
    E_NONE,
    E_SHMEM,
    E_STATE,
    E_SWAP,
    F_MAPS,
    FROW_COUNT,
    FROW_PAGE,
    FROW_SHIFT,
    G_ACCOUNT,
    G_POOLS,
    O_KIND,
    OBJ_FILE,
    P_ENT,
    P_REF,
    PAGE,
    PAGE_SHIFT,
    POOL_COLUMNS,
    POOL_ENT,
    REF_MAPPED,
    REF_ZERO_SHIFT,
    SPAN,
    SPAN_SHIFT,
    V_END,
    V_FLAGS,
    V_OBJ,
    V_PGOFF,
    V_START,
    VM_STACK,
)
from pterefd.engine.tables import entry_index, next_page, page_of
from pterefd.mm.vma import next_mapping, vma_count, vma_record

PSS_SHIFT = 12  # fractions of a byte, as in struct mem_size_stats

# ---- what is summed up of a mapping: bytes, PSS in bytes << PSS_SHIFT ------------------------------------
(
    SM_RSS,
    SM_SHARED_CLEAN,
    SM_SHARED_DIRTY,
    SM_PRIVATE_CLEAN,
    SM_PRIVATE_DIRTY,
    SM_ANONYMOUS,
    SM_LAZYFREE,
    SM_ANON_HUGE,
    SM_SWAP,
    SM_PSS,
    SM_PSS_DIRTY,
    SM_PSS_ANON,
    SM_PSS_FILE,
    SM_PSS_SHMEM,
    SM_SWAP_PSS,
) = range(15)
SM_COLUMNS = 15

# What a PTE page costs smaps_walk beside one whose entries are alike and need no look: of an object, and with a row.
OBJECT_COST, ROW_COST = 8, 64

# ---- a run of equal PTE pages ---------------------------------------------------------------------------
RUN_START, RUN_PAGES, RUN_MAPPED, RUN_ZERO, RUN_KIND = range(5)
RUN_COLUMNS = 5
RUN_HUGE = 5  # beside K_*: the deposit of a 2 MiB folio
RUN_HUGE_ZERO = 6  # ... of the huge zero page


# ---- who else maps a page -------------------------------------------------------------------------------


@kernel
def count_anon(s, x, budget, small, index, folios, n):
    """Who else maps what rows of S.ent hold, from row x on.

    small[h, 0] and small[h, 1] (int32[k, 2]): PTE pages that map shared small page h, that hold its swap slot.
    index[f] (int32[k]): number of folio f, from 1 on, where PTEs map pages of it; n have one so far.
    folios[index[f], j] (int32[k, 513]): PTEs that map page j of folio f; column 512: less those of all its pages.
    Returns (row to go on from, n): after `budget` entries, where a row without any of those is as one, or where folios
    has no room; row 0 at the end.  Records that have come since the arrays were made are passed over.
    """
    top = s.g[G_POOLS + POOL_ENT * POOL_COLUMNS]
    while x < top:
        if budget <= 0:
            return x, n
        budget -= 1
        r = s.entfol[x]
        if r != 0 and s.frow[r, FROW_COUNT] != 0:
            for j in range(512):
                f = s.frow[r, j] >> FROW_SHIFT
                if s.frow[r, j] > 0 and f < len(index) and index[f] == 0:
                    if n + 1 == len(folios):
                        return x, n
                    n += 1
                    index[f] = n
            for j in range(512):
                v = s.frow[r, j]
                f = v >> FROW_SHIFT
                if v > 0 and f < len(index):
                    folios[index[f], v & FROW_PAGE] += 1
                    folios[index[f], 512] -= 1
                elif v < 0 and -v >> 1 < len(small):
                    small[-v >> 1, -v & 1] += s.entref[x]
            budget -= 511
        x += 1
    return 0, n


@kernel
def count_pmds(s, f, budget, index, folios):
    """folios[index[f], 512] becomes the number of PMD entries that map folio f, from f on; count_anon has gone before.

    Returns the folio to go on from, after `budget` of them; 0 at the end.
    """
    end = min(f + budget, len(index))
    for i in range(f, end):
        if index[i]:
            folios[index[i], 512] += s.fol[i, F_MAPS]
    return end if end < len(index) else 0


@kernel
def object_spans(s, o, m, addr, budget, n):
    """How many times 512 pages of object o mappings reach to; n so far, up to address addr of mm m: (1, 0) at first.

    Returns (mm, address, n), to go on from after `budget` mms and mappings; mm 0 at the end.
    """
    while budget > 0:
        m, v, addr, budget = next_mapping(s, o, m, addr, budget)
        if v == 0:
            break
        end = s.vma[v, V_PGOFF] + ((s.vma[v, V_END] - s.vma[v, V_START]) >> PAGE_SHIFT)
        n = max(n, (end + 511) >> 9)
        addr = s.vma[v, V_END]
        budget -= 1
    return m, addr, n


@kernel
def _count_entries(s, p, j, end, row, at):
    """row[at], row[at + 1], ... get one more for entries [j, end) of PTE page p that map a page of an object."""
    e = s.pte[p, P_ENT]
    whole = entry_at(s, p, j) & E_STATE
    if e > 0:
        for i in range(j, end):
            state = s.ent[e, i] & E_STATE
            if state == E_FILE or state == E_SHMEM:
                row[at + i - j] += 1
    elif whole == E_FILE or whole == E_SHMEM:
        for i in range(end - j):
            row[at + i] += 1


@kernel
def count_object(s, o, m, addr, budget, spans, maps, n):
    """maps[spans[i], j] (int32[k, 512]): entries of all mms that map page 512 * i + j of object o.

    spans[i] (int32[k]): number of the i-th 512 pages, from 1 on, where some mm has a PTE page for them; n have one so
    far.  Begins at address addr of mm m: (1, 0) for all.  Returns (mm, address, n), to go on from after `budget` PTE
    pages, mms and mappings, or where maps has no room; mm 0 at the end.  What lies beyond spans is passed over.
    """
    while budget > 0:
        m, v, addr, budget = next_mapping(s, o, m, addr, budget)
        if v == 0:
            break
        end = s.vma[v, V_END]
        shift = s.vma[v, V_PGOFF] - (s.vma[v, V_START] >> PAGE_SHIFT)
        addr = max(addr, next_page(s, m, addr, end))
        while addr < end:
            if budget <= 0:
                return m, addr, n
            budget -= 1
            p = page_of(s, m, addr)
            page = addr >> PAGE_SHIFT
            last = min((addr & ~(SPAN - 1)) + SPAN, end) >> PAGE_SHIFT
            while page < last:
                i = (page + shift) >> 9
                behind = min(last, ((i + 1) << 9) - shift)
                if i < len(spans):
                    if spans[i] == 0:
                        if n + 1 == len(maps):
                            return m, page << PAGE_SHIFT, n
                        n += 1
                        spans[i] = n
                    j = page & 511
                    _count_entries(s, p, j, j + behind - page, maps[spans[i]], (page + shift) & 511)
                page = behind
            addr = next_page(s, m, last << PAGE_SHIFT, end) if last << PAGE_SHIFT < end else end
        budget -= 1
    return m, addr, n


# ---- smaps ----------------------------------------------------------------------------------------------


@kernel
def _add(row, size, maps, dirty, pss_column):
    """smaps_page_accumulate: pages of so many bytes that are mapped so often."""
    pss = size << PSS_SHIFT
    if maps >= 2:
        pss //= maps
    row[SM_RSS] += size
    row[SM_PSS] += pss
    row[pss_column] += pss
    if dirty:
        row[SM_PSS_DIRTY] += pss
        row[SM_SHARED_DIRTY if maps >= 2 else SM_PRIVATE_DIRTY] += size
    else:
        row[SM_SHARED_CLEAN if maps >= 2 else SM_PRIVATE_CLEAN] += size


@kernel
def _add_anon(row, size, maps, code):
    lazy = code & E_LAZY != 0
    _add(row, size, maps, not lazy, SM_PSS_ANON)
    row[SM_ANONYMOUS] += size
    if lazy:
        row[SM_LAZYFREE] += size


@kernel
def _maps_of_page(s, f, page, index, folios):
    """folio_precise_page_mapcount."""
    if f < len(index) and index[f]:
        return folios[index[f], page] + folios[index[f], 512]
    return s.fol[f, F_MAPS]


@kernel
def _maps_of_anon(s, x, j, shared, index, folios):
    """How many entries map the page, or hold the swap slot, of entry j of row x, as far as it is kept."""
    v = member(s, x, j)
    if v > 0:
        return _maps_of_page(s, v >> FROW_SHIFT, v & FROW_PAGE, index, folios)
    if not s.g[G_ACCOUNT]:
        return 1  # of small pages nobody keeps count
    if v < 0:
        return shared[-v >> 1, -v & 1] if -v >> 1 < len(shared) else 1
    return s.entref[x]


@kernel
def smaps_walk(s, m, start, end, shift, shared, index, folios, spans, maps, budget, row):
    """Add what the entries of [start, end), of one mapping, hold to row (int64[SM_COLUMNS]).

    shift: page of the object less page of the address.  shared, (index, folios), (spans, maps): of count_anon and
    count_object; the last are empty for memory without an object.  Returns (where it ended, budget left): at end, or
    after `budget` PTE pages whose entries are alike; the others cost OBJECT_COST, ROW_COST.
    fs/proc/task_mmu.c smaps_pte_range, smaps_account.
    """
    addr = next_page(s, m, start, end)
    while addr < end and budget > 0:
        budget -= 1
        span = addr & ~(SPAN - 1)
        addr = max(addr, start)
        behind = min(span + SPAN, end)
        p = page_of(s, m, addr)
        e = s.pte[p, P_ENT]
        first = entry_index(addr)
        last = first + ((behind - addr) >> PAGE_SHIFT)
        whole = entry_at(s, p, first) if e <= 0 else E_NONE
        state = whole & E_STATE
        size = (last - first) * PAGE
        if state == E_HUGE:
            f = folio_of(s, p)
            if f < len(index) and index[f]:
                budget -= ROW_COST
                for j in range(first, last):
                    _add_anon(row, PAGE, _maps_of_page(s, f, j, index, folios), whole)
            else:
                _add_anon(row, size, s.fol[f, F_MAPS], whole)
            row[SM_ANON_HUGE] += size
        elif state == E_ANON:
            _add_anon(row, size, 1, whole)
        elif state == E_SWAP:
            row[SM_SWAP] += size
            row[SM_SWAP_PSS] += size << PSS_SHIFT
        elif e > 0 or state == E_FILE or state == E_SHMEM:
            budget -= ROW_COST if e > 0 else OBJECT_COST
            for j in range(first, last):
                code = entry_at(s, p, j)
                state = code & E_STATE
                if state == E_ANON:
                    _add_anon(row, PAGE, _maps_of_anon(s, e, j, shared, index, folios), code)
                elif state == E_SWAP:
                    row[SM_SWAP] += PAGE
                    row[SM_SWAP_PSS] += (PAGE << PSS_SHIFT) // max(_maps_of_anon(s, e, j, shared, index, folios), 1)
                elif state == E_FILE or state == E_SHMEM:
                    n = 1
                    at = ((addr >> PAGE_SHIFT) - first + j) + shift
                    if at >> 9 < len(spans) and spans[at >> 9]:
                        n = maps[spans[at >> 9], at & 511]
                    # a recording does not say which pages of a file were written to through a mapping
                    _add(row, PAGE, n, state == E_SHMEM, SM_PSS_SHMEM if state == E_SHMEM else SM_PSS_FILE)
        addr = next_page(s, m, span + SPAN, end)
    return min(addr, end), budget


# ---- pte_pages ------------------------------------------------------------------------------------------


@kernel
def list_pages(s, m, addr, budget, runs):
    """Runs of equal PTE pages in order of address, from addr on, into runs (int64[n, RUN_COLUMNS]).

    Returns (runs written, address to go on from: ADDRESS_END at the end). It ends after `budget` PTE pages, or where
    runs is full.
    """
    n = 0
    end = ADDRESS_END
    addr = next_page(s, m, addr, end)
    while addr < end and budget > 0:
        budget -= 1
        span = addr & ~(SPAN - 1)
        p = page_of(s, m, span)
        ref = s.pte[p, P_REF]
        mapped = ref & REF_MAPPED
        zero = ref >> REF_ZERO_SHIFT
        kind = kind_of(ref)
        if is_huge(s, p):
            mapped = 512
            zero = 0
            kind = RUN_HUGE
            if -s.pte[p, P_ENT] & E_STATE == E_HUGE_ZERO:
                zero = 512
                kind = RUN_HUGE_ZERO
        k = n - 1
        if (
            n > 0
            and runs[k, RUN_START] + (runs[k, RUN_PAGES] << SPAN_SHIFT) == span
            and runs[k, RUN_MAPPED] == mapped
            and runs[k, RUN_ZERO] == zero
            and runs[k, RUN_KIND] == kind
        ):
            runs[k, RUN_PAGES] += 1
        else:
            if n == len(runs):
                return n, span
            runs[n, RUN_START] = span
            runs[n, RUN_PAGES] = 1
            runs[n, RUN_MAPPED] = mapped
            runs[n, RUN_ZERO] = zero
            runs[n, RUN_KIND] = kind
            n += 1
        addr = next_page(s, m, span + SPAN, end)
    return n, addr


# ---- places ---------------------------------------------------------------------------------------------


@kernel
def stack_top(s, m):
    """End of the main stack, 0 without one."""
    for k in range(vma_count(s, m) - 1, -1, -1):
        v = vma_record(s, m, k)
        if s.vma[v, V_FLAGS] & VM_STACK:
            return s.vma[v, V_END]
    return 0


@kernel
def first_file(s, m):
    """Object of the lowest mapping of a file, which is the program's; 0 where none."""
    for k in range(vma_count(s, m)):
        o = s.vma[vma_record(s, m, k), V_OBJ]
        if o > 0 and s.obj[o, O_KIND] == OBJ_FILE:
            return o
    return 0
