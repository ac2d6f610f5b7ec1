"""One mm after the other, going on where the last act ended.

Where it comes from: mm/vmscan.c walks the memory cgroups so (mem_cgroup_iter with a reclaim cookie), for fairness.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from pydantic import Field

from pterefd.hookspecs import Choice, Policy, ReclaimRequest, Tunables, View, hookimpl

PTEREFD_API = 1
PAGE = 4096


class RoundRobinTunables(Tunables):
    """How long a turn is."""

    turn_bytes: int = Field(
        default=0,
        ge=0,
        multiple_of=PAGE,
        description="Bytes that each mm gives in its turn, whole pages; 0: all it has.",
    )


class RoundRobin(Policy):
    """Mms by rising pid, from the one behind that which gave last; turn after turn until there is enough."""

    name = "round_robin"
    Tunables = RoundRobinTunables
    tunables: RoundRobinTunables

    def __init__(self, tunables: RoundRobinTunables) -> None:
        super().__init__(tunables)
        self._last = 0

    def choose(self, view: View, request: ReclaimRequest) -> Iterator[Choice]:
        """Rows with something left, beginning behind the last pid."""
        left = view.sizes(request.kinds).copy()
        turn = self.tunables.turn_bytes or int(left.max(initial=0))
        while left.any():
            rows = np.flatnonzero(left)
            begin = int(np.searchsorted(view.pid[rows], self._last, side="right"))
            for row in np.roll(rows, -begin):
                self._last = int(view.pid[row])
                yield Choice(self._last, bytes=turn)
            left = np.maximum(left - turn, 0)

    def state(self) -> dict[str, Any]:
        """Who gave last."""
        return {"last": self._last}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on behind it."""
        self._last = int(state["last"])


@hookimpl
def pterefd_register_policies(register: Callable[[type[Policy]], Any]) -> None:
    """Called by pterefd when the plugin is loaded."""
    register(RoundRobin)
