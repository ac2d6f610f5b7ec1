"""Columns of events from many places, in one order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pterefd.source.record import table as table_module
from pterefd.source.record.table import ABSENT, FIRST, ROWS, Group, Table


def _events(table: Table, begin: int = 0) -> list[dict[str, Any]]:
    rows = []
    for arrays, count in table.pieces(begin):
        columns = {name: array.to_pylist() for name, array in arrays.items()}
        assert all(len(values) == count for values in columns.values())
        for i in range(count):
            rows.append({name: values[i] for name, values in columns.items() if values[i] is not None})
    return rows


@pytest.mark.parametrize("piece", [1, 2, 3, 100])
def test_order(monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    monkeypatch.setattr(table_module, "PIECE", piece)
    table = Table()
    columns = {"pid": np.array([1, 2, 1]), "addr": np.array([8, 16, ABSENT]), "write": np.array([1, 0, 1])}
    table.add_group(Group("fault", np.array([30, 10, 20]), columns))
    table.add(20, "expect", ROWS, pid=1, VmPTE=4)
    table.add(20, "exec", FIRST, pid=1, comm="c", cmdline=["a", "b"])
    table.add(20, "mmap", FIRST, pid=1, addr=0, len=4096, prot="rw-", flags="private", path=None)
    table.add(20, "exec", FIRST, pid=2, comm="d\udcff", cmdline=[])
    assert _events(table, begin=10) == [
        {"t": 0, "op": "fault", "pid": 2, "addr": 16, "write": False},
        {"t": 10, "op": "exec", "pid": 1, "comm": "c", "cmdline": ["a", "b"]},
        {"t": 10, "op": "mmap", "pid": 1, "addr": 0, "len": 4096, "prot": "rw-", "flags": "private"},
        {"t": 10, "op": "exec", "pid": 2, "comm": "d\\xff", "cmdline": []},
        {"t": 10, "op": "expect", "pid": 1, "VmPTE": 4},
        {"t": 10, "op": "fault", "pid": 1, "write": True},
        {"t": 20, "op": "fault", "pid": 1, "addr": 8, "write": True},
    ]


def test_nothing() -> None:
    assert _events(Table()) == []
