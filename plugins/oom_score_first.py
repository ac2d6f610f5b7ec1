"""The mm that the OOM killer would take first.

Where it comes from: mm/oom_kill.c oom_badness(), as /proc/PID/oom_score shows it: whoever would be killed for the
memory gives back its page tables before, and its score falls with them. oom_score_adj has its say: -1000 comes last.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from pterefd.hookspecs import Choice, Policy, ReclaimRequest, View, hookimpl

PTEREFD_API = 1


class OomScoreFirst(Policy):
    """Mms by falling oom_score, of equals the one with more to free, each wholly, until there is enough."""

    name = "oom_score_first"

    def choose(self, view: View, request: ReclaimRequest) -> Iterator[Choice]:
        """One sort over those that have something to free."""
        sizes = view.sizes(request.kinds)
        rows = np.flatnonzero(sizes)
        for row in rows[np.lexsort((-sizes[rows], -view.oom_score[rows]))]:
            yield Choice(int(view.pid[row]))


@hookimpl
def pterefd_register_policies(register: Callable[[type[Policy]], Any]) -> None:
    """Called by pterefd when the plugin is loaded."""
    register(OomScoreFirst)
