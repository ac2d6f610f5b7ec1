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
