"""What the mount of a live host shows: the parts that its readers and writers are handed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pterefd.live.host import LiveHost
from pterefd.procfs.live.caller import LiveCallers

if TYPE_CHECKING:
    from pterefd.reclaim.reclaimer import Reclaimer
    from pterefd.session.replay import Replay


@dataclass
class LiveFaces:
    """A live host and its reclaimer: what Faces is over a simulated one, under the same names.

    callers: who asks.  shown: whether a process, named by its pid for the daemon, has a directory.
    profile: none: the kernel's own rules hold.  replays: none.
    """

    host: LiveHost
    reclaimer: Reclaimer
    callers: LiveCallers
    shown: Callable[[int], bool] = field(default=lambda _pid: True)
    version: str = "0"
    note: Callable[..., Any] = field(default=lambda _event, **_fields: None)
    profile: str = ""
    replays: Sequence[Replay] = ()
