"""Faults of neighbouring pages as one event."""

from __future__ import annotations

import numpy as np
import pytest

from pterefd.source.record.runs import RUN_NS, joined
from pterefd.source.record.table import ABSENT, ROWS, Group, Table

PAGE = 4096
Fault = tuple[int, int, int, int]  # time, pid, page number, write


def runs(faults: list[Fault], others: list[int] | None = None) -> list[tuple[int, int, int, int, int]]:
    """(time, pid, page number, write, pages) of each event; others: times of events between."""
    table = Table()
    for t in others or []:
        table.add(t, "exit", ROWS, pid=9)
    t, pid, page, write = (np.array(column, dtype=np.int64) for column in zip(*faults, strict=True))
    group = joined(table, Group("fault", t, {"pid": pid, "addr": page * PAGE, "write": write}))
    columns = [group.columns[name] for name in ("pid", "addr", "write", "len")]
    return [
        (t, pid, addr // PAGE, write, 1 if length == ABSENT else length // PAGE)
        for t, pid, addr, write, length in zip(group.place.tolist(), *(c.tolist() for c in columns), strict=True)
    ]


def test_ascending_pages_become_one() -> None:
    assert runs([(10, 1, 5, 1), (11, 1, 6, 1), (13, 1, 7, 1)]) == [(10, 1, 5, 1, 3)]


@pytest.mark.parametrize(
    "second",
    [(11, 1, 7, 1), (11, 1, 5, 1), (11, 1, 4, 1), (11, 2, 6, 1), (11, 1, 6, 0)],
    ids=["a page between", "the same page", "descending", "another mm", "a read after a write"],
)
def test_what_is_not_joined(second: Fault) -> None:
    assert [run[4] for run in runs([(10, 1, 5, 1), second])] == [1, 1]


@pytest.mark.parametrize("between", [10, 11, 12])
def test_any_other_event_between_parts_them(between: int) -> None:
    parts = runs([(10, 1, 5, 1), (12, 1, 6, 1)], [between])
    assert [run[4] for run in parts] == ([2] if between == 10 else [1, 1])  # at 10 it comes before the first


def test_a_run_lasts_a_millisecond_at_most() -> None:
    step = RUN_NS // 4
    assert runs([(i * step, 1, i, 1) for i in range(10)]) == [
        (0, 1, 0, 1, 4),
        (RUN_NS, 1, 4, 1, 4),
        (2 * RUN_NS, 1, 8, 1, 2),
    ]


def test_random_faults_are_all_there_once() -> None:
    """Taken apart again, the events are the faults, in order."""
    draw = np.random.default_rng(1)
    faults = [(i // 2, int(draw.integers(1, 3)), int(draw.integers(0, 4)), 1) for i in range(4000)]
    found = [(pid, page + i, write) for _, pid, page, write, pages in runs(faults) for i in range(pages)]
    assert found == [fault[1:] for fault in faults]
    assert len(runs(faults)) < len(faults)
