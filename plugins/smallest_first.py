"""The mm with the fewest reclaimable bytes first.

Where it comes from: the opposite of the mail's, as shortest job first: for the same bytes most mms are touched, each
for the shortest time. A comparison of policies needs it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from pterefd.hookspecs import Choice, Policy, ReclaimRequest, View, hookimpl

PTEREFD_API = 1


class SmallestFirst(Policy):
    """Mms by rising reclaimable bytes, each wholly, until there is enough."""

    name = "smallest_first"

    def choose(self, view: View, request: ReclaimRequest) -> Iterator[Choice]:
        """One sort over all; of equals the lower pid first."""
        sizes = view.sizes(request.kinds)
        rows = np.flatnonzero(sizes)
        for row in rows[np.argsort(sizes[rows], kind="stable")]:
            yield Choice(int(view.pid[row]))


@hookimpl
def pterefd_register_policies(register: Callable[[type[Policy]], Any]) -> None:
    """Called by pterefd when the plugin is loaded."""
    register(SmallestFirst)
