"""The production case behind the mail: VIRT 55 TiB, RES 590 GiB, VmPTE 110 GiB.

From the cover letter of "[RFC PATCH 0/7] Try to free empty and zero user PTE page table pages" (Qi Zheng, 25 Aug 2022).
55 TiB are 28,835,840 spans of 2 MiB; a PTE page of 4 KiB for each is 110 GiB: every span of the range has been written
to once. 590 GiB, packed, need 302,080 PTE pages: 1.24 GB (1.15 GiB). The PMD pages, one a GiB, stay: 56,320 (220 MiB).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from pydantic import Field

from pterefd.hookspecs import Emit, Tunables, Workload, hookimpl

PTEREFD_API = 1

PAGE, MIB, SPAN, GIB, TIB = 1 << 12, 1 << 20, 1 << 21, 1 << 30, 1 << 40
STEP = 512  # spans that are written at a time


class ByteDanceTunables(Tunables):
    """Parameters."""

    scale: float = Field(default=0.001, gt=0, le=1, description="Factor on all sizes; 1 is the case itself.")
    sparse_share: float = Field(
        default=0.01, ge=0, le=0.5, description="Share of all spans that hold a few entries at random places."
    )
    sparse_pages: int = Field(default=16, ge=1, le=256, description="Most entries of such a span, at least one.")
    discard_kib: int = Field(
        default=1024,
        ge=4,
        le=2048,
        multiple_of=4,
        description="Pieces in which memory is discarded, KiB.",
    )
    seconds: int = Field(default=60, ge=1, le=86_400, description="Time that all of it takes, s.")


class ByteDance(Workload):
    """A server that fills its range gibibyte by gibibyte and discards nearly all of it, piece by piece."""

    name = "bytedance"
    Tunables = ByteDanceTunables
    tunables: ByteDanceTunables

    def events(self, emit: Emit, rng: np.random.Generator) -> Iterator[None]:
        """The packed part comes first in the range, the spans with random entries lie evenly in the rest."""
        p = self.tunables
        spans = int(55 * TIB * p.scale) // SPAN
        sparse = int(spans * p.sparse_share)
        counts = rng.integers(1, p.sparse_pages + 1, sparse)
        resident = int(590 * GIB * p.scale) // PAGE
        packed = max(resident - int(counts.sum()), 0)  # pages
        first = -(-packed // STEP)  # span behind the packed part
        width = (spans - first) // max(sparse, 1)
        at = first + width * np.arange(sparse) + rng.integers(0, max(width, 1), sparse)
        emit.exec(1, "server")
        if spans == 0:
            return
        base = emit.mmap(1, spans * SPAN, flags="private,anonymous,noreserve")
        begins = range(0, spans, STEP)
        for number, begin in enumerate(begins):
            emit.at(number * p.seconds * 1_000_000_000 // len(begins))
            end = min(begin + STEP, spans)
            emit.fault(1, base + begin * SPAN, (end - begin) * SPAN)
            discarded = max(begin * SPAN, packed * PAGE)
            if discarded < end * SPAN:
                _discard(emit, base, discarded, end * SPAN, p.discard_kib << 10)
                low, high = np.searchsorted(at, (begin, end))
                pages = _random_pages(at[low:high], counts[low:high], rng)
                emit.fault(1, base + pages * PAGE)
            yield
        emit.at(p.seconds * 1_000_000_000)
        emit.exit(1)


def _discard(emit: Emit, base: int, begin: int, end: int, piece: int) -> None:
    """MADV_DONTNEED of [begin, end) of the range, in pieces that begin at multiples of their size."""
    starts = np.arange(begin // piece * piece, end, piece)
    stops = np.minimum(starts + piece, end)
    starts = np.maximum(starts, begin)
    emit.madvise(1, base + starts, stops - starts, "dontneed")


def _random_pages(spans: Any, counts: Any, rng: np.random.Generator) -> Any:
    """counts[i] different pages of each span: from a random one on in odd steps, modulo 512."""
    which = np.repeat(np.arange(len(spans)), counts)
    nth = np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts)
    start, step = rng.integers(0, 512, len(spans)), 2 * rng.integers(0, 256, len(spans)) + 1
    return spans[which] * 512 + (start[which] + nth * step[which]) % 512


@hookimpl
def pterefd_register_workloads(register: Callable[[type[Workload]], Any]) -> None:
    """Called by pterefd when the plugin is loaded."""
    register(ByteDance)
