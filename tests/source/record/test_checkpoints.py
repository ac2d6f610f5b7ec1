"""What memory reclaim has done between two checkpoints."""

from __future__ import annotations

import numpy as np
import pytest

from pterefd.source.record.checkpoints import without
from pterefd.source.record.procmem import Entries


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
