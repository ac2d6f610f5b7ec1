"""Metrics of a live host: those of every host, and what only one has whose numbers are measured now and then."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from prometheus_client.core import Metric

from pterefd.live.host import LiveHost
from pterefd.live.watch import Watched
from pterefd.metrics import OTHER, MmCollector, counter_of, gauge_of
from pterefd.reclaim.reclaimer import Reclaimer

NO_CGROUP = "-"
_OF_ZERO_PAGES = ("reclaimable_zero_bytes", "mixed_bytes")
_SCANNED = ("reclaimable_empty_bytes", *_OF_ZERO_PAGES)
_KINDS = ("empty", "zero", "mixed")
_REASONS = ("rights", "size")


class LiveCollector(MmCollector):
    """What a scrape sees of a live host and its reclaimer. What is not known has no series."""

    def __init__(self, host: LiveHost, reclaimer: Reclaimer, *, max_mms: int = 100, version: str = "0") -> None:
        super().__init__(host, reclaimer, max_mms=max_mms, version=version)
        self._host = host

    def _known(self, view: Any, name: str) -> npt.NDArray[np.bool_]:
        if name not in _SCANNED:
            return super()._known(view, name)
        known = view.scanned
        return known & view.tells_zero if name in _OF_ZERO_PAGES else known

    def _of_kind(self, snapshot: Any, kind: str) -> Iterator[Metric]:
        view = snapshot.view
        own, rest = self._split(view)
        ages = {(str(pid), snapshot.comm(pid)): age for pid, age in _ages(view, own)}
        if others := [age for _, age in _ages(view, rest)]:
            ages[OTHER, OTHER] = max(others)
        yield gauge_of(
            "pterefd_mm_age_seconds",
            "Time since what is reclaimable of the mm was measured; of the others: the longest.",
            ("pid", "comm"),
            kind,
            ages,
        )
        processes = [row.process for row in snapshot.published.rows.values()]
        yield from self._cgroups(processes, kind)
        seen = Counter(one.reason for one in processes if one.reason)
        yield gauge_of(
            "pterefd_host_not_seen",
            "Processes that may not or cannot be measured, by reason: rights, size (without PAGEMAP_SCAN).",
            ("reason",),
            kind,
            dict.fromkeys(_REASONS, 0) | seen,
        )
        waiting = sum(one.use is None and not one.reason for one in processes)
        yield gauge_of("pterefd_live_waiting", "Processes that wait for their first scan.", (), kind, {(): waiting})
        watch = self._host.watch
        yield counter_of("pterefd_live_scans", "Scans of processes.", (), kind, {(): watch.scans})
        yield counter_of(
            "pterefd_live_scan_seconds", "CPU time that scans took, of the budget.", (), kind, {(): watch.scan_seconds}
        )

    def _cgroups(self, processes: Iterable[Watched], kind: str) -> Iterator[Metric]:
        """Sums of the processes that are in each cgroup itself: all of them add up to all processes."""
        sums: dict[str, Counter[str]] = {}
        for one in processes:
            found = sums.setdefault(one.cgroup or NO_CGROUP, Counter())
            found["tables"] += one.vm_pte
            if one.use is not None:
                found.update(empty=one.use.empty, zero=one.use.zero or 0, mixed=one.use.mixed or 0)
        order = sorted(sums, key=lambda name: (-sums[name]["empty"] - sums[name]["zero"], -sums[name]["tables"], name))
        shown = {name: sums[name] for name in order[: self.max_mms]}
        if rest := order[self.max_mms :]:
            shown[OTHER] = sum((sums[name] for name in rest), Counter())
        yield gauge_of(
            "pterefd_cgroup_pgtables_bytes",
            "Page-table pages of the processes in a cgroup, those of cgroups below it not among them.",
            ("cgroup",),
            kind,
            {name: found["tables"] for name, found in shown.items()},
        )
        yield gauge_of(
            "pterefd_cgroup_reclaimable_pt_bytes",
            "The same of pterefd_mm_reclaimable_pt_bytes.",
            ("cgroup", "kind"),
            kind,
            {(name, what): found[what] for name, found in shown.items() for what in _KINDS},
        )


def _ages(view: Any, rows: npt.NDArray[np.int64]) -> Iterator[tuple[int, float]]:
    """(pid, seconds) of those that have been scanned."""
    for pid, age in zip(view.pid[rows].tolist(), view.age_ns[rows].tolist(), strict=True):
        if age >= 0:
            yield pid, age / 1e9
