"""The mappings of an mm, a row each, as /proc/PID/maps shows them."""

from __future__ import annotations

from dataclasses import dataclass

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


def rows(s: State, m: int, names: dict[int, str]) -> list[VmaRow]:
    """Mappings of mm m in order. names: path of each S.obj record."""
    position, length = int(s.mm[m, lo.M_VMAS]), int(s.mm[m, lo.M_VMAS + 1])
    heap_start, heap_end = int(s.mm[m, lo.M_START_BRK]), int(s.mm[m, lo.M_BRK])
    result = []
    for v in s.val[position : position + length].tolist():
        start, end, flags, pgoff, obj = s.vma[v, :5].tolist()
        if obj > 0:
            path = names.get(obj, "/dev/zero (deleted)")
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
