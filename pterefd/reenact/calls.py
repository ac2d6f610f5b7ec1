"""Operations of a trace as commands of the agent: the kernel's own numbers for what a trace calls by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pterefd.reenact.agent import READ, WRITE

Row = Mapping[str, Any]

PAGE = 4096
SPAN = 512 * PAGE
GIB = 512 * SPAN
PGD = 512 * GIB
NO_FILE = 0xFFFFFFFF  # the agent takes it as -1

PROT_BITS = {"r": 1, "w": 2, "x": 4}
MAP_BITS = {
    "shared": 0x1,
    "private": 0x2,
    "anonymous": 0x20,
    "growsdown": 0x100,
    "locked": 0x2000,
    "noreserve": 0x4000,
    "populate": 0x8000,
    "stack": 0x20000,
    "hugetlb": 0x40000,
    "heap": 0,
}
MAP_FIXED = 0x10
MREMAP_MAYMOVE, MREMAP_FIXED, MREMAP_DONTUNMAP = 1, 2, 4
ADVICE_NUMBER = {
    "normal": 0,
    "random": 1,
    "sequential": 2,
    "willneed": 3,
    "dontneed": 4,
    "free": 8,
    "remove": 9,
    "dontfork": 10,
    "dofork": 11,
    "mergeable": 12,
    "unmergeable": 13,
    "hugepage": 14,
    "nohugepage": 15,
    "dontdump": 16,
    "dodump": 17,
    "wipeonfork": 18,
    "keeponfork": 19,
    "cold": 20,
    "pageout": 21,
    "populate_read": 22,
    "populate_write": 23,
    "dontneed_locked": 24,
    "collapse": 25,
    "guard_install": 102,
    "guard_remove": 103,
}


def prot_number(prot: str) -> int:
    """PROT_* bits of "rw-"."""
    return sum(PROT_BITS[c] for c in prot if c != "-")


def flags_number(flags: str) -> int:
    """MAP_* bits of "private,anonymous". The stack that execve makes (`growsdown,stack`) has no MAP_STACK."""
    words = flags.split(",")
    return sum(MAP_BITS[word] for word in words if not (word == "stack" and "growsdown" in words))


def mremap_flags(row: Row) -> int:
    """MREMAP_* bits that make the call end where the trace says it ended."""
    if row.get("dontunmap"):
        return MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP
    return MREMAP_MAYMOVE | MREMAP_FIXED if row["new_addr"] != row["addr"] else 0


def mmap_command(row: Row, fd: int = NO_FILE, offset: int = 0) -> str:
    """mmap at the row's address; a call that failed in the trace takes nothing else's place."""
    flags = flags_number(row["flags"]) | (0 if row.get("errno") else MAP_FIXED)
    return f"m {row['addr']:x} {row['len']:x} {prot_number(row['prot']):x} {flags:x} {fd:x} {offset:x}"


def touch_command(row: Row, how: int | None = None) -> str:
    """Every page of the row's range is accessed. how: as agent.py has it, by the row's `write` unless given."""
    if how is None:
        how = WRITE if row["write"] else READ
    return f"t {row['addr']:x} {row.get('len', PAGE) // PAGE:x} {how:x}"


def command_of(row: Row) -> str:
    """The command of an operation that needs nothing but its own row: all of a batch's, but mmap of a file."""
    op = row["op"]
    if op == "fault":
        return touch_command(row)
    if op == "mmap":
        return mmap_command(row)
    if op == "munmap":
        return f"u {row['addr']:x} {row['len']:x}"
    if op == "mremap":
        return f"r {row['addr']:x} {row['len']:x} {row['new_len']:x} {mremap_flags(row):x} {row['new_addr']:x}"
    if op == "mprotect":
        return f"p {row['addr']:x} {row['len']:x} {prot_number(row['prot']):x}"
    if op == "brk":
        return f"b {row['addr']:x}"
    if op == "madvise":
        return f"a {row['addr']:x} {row['len']:x} {ADVICE_NUMBER[row['advice']]:x}"
    if op == "mlock":
        return f"l {row['addr']:x} {row['len']:x} {1 if row.get('onfault') else 0}"
    assert op == "munlock"
    return f"k {row['addr']:x} {row['len']:x}"


def _place(addr: int, length: int | None = None) -> str:
    text = f"{addr:#x}"
    if addr % SPAN == 0:
        text += " (512G)" if addr % PGD == 0 else " (1G)" if addr % GIB == 0 else " (2M)"
    if length is not None:
        text += f" +{length // PAGE}p"
    return text


def describe(op: Row) -> str:
    """One readable line: what the operation does, lengths in pages, borders marked."""
    name = op["op"]
    words = [f"[{op['pid']}] {name}" if "pid" in op else name]
    if "advice" in op:
        words.append(op["advice"])
    if "addr" in op:
        words.append(_place(op["addr"], op.get("len")))
    if "new_addr" in op:
        words.append("-> " + _place(op["new_addr"], op["new_len"]))
    if name == "fault":
        words.append("write" if op["write"] else "read")
    for key in ("prot", "flags", "onfault", "dontunmap", "dropped", "disabled"):
        if op.get(key):
            words.append(str(op[key]) if isinstance(op[key], str) else key)
    words += [f"{key}={op[key]}" for key in ("path", "file", "offset", "child", "place", "via") if key in op]
    if name in ("truncate", "cache"):
        words.append(f"len={op['len']}")
    if op.get("errno"):
        words.append(f"= {op['errno']}")
    return " ".join(words)
