"""Writing a trace: Parquet, beside the target, renamed when it is complete.

Room for the next row group and for the file's end is taken before a row group is written. So when the disk is full the
file can still be closed behind the last complete row group, and stays readable.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pterefd.errors import BadInput, Missing, Partly
from pterefd.mm.events import OP_CODE
from pterefd.outputs import refuse_existing
from pterefd.source.meta import TraceMeta
from pterefd.source.pending import STORED, Part, Pending, as_table, join, op_column, stored, value_array
from pterefd.source.runs import Runs
from pterefd.source.schema import FIELD, INT, LIST, META_KEY, STR
from pterefd.source.sink import EndRoom, Sink, bound
from pterefd.source.trace import BATCH_EVENTS

ROW_GROUP = BATCH_EVENTS
_LEAST = 8 * 1024  # events: a row group that has no room is halved down to this
_PENDING = 16 * 1024  # events added one by one before they become columns

# Measured on 128k faults: deltas for the clock, byte planes for addresses, which compress well also when they are
# random and decode in half the time of deltas; lz4 rather than zstd: 7 % larger, a quarter faster.
_COMPRESSION = "lz4"
_ENCODING = {
    "t": "DELTA_BINARY_PACKED",
    "addr": "BYTE_STREAM_SPLIT",
    "t0": "DELTA_BINARY_PACKED",
    "t1": "DELTA_BINARY_PACKED",
    "new_addr": "BYTE_STREAM_SPLIT",
}
_DICTIONARIES = [name for name in FIELD if name not in _ENCODING and FIELD[name].type in (STR, INT)]

_FULL = {
    errno.ENOSPC: "no space left on the device",
    errno.EDQUOT: "disk quota exceeded",
    errno.EFBIG: "file too large",
}


class TraceWriter:
    """Writes events, in the order in which they are added, to a Parquet file.

    As a context manager it closes at the end, and aborts (leaving nothing) where an exception ends the block; whoever
    wants to keep what there is so far calls `close` first.

    path: the target; it appears at `close`, complete.  meta: stored with it.  force: an existing target is replaced.
    keep: when the disk is full, keep what fits (Partly); without it, leave nothing (Missing).
    runs: faults of one page after the other are stored as one event (runs.py).
    BadInput: the target exists, or cannot be written.
    """

    def __init__(
        self, path: Path | str, meta: TraceMeta, force: bool = False, keep: bool = True, runs: bool = False
    ) -> None:
        self.path = Path(path)
        self.events = 0  # in row groups that are complete
        self.closed = False
        self._force = force
        self._keep = keep
        self._runs = Runs() if runs else None
        self._pending = Pending()
        self._parts: list[Part] = []
        self._waiting = 0
        refuse_existing(self.path, force)
        schema = STORED.with_metadata({META_KEY: meta.to_json()})
        self._temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.part")
        self._end = EndRoom(schema)
        self._open(schema)

    def _open(self, schema: pa.Schema) -> None:
        try:
            self._file = Sink(self._temporary)
        except OSError as error:
            raise BadInput(f"{self.path}: cannot be written: {error.strerror}") from None
        try:
            self._file.reserve(self._end.size)
            self._parquet = pq.ParquetWriter(
                pa.PythonFile(self._file, mode="w"),
                schema,
                compression=_COMPRESSION,
                use_dictionary=_DICTIONARIES,
                column_encoding=_ENCODING,
                write_page_checksum=True,
            )
        except OSError as error:
            self._file.close()
            self._temporary.unlink(missing_ok=True)
            raise Missing(f"{self.path}: nothing written: {_reason(error)}") from None

    def __enter__(self) -> TraceWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    # -- adding -----------------------------------------------------------------------------------

    def add(self, op: str, **fields: Any) -> None:
        """Add one event; a field that is None is left out. KeyError: no such op or field.

        Partly: the disk is full; the file holds what came before, and is closed.
        """
        self._pending.add(op, fields)
        if self._pending.n >= _PENDING:
            self._add_part(self._pending.take())

    def add_columns(self, columns: Mapping[str, npt.NDArray[Any]]) -> None:
        """Add many events that all have the same fields: field name -> n values; op as names or OP_* codes (uint8).

        KeyError: no such field, or no op.  ValueError: lengths that differ.
        """
        n = len(columns["op"])
        arrays = {name: _column(name, values) for name, values in columns.items()}
        for name, array in arrays.items():
            if len(array) != n:
                raise ValueError(f"{name} has {len(array)} values, op has {n}")
        self.add_arrays(arrays, n)

    def add_arrays(self, arrays: Mapping[str, pa.Array], n: int) -> None:
        """Add n events from Arrow columns, nulls where absent: those of a trace's Piece."""
        if self._pending.n:
            self._add_part(self._pending.take())
        self._add_part(Part({name: _as_stored(name, array) for name, array in arrays.items()}, n))

    def _add_part(self, part: Part) -> None:
        if self.closed:
            raise ValueError("the trace writer is closed")
        for begin in range(0, part.n, ROW_GROUP):
            piece = part.slice(begin, min(ROW_GROUP, part.n - begin))
            self._wait(piece if self._runs is None else self._runs.add(piece))

    def _wait(self, part: Part | None) -> None:
        """Events that are stored as they are wait until there is a row group of them."""
        if part is not None:
            self._parts.append(part)
            self._waiting += part.n
            if self._waiting >= ROW_GROUP:
                self._write_waiting(ROW_GROUP)

    # -- writing ----------------------------------------------------------------------------------

    def _write_waiting(self, rows: int) -> None:
        """Write the first of the events that wait as one row group."""
        waiting = join(self._parts)
        self._parts = [waiting.slice(rows, waiting.n - rows)] if waiting.n > rows else []
        self._waiting -= rows
        self._write_group(_compact(as_table(waiting.slice(0, rows))))

    def _write_group(self, group: pa.Table) -> None:
        """Write a row group; where there is not room for all of it, its first half, and so on, then end the file."""
        rows = len(group)
        end = self._end.group(group)
        try:
            self._file.reserve(bound(group) + end + self._end.size)
        except OSError as error:
            if rows < _LEAST:
                self._full(error)
            self._write_group(group.slice(0, rows // 2))
            self._write_group(group.slice(rows // 2))
            return
        self._end.size += end
        try:
            self._parquet.write_table(group, row_group_size=rows)
        except OSError as error:  # not for want of room: the file cannot be relied on
            self.abort()
            raise Missing(f"{self.path}: nothing written: {_reason(error)}") from None
        self.events += rows

    def _full(self, error: OSError) -> None:
        """No room for a row group: keep the file up to it, or nothing."""
        text = _reason(error)
        if not self._keep or not self.events:
            self.abort()
            raise Missing(f"{self.path}: nothing written: {text}") from None
        self._finish()
        raise Partly(f"{self.path}: {text}: the first {self.events} events are kept, the rest is lost") from None

    def _finish(self) -> None:
        """End the file where it is and give it its name."""
        self.closed = True
        try:
            self._file.hold()
            self._parquet.close()
            self._file.finish()
            refuse_existing(self.path, self._force)
            os.replace(self._temporary, self.path)
        except OSError as error:
            self._drop()
            raise Missing(f"{self.path}: nothing written: {_reason(error)}") from None
        except BadInput:
            self._drop()
            raise

    def _drop(self) -> None:
        self._file.discard()
        with contextlib.suppress(OSError, pa.ArrowException):
            self._parquet.close()
        self._file.close()
        self._temporary.unlink(missing_ok=True)

    def close(self) -> None:
        """Write what waits, end the file and give it its name. Does nothing when closed already.

        Partly: the disk is full; the file holds what came before.  BadInput: somebody else made the target meanwhile.
        """
        if self.closed:
            return
        if self._pending.n:
            self._add_part(self._pending.take())
        if self._runs is not None:
            self._wait(self._runs.add(None))
        if self._waiting:
            self._write_waiting(self._waiting)
        self._finish()

    def abort(self) -> None:
        """Remove what was written. Does nothing when closed already."""
        if not self.closed:
            self.closed = True
            self._drop()


def _compact(group: pa.Table) -> pa.Table:
    """The row group with only those ops in op's dictionary that it has: most have faults alone, which read faster."""
    at = group.schema.get_field_index("op")
    ops = group.column(at).combine_chunks()
    codes = ops.indices.to_numpy()
    used = np.unique(codes)
    table = np.zeros(len(ops.dictionary), dtype=np.int8)
    table[used] = np.arange(len(used))
    compact = pa.DictionaryArray.from_arrays(pa.array(table[codes]), ops.dictionary.take(pa.array(used)))
    return group.set_column(at, group.schema.field(at), compact)


def _column(name: str, values: npt.NDArray[Any]) -> pa.Array:
    """A numpy column as Arrow has it."""
    if name == "op":
        if values.dtype.kind not in "iu":
            values = np.array([OP_CODE[op] for op in values.tolist()], dtype=np.int8)
        return op_column(values)
    return value_array(name, values.tolist() if FIELD[name].type in (STR, LIST) else values)


def _as_stored(name: str, array: pa.Array) -> pa.Array:
    """A column of a Piece (columns.canonical) in the type that goes into the file."""
    if name != "op":
        return array.cast(stored(name))
    if array.type == stored("op"):
        return array
    codes = np.array([OP_CODE[word] for word in array.dictionary.to_pylist()], dtype=np.int8)
    return op_column(codes[array.indices.to_numpy()])


def _reason(error: OSError) -> str:
    return _FULL.get(error.errno or 0, error.strerror or str(error))
