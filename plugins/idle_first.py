"""Mms that have not faulted lately.

Where it comes from: the kernel's own rule of taking what was not used for longest (mm/vmscan.c, mm/page_idle.c). A PTE
page that is freed and needed again costs its mm a fault; one that faults rarely seldom pays it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from pydantic import Field

from pterefd.hookspecs import Choice, Policy, ReclaimRequest, Tunables, View, hookimpl

PTEREFD_API = 1


class IdleFirstTunables(Tunables):
    """Who is left alone."""

    idle_ms: int = Field(
        default=0, ge=0, le=86_400_000, description="Leave mms alone that have faulted within so many milliseconds."
    )


class IdleFirst(Policy):
    """Mms by the time of their last fault, the longest ago first; of equals the one with more to free."""

    name = "idle_first"
    Tunables = IdleFirstTunables
    tunables: IdleFirstTunables

    def choose(self, view: View, request: ReclaimRequest) -> Iterator[Choice]:
        """One sort over those that have something to free; a request for one mm is that mm."""
        sizes = view.sizes(request.kinds)
        idle = view.time_ns - view.last_fault_ns >= self.tunables.idle_ms * 1_000_000
        rows = np.flatnonzero((sizes > 0) & (idle | (request.pid is not None)))
        for row in rows[np.lexsort((-sizes[rows], view.last_fault_ns[rows]))]:
            yield Choice(int(view.pid[row]))


@hookimpl
def pterefd_register_policies(register: Callable[[type[Policy]], Any]) -> None:
    """Called by pterefd when the plugin is loaded."""
    register(IdleFirst)
