"""From batches to columns: what `decode` does, the other way round."""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pterefd.mm import events as ev
from pterefd.mm.events import Batch
from pterefd.source.columns import canonical
from pterefd.source.pending import op_column
from pterefd.source.schema import ARROW, OP, PAGE_SIZE, PROTS

_PROT_WORDS = ["---"] * 8
for _word, _bits in PROTS.items():
    _PROT_WORDS[_bits] = _word

Mask = npt.NDArray[np.bool_]
_HAS = {name: np.array([name in OP[op].fields for op in ev.OPS]) for name in ARROW.names}


class _Arrays:
    """The columns of a piece, made one by one."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.n = len(batch)
        self.arrays: dict[str, pa.Array] = {"op": canonical("op", op_column(batch.op))}

    def numbers(self, name: str, values: npt.NDArray[Any], there: Mask) -> None:
        """A column of integers or booleans, where they are there."""
        if there.all():
            self.arrays[name] = pa.array(values).cast(ARROW.field(name).type)
        elif there.any():
            self.arrays[name] = pa.array(values, mask=~there).cast(ARROW.field(name).type)

    def of_op(self, name: str, values: npt.NDArray[Any], *ops: int) -> None:
        """A column of these ops' events alone."""
        self.numbers(name, values, np.isin(self.batch.op, ops))

    def words(self, name: str, words: Mapping[int, Any] | Sequence[Any], codes: npt.NDArray[Any], there: Mask) -> None:
        """A column of strings or lists, words[code] where there."""
        rows = np.flatnonzero(there)
        if not len(rows):
            return
        values: list[Any] = [None] * self.n
        for row, code in zip(rows.tolist(), codes[rows].tolist(), strict=True):
            values[row] = words[code]
        self.arrays[name] = canonical(name, pa.array(values, ARROW.field(name).type))


def arrays_of(batch: Batch) -> dict[str, pa.Array]:
    """The batch as Arrow columns in canonical types (columns.canonical), null where absent; all-null ones left out."""
    made = _Arrays(batch)
    op, arg = batch.op, batch.arg
    made.numbers("t", batch.t, batch.t >= 0)
    made.numbers("pid", batch.pid, batch.pid > 0)
    made.numbers("addr", batch.addr, _HAS["addr"][op])
    made.numbers("len", batch.len, _HAS["len"][op] & ~((op == ev.OP_FAULT) & (batch.len == PAGE_SIZE)))
    made.of_op("write", arg != 0, ev.OP_FAULT)
    _add_mappings(made)
    made.numbers("start", arg, (op == ev.OP_BRK) & (arg != 0))
    made.words("advice", ev.ADVICE, arg, op == ev.OP_MADVISE)
    made.numbers("onfault", arg != 0, (op == ev.OP_MLOCK) & (arg != 0))
    made.numbers("dropped", arg != 0, (op == ev.OP_SWAP_OUT) & (arg != 0))
    is_state = op == ev.OP_STATE
    made.words("entry", ev.ENTRIES, arg & (ev.STATE_TABLES - 1), is_state)
    for name, bit in (("tables", ev.STATE_TABLES), ("huge", ev.STATE_HUGE)):
        made.numbers(name, arg & bit != 0, is_state & (arg & bit != 0))
    made.of_op("disabled", arg != 0, ev.OP_THP)
    made.numbers("child", arg, (op == ev.OP_FORK) & (arg > 0))
    made.of_op("tid", arg, ev.OP_THREAD, ev.OP_THREAD_EXIT)
    made.words("errno", errno.errorcode, batch.err, batch.err != 0)
    _add_side(made)
    return {name: made.arrays[name] for name in ARROW.names if name in made.arrays}


def _add_mappings(made: _Arrays) -> None:
    """What mmap, mremap, mprotect and files carry."""
    batch, op = made.batch, made.batch.op
    is_mmap, is_mremap = op == ev.OP_MMAP, op == ev.OP_MREMAP
    of_file = np.isin(op, (ev.OP_CACHE, ev.OP_TRUNCATE))
    prot = np.where(op == ev.OP_MPROTECT, batch.arg, 0)
    path = np.where(of_file, batch.arg, -1)
    offset = np.where(op == ev.OP_CACHE, batch.addr, -1)
    ext = np.zeros((made.n, ev.EXT_COLUMNS), dtype=np.int64)
    both = is_mmap | is_mremap
    ext[both] = batch.ext[batch.arg[both]]
    prot[is_mmap] = ext[is_mmap, ev.X_PROT]
    path[is_mmap] = ext[is_mmap, ev.X_PATH]
    offset[is_mmap] = ext[is_mmap, ev.X_OFFSET]
    made.words("prot", _PROT_WORDS, prot, is_mmap | (op == ev.OP_MPROTECT))
    flags = {bits: _flag_words(bits) for bits in np.unique(ext[is_mmap, ev.X_FLAGS]).tolist()}
    made.words("flags", flags, ext[:, ev.X_FLAGS], is_mmap)
    made.words("path", batch.paths, path, path >= 0)
    made.numbers("offset", offset, offset >= 0)
    made.numbers("file_size", ext[:, ev.X_FILE_SIZE], is_mmap & (ext[:, ev.X_FILE_SIZE] >= 0))
    made.numbers("new_addr", ext[:, ev.X_NEW_ADDR], is_mremap)
    made.numbers("new_len", ext[:, ev.X_NEW_LEN], is_mremap)
    made.numbers("dontunmap", ext[:, ev.X_DONTUNMAP] != 0, is_mremap & (ext[:, ev.X_DONTUNMAP] != 0))


def _flag_words(bits: int) -> str:
    """`private,anonymous`: private or shared first, as the format has it."""
    return ",".join(name for name, bit in ev.MAP_FLAG_BIT.items() if bits & bit)


def _add_side(made: _Arrays) -> None:
    """The fields of exec and expect."""
    rows = np.flatnonzero(np.isin(made.batch.op, (ev.OP_EXEC, ev.OP_EXPECT)))
    values: dict[str, list[Any]] = {}
    for row, at in zip(rows.tolist(), made.batch.arg[rows].tolist(), strict=True):
        for name, value in made.batch.side[at].items():
            values.setdefault(name, [None] * made.n)[row] = value
    for name, column in values.items():
        made.arrays[name] = canonical(name, pa.array(column, ARROW.field(name).type))
