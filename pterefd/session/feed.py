"""Events of a source into a host; `free_ptes` and `expect` go to whoever runs the session."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pterefd.errors import BadInput
from pterefd.hookspecs import Kinds
from pterefd.host.host import EventError, Host
from pterefd.mm.events import OP_EXPECT, OP_FREE_PTES, Batch
from pterefd.source.source import Source

OnExpect = Callable[[int, int, dict[str, Any]], None]  # index in the source, pid, fields


class Feed:
    """Feeds one source's batches to a host.

    on_free_ptes(pid): a recorded write to sys/vm/free_ptes.  on_expect: a checkpoint, once its
    unlocated PTE pages, if it names any, are noted.
    """

    def __init__(
        self,
        source: Source,
        host: Host,
        on_expect: OnExpect | None = None,
        on_free_ptes: Callable[[int], object] | None = None,
    ) -> None:
        self._source = source
        self._host = host
        self._on_expect = on_expect
        self._on_free_ptes = on_free_ptes or (lambda pid: host.free_ptes(pid, Kinds.BOTH, None))

    def run(self, batch: Batch, begin: int, end: int) -> None:
        """Run events [begin, end) of a batch. BadInput says where an event stands that cannot be run."""
        index = begin
        while index < end:
            try:
                index = self._host.run(batch, index, end)
            except EventError as error:
                raise BadInput(f"{self._source.where(error.index)}: {error.reason}") from error
            if index < end:
                self._own(batch, index)
                index += 1

    def _own(self, batch: Batch, i: int) -> None:
        """An event that is the session's."""
        pid = int(batch.pid[i])
        if self._host.find(pid) is None:
            return  # the host's OOM killer took it
        if batch.op[i] == OP_FREE_PTES:
            self._host.events_total["free_ptes"] += 1
            self._on_free_ptes(pid)
        elif batch.op[i] == OP_EXPECT:
            self._host.events_total["expect"] += 1
            fields = batch.side[int(batch.arg[i])]
            if fields.get("unlocated_pte_pages") is not None:
                self._host.set_unlocated(pid, fields["unlocated_pte_pages"])
            if self._on_expect is not None:
                self._on_expect(batch.first + i, pid, fields)
