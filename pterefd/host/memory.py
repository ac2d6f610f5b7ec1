"""The memory of a simulated machine: zones, watermarks, knobs of /proc/sys/vm, groups, and what oom_badness says.

Numbers are pages of 4096 bytes inside, bytes where the name says so.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from pterefd.engine.layout import PAGE
from pterefd.errors import BadInput

SWAP_CLUSTER_MAX = 32  # pages that one round of reclaim takes at least
OOM_SCORE_ADJ_MIN = -1000
OOM_SCORE_ADJ_MAX = 1000
ADMIN_RESERVE_KB = 8192  # admin_reserve_kbytes
USER_RESERVE_KB = 131072  # user_reserve_kbytes


class Zone(NamedTuple):
    """A zone of memory, as /proc/zoneinfo names it: DMA, DMA32, Normal, Movable."""

    name: str
    managed_pages: int


class Marks(NamedTuple):
    """Watermarks, in pages."""

    min: int
    low: int
    high: int
    promo: int


@dataclass(slots=True)
class VmKnobs:
    """What may be set in sys/vm while the host runs; the kernel's names, units and defaults.

    min_free_kbytes None: what the kernel makes of the size of memory (init_per_zone_wmark_min).
    """

    min_free_kbytes: int | None = None
    watermark_scale_factor: int = 10
    swappiness: int = 60
    overcommit_memory: int = 0
    overcommit_ratio: int = 50
    max_map_count: int = 65530
    oom_kill_allocating_task: int = 0
    panic_on_oom: int = 0


@dataclass(frozen=True, slots=True)
class GroupLimit:
    """A group of mms, as a memory cgroup. limit_bytes: memory.max, page tables included; None: no limit."""

    name: str
    limit_bytes: int | None = None

    def __post_init__(self) -> None:
        if self.limit_bytes is not None and self.limit_bytes < PAGE:
            raise BadInput(f"group {self.name!r}: a limit of {self.limit_bytes} bytes is less than a page")


@dataclass(frozen=True, slots=True)
class Memory:
    """What a host has. zones: their sum is the memory; without any, one zone of total_bytes."""

    total_bytes: int
    swap_bytes: int = 0
    zones: tuple[Zone, ...] = ()
    knobs: VmKnobs = field(default_factory=VmKnobs)
    groups: tuple[GroupLimit, ...] = ()

    def __post_init__(self) -> None:
        if not self.zones:
            object.__setattr__(self, "zones", (Zone("Normal", self.total_bytes // PAGE),))
        if self.managed_pages < 256:
            raise BadInput(f"host memory of {self.managed_pages * PAGE} bytes: less than 1 MiB")
        names = [group.name for group in self.groups]
        if len(set(names)) != len(names):
            raise BadInput(f"two groups are named {next(name for name in names if names.count(name) > 1)!r}")

    @property
    def managed_pages(self) -> int:
        """Pages of all zones."""
        return sum(zone.managed_pages for zone in self.zones)

    @property
    def swap_pages(self) -> int:
        """Swap slots."""
        return self.swap_bytes // PAGE


class Kill(NamedTuple):
    """One act of the OOM killer. badness: pages, as oom_badness has it; group: whose limit it was, "" the host's."""

    time_ns: int
    pid: int
    comm: str
    group: str
    badness: int
    oom_score_adj: int
    rss_bytes: int
    swap_bytes: int
    pgtables_bytes: int
    freed_bytes: int


def default_min_free_kbytes(zones: Iterable[Zone]) -> int:
    """mm/page_alloc.c calculate_min_free_kbytes, of the zones that nr_free_buffer_pages counts."""
    lowmem = sum(zone.managed_pages for zone in zones if not _is_apart(zone))
    return min(max(math.isqrt(lowmem * (PAGE // 1024) * 16), 128), 262144)


def _is_apart(zone: Zone) -> bool:
    return zone.name in ("Movable", "HighMem")


def zone_watermarks(zones: Iterable[Zone], min_free_kbytes: int, watermark_scale_factor: int = 10) -> list[Marks]:
    """mm/page_alloc.c __setup_per_zone_wmarks: the marks of each zone, in pages, without a boost."""
    zones = list(zones)
    pages_min = min_free_kbytes >> 2
    lowmem = sum(zone.managed_pages for zone in zones if not _is_apart(zone))
    marks = []
    for zone in zones:
        share = pages_min * zone.managed_pages // lowmem if lowmem else 0
        least = min(max(zone.managed_pages // 1024, SWAP_CLUSTER_MAX), 128) if _is_apart(zone) else share
        gap = max(share >> 2, zone.managed_pages * watermark_scale_factor // 10000)
        marks.append(Marks(least, least + gap, least + 2 * gap, least + 3 * gap))
    return marks


def host_watermarks(memory: Memory, knobs: VmKnobs) -> Marks:
    """The marks of all zones together: which zone a page comes from is not simulated."""
    least = knobs.min_free_kbytes
    if least is None:
        least = default_min_free_kbytes(memory.zones)
    each = zone_watermarks(memory.zones, least, knobs.watermark_scale_factor)
    return Marks(*(sum(column) for column in zip(*each, strict=True)))


def commit_limit(total: int, swap: int, ratio: int) -> int:
    """mm/util.c vm_commit_limit less admin_reserve_kbytes, in pages (no hugetlb)."""
    return total * ratio // 100 + swap - (ADMIN_RESERVE_KB >> 2)


def oom_badness(rss: int, swap: int, pgtables: int, oom_score_adj: int, totalpages: int) -> int | None:
    """mm/oom_kill.c oom_badness, all in pages; None where it may not be killed (LONG_MIN)."""
    if oom_score_adj == OOM_SCORE_ADJ_MIN:
        return None
    return rss + swap + pgtables + oom_score_adj * (totalpages // 1000)


def oom_score(badness: int | None, totalpages: int) -> int:
    """fs/proc/base.c proc_oom_score: what PID/oom_score shows."""
    if badness is None:
        return 0
    return _divide((1000 + _divide(badness * 1000, totalpages)) * 2, 3)


def _divide(a: int, b: int) -> int:
    """C's division, towards zero."""
    return a // b if a >= 0 else -(-a // b)
