"""What the mount shows: the parts that its readers and writers are handed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pterefd.procfs.caller import Callers, nobody

if TYPE_CHECKING:
    from pterefd.host.host import Host
    from pterefd.reclaim.reclaimer import Reclaimer
    from pterefd.session.replay import Replay


def _quiet(event: str, **fields: Any) -> None:
    """Where nobody listens."""


@dataclass
class Faces:
    """A host, its reclaimer and the replays that feed it, as the tables of nodes see them.

    booted: when the machine came up, seconds since 1970.
    callers: who asks, in a thread that serves a request.
    note: called with an event's name and fields for each act that came through the mount (a write).
    """

    host: Host
    reclaimer: Reclaimer
    replays: Sequence[Replay] = ()
    version: str = "0"
    profile: str = ""
    booted: float = field(default_factory=time.time)
    note: Callable[..., None] = field(default=_quiet)
    callers: Callers = field(default_factory=lambda: Callers(nobody))
