"""Which of two calls of different threads came first, where their times do not say.

A call takes its place at its return. Calls that change mappings wait for each other and for fork (mmap_lock), so that a
call that returns later has mostly worked later, too. What contradicts that is seen: a range that was given away before
the call that gave it back returned.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pterefd.source.record.table import Group

I64 = npt.NDArray[np.int64]


@dataclass(slots=True)
class Freed:
    """Calls that give address space back: the group they are in, when they were entered, and the ranges."""

    group: Group
    entered: I64
    start: I64
    end: I64


@dataclass(slots=True)
class Claimed:
    """Calls that were given address space: on whose mm, their places, and the ranges."""

    pid: I64
    place: I64
    start: I64
    end: I64


def settle(freed: list[Freed], claimed: list[Claimed]) -> None:
    """Put every call that gave a range back before the first one, during it, that was given a part of that range."""
    if not freed or not claimed:
        return
    place = np.concatenate([some.place for some in claimed])
    order = np.argsort(place, kind="stable")
    place = place[order]
    pid, start, end = (
        np.concatenate([getattr(some, name) for some in claimed])[order] for name in ("pid", "start", "end")
    )
    for some in freed:
        first = np.searchsorted(place, some.entered, side="right")
        last = np.searchsorted(place, some.group.place, side="left")
        for row in np.flatnonzero(last > first).tolist():
            during = slice(first[row], last[row])
            given = (
                (pid[during] == some.group.columns["pid"][row])
                & (start[during] < some.end[row])
                & (end[during] > some.start[row])
            )
            if given.any():
                some.group.place[row] = place[during][np.argmax(given)] - 1
