"""What file and shmem mappings show: the page cache, fault-around, truncation. kernel-rules.md, section 3."""

from __future__ import annotations

from pterefd.engine.entries import apply
from pterefd.engine.jit import kernel
from pterefd.engine.layout import (
    M_WALKS,
    O_KIND,
    O_KNOWN,
    O_ONE_BY_ONE,
    O_SIZE,
    OBJ_FILE,
    OBJ_SHMEM,
    OBJ_VDSO,
    OBJ_VVAR,
    T_FILL_FILE,
    T_FILL_PFN,
    T_FILL_SHMEM,
    T_UNMAP_FILE,
    T_ZAP,
    V_END,
    V_OBJ,
    V_PGOFF,
    V_START,
)
from pterefd.engine.objects import add_cached, cached_run, charge_pages, drop_cached, pages_in
from pterefd.engine.publish import mark_dirty
from pterefd.engine.tables import make_page, make_pmd, page_of, span_index
from pterefd.mm.unmap import change_range, note_rss
from pterefd.mm.vma import EVERY, next_mapping

FAULT_AROUND_PAGES = 16  # fault_around_bytes / 4096


@kernel
def fill_of(s, o):
    """The transition that maps a page of object o."""
    kind = s.obj[o, O_KIND]
    if kind == OBJ_SHMEM:
        return T_FILL_SHMEM
    if kind == OBJ_VVAR:
        return T_FILL_PFN
    return T_FILL_FILE


@kernel
def note_cache(s, o, offset, length):
    """The trace says that these bytes are in the page cache; from the first time on it says all."""
    s.obj[o, O_KNOWN] = 1
    add_cached(s, o, offset >> 12, (offset + length + 4095) >> 12)


@kernel
def _fill(s, m, v, begin, end):
    """Map the cached pages of mapping v among [begin, end) (pages of the address, one span) that are none."""
    o = s.vma[v, V_OBJ]
    shift = s.vma[v, V_PGOFF] - (s.vma[v, V_START] >> 12)
    end = min(end, pages_in(s, o) - shift)
    mapped = False
    while begin < end:
        first, last = cached_run(s, o, begin + shift)
        first = max(first - shift, begin)
        last = min(last - shift, end)
        if first >= last:
            break
        t = make_page(s, m, first << 12)
        i = span_index(first << 12)
        apply(s, m, t, i, s.pmd[t, i], first & 511, ((last - 1) & 511) + 1, fill_of(s, o))
        charge_pages(s, m, o, first + shift, last + shift)
        mapped = True
        begin = last
    return mapped


@kernel
def fault_around(s, m, v, addr):
    """do_fault_around and filemap_map_pages: the cached pages of the window about addr. True where any.

    The window starts at an address aligned to 16 pages, clamped to the mapping and the PTE page; its
    length counts from the clamped start.
    """
    s.mm[m, M_WALKS] += 1  # filemap_map_pages
    page = addr >> 12
    index = page & 511
    within = page - (s.vma[v, V_START] >> 12)
    low = max(index & ~(FAULT_AROUND_PAGES - 1), index - min(index, within))
    high = min(low + FAULT_AROUND_PAGES, 512)
    high = min(high, index + (s.vma[v, V_END] >> 12) - page)
    o = s.vma[v, V_OBJ]
    if s.obj[o, O_KIND] == OBJ_FILE and page_of(s, m, addr) == 0:
        # filemap_map_pages makes the PTE page in filemap_map_pmd, which it skips where the first cached page is
        # the file's last (can_map_large)
        shift = s.vma[v, V_PGOFF] - (s.vma[v, V_START] >> 12)
        first, last = cached_run(s, o, page - index + low + shift)
        if first < last and first == pages_in(s, o) - 1:
            return False
    return _fill(s, m, v, page - index + low, page - index + high)


@kernel
def cache_page(s, m, v, addr):
    """__do_fault: the page is in the page cache from now on."""
    page = (addr - s.vma[v, V_START] >> 12) + s.vma[v, V_PGOFF]
    add_cached(s, s.vma[v, V_OBJ], page, page + 1)
    charge_pages(s, m, s.vma[v, V_OBJ], page, page + 1)


@kernel
def map_page(s, m, v, addr):
    """finish_fault: one page of the object, put into the page cache where it was not."""
    o = s.vma[v, V_OBJ]
    cache_page(s, m, v, addr)
    t = make_page(s, m, addr)
    i = span_index(addr)
    j = (addr >> 12) & 511
    apply(s, m, t, i, s.pmd[t, i], j, j + 1, fill_of(s, o))


@kernel
def beyond_end(s, v, addr):
    """True where addr lies beyond the end of the mapping's object (SIGBUS)."""
    o = s.vma[v, V_OBJ]
    return (addr - s.vma[v, V_START] >> 12) + s.vma[v, V_PGOFF] >= pages_in(s, o)


@kernel
def read_fault(s, m, v, addr):
    """do_read_fault of a page that is not mapped. False: SIGBUS, whose upper tables stay all the same."""
    o = s.vma[v, V_OBJ]
    kind = s.obj[o, O_KIND]
    make_pmd(s, m, addr)
    if kind != OBJ_VDSO and kind != OBJ_VVAR and not s.obj[o, O_ONE_BY_ONE]:
        fault_around(s, m, v, addr)
    if beyond_end(s, v, addr):
        return False
    map_page(s, m, v, addr)
    return True


@kernel
def unmap_object(s, o, begin, end, transition):
    """Pages [begin, end) of the object in every mapping of every mm: unmap_mapping_range."""
    m, v, _, _ = next_mapping(s, o, 1, 0, EVERY)
    while v:
        shift = (s.vma[v, V_START] >> 12) - s.vma[v, V_PGOFF]
        low = max(s.vma[v, V_START], (begin + shift) << 12)
        high = min(s.vma[v, V_END], min(end + shift, 1 << 40) << 12)
        if low < high:
            mark_dirty(s, m)
            note_rss(s, m)
            change_range(s, m, low, high, transition)
        m, v, _, _ = next_mapping(s, o, m, s.vma[v, V_END], EVERY)


@kernel
def truncate(s, o, size):
    """A file's new size in bytes: what lies beyond leaves cache and mappings, private copies too."""
    s.obj[o, O_SIZE] = size
    pages = (size + 4095) >> 12
    drop_cached(s, o, pages, 1 << 51)
    unmap_object(s, o, pages, 1 << 51, T_ZAP)  # guard markers stay


@kernel
def punch(s, o, begin, end):
    """MADV_REMOVE of pages [begin, end): out of cache and mappings; private copies stay."""
    drop_cached(s, o, begin, end)
    unmap_object(s, o, begin, end, T_UNMAP_FILE)
