"""What a source of events is: a trace, a workload, either of them shifted. Nothing above this floor knows which."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import cached_property

import numpy as np

from pterefd.mm.events import OP_FORK, OP_THREAD, Batch
from pterefd.source.meta import TraceMeta

BATCH_EVENTS = 128 * 1024  # no batch is longer, and row groups are written this long


class Source(ABC):
    """Yields batches of events in order and says when it ends. It may be run through any number of times."""

    meta: TraceMeta

    @property
    @abstractmethod
    def name(self) -> str:
        """What it is called in messages: a path, or a workload's name."""

    @property
    @abstractmethod
    def events(self) -> int | None:
        """The number of events; None where only running through would tell."""

    @abstractmethod
    def batches(self) -> Iterator[Batch]:
        """Yield the events in order, checked, at most BATCH_EVENTS at a time. BadInput: what is wrong, and where."""

    @abstractmethod
    def where(self, index: int) -> str:
        """Where event `index` (from 0) stands, for messages."""

    @property
    def pid_base(self) -> int:
        """What has been added to the source's own pids."""
        return 0

    def highest_pid(self) -> int:
        """The highest pid or tid that is used. Runs through the source once, unless that is known without."""
        return self._highest_seen

    @cached_property
    def _highest_seen(self) -> int:
        highest = 0
        for batch in self.batches():
            ids = np.isin(batch.op, (OP_FORK, OP_THREAD))
            highest = max(highest, int(batch.pid.max(initial=0)), int(batch.arg[ids].max(initial=0)))
        return highest
