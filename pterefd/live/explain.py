"""Why a process has page-table memory that maps nothing, as far as it can be told from outside, and what would help."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from pterefd.live import machine
from pterefd.live.procmem import PAGE, SPAN_SHIFT, Map
from pterefd.live.scan import Seen

_SPAN = 1 << SPAN_SHIFT
_PLACES = 5
# What is loaded -> the option with which memory that is freed is unmapped, its tables with it.
_ALLOCATORS = (
    ("libjemalloc", "jemalloc keeps the address space of what is freed: MALLOC_CONF=retain:false unmaps it"),
    ("libc.so", "glibc unmaps freed blocks of N bytes and more with GLIBC_TUNABLES=glibc.malloc.mmap_threshold=N"),
)


@dataclass(frozen=True, slots=True)
class Cause:
    """kind: empty, zero, mixed, guard, lazyfree.  bytes: page-table memory that helping against it would save at most.

    why: one sentence.  helps: what would, each a sentence.  places: (start, end) where the most of it may be.
    """

    kind: str
    bytes: int
    why: str
    helps: tuple[str, ...]
    places: tuple[tuple[int, int], ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """For JSON; places as hexadecimal texts, as in maps."""
        return asdict(self) | {"places": [f"{start:x}-{end:x}" for start, end in self.places]}


@cache
def frees_whole_spans() -> bool:
    """Whether MADV_DONTNEED of a whole span frees its PTE page on this kernel (CONFIG_PT_RECLAIM)."""
    return machine.kernel_config().get("PT_RECLAIM") is True


def explain(seen: Seen) -> list[Cause]:
    """The causes that are there, most bytes first."""
    causes = [_empty(seen), *_located(seen), _lazy(seen)]
    return sorted((cause for cause in causes if cause.bytes), key=lambda cause: -cause.bytes)


def _empty(seen: Seen) -> Cause:
    if frees_whole_spans():
        why = (
            "pages were given back in pieces smaller than 2 MiB, or that lie across spans: the kernel frees a PTE page "
            "only where one call discards all of its span"
        )
        helps = ["discard whole spans, aligned to 2 MiB, in one call: madvise(MADV_DONTNEED)"]
    else:
        why = "pages were given back: this kernel frees PTE pages only when the whole range above them is unmapped"
        helps = ["a kernel with CONFIG_PT_RECLAIM (Linux 6.14), for what is discarded in whole spans of 2 MiB"]
    helps += _allocators(seen.maps)
    helps.append("unmap instead of discarding: munmap frees the tables of what it leaves unmapped")
    return Cause("empty", seen.use.empty, why, tuple(helps), _roomiest(seen))


def _located(seen: Seen) -> list[Cause]:
    """The kinds whose spans are known."""

    def cause(kind: str, spans: npt.NDArray[np.bool_], why: str, help_: str) -> Cause:
        return Cause(kind, int(spans.sum()) * PAGE, why, (help_,), _places(seen.spans.number[spans].tolist()))

    return [
        cause(
            "zero",
            seen.spans.is_zero,
            "every page of these spans was read before it was written, or is a guest's balloon: all map the zero page",
            "do not read what was not written; huge zero pages (THP) need a PTE page for each span as well",
        ),
        cause(
            "mixed",
            seen.spans.is_mixed,
            "some pages of these spans were read before they were written, and nothing else is there",
            "do not read what was not written",
        ),
        cause(
            "guard",
            seen.spans.is_guarded,
            "guard markers (MADV_GUARD_INSTALL) keep PTE pages that map nothing else",
            "a PROT_NONE mapping guards without a PTE page, and costs a mapping",
        ),
    ]


def _lazy(seen: Seen) -> Cause:
    """MADV_FREE: the pages stay until the kernel wants them; a span's PTE page can go only after its last page."""
    lazy = lazy_free_bytes(seen.use.pid)
    spans = min(-(-lazy // PAGE), len(seen.spans.number))
    return Cause(
        "lazyfree",
        spans * PAGE if lazy else 0,
        f"{lazy >> 10} kB were given back with MADV_FREE: they stay mapped until memory is short, and their PTE pages "
        "stay empty after that",
        ("MADV_DONTNEED of whole spans instead of MADV_FREE",),
    )


def lazy_free_bytes(pid: int) -> int:
    """LazyFree of smaps_rollup; 0 where it is not shown."""
    try:
        with open(f"/proc/{pid}/smaps_rollup", encoding="ascii", errors="replace") as file:
            return sum(int(line.split()[1]) << 10 for line in file if line.startswith("LazyFree:"))
    except OSError:
        return 0


def _allocators(maps: list[Map]) -> list[str]:
    """What the allocator can do, the first that is loaded: glibc's own is there always."""
    names = {mapping.path.rpartition("/")[2] for mapping in maps}
    found = (text for library, text in _ALLOCATORS if any(name.startswith(library) for name in names))
    return list(found)[:1]


def _roomiest(seen: Seen) -> tuple[tuple[int, int], ...]:
    """Private anonymous mappings with the most spans that hold no entry: where empty PTE pages can be."""
    used = seen.spans.number
    rooms = []
    for mapping in seen.maps:
        if mapping.shared or mapping.inode:
            continue
        first, last = mapping.start >> SPAN_SHIFT, (mapping.end - 1) >> SPAN_SHIFT
        taken = int(used.searchsorted(last, "right") - used.searchsorted(first))
        if room := last - first + 1 - taken:
            rooms.append((-room, mapping.start, mapping.end))
    return tuple((start, end) for _, start, end in sorted(rooms)[:_PLACES])


def _places(spans: list[int]) -> tuple[tuple[int, int], ...]:
    """The longest runs of neighbouring spans."""
    runs: list[list[int]] = []
    for span in spans:
        if runs and runs[-1][1] == span:
            runs[-1][1] = span + 1
        else:
            runs.append([span, span + 1])
    runs.sort(key=lambda run: run[0] - run[1])
    return tuple((first * _SPAN, end * _SPAN) for first, end in runs[:_PLACES])
