"""Sizes of mapped files: what the file system says after the fact, and what accesses prove.

A file may have been longer while it was mapped than it is when the recording ends. An access beyond that end, which
the kernel did not answer with SIGBUS, shows that it was.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pterefd.source.record.table import ABSENT, Group, Table

I64 = npt.NDArray[np.int64]

PAGE = 4096
_TAKES_RANGE = ("mmap", "munmap", "mremap", "exec")  # what was mapped in the range before is there no more


class FileSizes:
    """Sizes of files that were mapped, read once each, after the fact."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, int], int] = {}

    def of(self, path: str, inode: int) -> int:
        """Size of the file of that name, if it still is the one with that inode; else ABSENT."""
        key = (path, inode)
        if key not in self._known:
            self._known[key] = ABSENT
            if path.startswith("/") and inode:
                try:
                    found = os.stat(path)
                except (OSError, ValueError):
                    return ABSENT
                if found.st_ino == inode:
                    self._known[key] = found.st_size
        return self._known[key]


@dataclass(slots=True)
class _Piece:
    """A range of addresses in which pid had a file mapped from time `place` on. path: its number."""

    place: int
    pid: int
    start: int
    end: int
    path: int
    offset: int
    size: int

    @property
    def beyond(self) -> int:
        """Address of the first page beyond the presumed end of the file."""
        return max(self.start, self.start + -(-self.size // PAGE) * PAGE - self.offset)


def raise_to_accessed(table: Table, place: I64, pid: I64, page: I64) -> None:
    """Raise file_size in mmap events to the end of the last page of the file that was accessed.

    place, pid, page: of every access from user space that was not refused.
    """
    ends = [group for group in table.groups() if group.op in _TAKES_RANGE]
    pieces = list(_mapped(table))
    pieces += _moved(table, pieces, ends)
    proven: dict[int, int] = {}  # number of the path -> size
    for piece in pieces:
        if piece.beyond >= piece.end:
            continue
        found = (pid == piece.pid) & (page >= piece.beyond) & (page < piece.end) & (place > piece.place)
        for i in np.flatnonzero(found).tolist():
            size = int(page[i]) + PAGE - piece.start + piece.offset
            if size > proven.get(piece.path, 0) and not _taken(ends, piece, int(page[i]), int(place[i])):
                proven[piece.path] = size
    for group in table.groups():
        if group.op == "mmap" and "file_size" in group.columns:
            for path, size in proven.items():
                short = (group.columns["path"] == path) & (group.columns["file_size"] != ABSENT)
                group.columns["file_size"][short] = np.maximum(group.columns["file_size"][short], size)


def _mapped(table: Table) -> Iterator[_Piece]:
    """File mappings as they were made, of files whose size is known."""
    for group in table.groups():
        columns = group.columns
        if group.op == "mmap" and "file_size" in columns:
            known = (columns["file_size"] != ABSENT) & (columns["path"] >= 0) & (columns["offset"] != ABSENT)
            for row in np.flatnonzero(known).tolist():
                pid, start, length, path, offset, size = (
                    int(columns[name][row]) for name in ("pid", "addr", "len", "path", "offset", "file_size")
                )
                yield _Piece(int(group.place[row]), pid, start, start + length, path, offset, size)


def _moved(table: Table, pieces: list[_Piece], ends: list[Group]) -> list[_Piece]:
    """What mremap made of them."""
    by_pid: dict[int, list[_Piece]] = defaultdict(list)
    for piece in pieces:
        by_pid[piece.pid].append(piece)
    found: list[_Piece] = []
    for group in table.groups():
        if group.op != "mremap":
            continue
        for row in np.flatnonzero(np.isin(group.columns["pid"], list(by_pid))).tolist():
            place = int(group.place[row])
            pid, addr, start, length = (
                int(group.columns[name][row]) for name in ("pid", "addr", "new_addr", "new_len")
            )
            for piece in by_pid[pid]:
                if piece.start <= addr < piece.end and piece.place < place and not _taken(ends, piece, addr, place):
                    offset = piece.offset + addr - piece.start
                    moved = _Piece(place, pid, start, start + length, piece.path, offset, piece.size)
                    by_pid[pid].append(moved)
                    found.append(moved)
                    break
    return found


def _taken(ends: list[Group], piece: _Piece, page: int, before: int) -> bool:
    """Whether another mapping was made over the page, or it was unmapped, since the piece was mapped."""
    for group in ends:
        low, high = np.searchsorted(group.place, (piece.place, before))
        columns = {name: values[low:high] for name, values in group.columns.items() if name in ("pid", "addr", "len")}
        hit = (columns["pid"] == piece.pid) & (group.place[low:high] > piece.place)
        if group.op != "exec":
            hit &= (columns["addr"] <= page) & (page < columns["addr"] + columns["len"])
        if hit.any():
            return True
    return False
