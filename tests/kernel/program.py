"""Programs: lists of operations on a few address spaces, in the words of the trace format.

An operation is a dict with the fields that its row in a trace has, less what only the kernel can say (errno,
swap_out rows). It may have, beside those: `via` ("kernel": a touch through read(2) or write(2)), `file` (an mmap's
index in Program.files), `place` (an mremap: "fixed", "stay", "any").
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

PAGE = 4096
SPAN = 512 * PAGE
GIB = 512 * SPAN
PGD = 512 * GIB

Op = dict[str, Any]

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
}
MAP_FIXED = 0x10
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


@dataclass(slots=True)
class FileSpec:
    """A file that a program maps. kind: disk (ext4 or what the directory is on), tmpfs or memfd.

    pages: its size.  cached: runs (first page, pages) that were written, page by page, so that they are in the page
    cache as folios of one page; what lies between is a hole.
    """

    kind: str
    pages: int
    cached: list[tuple[int, int]]


@dataclass(slots=True)
class Program:
    """family, seed: what made it.  ops: in order, pid 1 exists at the start."""

    family: str
    seed: int
    ops: list[Op]
    files: list[FileSpec] = field(default_factory=list)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Program:
        raw = json.loads(text)
        files = [FileSpec(f["kind"], f["pages"], [(a, b) for a, b in f["cached"]]) for f in raw["files"]]
        return cls(raw["family"], raw["seed"], raw["ops"], files)


def prot_number(prot: str) -> int:
    """PROT_* bits of "rw-"."""
    return sum(PROT_BITS[c] for c in prot if c != "-")


def flags_number(flags: str) -> int:
    """MAP_* bits of "private,anonymous"."""
    return sum(MAP_BITS[word] for word in flags.split(","))


def _place(addr: int, length: int | None = None) -> str:
    text = f"{addr:#x}"
    if addr % SPAN == 0:
        text += " (512G)" if addr % PGD == 0 else " (1G)" if addr % GIB == 0 else " (2M)"
    if length is not None:
        text += f" +{length // PAGE}p"
    return text


def describe(op: Op) -> str:
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
