"""Which spans of a process may be moved away, and what is found where they were moved to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pterefd.live.procmem import PAGE_IS_GUARD, PAGE_IS_HUGE, PAGE_IS_PFNZERO, SPAN_SHIFT, Entries, Map
from pterefd.live.scan import count_spans

I64 = npt.NDArray[np.int64]
SPAN = 1 << SPAN_SHIFT

# VmFlags (Documentation/filesystems/proc.rst) of mappings that are left alone.
_LEFT_ALONE = {
    "sh": "shared",
    "lo": "mlocked",
    "ht": "hugetlb",
    "hg": "madvise(MADV_HUGEPAGE)",
    "dc": "madvise(MADV_DONTFORK)",  # which what is moved has for the moment
    "gd": "a stack",
    "um": "userfaultfd",
    "uw": "userfaultfd",
    "ui": "userfaultfd",
    "sl": "sealed",
    "ss": "a shadow stack",
    "io": "of a device",
    "pf": "of a device",
    "mm": "of a device",
    "de": "of a device",
}


@dataclass(frozen=True, slots=True)
class Run:
    """[start, end) of whole spans in one mapping. zero, mixed: spans of zero pages, and of zero pages and none."""

    start: int
    end: int
    zero: int
    mixed: int


def why_not(mapping: Map, flags: frozenset[str]) -> str:
    """Why a mapping is left alone, "" where it is not."""
    if mapping.shared:
        return "shared"
    if mapping.inode:
        return "of a file"
    if mapping.path and not mapping.path.startswith(("[heap]", "[anon:")):
        return f"the kernel's {mapping.path}"
    return next((text for flag, text in _LEFT_ALONE.items() if flag in flags), "")


def eligible(maps: Iterable[Map], flags: Mapping[int, frozenset[str]]) -> list[tuple[int, int]]:
    """The whole spans of mappings that may be touched, (start, end) in ascending order."""
    found = []
    for mapping in maps:
        start, end = -(-mapping.start // SPAN) * SPAN, mapping.end // SPAN * SPAN
        # A mapping that smaps did not show has come meanwhile.
        if start < end and mapping.start in flags and not why_not(mapping, flags[mapping.start]):
            found.append((start, end))
    return found


def movable(entries: Entries, ranges: Iterable[tuple[int, int]], *, empty: bool, zero: bool, mixed: bool) -> list[Run]:
    """The runs of spans that hold nothing but none and zero entries, of these kinds, within the ranges.

    entries: of the ranges at least.  A span without entries may have a PTE page or none: both are empty here.
    """
    huge = (entries.categories & PAGE_IS_HUGE) != 0
    spans = count_spans(entries.where(~huge))
    clean = (spans.is_zero & zero) | (spans.is_mixed & mixed)
    # Not np.union1d(): that imports numpy.ma, while a process stands.
    blocked = np.sort(np.concatenate((spans.number[~clean], _huge_spans(entries.where(huge)))))
    takes = spans.number[clean]
    counts = np.stack((spans.is_zero[clean], spans.is_mixed[clean])).astype(np.int64)
    runs = []
    for start, end in ranges:
        first, last = start >> SPAN_SHIFT, end >> SPAN_SHIFT
        inside = blocked[np.searchsorted(blocked, first) : np.searchsorted(blocked, last)]
        begins, ends = np.append(first, inside + 1), np.append(inside, last)
        if not empty:
            begins, ends = _runs_of(takes[(takes >= first) & (takes < last)])
        for low, high in zip(begins.tolist(), ends.tolist(), strict=True):
            if low < high:
                part = slice(*np.searchsorted(takes, (low, high)))
                zeros, some = counts[:, part].sum(axis=1).tolist()
                runs.append(Run(low << SPAN_SHIFT, high << SPAN_SHIFT, zeros, some))
    return runs


def _huge_spans(entries: Entries) -> I64:
    first, last = entries.start >> SPAN_SHIFT, (entries.end - 1) >> SPAN_SHIFT
    parts = [np.arange(low, high + 1) for low, high in zip(first.tolist(), last.tolist(), strict=True)]
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)


def _runs_of(numbers: I64) -> tuple[I64, I64]:
    """Neighbouring numbers (ascending) as [begin, end)."""
    if not len(numbers):
        return numbers, numbers
    cuts = np.flatnonzero(np.diff(numbers) != 1)
    return numbers[np.append(0, cuts + 1)], numbers[np.append(cuts, len(numbers) - 1)] + 1


def with_data(entries: Entries) -> list[tuple[int, int]]:
    """(start, end) of the pages that hold more than nothing and the zero page."""
    data = (entries.categories & (PAGE_IS_PFNZERO | PAGE_IS_GUARD)) != PAGE_IS_PFNZERO
    return list(zip(entries.start[data].tolist(), entries.end[data].tolist(), strict=True))


def gap(maps: Iterable[Map], length: int, align: int, low: int, high: int) -> int | None:
    """An address within [low, high) with so many bytes free, in the middle of the widest gap; None: there is none."""
    widest, at = (0, 0), low
    for mapping in maps:
        widest = max(widest, (min(mapping.start, high) - at, at))
        at = max(at, mapping.end)
    size, start = max(widest, (high - at, at))
    address = -(-(start + (size - length) // 2) // align) * align
    return address if size >= length + 2 * align and address + length <= start + size else None
