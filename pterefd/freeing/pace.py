"""How much of a process is looked at in one stop, so that it is as short as it should be."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence

from pterefd.freeing.spans import SPAN, movable
from pterefd.freeing.stop import Stop, Target, Wanted
from pterefd.live import procmem

_WINDOW = 64 << 30  # bytes of address space of one stop, at most
_STEP, _LEAST = 64 << 20, 16 << 20  # bytes that are walked over at once, to begin with and at least
_RUNS = 64  # each is two stops of the thread that moves
_SHARE = 0.4  # of a stop for what there is to do; the rest is for stopping, and what it takes without anything to do
_ZERO_SECONDS = 10e-6  # to unmap a PTE page of zero pages


class Pace:
    """Learns from each stop how much the next may hold. seconds: that a stop may take.

    A span without a PTE page costs next to nothing, and cannot be told from an empty one: what a walk takes, without a
    stop, tells how much there is.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._work_of_walk = 4.0  # seconds in a stop for each of a walk
        self._walked = 0.0

    def took(self, stop: Stop) -> None:
        """Learn from the stop that was made of the last ranges."""
        ratio = min(max(stop.work / max(self._walked, 1e-5), 1.0), 40.0)
        self._work_of_walk += (ratio - self._work_of_walk) / (2 if ratio > self._work_of_walk else 4)

    def next_ranges(self, target: Target, parts: Iterable[tuple[int, int]], wanted: Wanted) -> list[tuple[int, int]]:
        """The ranges of the next stop, the first of parts (whole spans, ascending); none where there are none."""
        taken: list[tuple[int, int]] = []
        may_walk = _SHARE * self._seconds / self._work_of_walk
        may_unmap = max(1, int(_SHARE * self._seconds / _ZERO_SECONDS))
        self._walked, zeros = 0.0, 0
        for start, end in parts:
            at, step = start, _STEP
            while at < end:
                piece = at, min(end, at + step, (taken[0][0] if taken else at) + _WINDOW)
                if piece[0] >= piece[1]:
                    return taken
                began = time.perf_counter()
                entries = procmem.read_ranges(target.pagemap, [piece])
                walk = time.perf_counter() - began
                if self._walked + walk > may_walk and piece[1] - piece[0] > _LEAST:
                    if taken:
                        return taken
                    step = max(_LEAST, (piece[1] - piece[0]) // 2 // SPAN * SPAN)
                    continue
                self._walked += walk
                for run in movable(entries, [piece], empty=wanted.empty, zero=wanted.zero, mixed=wanted.mixed):
                    zeros += run.zero + run.mixed
                    if taken and (len(taken) == _RUNS or zeros > may_unmap):
                        return taken
                    taken.append((run.start, run.end))
                at = piece[1]
                step = min(step * 2, _WINDOW)
        return taken


def within(
    ranges: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]] | None, at: int
) -> Iterator[tuple[int, int]]:
    """The parts of ranges that lie in spans (both ascending), behind an address."""
    for start, end in ranges:
        for low, high in spans if spans is not None else ((start, end),):
            part = max(start, -(-low // SPAN) * SPAN, at), min(end, high // SPAN * SPAN)
            if part[0] < part[1]:
                yield part
