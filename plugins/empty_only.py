"""The largest first, and of each the empty PTE pages only.

Where it comes from: every series but the mail of Aug 25 2022 frees empty PTE pages and no others, and so does
CONFIG_PT_RECLAIM of Linux 6.14. What zero PTE pages would have saved is the difference to largest_first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from pterefd.hookspecs import Choice, Kinds, Policy, ReclaimRequest, View, hookimpl

PTEREFD_API = 1


class EmptyOnly(Policy):
    """Mms by falling bytes of empty PTE pages, each wholly, until there is enough."""

    name = "empty_only"

    def choose(self, view: View, request: ReclaimRequest) -> Iterator[Choice]:
        """Nothing where the request does not want empty ones."""
        if Kinds.EMPTY in request.kinds:
            for pid in view.ranking(Kinds.EMPTY):
                yield Choice(pid, kinds=Kinds.EMPTY)


@hookimpl
def pterefd_register_policies(register: Callable[[type[Policy]], Any]) -> None:
    """Called by pterefd when the plugin is loaded."""
    register(EmptyOnly)
