"""The order of calls of different threads."""

from __future__ import annotations

import numpy as np

from pterefd.source.record.order import Claimed, Freed, settle
from pterefd.source.record.table import Group

KIB = 4096


def _settled(freed: list[tuple[int, int, int, int, int]], claimed: list[tuple[int, int, int, int]]) -> list[int]:
    """freed: (pid, entered, returned, start, end); claimed: (pid, returned, start, end). Places of the freed ones."""
    pid, entered, returned, start, end = (np.array(column) for column in zip(*freed, strict=True))
    group = Group("munmap", returned, {"pid": pid})
    settle([Freed(group, entered, start, end)], [Claimed(*(np.array(column) for column in zip(*claimed, strict=True)))])
    return group.place.tolist()


def test_a_call_stays_at_its_return_where_nothing_contradicts() -> None:
    assert _settled([(1, 10, 90, 0, KIB)], [(1, 50, KIB, 2 * KIB), (2, 50, 0, KIB), (1, 5, 0, KIB)]) == [90]


def test_what_was_given_away_again_had_been_given_back() -> None:
    assert _settled([(1, 10, 90, 0, 4 * KIB)], [(1, 70, KIB, 2 * KIB), (1, 50, 3 * KIB, 9 * KIB)]) == [49]


def test_many() -> None:
    freed = [(1, 10, 90, 0, KIB), (1, 20, 80, KIB, 2 * KIB), (2, 10, 90, 0, KIB)]
    assert _settled(freed, [(1, 60, KIB, 2 * KIB), (2, 60, KIB, 2 * KIB)]) == [90, 59, 90]
