"""Reclaim when somebody asks: a write to sys/vm/free_ptes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pterefd.hookspecs import Cause, Moment, ReclaimRequest, Trigger, View, hookimpl

PTEREFD_API = 1


class OnDemand(Trigger):
    """Everything that is empty or zero, in the mm whose pid was written, or in all."""

    name = "on_demand"

    def request(self, view: View, moment: Moment) -> ReclaimRequest | None:
        """Answer a write; nothing else."""
        if moment.cause is not Cause.WRITE:
            return None
        return ReclaimRequest(pid=moment.pid)


@hookimpl
def pterefd_register_triggers(register: Callable[[type[Trigger]], Any]) -> None:
    """Called by pterefd when the plugin is loaded."""
    register(OnDemand)
