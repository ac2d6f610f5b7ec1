"""Runs of faults: pages touched one after the other, told as one event."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pterefd.source.record.table import ABSENT, Group, Table
from pterefd.source.runs import RUN_NS

I64 = npt.NDArray[np.int64]

PAGE = 4096


def joined(table: Table, faults: Group) -> Group:
    """Faults of single pages as faults of ranges, each with the time of its first.

    Joined is what one mm does to neighbouring pages in ascending order, all reading or all writing, with nothing else
    of anybody in between: then one event after the other and one event for all are the same.  table: all other events.
    """
    place, pid, addr, write = faults.place, *(faults.columns[name] for name in ("pid", "addr", "write"))
    if not len(place):
        return faults
    order = np.argsort(place, kind="stable")
    place, pid, addr, write = place[order], pid[order], addr[order], write[order]
    others = [group.place for group in table.groups()]
    other = np.sort(np.concatenate(others)) if others else np.empty(0, dtype=np.int64)
    before = np.searchsorted(other, place, side="right")  # other events up to each fault
    goes_on = (
        (pid[1:] == pid[:-1])
        & (addr[1:] == addr[:-1] + PAGE)
        & (write[1:] == write[:-1])
        & (before[1:] == before[:-1])
        & (np.searchsorted(other, place[1:], side="left") == before[:-1])
    )
    first = _starts(place, goes_on)
    pages = np.diff(np.append(first, len(place)))
    columns = {"pid": pid[first], "addr": addr[first], "write": write[first]}
    columns["len"] = np.where(pages > 1, pages * PAGE, ABSENT)
    return Group("fault", place[first], columns)


def _starts(place: I64, goes_on: npt.NDArray[np.bool_]) -> I64:
    """Where runs begin: where one does not go on, and in a run every RUN_NS."""
    begins = np.append(True, ~goes_on)
    run = np.cumsum(begins) - 1
    since = place - place[begins][run]
    tick = since // RUN_NS
    begins[1:] |= goes_on & (tick[1:] != tick[:-1])
    return np.flatnonzero(begins)
