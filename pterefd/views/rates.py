"""Faults per second of each mm, kept between views: a moving average over the trace's time."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import numpy.typing as npt

SMOOTH_SECONDS = 1.0  # a look counts 1 - 1/e of the rate where it comes this long after the one before
_COLUMNS: dict[str, Any] = {"pid": np.int64, "time_ns": np.int64, "faults": np.int64, "rate": np.float64}


class FaultRates:
    """Rates as of the last look: equal looks at equal hosts give equal rates, and one at the same time changes none."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._looked_ns = 0
        self._columns = {name: np.zeros(0, dtype=kind) for name, kind in _COLUMNS.items()}

    def look(
        self,
        time_ns: int,
        pid: npt.NDArray[np.integer[Any]],
        faults: npt.NDArray[np.int64],
        *,
        whole: bool = True,
    ) -> npt.NDArray[np.float64]:
        """Rates of these mms (int[n], ascending) now. faults: int64[n], counted since each began.

        whole: these are all there are; the others are forgotten.
        """
        with self._lock:
            at = self._aligned(pid)
            seconds = (time_ns - at["time_ns"]) / 1e9
            later = seconds > 0
            # A pid whose count fell is another mm by now.
            new = np.where(faults < at["faults"], faults, faults - at["faults"]) / np.where(later, seconds, 1.0)
            weight = np.where(at["known"], 1 - np.exp(-np.maximum(seconds, 0) / SMOOTH_SECONDS), 1.0)
            rate = np.where(later, at["rate"] + weight * (new - at["rate"]), at["rate"])
            rows = {
                "pid": pid.astype(np.int64),
                "time_ns": np.where(later, time_ns, at["time_ns"]),
                "faults": np.where(later, faults, at["faults"]),
                "rate": rate,
            }
            if not whole:
                others = ~np.isin(self._columns["pid"], pid)
                rows = {name: np.concatenate([rows[name], self._columns[name][others]]) for name in rows}
                order = np.argsort(rows["pid"], kind="stable")
                rows = {name: column[order] for name, column in rows.items()}
            self._columns = rows
            self._looked_ns = max(self._looked_ns, time_ns)
            return rate

    def _aligned(self, pid: npt.NDArray[np.integer[Any]]) -> dict[str, npt.NDArray[Any]]:
        """What is known of these mms; a new one had no faults at the last look."""
        n = len(pid)
        at: dict[str, npt.NDArray[Any]] = {
            "known": np.zeros(n, dtype=bool),
            "time_ns": np.full(n, self._looked_ns),
            "faults": np.zeros(n, dtype=np.int64),
            "rate": np.zeros(n),
        }
        pids = self._columns["pid"]
        if len(pids):
            place = np.minimum(np.searchsorted(pids, pid), len(pids) - 1)
            known = pids[place] == pid
            at["known"] = known
            for name in ("time_ns", "faults", "rate"):
                at[name][known] = self._columns[name][place[known]]
        return at

    def state(self) -> dict[str, Any]:
        """As JSON has it."""
        with self._lock:
            return {"looked_ns": self._looked_ns, **{name: c.tolist() for name, c in self._columns.items()}}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state() of another host's."""
        with self._lock:
            self._looked_ns = int(state["looked_ns"])
            self._columns = {name: np.array(state[name], dtype=kind) for name, kind in _COLUMNS.items()}
