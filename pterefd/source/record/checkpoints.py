"""Checkpoints in a trace, with what memory reclaim has done unseen since the one before: no event tells of that."""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from pterefd.source.record.lives import Checkpoint
from pterefd.source.record.procmem import Entries
from pterefd.source.record.table import ROWS, Table

Ranges = list[tuple[int, int]]


def add_checkpoints(table: Table, checkpoints: list[Checkpoint]) -> None:
    """`expect` rows; where memory was reclaimed, behind `swap_out` rows of what is in swap and of what has vanished.

    A page that was in swap already stays so, and one that is none stays none: it takes no memory of what was before.
    The calls must be in the table.
    """
    freed = _lazily_freed(table) if any(checkpoint.mark.entries for checkpoint in checkpoints) else {}
    for checkpoint in checkpoints:
        t, pid, entries = checkpoint.t, checkpoint.pid, checkpoint.mark.entries
        if entries is not None:
            for row in entries.state_rows():
                if row.entry == "swap":
                    table.add(t, "swap_out", ROWS, pid=pid, addr=row.start, len=row.end - row.start)
            for start, end in without(_until(freed.get(pid, []), t), entries):
                table.add(t, "swap_out", ROWS, pid=pid, addr=start, len=end - start, dropped=1)
        table.add(t, "expect", ROWS, pid=pid, **checkpoint.mark.fields)


def _lazily_freed(table: Table) -> dict[int, list[tuple[int, int, int]]]:
    """(time, start, end) of every MADV_FREE, by pid."""
    found: dict[int, list[tuple[int, int, int]]] = defaultdict(list)
    for group in table.groups():
        if group.op == "madvise":
            columns = group.columns
            for row in np.flatnonzero(table.with_word(columns["advice"], "advice", "free")).tolist():
                start = int(columns["addr"][row])
                found[int(columns["pid"][row])].append((int(group.place[row]), start, start + int(columns["len"][row])))
    return found


def _until(freed: list[tuple[int, int, int]], t: int) -> Ranges:
    """The ranges freed up to t, joined."""
    ranges: Ranges = []
    for start, end in sorted((start, end) for moment, start, end in freed if moment <= t):
        if ranges and start <= ranges[-1][1]:
            ranges[-1] = ranges[-1][0], max(ranges[-1][1], end)
        else:
            ranges.append((start, end))
    return ranges


def without(ranges: Ranges, entries: Entries) -> Ranges:
    """What of the ranges has no entry."""
    left: Ranges = []
    for start, end in ranges:
        first = int(np.searchsorted(entries.end, start, side="right"))
        last = int(np.searchsorted(entries.start, end, side="left"))
        at = start
        for low, high in zip(entries.start[first:last].tolist(), entries.end[first:last].tolist(), strict=True):
            if low > at:
                left.append((at, low))
            at = max(at, high)
        if at < end:
            left.append((at, end))
    return left
