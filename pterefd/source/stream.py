"""What must hold from event to event: time does not go back, and a pid is used only while it lives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from pterefd.mm.events import OP_EXEC, OP_EXIT, OP_FORK, OPS, Batch
from pterefd.source.columns import IntArray, Suspect
from pterefd.source.rules import BadEvent
from pterefd.source.schema import PID_MAX

_FEW = 64
_LIFE = np.isin(np.arange(len(OPS)), (OP_EXEC, OP_FORK, OP_EXIT))

Alive = npt.NDArray[np.bool_]


class Stream:
    """Where a trace stands: checked by `step` an event at a time, by `advance` a batch at a time.

    Invariant: alive[pid] is True from the pid's exec (or the fork that made it) to its exit; last_t is the time of the
    last event that had one.
    """

    def __init__(self) -> None:
        self.alive: Alive = np.zeros(PID_MAX + 1, dtype=np.bool_)
        self.last_t = 0

    def copy(self) -> Stream:
        """The same, to go on from here apart."""
        other = Stream.__new__(Stream)
        other.alive, other.last_t = self.alive.copy(), self.last_t
        return other

    def step(self, row: Mapping[str, Any]) -> None:
        """Take one event that `check_event` has passed. BadEvent: time went back, or a pid that does not live."""
        t = row.get("t")
        if t is not None:
            if t < self.last_t:
                raise BadEvent(f"{row['op']}: t {t} is before the event above it ({self.last_t})")
            self.last_t = t
        pid = row.get("pid")
        if pid is not None:
            self._step_pid(row["op"], pid, row.get("child"), row.get("errno") is not None)

    def _step_pid(self, op: str, pid: int, child: int | None, failed: bool) -> None:
        if not self.alive[pid] and (op != "exec" or failed):
            raise BadEvent(f"{op}: pid {pid} was never started here (no exec or fork, or it has exited)")
        if failed:
            return
        if op == "exec":
            self.alive[pid] = True
        elif op == "exit":
            self.alive[pid] = False
        elif op == "fork" and child is not None:
            if self.alive[child]:
                raise BadEvent(f"fork: child {child} is a pid that is still running")
            self.alive[child] = True

    def advance(self, batch: Batch, t: IntArray | None, all_have_pid: bool) -> None:
        """Take a batch. Suspect: time went back, or a pid that does not live; the stream is then as before.

        t: int64[k], the times that are there, in order; None without any.
        """
        if t is not None and (t[0] < self.last_t or np.any(t[1:] < t[:-1])):
            raise Suspect
        # cache and truncate have no pid: let them pass as pid 0
        self.alive[0] = not all_have_pid
        try:
            life = np.flatnonzero(_LIFE[batch.op])
            if len(life):
                _advance_lives(self.alive, batch, life)
            else:
                _all_alive(self.alive, batch.pid)
        finally:
            self.alive[0] = False
        if t is not None:
            self.last_t = int(t[-1])


def _all_alive(alive: Alive, pid: npt.NDArray[np.int32]) -> None:
    if len(pid) > _FEW and pid.min() == pid.max():
        pid = pid[:1]  # one process, as in most batches: finding that out is cheaper than looking each one up
    if not alive[pid].all():
        raise Suspect


def _advance_lives(alive: Alive, batch: Batch, life: IntArray) -> None:
    """Between two events that start or end a pid, all pids must be alive; the events themselves are few."""
    undo: list[tuple[int, bool]] = []
    begin = 0
    try:
        for row, op, pid, arg, err in zip(
            life.tolist(),
            batch.op[life].tolist(),
            batch.pid[life].tolist(),
            batch.arg[life].tolist(),
            batch.err[life].tolist(),
            strict=True,
        ):
            if row > begin:
                _all_alive(alive, batch.pid[begin:row])
            begin = row + 1
            _live_event(alive, (op, pid, arg, err), undo)
        _all_alive(alive, batch.pid[begin:])
    except Suspect:
        for pid, was in reversed(undo):
            alive[pid] = was
        raise


def _live_event(alive: Alive, event: tuple[int, int, int, int], undo: list[tuple[int, bool]]) -> None:
    """One exec, fork or exit (op, pid, arg, err), as Stream.step does it."""
    op, pid, child, err = event
    if not alive[pid] and (op != OP_EXEC or err):
        raise Suspect
    if err:
        return
    if op == OP_FORK:
        if child <= 0 or alive[child]:
            raise Suspect
        pid = child
    undo.append((pid, bool(alive[pid])))
    alive[pid] = op != OP_EXIT
