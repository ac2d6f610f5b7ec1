"""PTE pages freed on request: the RFC of Aug 2022 and the variants that its discussion asked for.

kernel-rules.md, section 4.1. mm/pte_ref.c walks the mappings (walk_page_range): a span that only VM_PFNMAP or
hugetlb mappings touch is not met; one that several share is judged once, as a whole page.
"""

from __future__ import annotations

from pterefd.engine.entries import free_page, kind_of
from pterefd.engine.jit import kernel
from pterefd.engine.layout import (
    ADDRESS_END,
    G_NDIRTY,
    K_EMPTY,
    K_MIXED,
    K_ZERO,
    M_EMPTY,
    M_FREED_REQUEST,
    M_KEPT_EMPTY,
    M_KEPT_ZERO,
    M_MIXED,
    M_NPTE,
    M_PEAK_FREEABLE,
    M_PFN_HIGH,
    M_PFN_LOW,
    M_PROFILE,
    M_RMAP_LOCKS,
    M_SLOTS,
    M_WRITE_HOLDS,
    M_ZERO,
    P_REF,
    PMD_AWAY,
    PMD_BITS,
    PMD_FREED,
    PMD_PAGES,
    PMD_RECLAIMABLE,
    SLOT_SHIFT,
    SPAN,
    SPAN_SHIFT,
    V_END,
    V_FLAGS,
    V_START,
    VM_HUGETLB,
    VM_PFNMAP,
    VM_UFFD,
)
from pterefd.engine.tables import has_bit, next_page, note_freed, page_of, pmd_of, span_index
from pterefd.mm.profile import PF_ALIGNED, PF_EMPTY_ONLY, PF_UFFD_EXEMPT
from pterefd.mm.vma import vma_count, vma_first, vma_record

_PASSED_OVER = VM_PFNMAP | VM_HUGETLB

# What became of a PTE page that was freed: munmap has forgotten the span, it is missing, a fault made it again.
GONE, MISSED, MADE_AGAIN = range(3)


@kernel
def may_free(s, m, span):
    """Does free_ptes free a PTE page of this span, if it is empty or zero?"""
    profile = s.mm[m, M_PROFILE]
    met = False
    k = vma_first(s, m, span)
    while k < vma_count(s, m):
        v = vma_record(s, m, k)
        if s.vma[v, V_START] >= span + SPAN:
            break
        flags = s.vma[v, V_FLAGS]
        if flags & VM_UFFD and profile & PF_UFFD_EXEMPT:
            return False
        if profile & PF_ALIGNED and (s.vma[v, V_START] > span or s.vma[v, V_END] < span + SPAN):
            return False
        met |= not flags & _PASSED_OVER
        k += 1
    return met


@kernel
def _always_free(s, m, span):
    """True where no look at the mappings is needed."""
    if s.mm[m, M_PROFILE] & (PF_ALIGNED | PF_UFFD_EXEMPT):
        return False
    return span + SPAN <= s.mm[m, M_PFN_LOW] or span >= s.mm[m, M_PFN_HIGH]


@kernel
def _mappings_of(s, m, span):
    """How many mappings have a part of the span."""
    k = vma_first(s, m, span)
    n = 0
    while k + n < vma_count(s, m) and s.vma[vma_record(s, m, k + n), V_START] < span + SPAN:
        n += 1
    return n


@kernel
def note_walk(s, m):
    """A free_ptes begins: it takes the mmap_lock for writing at every PTE page of every mapping that it walks.

    kfreeptd_pmd_entry. A PTE page is met once by each mapping that has a part of its span.
    """
    holds = s.mm[m, M_NPTE]
    for k in range(vma_count(s, m)):
        v = vma_record(s, m, k)
        start = s.vma[v, V_START]
        span = start & ~(SPAN - 1)
        if k > 0 and s.vma[vma_record(s, m, k - 1), V_END] > span and page_of(s, m, span):
            holds += 1
        if s.vma[v, V_FLAGS] & _PASSED_OVER:
            addr = next_page(s, m, start, s.vma[v, V_END])
            while addr < s.vma[v, V_END]:
                holds -= 1
                addr = next_page(s, m, (addr & ~(SPAN - 1)) + SPAN, s.vma[v, V_END])
    s.mm[m, M_WRITE_HOLDS] += holds


@kernel
def _free_one(s, m, t, i, span):
    """Free the PTE page at t, i on request; its entries, if any, are none from then on."""
    s.mm[m, M_RMAP_LOCKS] += _mappings_of(s, m, span)
    free_page(s, m, t, i)
    s.mm[m, M_FREED_REQUEST] += 1
    note_freed(s, t, i)


@kernel
def free_ptes(s, m, empty, zero, most):
    """Free up to `most` empty and/or zero PTE pages, in order of address: kfreeptd_pmd_entry.

    PTE pages only. Returns (empty pages freed, zero pages freed); 0, 0 where none is left.
    """
    if s.mm[m, M_PROFILE] & PF_EMPTY_ONLY:
        zero = False
    freed_empty = 0
    freed_zero = 0
    base = s.mm[m, M_SLOTS]
    for h in range(s.mm[m, M_SLOTS + 1]):
        t = s.val[base + h]
        if s.pmd[t, PMD_RECLAIMABLE] == 0:
            continue
        for w in range(16):
            word = s.pmd[t, PMD_BITS + w]
            if word == 0:
                continue
            for b in range(32):
                if (word >> b) & 1 == 0:
                    continue
                if freed_empty + freed_zero >= most:
                    return freed_empty, freed_zero
                i = (w << 5) + b
                is_empty = kind_of(s.pte[s.pmd[t, i], P_REF]) == K_EMPTY
                if not (empty if is_empty else zero):
                    continue
                span = (s.key[base + h] << SLOT_SHIFT) + (i << SPAN_SHIFT)
                if _always_free(s, m, span) or may_free(s, m, span):
                    _free_one(s, m, t, i, span)
                    freed_empty += is_empty
                    freed_zero += not is_empty
    return freed_empty, freed_zero


@kernel
def free_mixed(s, m, start, most, slots):
    """Free up to `most` mixed PTE pages from address `start` on, looking through at most so many GiB slots.

    Beyond the mail, under the rules of its walk. Returns (pages freed, address to go on from; ADDRESS_END at the end).
    """
    if s.mm[m, M_PROFILE] & PF_EMPTY_ONLY:
        return 0, ADDRESS_END
    freed = 0
    base = s.mm[m, M_SLOTS]
    for h in range(s.mm[m, M_SLOTS + 1]):
        at = s.key[base + h] << SLOT_SHIFT
        if at + (512 << SPAN_SHIFT) <= start:
            continue
        if s.mm[m, M_MIXED] == 0:
            break
        if slots == 0:
            return freed, at
        t = s.val[base + h]
        if s.pmd[t, PMD_PAGES] == 0:
            continue
        slots -= 1
        for i in range(512):
            p = s.pmd[t, i]
            span = at + (i << SPAN_SHIFT)
            if p == 0 or span < start or kind_of(s.pte[p, P_REF]) != K_MIXED:
                continue
            if freed == most:
                return freed, span
            if _always_free(s, m, span) or may_free(s, m, span):
                _free_one(s, m, t, i, span)
                freed += 1
    return freed, ADDRESS_END


# ---- what is empty or zero, and would not be freed now ----------------------------------------------


@kernel
def _note_kept(s, m, begin, end, after):
    """Count the reclaimable PTE pages of the spans of [begin, end) that are kept; none that begins below `after`."""
    span = max(begin & ~(SPAN - 1), after)
    addr = next_page(s, m, span, end)
    while addr < end:
        kind = kind_of(s.pte[page_of(s, m, addr), P_REF])
        if (kind == K_EMPTY or kind == K_ZERO) and not may_free(s, m, addr):
            s.mm[m, M_KEPT_EMPTY if kind == K_EMPTY else M_KEPT_ZERO] += 1
        addr = next_page(s, m, addr + SPAN, end)
    return max(after, ((end - 1) & ~(SPAN - 1)) + SPAN)


@kernel
def note_kept(s, m):
    """Bring M_KEPT_EMPTY and M_KEPT_ZERO up to date: only mappings that a rule looks at are walked.

    These are the ends of all (rfc-2022-aligned), those with userfaultfd (rfc-2022-uffd), those that no walk enters.
    """
    profile = s.mm[m, M_PROFILE]
    s.mm[m, M_KEPT_EMPTY] = 0
    s.mm[m, M_KEPT_ZERO] = 0
    if s.mm[m, M_EMPTY] + s.mm[m, M_ZERO] == 0:
        return
    low = s.mm[m, M_PFN_LOW]
    high = s.mm[m, M_PFN_HIGH]
    if profile & (PF_ALIGNED | PF_UFFD_EXEMPT):
        low = 0
        high = ADDRESS_END
    after = 0
    k = vma_first(s, m, low)
    while k < vma_count(s, m):
        v = vma_record(s, m, k)
        start = s.vma[v, V_START]
        end = s.vma[v, V_END]
        flags = s.vma[v, V_FLAGS]
        if start >= high:
            break
        if flags & _PASSED_OVER or (flags & VM_UFFD and profile & PF_UFFD_EXEMPT):
            after = _note_kept(s, m, start, end, after)
        elif profile & PF_ALIGNED:
            if start & (SPAN - 1):
                after = _note_kept(s, m, start, start + 1, after)
            if end & (SPAN - 1):
                after = _note_kept(s, m, end - 1, end, after)
        k += 1
    if profile & PF_EMPTY_ONLY:
        s.mm[m, M_KEPT_ZERO] = s.mm[m, M_ZERO]
    now = s.mm[m, M_EMPTY] + s.mm[m, M_ZERO] - s.mm[m, M_KEPT_EMPTY] - s.mm[m, M_KEPT_ZERO]
    s.mm[m, M_PEAK_FREEABLE] = max(s.mm[m, M_PEAK_FREEABLE], now)


@kernel
def note_all_kept(s):
    """The same for every mm whose numbers are about to be published."""
    for d in range(s.g[G_NDIRTY]):
        note_kept(s, s.dirty[d])


# ---- by span: for whoever knows which PTE pages are not needed again --------------------------------


@kernel
def _reclaimable(s, m, span):
    """(PMD page, kind of PTE page) of a span whose PTE page free_ptes would free now; PMD page 0 where it would not."""
    t = pmd_of(s, m, span)
    if t == 0 or not has_bit(s, t, PMD_BITS, span_index(span)):
        return 0, K_EMPTY
    kind = kind_of(s.pte[s.pmd[t, span_index(span)], P_REF])
    if kind == K_ZERO and s.mm[m, M_PROFILE] & PF_EMPTY_ONLY:
        return 0, kind
    if _always_free(s, m, span) or may_free(s, m, span):
        return t, kind
    return 0, kind


@kernel
def list_reclaimable(s, m, addr, out):
    """Write the spans from addr on that free_ptes would free a PTE page of into out (int64[n], addresses, ascending).

    Returns how many were written, and the address to go on from; ADDRESS_END where there are no more.
    """
    n = 0
    base = s.mm[m, M_SLOTS]
    for h in range(s.mm[m, M_SLOTS + 1]):
        t = s.val[base + h]
        slot = s.key[base + h] << SLOT_SHIFT
        if s.pmd[t, PMD_RECLAIMABLE] == 0 or slot + (1 << SLOT_SHIFT) <= addr:
            continue
        for i in range(512):
            span = slot + (i << SPAN_SHIFT)
            if span >= addr and has_bit(s, t, PMD_BITS, i) and _reclaimable(s, m, span)[0]:
                if n == out.shape[0]:
                    return n, span
                out[n] = span
                n += 1
    return n, ADDRESS_END


@kernel
def free_spans(s, m, spans):
    """Free the PTE pages of these spans (int64[n], addresses) that are empty or zero; the mmap_lock is taken for each.

    Returns (empty pages freed, zero pages freed).
    """
    freed_empty = 0
    freed_zero = 0
    for k in range(spans.shape[0]):
        t, kind = _reclaimable(s, m, spans[k])
        if t:
            _free_one(s, m, t, span_index(spans[k]), spans[k])
            freed_empty += kind == K_EMPTY
            freed_zero += kind == K_ZERO
    s.mm[m, M_WRITE_HOLDS] += freed_empty + freed_zero
    return freed_empty, freed_zero


@kernel
def note_missed(s, m, spans, out):
    """out[k] (uint8[n]): what became of the PTE page of span k, which was freed: GONE, MISSED or MADE_AGAIN."""
    for k in range(spans.shape[0]):
        t = pmd_of(s, m, spans[k])
        i = span_index(spans[k])
        out[k] = GONE
        if t and has_bit(s, t, PMD_FREED, i):
            out[k] = MISSED
        elif t and s.pmd[t, PMD_AWAY] and s.away[s.pmd[t, PMD_AWAY], i] < 0:
            out[k] = MADE_AGAIN
