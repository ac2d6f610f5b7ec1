"""The mappings of an mm, a row each, as /proc/PID/maps shows them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pterefd.engine import layout as lo
from pterefd.engine.state import State

FLAG_NAMES = {
    lo.VM_SHARED: "shared",
    lo.VM_GROWSDOWN: "growsdown",
    lo.VM_LOCKED: "locked",
    lo.VM_LOCKONFAULT: "lockonfault",
    lo.VM_DONTCOPY: "dontfork",
    lo.VM_WIPEONFORK: "wipeonfork",
    lo.VM_NORESERVE: "noreserve",
    lo.VM_ACCOUNT: "account",
    lo.VM_MAYBE_GUARD: "guard",
    lo.VM_HUGEPAGE: "hugepage",
    lo.VM_NOHUGEPAGE: "nohugepage",
    lo.VM_HUGETLB: "hugetlb",
    lo.VM_PFNMAP: "pfnmap",
    lo.VM_SPECIAL: "special",
    lo.VM_IMPLIED: "implied",
    lo.VM_RAND_READ: "random",
    lo.VM_SEQ_READ: "sequential",
    lo.VM_DONTDUMP: "dontdump",
    lo.VM_MERGEABLE: "mergeable",
    lo.VM_UFFD: "uffd",
}


@dataclass(frozen=True, slots=True)
class VmaRow:
    """One mapping: [start, end) and offset in bytes, prot as "rw-", path "" for unnamed anonymous memory.

    obj: record of what it shows in S.obj, 0 of anonymous memory.
    """

    start: int
    end: int
    prot: str
    shared: bool
    offset: int
    path: str
    flags: frozenset[str]
    obj: int = 0


def prot_text(flags: int) -> str:
    """`rwx` with dashes."""
    bits = ((lo.VM_READ, "r"), (lo.VM_WRITE, "w"), (lo.VM_EXEC, "x"))
    return "".join(letter if flags & bit else "-" for bit, letter in bits)


class Copied(NamedTuple):
    """What is known of the mappings of an mm: copied under the lock, looked at without.

    vmas: int64[n, 5], the first columns of S.vma, in order.  heap: [start, end).  paths: by record of S.obj.
    """

    vmas: npt.NDArray[np.int64]
    heap: tuple[int, int]
    paths: dict[int, str]


def copied(s: State, m: int, names: dict[int, str]) -> Copied:
    """Of mm m. names: path of each S.obj record."""
    position, length = int(s.mm[m, lo.M_VMAS]), int(s.mm[m, lo.M_VMAS + 1])
    vmas = s.vma[s.val[position : position + length], :5]
    paths = {obj: names.get(obj, "/dev/zero (deleted)") for obj in np.unique(vmas[:, lo.V_OBJ]).tolist() if obj > 0}
    return Copied(vmas, (int(s.mm[m, lo.M_START_BRK]), int(s.mm[m, lo.M_BRK])), paths)


def rows(mappings: Copied) -> list[VmaRow]:
    """A row of each."""
    heap_start, heap_end = mappings.heap
    result = []
    for start, end, flags, pgoff, obj in mappings.vmas.tolist():
        if obj > 0:
            path = mappings.paths[obj]
        elif start < heap_end and end > heap_start:
            path = "[heap]"
        elif flags & lo.VM_STACK:
            path = "[stack]"
        else:
            path = ""
        named = frozenset(name for bit, name in FLAG_NAMES.items() if flags & bit)
        of_file = obj > 0 and not path.startswith("[")  # [vdso] and its like have objects here, and no vm_file
        offset = pgoff << lo.PAGE_SHIFT if of_file else 0
        result.append(
            VmaRow(start, end, prot_text(flags), bool(flags & lo.VM_SHARED), offset, path, named, max(obj, 0))
        )
    return result
