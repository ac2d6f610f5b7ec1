"""Reclaim when free memory falls below the low watermark, where the kernel wakes kswapd.

Where it comes from: mm/vmscan.c balance_pgdat(), which works from low up to high and knows nothing of page tables. Here
they are freed first, as nobody has to read them back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from pydantic import Field

from pterefd.hookspecs import Cause, Kinds, KindsTunable, Moment, ReclaimRequest, Trigger, Tunables, View, hookimpl

PTEREFD_API = 1
PAGE = 4096


class WatermarkTunables(Tunables):
    """How far it goes, and with what."""

    target: Literal["low", "high", "bytes", "all"] = Field(
        default="high",
        description="How far: until free memory is at low or at high again, by bytes, or all there is.",
    )
    bytes: int = Field(default=16 << 20, ge=PAGE, description="Bytes to free where target is bytes.")
    kinds: KindsTunable = Field(default=Kinds.BOTH, description="Kinds of PTE page: empty, zero, mixed; + between.")


class Watermark(Trigger):
    """What is missing up to a mark; within a group, which has no marks, what the moment says is missing."""

    name = "watermark"
    causes = frozenset({Cause.LOW})
    Tunables = WatermarkTunables
    tunables: WatermarkTunables

    def request(self, view: View, moment: Moment) -> ReclaimRequest | None:
        """Answer a fall below low."""
        return ReclaimRequest(bytes_wanted=self._wanted(view, moment), kinds=self.tunables.kinds, group=moment.group)

    def _wanted(self, view: View, moment: Moment) -> int | None:
        target = self.tunables.target
        if target == "all":
            return None
        if target == "bytes":
            return self.tunables.bytes
        mark = view.host.low if target == "low" else view.host.high
        missing = mark - view.host.free if moment.group is None and mark else moment.bytes
        if target == "high":
            missing = max(missing, moment.bytes)  # tasks of a live host may wait although there is more than that
        return max(missing, PAGE)


@hookimpl
def pterefd_register_triggers(register: Callable[[type[Trigger]], Any]) -> None:
    """Called by pterefd when the plugin is loaded."""
    register(Watermark)
