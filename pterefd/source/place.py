"""A source in its place on a host: other pids, another beginning in time, a group, a score for the OOM killer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from pterefd.errors import BadInput
from pterefd.mm.events import NO_TIME, OP_EXEC, OP_FORK, OP_THREAD, OP_THREAD_EXIT, Batch
from pterefd.source.schema import INT64_MAX, PID_MAX
from pterefd.source.source import Source

I64 = npt.NDArray[np.int64]


class Placed(Source):
    """What another source yields, shifted. Its files stay its own: no page cache is shared with other sources.

    pid_base: added to every pid and tid.  start_ns: added to every time.  pace: factor on the source's own speed; at 2
    its times are halved.  untimed_ns: an event without a time comes so long after the one before it (the first at the
    start); None leaves it without, unless start_ns is given.  group: of its mms.  oom_score_adj: of its programs, in
    place of their own.
    """

    def __init__(
        self,
        of: Source,
        *,
        pid_base: int = 0,
        start_ns: int = 0,
        pace: float = 1.0,
        untimed_ns: int | None = None,
        group: str = "",
        oom_score_adj: int | None = None,
        name: str | None = None,
    ) -> None:
        self.of = of
        self.meta = of.meta
        self.group = group
        self._name = name if name is not None else of.name
        self._pid_base = pid_base
        self._start_ns = start_ns
        self._pace = pace
        self._untimed_ns = untimed_ns if untimed_ns is not None or start_ns == 0 else 0
        self._oom_score_adj = oom_score_adj

    @property
    def name(self) -> str:
        """The source's, unless another was given."""
        return self._name

    @property
    def events(self) -> int | None:
        """The source's."""
        return self.of.events

    @property
    def pid_base(self) -> int:
        """What has been added to the source's own pids."""
        return self._pid_base + self.of.pid_base

    def highest_pid(self) -> int:
        """The source's, shifted."""
        return self.of.highest_pid() + self._pid_base

    def where(self, index: int) -> str:
        """As the source says it, under the name that it has here."""
        return self._name + self.of.where(index).removeprefix(self.of.name)

    def batches(self) -> Iterator[Batch]:
        """Yield the source's batches, shifted. BadInput: a pid or a time that is too large."""
        last = self._start_ns  # time of the event before
        first = True
        for batch in self.of.batches():
            changes = self._ids(batch) | ({"group": self.group} if self.group else {})
            if self._start_ns or self._pace != 1.0 or self._untimed_ns is not None:
                changes["t"] = t = self._times(batch, last, first)
                if len(t):
                    last, first = int(t[-1]), False
            if self._oom_score_adj is not None:
                changes["side"] = self._side(batch)
            yield replace(batch, **changes) if changes else batch

    def _ids(self, batch: Batch) -> dict[str, Any]:
        base = self._pid_base
        if not base:
            return {}
        ids = np.isin(batch.op, (OP_FORK, OP_THREAD, OP_THREAD_EXIT)) & (batch.err == 0)
        arg = np.where(ids, batch.arg + base, batch.arg)
        if max(int(batch.pid.max(initial=0)) + base, int(arg[ids].max(initial=0))) > PID_MAX:
            raise BadInput(f"{self.name}: pids shifted by {base} are beyond {PID_MAX}: pid_base sets another shift")
        pid = np.where(batch.pid > 0, batch.pid + base, batch.pid)
        return {"pid": pid.astype(np.int32), "arg": arg}

    def _times(self, batch: Batch, last: int, first: bool) -> I64:
        """int64[n]: the times where the source is put. last: of the event before, first: there was none."""
        t = batch.t
        if len(t) and int(t.max()) / self._pace + self._start_ns > INT64_MAX:
            raise BadInput(f"{self.name}: a time of {int(t.max())} ns does not fit from {self._start_ns} ns on")
        own = t if self._pace == 1.0 else (t / self._pace).astype(np.int64)
        shifted = own + self._start_ns if self._start_ns else own
        timed = t >= 0
        if timed.all() and (self._untimed_ns is None or not len(t) or shifted[0] >= last):
            return shifted
        if self._untimed_ns is None:
            return np.where(timed, shifted, NO_TIME)
        n = len(t)
        at = np.maximum.accumulate(np.where(timed, np.arange(n), -1))  # the last event with a time, -1 before it
        since = self._untimed_ns * (np.arange(n) - at - int(first) * (at < 0))
        return np.maximum.accumulate(np.maximum(np.where(at >= 0, shifted[at], last) + since, last))

    def _side(self, batch: Batch) -> list[dict[str, Any]]:
        """The fields of exec and expect, with the score that was given in every exec."""
        side = list(batch.side)
        for at in batch.arg[batch.op == OP_EXEC].tolist():
            side[at] = {**side[at], "oom_score_adj": self._oom_score_adj}
        return side


def pid_bases(sources: list[Source], given: list[int | None]) -> list[int]:
    """What to add to the pids of each source so that none collide: the given number, or past the highest in use so far.

    Sources are run through only where that is needed to know their pids.  BadInput: a given one collides.
    """
    bases: list[int] = []
    taken: list[tuple[int, int, str]] = []  # first and last pid, whose
    explicit = any(base is not None for base in given)
    top = 0
    for number, (source, base) in enumerate(zip(sources, given, strict=True)):
        shift = top if base is None else base
        bases.append(shift)
        if len(sources) == 1 or (number + 1 == len(sources) and not explicit):
            break
        last = shift + source.highest_pid()
        for low, high, name in taken:
            if shift < high and low <= last:
                raise BadInput(f"{source.name}: pids {shift + 1}..{last} are partly those of {name} ({low}..{high})")
        taken.append((shift + 1, last, source.name))
        top = max(top, last)
    return bases
