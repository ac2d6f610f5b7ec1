"""Reclaim again and again, whether memory is short or not.

Where it comes from: "[RFC PATCH 0/3] asynchronously scan and free empty user PTE pages" of June 13 2024, which scans at
intervals and frees empty PTE pages only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import Field

from pterefd.hookspecs import Cause, Kinds, KindsTunable, Moment, ReclaimRequest, Trigger, Tunables, View, hookimpl

PTEREFD_API = 1


class IntervalTunables(Tunables):
    """How often, and of what."""

    period_ms: int = Field(default=1000, ge=10, le=86_400_000, description="Milliseconds of the trace's time between.")
    kinds: KindsTunable = Field(default=Kinds.EMPTY, description="Kinds of PTE page: empty, zero, mixed; + between.")


class Interval(Trigger):
    """All there is, each time that the period has passed; the first period begins at time 0."""

    name = "interval"
    causes = frozenset({Cause.TICK})
    Tunables = IntervalTunables
    tunables: IntervalTunables

    def __init__(self, tunables: IntervalTunables) -> None:
        super().__init__(tunables)
        self._last_ns = 0

    def request(self, view: View, moment: Moment) -> ReclaimRequest | None:
        """Answer a tick, once a period."""
        if moment.time_ns - self._last_ns < self.tunables.period_ms * 1_000_000:
            return None
        self._last_ns = moment.time_ns
        return ReclaimRequest(kinds=self.tunables.kinds)

    def state(self) -> dict[str, Any]:
        """When it last did something."""
        return {"last_ns": self._last_ns}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self._last_ns = int(state["last_ns"])


@hookimpl
def pterefd_register_triggers(register: Callable[[type[Trigger]], Any]) -> None:
    """Called by pterefd when the plugin is loaded."""
    register(Interval)
