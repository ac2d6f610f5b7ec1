"""An allocator that slices mappings into pages and discards each by itself: YDB's, as its issue 52719 has it.

https://github.com/ydb-platform/ydb/issues/52719 (2026): the allocator of its query engine maps memory beside malloc,
hands it out in pages of 64 KiB, and gives those back by MADV_DONTNEED, after munmap of single pages had filled the
table of mappings. The addresses are never used again: VmPTE grows with everything that was ever mapped. `reuse` is the
repair that is proposed there (pull request 52728).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from pydantic import Field

from pterefd.hookspecs import Emit, Tunables, Workload, hookimpl

PTEREFD_API = 1

KIB, MIB = 1 << 10, 1 << 20
CHUNK = 1 << 16


class PagePoolTunables(Tunables):
    """Parameters."""

    queries: int = Field(default=16, ge=1, le=100_000, description="Queries, one after another.")
    query_mib: int = Field(default=256, ge=1, le=1 << 16, description="Memory that each query writes, MiB.")
    cached_mib: int = Field(default=64, ge=0, le=1 << 16, description="Free pages that the pool keeps, MiB.")
    page_kib: int = Field(default=64, ge=4, le=1024, multiple_of=4, description="Size of a page of the pool, KiB.")
    mapping_pages: int = Field(default=32, ge=1, le=1 << 18, description="Pages of the pool that one mmap brings.")
    reuse: bool = Field(default=False, description="Discarded pages are handed out again before more is mapped.")
    query_ms: int = Field(default=500, ge=1, le=3_600_000, description="Time that a query takes, ms.")


class PagePool(Workload):
    """Queries that write their pages and give them back; pages beyond the pool's cache are discarded one by one."""

    name = "page_pool"
    Tunables = PagePoolTunables
    tunables: PagePoolTunables

    def events(self, emit: Emit, rng: np.random.Generator) -> Iterator[None]:
        """One process; the pool is a stack, pages come back in random order."""
        p = self.tunables
        size = p.page_kib * KIB
        wanted, kept = p.query_mib * MIB // size, p.cached_mib * MIB // size
        free: list[int] = []
        discarded: list[int] = []
        emit.exec(1, "ydb-server")
        for query in range(p.queries):
            emit.at(query * p.query_ms * 1_000_000)
            used: list[int] = []
            while len(used) < wanted:
                if not free and discarded and p.reuse:
                    free.append(discarded.pop())
                elif not free:
                    start = emit.mmap(1, size * p.mapping_pages)
                    free.extend(range(start + size * (p.mapping_pages - 1), start - 1, -size))
                used.append(free.pop())
            pages = np.array(used)
            for begin in range(0, len(pages), CHUNK):
                emit.fault(1, pages[begin : begin + CHUNK], size, spacing=p.query_ms * 500_000 // len(pages))
                yield
            back = rng.permutation(pages).tolist()
            room = max(kept - len(free), 0)
            free.extend(back[:room])
            for begin in range(room, len(back), CHUNK):
                emit.madvise(1, np.array(back[begin : begin + CHUNK]), size, "dontneed")
                yield
            discarded.extend(back[room:])
        emit.at(p.queries * p.query_ms * 1_000_000)
        emit.exit(1)


@hookimpl
def pterefd_register_workloads(register: Callable[[type[Workload]], Any]) -> None:
    """Called by pterefd when the plugin is loaded."""
    register(PagePool)
