"""How long a mapped file was: what accesses prove."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pterefd.source.record.sizes import raise_to_accessed
from pterefd.source.record.table import ROWS, Table

PAGE = 4096
Event = tuple[int, str, dict[str, Any]]


def mapped(
    t: int, start: int, pages: int, size: int | None, *, pid: int = 1, path: str = "/f", first: int = 0
) -> Event:
    fields = {"pid": pid, "addr": start * PAGE, "len": pages * PAGE, "path": path, "offset": first * PAGE}
    return t, "mmap", fields if size is None else {**fields, "file_size": size}


def sizes(events: list[Event], accesses: list[tuple[int, int, int]]) -> list[int]:
    """file_size of each mapping in order, after accesses of (time, pid, page number)."""
    table = Table()
    for t, op, fields in events:
        table.add(t, op, ROWS, **fields)
    t, pid, page = (np.array(column, dtype=np.int64) for column in zip(*accesses, strict=True))
    raise_to_accessed(table, t, pid, page * PAGE)
    groups = [group for group in table.groups() if group.op == "mmap" and "file_size" in group.columns]
    rows = [
        (int(t), int(size)) for group in groups for t, size in zip(group.place, group.columns["file_size"], strict=True)
    ]
    return [size for _, size in sorted(rows)]


def test_an_access_beyond_the_end_proves_that_the_file_was_longer() -> None:
    assert sizes([mapped(1, 100, 50, 3 * PAGE + 1)], [(2, 1, 120), (3, 1, 110)]) == [21 * PAGE]


def test_the_offset_counts() -> None:
    assert sizes([mapped(1, 100, 50, 15 * PAGE, first=10)], [(2, 1, 120)]) == [31 * PAGE]


@pytest.mark.parametrize(
    "access", [(2, 1, 103), (2, 2, 120), (0, 1, 120), (2, 1, 160)], ids=["within", "another mm", "before", "elsewhere"]
)
def test_others_prove_nothing(access: tuple[int, int, int]) -> None:
    assert sizes([mapped(1, 100, 50, 3 * PAGE + 1)], [access]) == [3 * PAGE + 1]


@pytest.mark.parametrize(
    "over",
    [
        (2, "mmap", {"pid": 1, "addr": 120 * PAGE, "len": PAGE}),
        (2, "munmap", {"pid": 1, "addr": 90 * PAGE, "len": 60 * PAGE}),
        (2, "mremap", {"pid": 1, "addr": 100 * PAGE, "len": 50 * PAGE, "new_addr": 500 * PAGE, "new_len": 50 * PAGE}),
        (2, "exec", {"pid": 1, "comm": "x"}),
    ],
    ids=lambda event: event[1],
)
def test_what_lies_there_by_then_is_something_else(over: Event) -> None:
    assert sizes([mapped(1, 100, 50, PAGE), over], [(3, 1, 120)]) == [PAGE]
    assert sizes([mapped(1, 100, 50, PAGE), over], [(1, 1, 120), (3, 1, 120)]) == [PAGE]


def test_a_mapping_that_moved_and_grew() -> None:
    move = (2, "mremap", {"pid": 1, "addr": 100 * PAGE, "len": PAGE, "new_addr": 500 * PAGE, "new_len": 50 * PAGE})
    again = (
        4,
        "mremap",
        {"pid": 1, "addr": 500 * PAGE, "len": 50 * PAGE, "new_addr": 900 * PAGE, "new_len": 90 * PAGE},
    )
    assert sizes([mapped(1, 100, 1, PAGE), move], [(3, 1, 520)]) == [21 * PAGE]
    assert sizes([mapped(1, 100, 1, PAGE), move, again], [(5, 1, 980)]) == [81 * PAGE]
    assert sizes([mapped(1, 100, 1, PAGE), move, again], [(5, 1, 520)]) == [PAGE]


def test_all_mappings_of_the_file_learn_it_and_only_those() -> None:
    events = [
        mapped(1, 100, 50, PAGE),
        mapped(2, 200, 1, PAGE),
        mapped(3, 300, 50, PAGE, path="/g"),
        mapped(4, 400, 5, None),
    ]
    assert sizes(events, [(5, 1, 120)]) == [21 * PAGE, 21 * PAGE, PAGE]
