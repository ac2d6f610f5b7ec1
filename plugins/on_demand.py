"""Reclaim when somebody asks: a write to sys/vm/free_ptes or to sys/vm/pt_reclaim/reclaim.

Where it comes from: free_ptes is the file of the mail of Aug 25 2022 ("[RFC PATCH 0/7] Try to free empty and zero user
PTE page table pages"); reclaim is done in the manner of cgroup v2's memory.reclaim.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import Field

from pterefd.hookspecs import Cause, Kinds, KindsTunable, Moment, ReclaimRequest, Trigger, Tunables, View, hookimpl

PTEREFD_API = 1


class OnDemandTunables(Tunables):
    """What a write frees."""

    kinds: KindsTunable = Field(default=Kinds.BOTH, description="Kinds of PTE page: empty, zero, mixed; + between.")


class OnDemand(Trigger):
    """Everything in the mm whose pid was written, or in all; or the bytes that were written, wherever they are."""

    name = "on_demand"
    causes = frozenset({Cause.WRITE, Cause.RECLAIM})
    Tunables = OnDemandTunables
    tunables: OnDemandTunables

    def request(self, view: View, moment: Moment) -> ReclaimRequest | None:
        """Answer a write."""
        wanted = moment.bytes if moment.cause is Cause.RECLAIM else None
        return ReclaimRequest(bytes_wanted=wanted, kinds=self.tunables.kinds, pid=moment.pid)


@hookimpl
def pterefd_register_triggers(register: Callable[[type[Trigger]], Any]) -> None:
    """Called by pterefd when the plugin is loaded."""
    register(OnDemand)
