"""A sparse hash over a huge range: one entry a page, nearly every entry in a span of its own.

As address sanitizers' shadows, allocators' page maps and open-addressing tables over MAP_NORESERVE memory have it: a
page that holds a key costs a PTE page too. Looking for keys that are not there reads pages that nobody wrote: they get
the zero page, and their PTE pages hold zero entries and none (the mixed kind, which the mail's two tests miss).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from pydantic import Field

from pterefd.hookspecs import Emit, Tunables, Workload, hookimpl

PTEREFD_API = 1

PAGE, GIB, SECOND = 1 << 12, 1 << 30, 1_000_000_000
CHUNK = 1 << 16


class SparseHashTunables(Tunables):
    """Parameters."""

    range_gib: int = Field(default=256, ge=1, le=1 << 16, description="Address space of the table, GiB.")
    keys: int = Field(default=100_000, ge=1, le=1 << 26, description="Keys that are put in, each into a random page.")
    misses: int = Field(default=50_000, ge=0, le=1 << 30, description="Lookups of keys that are not there.")
    removed_share: float = Field(default=0.9, ge=0, le=1, description="Share of the keys whose pages are discarded.")
    rate: int = Field(default=100_000, ge=1, le=SECOND, description="Operations a second.")


class SparseHash(Workload):
    """Keys go in, others are looked for, most keys go away again by MADV_DONTNEED of their page."""

    name = "sparse_hash"
    Tunables = SparseHashTunables
    tunables: SparseHashTunables

    def events(self, emit: Emit, rng: np.random.Generator) -> Iterator[None]:
        """One process."""
        p = self.tunables
        spacing = SECOND // p.rate
        emit.exec(1, "hash")
        start = emit.mmap(1, p.range_gib * GIB, flags="private,anonymous,noreserve")
        pages = p.range_gib * GIB // PAGE
        keys = rng.integers(0, pages, p.keys)
        for begin in range(0, p.keys, CHUNK):
            emit.fault(1, start + PAGE * keys[begin : begin + CHUNK], spacing=spacing)
            yield
        for begin in range(0, p.misses, CHUNK):
            looked = rng.integers(0, pages, min(CHUNK, p.misses - begin))
            emit.fault(1, start + PAGE * looked, write=False, spacing=spacing)
            yield
        gone = rng.permutation(keys)[: int(p.keys * p.removed_share)]
        for begin in range(0, len(gone), CHUNK):
            emit.madvise(1, start + PAGE * gone[begin : begin + CHUNK], PAGE, "dontneed", spacing=spacing)
            yield
        emit.exit(1)


@hookimpl
def pterefd_register_workloads(register: Callable[[type[Workload]], Any]) -> None:
    """Called by pterefd when the plugin is loaded."""
    register(SparseHash)
