"""What memory reclaim has done between two checkpoints."""

from __future__ import annotations

import numpy as np
import pytest

from pterefd.live.procmem import PAGE_IS_PFNZERO, PAGE_IS_PRESENT, Entries
from pterefd.source.record.checkpoints import add_checkpoints, add_vanished, without
from pterefd.source.record.lives import Checkpoint
from pterefd.source.record.marks import CheckpointMark
from pterefd.source.record.table import Group, Table


@pytest.mark.parametrize(
    ("ranges", "runs", "left"),
    [
        ([(0, 10)], [], [(0, 10)]),
        ([(0, 10)], [(0, 10)], []),
        ([(0, 10)], [(2, 4), (6, 7)], [(0, 2), (4, 6), (7, 10)]),
        ([(0, 10), (20, 30)], [(5, 25)], [(0, 5), (25, 30)]),
        ([(4, 6)], [(0, 1), (2, 9), (10, 11)], []),
        ([(4, 6)], [(0, 4), (6, 8)], [(4, 6)]),
    ],
)
def test_without(ranges: list[tuple[int, int]], runs: list[tuple[int, int]], left: list[tuple[int, int]]) -> None:
    start, end = (np.array([run[i] for run in runs], dtype=np.int64) for i in range(2))
    assert without(ranges, Entries(start, end, np.zeros(len(runs), dtype=np.int64))) == left


PAGE = 4096


def reclaimed(runs: list[tuple[int, int, int]]) -> Entries:
    """Entries of runs (first page, end, categories)."""
    start, end, categories = (np.array([run[i] for run in runs], dtype=np.int64) for i in range(3))
    return Entries(start * PAGE, end * PAGE, categories)


def advised(table: Table, calls: list[tuple[int, str, int, int]]) -> None:
    """madvise calls (time, advice, first page, pages) of pid 1."""
    t, pages, length = (np.array([call[i] for call in calls], dtype=np.int64) for i in (0, 2, 3))
    words = table.numbers("advice", [call[1] for call in calls])
    columns = {"pid": np.ones(len(calls), dtype=np.int64), "addr": pages * PAGE, "len": length * PAGE, "advice": words}
    table.add_group(Group("madvise", t, columns))


def dropped(table: Table) -> list[tuple[int, int, int]]:
    """(time, first page, pages) of pages that vanished."""
    return sorted(
        (int(t), addr // PAGE, length // PAGE)
        for group in table.groups()
        if group.op == "swap_out"
        for t, addr, length in zip(group.place, group.columns["addr"], group.columns["len"], strict=True)
    )


def test_what_madv_free_left_vanishes_at_the_pageout_that_came_after_it() -> None:
    """Of pages that are none by the checkpoint, or the zero page's: what made that came after the page was gone."""
    table = Table()
    advised(table, [(10, "free", 0, 8), (20, "pageout", 2, 3), (30, "free", 20, 1), (40, "pageout", 30, 1)])
    entries = reclaimed([(2, 3, PAGE_IS_PRESENT), (3, 4, PAGE_IS_PRESENT | PAGE_IS_PFNZERO), (5, 20, PAGE_IS_PRESENT)])
    add_checkpoints(table, [Checkpoint(50, 1, CheckpointMark(50, 7, {"VmPTE": 4}, entries=entries))])
    assert dropped(table) == [(21, 3, 2), (50, 0, 2), (50, 3, 2), (50, 20, 1)]


def test_a_read_fault_of_what_madv_free_left_shows_that_it_had_vanished() -> None:
    table = Table()
    advised(table, [(10, "free", 4, 4)])
    mark = CheckpointMark(50, 7, {"VmPTE": 4}, entries=reclaimed([]))
    t, page = np.array([5, 20, 30], dtype=np.int64), np.array([5, 6, 9], dtype=np.int64) * PAGE
    add_vanished(table, [Checkpoint(50, 1, CheckpointMark(50, 7, {}))], t, np.ones(3, dtype=np.int64), page)
    assert dropped(table) == []  # nothing was reclaimed
    add_vanished(table, [Checkpoint(50, 1, mark)], t, np.ones(3, dtype=np.int64), page)
    assert dropped(table) == [(20, 6, 1)]
