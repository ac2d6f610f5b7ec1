"""Runs of faults: accesses of one page after the other, as one event of their range.

Most faults of a recording are such: memory that is filled from its beginning. A run is of neighbours in the stream, so
that its order stays, and of one millisecond at most, so that who replays it at its own speed sees it grow as it did.
This is of traces that are imported; a recording's are joined before there are events (record/runs.py).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pterefd.mm.events import OP_EXPECT, OP_FAULT
from pterefd.source.columns import Column
from pterefd.source.pending import Part, stored
from pterefd.source.schema import PAGE_SIZE

RUN_NS = 1_000_000  # a run lies in one such piece of the clock

Mask = npt.NDArray[np.bool_]


class Runs:
    """Makes runs of the parts of a trace, one part behind.

    A checkpoint with a window (t0, t1) holds what the kernel said at some time in it: no run lies across such a time. A
    window begins before its event, so a part is kept until the next one is there. One that begins a part earlier than
    that is not looked for.
    """

    def __init__(self) -> None:
        self._held: Part | None = None

    def add(self, part: Part | None) -> Part | None:
        """The part before this one, its runs made; None where there is none. None: there is no more to come."""
        held, self._held = self._held, part
        if held is None:
            return None
        return _merged(held, [*_windows(held), *(_windows(part) if part is not None else [])])


def _full(part: Part, name: str, absent: int) -> npt.NDArray[Any]:
    """One value an event."""
    return Column(part.arrays[name]).full(absent) if name in part.arrays else np.full(part.n, absent, dtype=np.int64)


def _windows(part: Part) -> list[tuple[int, int]]:
    """(t0, t1) of the checkpoints that have them."""
    if "t0" not in part.arrays or "t1" not in part.arrays:
        return []
    rows = np.flatnonzero(_full(part, "op", -1) == OP_EXPECT)
    t0, t1 = (_full(part, name, -1)[rows] for name in ("t0", "t1"))
    return [(int(a), int(b)) for a, b in zip(t0, t1, strict=True) if 0 <= a <= b]


def _joins(part: Part, length: npt.NDArray[Any], windows: list[tuple[int, int]]) -> Mask:
    """bool[n - 1]: event i + 1 goes on where event i ends."""
    fault = _full(part, "op", -1) == OP_FAULT
    if "errno" in part.arrays:
        fault &= part.arrays["errno"].is_null().to_numpy(zero_copy_only=False)
    addr, t = _full(part, "addr", -1), _full(part, "t", -1)
    joins: Mask = fault[1:] & fault[:-1] & (addr[1:] == addr[:-1] + length[:-1])
    for same in (_full(part, "pid", 0), _full(part, "write", 0), t // RUN_NS):
        joins &= same[1:] == same[:-1]
    if windows and t.min() < 0:
        joins[:] = False
        return joins
    for t0, t1 in windows:
        joins[max(int(np.searchsorted(t, t0)) - 1, 0) : int(np.searchsorted(t, t1, "right"))] = False
    return joins


def _merged(part: Part, windows: list[tuple[int, int]]) -> Part:
    told = _full(part, "len", -1)
    length = np.where(told < 0, PAGE_SIZE, told)
    joins = _joins(part, length, windows)
    if not joins.any():
        return part
    first = np.flatnonzero(np.concatenate([[True], ~joins]))
    rows = pa.array(first)
    arrays = {name: array.take(rows) for name, array in part.arrays.items() if name != "len"}
    alone = np.diff(np.append(first, part.n)) == 1
    whole = np.add.reduceat(length, first)
    arrays["len"] = pa.array(whole, stored("len"), mask=alone & (told[first] < 0))
    return Part(arrays, len(first))
