"""Free nothing, whoever asks.

Where it comes from: kernels as they are (I/O schedulers have one of that name too). What a run without reclaim costs is
what every other policy is held against; with it the triggers are asked and counted all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from pterefd.hookspecs import Choice, Policy, ReclaimRequest, View, hookimpl

PTEREFD_API = 1


class Nothing(Policy):
    """No mm."""

    name = "none"

    def choose(self, view: View, request: ReclaimRequest) -> Iterator[Choice]:
        """Nothing."""
        return iter(())


@hookimpl
def pterefd_register_policies(register: Callable[[type[Policy]], Any]) -> None:
    """Called by pterefd when the plugin is loaded."""
    register(Nothing)
