"""What the mount of a live host shows: the parts that its readers and writers are handed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pterefd.live.host import LiveHost
from pterefd.live.match import Match
from pterefd.live.procmem import read_status
from pterefd.procfs.live.caller import LiveCallers

if TYPE_CHECKING:
    from pterefd.reclaim.reclaimer import Reclaimer
    from pterefd.session.replay import Replay


@dataclass
class LiveFaces:
    """A live host and its reclaimer: what Faces is over a simulated one, under the same names.

    callers: who asks.  profile: none: the kernel's own rules hold.  replays: none.
    """

    host: LiveHost
    reclaimer: Reclaimer
    callers: LiveCallers
    version: str = "0"
    note: Callable[..., Any] = field(default=lambda _event, **_fields: None)
    profile: str = ""
    replays: Sequence[Replay] = ()

    def shows(self, pid: int) -> bool:
        """Whether a process, by its pid for the daemon, has a directory: the watch wants it, with memory or without."""
        wanted = self.host.watch.wanted
        if wanted == Match():
            return True
        try:
            return wanted(pid, read_status(pid, self.callers.proc))
        except OSError:
            return False
