"""PID/smaps and PID/smaps_rollup, in the kernel's lines: fs/proc/task_mmu.c show_smap, show_smaps_rollup.

Differs from Linux: `Reclaimable_PT:` is there; every mapped page counts as referenced; pages of files count as clean
and shared memory as dirty, since a recording does not say; protection keys are not known.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pterefd.host.walks import Smaps
from pterefd.mm.smaps import PSS_SHIFT
from pterefd.procfs.maps import map_line

if TYPE_CHECKING:
    from pterefd.host.maps import VmaRow
    from pterefd.procfs.faces import Faces

_AFTER_PSS = (
    ("Shared_Clean", "shared_clean"),
    ("Shared_Dirty", "shared_dirty"),
    ("Private_Clean", "private_clean"),
    ("Private_Dirty", "private_dirty"),
    ("Referenced", "rss"),
    ("Anonymous", "anonymous"),
    ("KSM", ""),
    ("LazyFree", "lazyfree"),
    ("AnonHugePages", "anon_huge"),
    ("ShmemPmdMapped", ""),
    ("FilePmdMapped", ""),
    ("Shared_Hugetlb", ""),
    ("Private_Hugetlb", ""),
    ("Swap", "swap"),
    ("SwapPss", "swap_pss"),
    ("Locked", "locked"),
    ("Reclaimable_PT", "reclaimable_pt"),
)
_FRACTIONS = {"pss", "pss_dirty", "pss_anon", "pss_file", "pss_shmem", "swap_pss", "locked"}
_LINES = (("Rss", "rss"), ("Pss", "pss"), ("Pss_Dirty", "pss_dirty"), *_AFTER_PSS)
_ROLLUP_LINES = (
    *(("Rss", "rss"), ("Pss", "pss"), ("Pss_Dirty", "pss_dirty")),
    *(("Pss_Anon", "pss_anon"), ("Pss_File", "pss_file"), ("Pss_Shmem", "pss_shmem")),
    *_AFTER_PSS,
)

# show_smap_vma_flags, in the order of their bits: a code stands where the mapping has one of the flags
_VM_FLAGS = (
    *(("gd", {"growsdown"}), ("um", {"uffd"}), ("pf", {"pfnmap"}), ("gu", {"guard"})),
    *(("lo", {"locked", "lockonfault"}), ("io", {"pfnmap"}), ("sr", {"sequential"}), ("rr", {"random"})),
    *(("dc", {"dontfork"}), ("de", {"special", "pfnmap", "hugetlb"}), ("lf", {"lockonfault"}), ("ac", {"account"})),
    *(("nr", {"noreserve"}), ("ht", {"hugetlb"}), ("wf", {"wipeonfork"}), ("dd", {"dontdump", "pfnmap"})),
    *(("hg", {"hugepage"}), ("nh", {"nohugepage"}), ("mg", {"mergeable"})),
)


def smaps(faces: Faces, pid: int) -> str:
    """A block of lines per mapping, ascending."""
    return "".join(_block(row, sums) for row, sums in faces.host.walks.smaps(pid))


def smaps_rollup(faces: Faces, pid: int) -> str:
    """One block for all mappings together."""
    found = faces.host.walks.smaps(pid)
    if not found:
        return ""
    total = Smaps(*(sum(column) for column in zip(*(sums for _, sums in found), strict=True)))
    start, end = found[0][0].start, found[-1][0].end
    head = f"{start:08x}-{end:08x} ---p 00000000 00:00 0 "
    return f"{head.ljust(73)}[rollup]\n" + _lines(_ROLLUP_LINES, total)


def _block(row: VmaRow, sums: Smaps) -> str:
    sizes = (("Size", row.end - row.start), ("KernelPageSize", 4096), ("MMUPageSize", 4096))
    head = "".join(f"{name + ':':16}{size >> 10:8d} kB\n" for name, size in sizes)
    eligible = int("hugepage" in row.flags)
    return f"{map_line(row)}{head}{_lines(_LINES, sums)}THPeligible:{eligible:12d}\nVmFlags: {_vm_flags(row)}\n"


def _lines(names: tuple[tuple[str, str], ...], sums: Smaps) -> str:
    return "".join(f"{name + ':':16}{_kib(sums, field):8d} kB\n" for name, field in names)


def _kib(sums: Smaps, field: str) -> int:
    if not field:
        return 0
    return int(getattr(sums, field)) >> (10 + PSS_SHIFT if field in _FRACTIONS else 10)


def _vm_flags(row: VmaRow) -> str:
    access = [code for letter, code in zip(row.prot, ("rd", "wr", "ex"), strict=False) if letter != "-"]
    shared = ["sh"] if row.shared else []
    others = [code for code, flags in _VM_FLAGS if flags & row.flags]
    return "".join(f"{code} " for code in [*access, *shared, *_may(row), *others])


def _may(row: VmaRow) -> list[str]:
    """VM_MAY*: what mprotect may make of it. A recording does not say how a file was opened: for writing, if shared."""
    if "pfnmap" in row.flags:
        return ["mr"]  # [vvar]
    return ["mr", "mw", "me", *(["ms"] if row.shared else [])]
