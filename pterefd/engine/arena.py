"""The arrays of one host: address space reserved once, memory taken as records are used.

Every array has its full capacity from the start, mapped without reserve, so nothing is ever copied
to grow and a kernel never has to stop for more room; the resident size is what was touched.
"""

from __future__ import annotations

import mmap
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pterefd.engine import layout as lo
from pterefd.engine.state import State
from pterefd.errors import Missing

_MAP_NORESERVE = 0x4000  # asm-generic/mman.h; Python 3.11 does not name it

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Limits:
    """Most records a host may hold; a trace that needs more is stopped with a message.

    The defaults hold the 55 TiB server of the mail: 28.8 million PTE pages.
    """

    mms: int = 1 << 21
    mappings: int = 1 << 23
    pmd_pages: int = 1 << 18
    pte_pages: int = 1 << 26
    own_entries: int = 1 << 22
    files: int = 1 << 20
    blocks: int = 1 << 26
    pid_max: int = 1 << 22
    large_folios: int = 1 << 21
    folio_rows: int = 1 << 21
    shared_pages: int = 1 << 26
    groups: int = 1 << 12


def _reserve(shape: tuple[int, ...], dtype: Any, *, huge: bool = False) -> Array:
    """Zeroed array on address space without reserve. huge: on huge pages, where accesses are far from each other."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    try:
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE)
    except (OSError, ValueError) as error:
        raise Missing(f"cannot reserve {size >> 20} MiB of address space: {error}; lower [host] limits") from error
    if huge:
        with suppress(OSError):  # a kernel without huge pages
            memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, dtype=dtype).reshape(shape)


def make_state(limits: Limits) -> State:
    """An empty host's arrays."""
    g = np.zeros(lo.G_COLUMNS, dtype=np.int64)
    g[lo.G_NEXT_ANON] = 1
    g[lo.G_BLOCKS_TOP] = 1
    g[lo.G_GROUPS] = 1
    sizes = {
        lo.POOL_MM: limits.mms,
        lo.POOL_VMA: limits.mappings,
        lo.POOL_PMD: limits.pmd_pages,
        lo.POOL_PTE: limits.pte_pages,
        lo.POOL_ENT: limits.own_entries,
        lo.POOL_OBJ: limits.files,
        lo.POOL_BLOCKS: limits.blocks,
        lo.POOL_FOLIO: limits.large_folios,
        lo.POOL_FROW: limits.folio_rows,
        lo.POOL_SHARED: limits.shared_pages,
        lo.POOL_AWAY: limits.pmd_pages,
    }
    for pool, size in sizes.items():
        base = lo.G_POOLS + pool * lo.POOL_COLUMNS
        g[base : base + 4] = (1, 0, 0, size)
    return State(
        g=g,
        mm=_reserve((limits.mms, lo.MM_COLUMNS), np.int64),
        vma=_reserve((limits.mappings, lo.VMA_COLUMNS), np.int64),
        pmd=_reserve((limits.pmd_pages, lo.PMD_COLUMNS), np.int32, huge=True),
        pte=_reserve((limits.pte_pages, lo.PTE_COLUMNS), np.int32, huge=True),
        ent=_reserve((limits.own_entries, lo.ENTRIES_PER_TABLE), np.uint8, huge=True),
        entref=_reserve((limits.own_entries,), np.int32),
        entfol=_reserve((limits.own_entries,), np.int32),
        fol=_reserve((limits.large_folios, lo.FOLIO_COLUMNS), np.int64),
        frow=_reserve((limits.folio_rows, lo.FROW_COLUMNS), np.int32),
        shp=_reserve((limits.shared_pages, lo.SH_COLUMNS), np.int32),
        away=_reserve((limits.pmd_pages, lo.AWAY_COLUMNS), np.int32),
        grp=_reserve((limits.groups, lo.GRP_COLUMNS), np.int64),
        obj=_reserve((limits.files, lo.OBJ_COLUMNS), np.int64),
        key=_reserve((limits.blocks,), np.int64),
        val=_reserve((limits.blocks,), np.int64),
        pids=_reserve((limits.pid_max + 1,), np.int32),
        dirty=_reserve((limits.mms,), np.int32),
        near=np.zeros((lo.NEAR, lo.NEAR_COLUMNS), dtype=np.int64),
        tmp=np.zeros(64, dtype=np.int64),
    )
