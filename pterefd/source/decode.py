"""From columns to batches: a piece of a trace is checked and translated as a whole.

Everything here works on whole columns. A doubt anywhere raises `Suspect` and leaves the decoder as it was; the caller
then goes through the piece event by event (`check_event`, `Stream.step`) to name the first error.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pterefd.engine.layout import SPAN
from pterefd.mm import events
from pterefd.mm.events import ADVICE_CODE, ENTRY_CODE, OPS, Batch
from pterefd.source.columns import Columns, IntArray, Suspect
from pterefd.source.rules import HUGE_ENTRIES, BadEvent, flags_bits
from pterefd.source.schema import (
    ADDRESS_END,
    ERRNO,
    EXPECT_VALUES,
    FIELD,
    FIELDS,
    INT,
    LIST,
    OP,
    PAGE_SIZE,
    PROTS,
    RANGE_OPS,
)
from pterefd.source.stream import Stream

_ALLOWED = {field.name: np.array([field.name in OP[op].fields for op in OPS]) for field in FIELDS}
_REQUIRED = {field.name: np.array([field.name in OP[op].required for op in OPS]) for field in FIELDS}
_IS_RANGE = np.array([op in RANGE_OPS for op in OPS])
_ADDRESSES = ("addr", "start", "new_addr")
_NOT_AN_ADDRESS = ~(ADDRESS_END - PAGE_SIZE)
_NO_ROWS: IntArray = np.empty(0, dtype=np.int64)


class Decoder:
    """Turns the pieces of one trace, in order, into batches.

    thp: M_THP of the batches.
    Invariant: `next` is the index of the first event of the next piece; `paths` holds every path name met so far.
    """

    def __init__(self, thp: int = 0) -> None:
        self.stream = Stream()
        self.thp = thp
        self.next = 0
        self.paths: list[str] = []
        self._path_index: dict[str, int] = {}

    def decode(self, arrays: Mapping[str, pa.Array], n: int) -> Batch:
        """The batch of a piece: field name -> Arrow array of n values of the field's own type (columns.canonical).

        Suspect: an event breaks a rule; the decoder is then as before.
        """
        columns = Columns(arrays, n)
        _check_presence(columns)
        for name in columns.arrays:
            _check_range(name, columns)
        addr, length = _ranges(columns)
        _check_expects(columns)
        err = columns.column("errno").translated(ERRNO).full(0, np.int16) if "errno" in columns else _zeros(n, np.int16)
        batch = Batch(
            t=columns.full("t", events.NO_TIME),
            pid=columns.full("pid", 0, np.int32),
            op=columns.op,
            addr=addr,
            len=length,
            arg=columns.full("write", 0),
            err=err,
            ext=np.empty((0, events.EXT_COLUMNS), dtype=np.int64),
            paths=self.paths,
            first=self.next,
            thp=self.thp,
        )
        self._fill(batch, columns)
        self.stream.advance(
            batch,
            t=columns.column("t").values if "t" in columns else None,
            all_have_pid="pid" in columns and columns.column("pid").rows is None,
        )
        self.next += n
        return batch

    def _fill(self, batch: Batch, columns: Columns) -> None:
        """arg of the ops other than fault, ext and side."""
        if not len(columns.rare):
            return
        _fill_simple(batch.arg, columns)
        path = self._path_codes(columns)
        rows = columns.rows(events.OP_CACHE, events.OP_TRUNCATE)
        batch.arg[rows] = path[rows]
        _fill_ext(batch, columns, path)
        _fill_side(batch, columns)

    def _path_codes(self, columns: Columns) -> IntArray:
        """int64[n]: index in `paths`, -1 without; new names are added (an index is never given again)."""
        if "path" not in columns:
            return np.full(columns.n, -1, dtype=np.int64)
        column = columns.column("path")
        used = np.unique(column.values)
        for code in used.tolist():
            name = column.words[code]
            if name not in self._path_index:
                self._path_index[name] = len(self.paths)
                self.paths.append(name)
        table = np.array([self._path_index.get(word, -1) for word in column.words], dtype=np.int64)
        out = np.full(columns.n, -1, dtype=np.int64)
        out[slice(None) if column.rows is None else column.rows] = table[column.values]
        return out


def _zeros(n: int, dtype: type = np.int64) -> npt.NDArray[Any]:
    return np.zeros(n, dtype=dtype)


def _check_presence(columns: Columns) -> None:
    """Every field stands only where its op has it, and wherever its op needs it."""
    for name in _REQUIRED:
        if name not in columns:
            if columns.counts[_REQUIRED[name]].any():
                raise Suspect
            continue
        counts = columns.field_counts(name)
        if counts[~_ALLOWED[name]].any() or not np.array_equal(
            counts[_REQUIRED[name]], columns.counts[_REQUIRED[name]]
        ):
            raise Suspect


def _check_range(name: str, columns: Columns) -> None:
    """Integers by the field's own range and alignment; nulls inside command lines."""
    field = FIELD[name]
    if field.type == LIST:
        lists = columns.column(name).lists
        if lists is None or lists.flatten().null_count:
            raise Suspect
    if field.type != INT:
        return
    if name == "t":
        return  # from 0 on, by its order: Stream.advance
    values = columns.column(name).values
    if name in _ADDRESSES:
        # one pass: no bit may be set but those of a page in the user half
        if int(np.bitwise_or.reduce(values)) & _NOT_AN_ADDRESS:
            raise Suspect
        return
    if values.min() < field.low or values.max() > field.high:
        raise Suspect
    if field.align > 1 and int(np.bitwise_or.reduce(values)) & (field.align - 1):
        raise Suspect


def _ranges(columns: Columns) -> tuple[IntArray, IntArray]:
    """Batch.addr and Batch.len; what is a range of addresses is aligned, not empty and inside the user half."""
    addr = columns.full("addr", 0)
    if "len" not in columns:
        length = np.full(columns.n, PAGE_SIZE, dtype=np.int64)
        length[columns.rare] = 0
        return addr, length
    length = columns.full("len", -1)
    fault_rows = (length < 0) & (columns.op == events.OP_FAULT)
    length[fault_rows] = PAGE_SIZE
    rows = np.flatnonzero(_IS_RANGE[columns.op])
    of_range = length[rows]
    if len(rows) and (of_range.min() <= 0 or int(np.bitwise_or.reduce(of_range)) & (PAGE_SIZE - 1)):
        raise Suspect
    if len(rows) and (of_range.max() > ADDRESS_END or (addr[rows] + of_range).max() > ADDRESS_END):
        raise Suspect
    length[length < 0] = 0
    rows = columns.rows(events.OP_CACHE)
    if len(rows):
        if length[rows].min() == 0:
            raise Suspect
        addr[rows] = columns.full("offset", 0)[rows]
    return addr, length


def _fill_simple(arg: IntArray, columns: Columns) -> None:
    """Batch.arg of the ops that have one number."""
    for name, code in (
        ("onfault", events.OP_MLOCK),
        ("dropped", events.OP_SWAP_OUT),
        ("start", events.OP_BRK),
        ("disabled", events.OP_THP),
        ("policy", events.OP_MBIND),
    ):
        _fill_arg(arg, columns, name, code)
    for name, code in (("child", events.OP_FORK), ("tid", events.OP_THREAD), ("tid", events.OP_THREAD_EXIT)):
        _fill_arg(arg, columns, name, code)
    for name, codes in (("prot", PROTS), ("advice", ADVICE_CODE), ("entry", ENTRY_CODE)):
        if name in columns:
            columns.column(name).translated(codes)
    _fill_arg(arg, columns, "prot", events.OP_MPROTECT)
    _fill_arg(arg, columns, "advice", events.OP_MADVISE)
    _fill_arg(arg, columns, "entry", events.OP_STATE)
    rows = columns.rows(events.OP_MLOCKALL)
    for name, bit in (
        ("current", events.MCL_CURRENT),
        ("future", events.MCL_FUTURE),
        ("onfault", events.MCL_ONFAULT),
    ):
        if name in columns:
            arg[rows] += columns.full(name, 0)[rows] * bit
    rows = columns.rows(events.OP_STATE)
    for name, bit in (("tables", events.STATE_TABLES), ("huge", events.STATE_HUGE)):
        if name in columns:
            arg[rows] += columns.full(name, 0)[rows] * bit
    _check_huge(columns, rows[(arg[rows] & events.STATE_HUGE) != 0], arg)


def _check_huge(columns: Columns, rows: IntArray, arg: IntArray) -> None:
    """A `state` of huge pages is about whole spans of folios, or of the huge zero page."""
    if len(rows):
        both = columns.full("addr", 0)[rows] | columns.full("len", 0)[rows]
        entries = arg[rows] & (events.STATE_TABLES - 1)
        if int(np.bitwise_or.reduce(both)) & (SPAN - 1) or not np.isin(entries, HUGE_ENTRIES).all():
            raise Suspect


def _fill_arg(arg: IntArray, columns: Columns, name: str, code: int) -> None:
    rows = columns.rows(code)
    if len(rows) and name in columns:
        arg[rows] = columns.full(name, 0)[rows]


def _fill_ext(batch: Batch, columns: Columns, path: IntArray) -> None:
    """Batch.ext: what mmap and mremap carry beyond the columns."""
    both = columns.rows(events.OP_MMAP, events.OP_MREMAP)
    if not len(both):
        return
    batch.arg[both] = np.arange(len(both))
    batch.ext = np.zeros((len(both), events.EXT_COLUMNS), dtype=np.int64)
    rows = columns.rows(events.OP_MMAP)
    if len(rows):
        at = batch.arg[rows]
        batch.ext[at, events.X_PROT] = columns.full("prot", 0)[rows]
        batch.ext[at, events.X_FLAGS] = _flags(columns)[rows]
        batch.ext[at, events.X_PATH] = path[rows]
        batch.ext[at, events.X_OFFSET] = offset = columns.full("offset", -1)[rows]
        batch.ext[at, events.X_FILE_SIZE] = columns.full("file_size", -1)[rows]
        if np.any((offset > 0) & (offset & (PAGE_SIZE - 1) != 0)):
            raise Suspect
    rows = columns.rows(events.OP_MREMAP)
    if len(rows):
        at = batch.arg[rows]
        batch.ext[at, events.X_NEW_ADDR] = new_addr = columns.full("new_addr", 0)[rows]
        batch.ext[at, events.X_NEW_LEN] = new_len = columns.full("new_len", 0)[rows]
        batch.ext[at, events.X_DONTUNMAP] = columns.full("dontunmap", 0)[rows]
        if (new_addr + new_len).max() > ADDRESS_END:
            raise Suspect


def _flags(columns: Columns) -> IntArray:
    """int64[n]: MAP_* bits of mmap's flags."""
    column = columns.column("flags")
    bits: dict[str, int] = {}
    for code in np.unique(column.values).tolist():
        try:
            bits[column.words[code]] = flags_bits(column.words[code])
        except BadEvent:
            raise Suspect from None
    return column.translated(bits).full(0)


def _fill_side(batch: Batch, columns: Columns) -> None:
    """Batch.side: the fields of exec and expect as dicts."""
    rows = columns.rows(events.OP_EXEC, events.OP_EXPECT)
    if not len(rows):
        return
    batch.arg[rows] = np.arange(len(rows))
    side: list[dict[str, Any]] = [{} for _ in range(len(rows))]
    where = np.full(columns.n, -1, dtype=np.int64)
    where[rows] = batch.arg[rows]
    for name in _SIDE_FIELDS:
        if name in columns:
            column = columns.column(name)
            at = where if column.rows is None else where[column.rows]
            for index, value in zip(at.tolist(), column.python(), strict=True):
                side[index][name] = value
    batch.side = side


_SIDE_FIELDS = [
    name for name in FIELD if name in (OP["exec"].fields | OP["expect"].fields) - {"op", "pid", "t", "errno"}
]


def _check_expects(columns: Columns) -> None:
    """An expect has something to compare, and both ends of its window or none."""
    rows = columns.rows(events.OP_EXPECT)
    if not len(rows):
        return
    has = np.zeros(columns.n, dtype=np.bool_)
    for name in EXPECT_VALUES:
        if name in columns:
            present = columns.column(name).rows
            has[slice(None) if present is None else present] = True
    if not has[rows].all():
        raise Suspect
    t0, t1 = columns.full("t0", -1)[rows], columns.full("t1", -1)[rows]
    if np.any((t0 < 0) != (t1 < 0)) or np.any(t0 > t1):
        raise Suspect
