"""Mms by reclaimable bytes, kept in order as they change: the rbtree of the mail's outlook."""

from __future__ import annotations

import threading
from collections.abc import Iterator

from sortedcontainers import SortedList


class Ranking:
    """Pids by falling number of reclaimable PTE pages; those with none are not in it."""

    def __init__(self) -> None:
        self._order: SortedList[tuple[int, int]] = SortedList()
        self._pages: dict[int, int] = {}
        self._lock = threading.Lock()  # readers walk it while a replay changes it

    def set(self, pid: int, pages: int) -> None:
        """pid has this many reclaimable PTE pages now. O(log n)."""
        old = self._pages.get(pid, 0)
        if old == pages:
            return
        with self._lock:
            if old:
                self._order.remove((-old, pid))
            if pages:
                self._order.add((-pages, pid))
                self._pages[pid] = pages
            else:
                del self._pages[pid]

    def __iter__(self) -> Iterator[int]:
        """Pids, most pages first, ties by pid. Safe while pages are freed: goes on below what it gave last."""
        last = (-(1 << 62), 0)
        while True:
            with self._lock:
                place = self._order.bisect_right(last)
                if place == len(self._order):
                    return
                last = self._order[place]
            yield last[1]

    def __len__(self) -> int:
        return len(self._order)
