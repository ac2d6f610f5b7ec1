"""The mail's policy: the mm with the most reclaimable bytes first.

Where it comes from: the outlook of the mail of Aug 25 2022, which would keep mms in an rbtree by
mm->reclaimable_pt_bytes and take the largest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from pterefd.hookspecs import Choice, Policy, ReclaimRequest, View, hookimpl

PTEREFD_API = 1


class LargestFirst(Policy):
    """Mms by falling reclaimable bytes, each wholly, until there is enough."""

    name = "largest_first"

    def choose(self, view: View, request: ReclaimRequest) -> Iterator[Choice]:
        """Walk the kept ranking; a request for one mm is that mm."""
        if request.pid is not None:
            yield Choice(request.pid)
            return
        for pid in view.ranking(request.kinds):
            yield Choice(pid)


@hookimpl
def pterefd_register_policies(register: Callable[[type[Policy]], Any]) -> None:
    """Called by pterefd when the plugin is loaded."""
    register(LargestFirst)
