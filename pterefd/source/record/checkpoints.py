"""Checkpoints in a trace, with what memory reclaim has done unseen since the one before: no event tells of that."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import numpy.typing as npt

from pterefd.live.procmem import PAGE, USER_END, Entries
from pterefd.source.record.lives import Checkpoint
from pterefd.source.record.table import ROWS, Table

I64 = npt.NDArray[np.int64]
Ranges = list[tuple[int, int]]
Calls = tuple[I64, I64, I64]  # time, start, end; in the order of time within a group


def add_checkpoints(table: Table, checkpoints: list[Checkpoint]) -> None:
    """`expect` rows; where memory was reclaimed, behind `swap_out` rows of what is in swap and of what has vanished.

    A page that was in swap already stays so, and one that is none stays none: it takes no memory of what was before.
    The calls must be in the table.
    """
    reclaimed = any(checkpoint.mark.entries for checkpoint in checkpoints)
    freed = _advised(table, "free") if reclaimed else {}
    paged_out = _advised(table, "pageout") if reclaimed else {}
    before: dict[int, int] = defaultdict(int)
    for checkpoint in checkpoints:
        t, pid, entries = checkpoint.t, checkpoint.pid, checkpoint.mark.entries
        if entries is not None:
            for row in entries.state_rows():
                if row.entry == "swap":
                    table.add(t, "swap_out", ROWS, pid=pid, addr=row.start, len=row.end - row.start)
            for begin, low, high in _between(paged_out.get(pid), before[pid], t):
                _drop(table, begin + 1, pid, clip(_until(freed.get(pid), begin, low, high), low, high), entries)
            _drop(table, t, pid, _until(freed.get(pid), t, 0, USER_END), entries)
        before[pid] = t
        table.add(t, "expect", ROWS, pid=pid, **checkpoint.mark.fields)


def _drop(table: Table, t: int, pid: int, freed: Ranges, entries: Entries) -> None:
    """Clean pages of these ranges have vanished by t: those that have no entry later, or the zero page's."""
    for start, end in without(freed, entries.where(~entries.is_zero)):
        table.add(t, "swap_out", ROWS, pid=pid, addr=start, len=end - start, dropped=1)


def add_vanished(table: Table, checkpoints: list[Checkpoint], place: I64, pid: I64, page: I64) -> None:
    """`swap_out` rows before read faults of pages that MADV_FREE left to reclaim: a page that is there makes none.

    place, pid, page: of read faults, in the order of time.  Of pages that were none anyway such a row takes nothing.
    """
    if not any(checkpoint.mark.entries for checkpoint in checkpoints):
        return
    for owner, (begin, start, end) in _advised(table, "free").items():
        for i in np.flatnonzero(pid == owner).tolist():
            if ((begin < place[i]) & (start <= page[i]) & (page[i] < end)).any():
                table.add(int(place[i]), "swap_out", ROWS, pid=owner, addr=int(page[i]), len=PAGE, dropped=1)


def _advised(table: Table, advice: str) -> dict[int, Calls]:
    """Every madvise with this advice, by pid."""
    found = []
    for group in table.groups():
        if group.op == "madvise":
            columns = group.columns
            rows = table.with_word(columns["advice"], "advice", advice)
            found.append((columns["pid"][rows], group.place[rows], columns["addr"][rows], columns["len"][rows]))
    if not found:
        return {}
    pid, place, start, length = (np.concatenate(column) for column in zip(*found, strict=True))
    return {
        one: (place[pid == one], start[pid == one], (start + length)[pid == one]) for one in np.unique(pid).tolist()
    }


def _between(calls: Calls | None, begin: int, end: int) -> list[tuple[int, int, int]]:
    """Those of [begin, end)."""
    if calls is None:
        return []
    rows = (calls[0] >= begin) & (calls[0] < end)
    return list(zip(*(column[rows].tolist() for column in calls), strict=True))


def _until(freed: Calls | None, t: int, low: int, high: int) -> Ranges:
    """The ranges freed up to t that touch [low, high), joined."""
    ranges: Ranges = []
    if freed is None:
        return ranges
    rows = (freed[0] <= t) & (freed[1] < high) & (freed[2] > low)
    for start, end in sorted(zip(freed[1][rows].tolist(), freed[2][rows].tolist(), strict=True)):
        if ranges and start <= ranges[-1][1]:
            ranges[-1] = ranges[-1][0], max(ranges[-1][1], end)
        else:
            ranges.append((start, end))
    return ranges


def clip(ranges: Ranges, low: int, high: int) -> Ranges:
    """What of the ranges lies in [low, high)."""
    return [(max(start, low), min(end, high)) for start, end in ranges if start < high and end > low]


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
