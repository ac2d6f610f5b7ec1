"""From every mm its share of what is wanted.

Where it comes from: mm/vmscan.c shrink_node_memcgs() takes from every memory cgroup in proportion to its size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from pterefd.hookspecs import Choice, Policy, ReclaimRequest, Tunables, View, hookimpl

PTEREFD_API = 1
PAGE = 4096


class ProportionalTunables(Tunables):
    """What shares go by."""

    by: Literal["reclaimable", "pgtables"] = Field(
        default="reclaimable", description="Shares go by reclaimable bytes or by all bytes of page tables."
    )


class Proportional(Policy):
    """Whole pages, by largest remainders; what an mm cannot give, the others do in a second turn, largest first."""

    name = "proportional"
    Tunables = ProportionalTunables
    tunables: ProportionalTunables

    def choose(self, view: View, request: ReclaimRequest) -> Iterator[Choice]:
        """Shares of all mms in one expression; those with a share of 0 are not chosen."""
        sizes = view.sizes(request.kinds) // PAGE
        weights = sizes if self.tunables.by == "reclaimable" else np.where(sizes > 0, view.pgtables_bytes // PAGE, 0)
        shares = sizes
        if request.bytes_wanted is not None:
            shares = np.minimum(_shares(weights, -(-request.bytes_wanted // PAGE)), sizes)
        rows = np.flatnonzero(shares)
        for row in rows[np.argsort(-shares[rows], kind="stable")]:
            yield Choice(int(view.pid[row]), bytes=int(shares[row]) * PAGE)
        for row in np.argsort(shares - sizes, kind="stable")[: np.count_nonzero(shares < sizes)]:
            yield Choice(int(view.pid[row]))


def _shares(weights: npt.NDArray[np.int64], pages: int) -> npt.NDArray[np.int64]:
    """int64[n]: pages split in proportion to the weights; of equal remainders the first rows get one more."""
    total = int(weights.sum())
    if total == 0:
        return np.zeros_like(weights)
    exact = weights * (pages / total)
    shares = np.floor(exact).astype(np.int64)
    most = np.argsort(shares - exact, kind="stable")[: max(pages - int(shares.sum()), 0)]
    shares[most] += weights[most] > 0
    return shares


@hookimpl
def pterefd_register_policies(register: Callable[[type[Policy]], Any]) -> None:
    """Called by pterefd when the plugin is loaded."""
    register(Proportional)
