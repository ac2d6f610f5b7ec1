"""A trace as operations one by one, accesses of pages that follow each other as one; and what it will need."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from pterefd.host.host import SYSV, kind_of_path
from pterefd.mm import events as ev
from pterefd.reenact.build import PGD_SLOT
from pterefd.source.schema import PAGE_SIZE
from pterefd.source.trace import Piece, Trace

PGD_SLOTS = 256  # of the user half of an address space with four levels
LONGEST_FAULT = 1 << 16  # pages of one access, so that the agent answers in time

Row = dict[str, Any]


class Operation(NamedTuple):
    """An event, or a run of accesses. event: index of the (first) one; events: how many; row: the fields."""

    event: int
    events: int
    row: Row


def stand_in(path: str) -> str:
    """The path that the new trace has: a memfd, which is read in windows, stands in for a System V segment."""
    return f"/memfd:{path.lstrip('/')}" if path.startswith(SYSV) else path


def operations(trace: Trace, every: int = 0) -> Iterator[Operation]:
    """The trace's events in order. every: no run of accesses goes over a multiple of so many events (0: any may)."""
    for piece in trace.pieces():
        yield from _of_piece(piece, every)


def _of_piece(piece: Piece, every: int) -> Iterator[Operation]:
    batch = piece.batch
    faults = (batch.op == ev.OP_FAULT) & (batch.err == 0)
    begins = _run_begins(batch, faults, every)
    others = np.flatnonzero(~faults)
    rows = iter(pa.table(dict(piece.arrays)).take(pa.array(others)).to_pylist())
    ends = np.append(begins[1:], len(batch))
    first, pages, writes = batch.addr, np.concatenate(([0], np.cumsum(batch.len))), batch.arg
    for begin, end, is_fault in zip(begins.tolist(), ends.tolist(), faults[begins].tolist(), strict=True):
        index = batch.first + begin
        if is_fault:
            length = int(pages[end] - pages[begin])
            row: Row = {"op": "fault", "pid": int(batch.pid[begin]), "addr": int(first[begin]), "len": length}
            yield from _fault(Operation(index, end - begin, row | {"write": bool(writes[begin])}))
        else:
            row = {name: value for name, value in next(rows).items() if value is not None and name != "t"}
            if "path" in row:
                row["path"] = stand_in(row["path"])
            yield Operation(index, 1, row)


def _fault(operation: Operation) -> Iterator[Operation]:
    """A very long access in pieces."""
    row = operation.row
    most = LONGEST_FAULT * PAGE_SIZE
    for at in range(0, row["len"], most):
        piece = row | {"addr": row["addr"] + at, "len": min(most, row["len"] - at)}
        yield Operation(operation.event, operation.events if at + most >= row["len"] else 0, piece)


def _run_begins(batch: ev.Batch, faults: Any, every: int) -> Any:
    """int64: where operations begin: every event but an access that goes on where the one before it ended."""
    if not len(batch):
        return np.zeros(0, dtype=np.int64)
    goes_on = faults[1:] & faults[:-1] & (batch.pid[1:] == batch.pid[:-1]) & (batch.arg[1:] == batch.arg[:-1])
    goes_on &= batch.addr[1:] == batch.addr[:-1] + batch.len[:-1]
    if every:
        goes_on &= (batch.first + np.arange(1, len(batch))) % every != 0
    return np.flatnonzero(np.concatenate(([True], ~goes_on)))


@dataclass(slots=True)
class Survey:
    """What must be known before the first operation.

    sizes: bytes of each mapped path, the largest that an mmap says or reaches.  told: paths of which the trace tells
    what is in the page cache.  pgd_slots: those of the address space that the trace uses.  processes: most that live at
    a time.  checkpoints: number of `expect`.
    """

    sizes: dict[str, int] = field(default_factory=dict)
    told: set[str] = field(default_factory=set)
    pgd_slots: set[int] = field(default_factory=set)
    processes: int = 0
    checkpoints: int = 0

    def free_slot(self) -> int | None:
        """A PGD slot that nothing of the trace lies in; None where there is none."""
        # Slot 0 has the lowest addresses, which may not be mapped, the last one what execve maps.
        return next((slot for slot in (*range(64, 128), *range(1, 255)) if slot not in self.pgd_slots), None)


def survey(trace: Trace) -> Survey:
    """Go through the trace once. TraceError: as Trace.batches."""
    found = Survey()
    living: set[int] = set()
    for batch in trace.batches():
        _note_slots(found, batch)
        _note_files(found, batch)
        found.checkpoints += int((batch.op == ev.OP_EXPECT).sum())
        for i in np.flatnonzero(np.isin(batch.op, (ev.OP_EXEC, ev.OP_FORK, ev.OP_EXIT)) & (batch.err == 0)).tolist():
            if batch.op[i] == ev.OP_EXIT:
                living.discard(int(batch.pid[i]))
            else:
                living.add(int(batch.arg[i] if batch.op[i] == ev.OP_FORK else batch.pid[i]))
            found.processes = max(found.processes, len(living))
    return found


def _note_slots(found: Survey, batch: ev.Batch) -> None:
    addressed = ~np.isin(batch.op, (ev.OP_CACHE, ev.OP_TRUNCATE))
    start, length = batch.addr[addressed], batch.len[addressed]
    slots = np.concatenate([start // PGD_SLOT, (start + np.maximum(length, 1) - 1) // PGD_SLOT])
    found.pgd_slots.update(np.unique(slots).tolist())
    for at in np.flatnonzero(length > PGD_SLOT).tolist():
        found.pgd_slots.update(range(int(start[at]) // PGD_SLOT, int(start[at] + length[at]) // PGD_SLOT + 1))
    moves = batch.ext[batch.arg[batch.op == ev.OP_MREMAP]]
    for begin, length_ in zip(moves[:, ev.X_NEW_ADDR].tolist(), moves[:, ev.X_NEW_LEN].tolist(), strict=True):
        found.pgd_slots.update(range(begin // PGD_SLOT, (begin + length_) // PGD_SLOT + 1))


def _note_files(found: Survey, batch: ev.Batch) -> None:
    for i in np.flatnonzero(batch.op == ev.OP_MMAP).tolist():
        row = batch.ext[batch.arg[i]]
        path = stand_in(batch.paths[row[ev.X_PATH]]) if row[ev.X_PATH] >= 0 else "["
        if kind_of_path(path) >= 0:
            size = int(row[ev.X_FILE_SIZE])
            if size < 0:
                size = max(int(row[ev.X_OFFSET]), 0) + int(batch.len[i])
            found.sizes[path] = max(found.sizes.get(path, 0), size)
    for i in np.flatnonzero(batch.op == ev.OP_CACHE).tolist():
        found.told.add(stand_in(batch.paths[int(batch.arg[i])]))
