"""Reclaim as the last thing before an OOM kill, of the host or of a group at its limit.

Where it comes from: the outlook of the mail of Aug 25 2022, which would have it "in the reclaim path, such as before
waking up the oom killer". An OOM notifier (mm/oom_kill.c out_of_memory()) does as much: where one has freed something,
nobody is killed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import Field

from pterefd.hookspecs import Cause, Kinds, KindsTunable, Moment, ReclaimRequest, Trigger, Tunables, View, hookimpl

PTEREFD_API = 1


class PreOomTunables(Tunables):
    """How much, and of what."""

    all: bool = Field(default=False, description="All there is, not only what is missing: the next time comes later.")
    more_bytes: int = Field(default=0, ge=0, description="Bytes to free beyond what is missing.")
    kinds: KindsTunable = Field(default=Kinds.BOTH, description="Kinds of PTE page: empty, zero, mixed; + between.")


class PreOom(Trigger):
    """What is missing, and what may be wanted beyond it."""

    name = "pre_oom"
    causes = frozenset({Cause.OOM})
    Tunables = PreOomTunables
    tunables: PreOomTunables

    def request(self, view: View, moment: Moment) -> ReclaimRequest | None:
        """Answer the verge of a kill."""
        missing = moment.bytes + self.tunables.more_bytes
        wanted = None if self.tunables.all or missing == 0 else missing
        return ReclaimRequest(bytes_wanted=wanted, kinds=self.tunables.kinds, group=moment.group)


@hookimpl
def pterefd_register_triggers(register: Callable[[type[Trigger]], Any]) -> None:
    """Called by pterefd when the plugin is loaded."""
    register(PreOom)
